"""What the sandbox keeps: accepted emails, the log of requests, and its settings."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .signing import is_secret

# What happens to mail for the test addresses at resend.dev; all other mail is delivered.
_TEST_ADDRESSES = {"bounced": "bounced", "complained": "complained", "suppressed": "suppressed"}


@dataclass(frozen=True, slots=True)
class Email:
    """One accepted email. `fields` is what the client sent, without nulls."""

    id: str
    received_at: float
    path: str
    index: int
    """Its place in the batch; 0 for a single email."""
    idempotency_key: str | None
    fields: dict[str, Any]
    suppressed: bool = False
    """Whether an address was on the suppression list when it came in."""

    @property
    def sender(self) -> str:
        """The `from` field; empty when a template is to bring it."""
        return str(self.fields.get("from", ""))

    @property
    def to(self) -> list[str]:
        """The recipients, always as a list (as are cc, bcc and reply_to)."""
        return _as_list(self.fields.get("to"))

    @property
    def cc(self) -> list[str]:
        return _as_list(self.fields.get("cc"))

    @property
    def bcc(self) -> list[str]:
        return _as_list(self.fields.get("bcc"))

    @property
    def reply_to(self) -> list[str]:
        return _as_list(self.fields.get("reply_to"))

    @property
    def subject(self) -> str:
        return str(self.fields.get("subject", ""))

    @property
    def html(self) -> str | None:
        return self.fields.get("html")

    @property
    def text(self) -> str | None:
        return self.fields.get("text")

    @property
    def headers(self) -> dict[str, str]:
        """The custom headers."""
        return dict(self.fields.get("headers", {}))

    @property
    def tags(self) -> dict[str, str]:
        """The tags as `{name: value}`, the form in which webhooks return them."""
        return {tag["name"]: tag["value"] for tag in self.fields.get("tags", [])}

    @property
    def last_event(self) -> str:
        """`suppressed`, `scheduled`, what Resend's test addresses stand for, or `delivered`."""
        if self.suppressed:
            return "suppressed"
        if "scheduled_at" in self.fields:
            return "scheduled"
        local, _, domain = self.to[0].rstrip("> ").rpartition("<")[2].partition("@")
        return _TEST_ADDRESSES.get(local.partition("+")[0], "delivered") if domain == "resend.dev" else "delivered"

    def as_json(self) -> dict[str, Any]:
        """All that is known of the email, flat."""
        return {
            **self.fields,
            "id": self.id,
            "received_at": self.received_at,
            "path": self.path,
            "index": self.index,
            "idempotency_key": self.idempotency_key,
        }

    def as_resend(self) -> dict[str, Any]:
        """The email as `GET /emails/{id}` returns it."""
        created = datetime.datetime.fromtimestamp(self.received_at, datetime.UTC)
        return {
            "object": "email",
            "id": self.id,
            "message_id": f"<{self.id}@sandbox.invalid>",
            "to": self.to,
            "from": self.sender,
            "created_at": created.strftime("%Y-%m-%d %H:%M:%S.%f+00"),
            "subject": self.subject,
            "html": self.html,
            "text": self.text,
            "cc": self.cc,
            "bcc": self.bcc,
            "reply_to": self.reply_to,
            "last_event": self.last_event,
            "scheduled_at": self.fields.get("scheduled_at"),
            "tags": self.fields.get("tags", []),
        }


@dataclass(slots=True)
class LogEntry:
    """One request to the API. It is logged when it has arrived and completed when it is answered."""

    at: float
    """When it arrived (Unix time)."""
    method: str
    path: str
    idempotency_key: str | None
    body_sha256: str
    answered_at: float | None = None
    """When the answer was about to be written; None while the request is being handled or held."""
    status: int | None = None
    """The status answered; None while there is no answer, and for ever if the connection was closed without one."""
    fault: str | None = None
    """The kind of the fault that was applied."""
    replayed: bool = False
    """Whether the answer is that of an earlier request with the same idempotency key."""
    accepted: int = 0
    """How many emails this request brought in."""

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(slots=True)
class Settings:
    """What can be set when the sandbox is made and changed while it runs."""

    rate: int | None = None
    """Requests allowed per second; None: no limit, and no ratelimit headers."""
    sliding: bool = False
    """Whether a second is any second, or one of the wall clock."""
    latency_ms: float = 0
    """How long every request to the API takes before it is accepted."""
    jitter_ms: float = 0
    """Up to this much more, at random."""
    way_there: float = 0
    """Which part of it passes before the request counts against the rate, from 0 to 1."""
    api_keys: list[str] | None = None
    """The keys that are known, others are answered 403 invalid_api_key; None: every key will do."""
    suspended_keys: list[str] = field(default_factory=list)
    """Keys that are answered 403 suspended_api_key."""
    key_seconds: float = 24 * 60 * 60
    """How long an idempotency key is remembered."""
    store_errors: bool = False
    """Whether an error is remembered under its idempotency key (Resend does not say), or the next try is a new one."""
    webhook_url: str | None = None
    """Where the events of mails that come in are posted, as Resend's webhooks are; None: nowhere."""
    webhook_secret: str | None = None
    """What signs them: `whsec_` and base64."""

    def change(self, **changes: Any) -> None:
        """Set the given fields; a bad one raises ValueError and changes nothing."""
        for name, value in changes.items():
            if name not in _CHECKS:
                raise ValueError(f"unknown setting {name!r}; settings are {', '.join(_CHECKS)}")
            expected, is_good = _CHECKS[name]
            if not is_good(value):
                raise ValueError(f"setting {name!r} must be {expected}, not {value!r}")
        for name, value in changes.items():
            setattr(self, name, value)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def is_number(value: object) -> bool:
    """Whether this is a finite number that is not negative."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "rate": (
        "a positive integer or null",
        lambda v: v is None or (isinstance(v, int) and not isinstance(v, bool) and v > 0),
    ),
    "sliding": ("true or false", lambda v: isinstance(v, bool)),
    "latency_ms": ("a number of milliseconds", is_number),
    "jitter_ms": ("a number of milliseconds", is_number),
    "way_there": ("a number from 0 to 1", lambda v: is_number(v) and v <= 1),
    "api_keys": ("a list of strings or null", lambda v: v is None or _is_strings(v)),
    "suspended_keys": ("a list of strings", _is_strings),
    "key_seconds": ("a number of seconds", is_number),
    "store_errors": ("true or false", lambda v: isinstance(v, bool)),
    "webhook_url": ("an http(s) URL or null", lambda v: v is None or (isinstance(v, str) and v.startswith("http"))),
    "webhook_secret": ("whsec_ and base64, or null", lambda v: v is None or (isinstance(v, str) and is_secret(v))),
}


def _as_list(value: object) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)  # type: ignore[call-overload]
