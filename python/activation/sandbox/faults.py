"""Faults on demand: what can go wrong with a request that sends email, and the queue of those to come."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from .messages import DEFAULT_ERRORS, Response, json_response
from .records import is_number

SENDING_PATHS = ("/emails", "/emails/batch")

KINDS = {
    "status": "an error of your choice is answered; nothing is accepted",
    "html": "an HTML error page is answered, as by a proxy; nothing is accepted",
    "drop_before": "the connection is closed without an answer; nothing is accepted",
    "stall_before": "the request is held, its idempotency key in flight; accepted and answered when released",
    "latency": "the request takes `ms` longer",
    "drop_after": "accepted, then the connection is closed without an answer",
    "error_after": "accepted, then an error is answered",
    "garbage": "accepted, then 200 is answered with a body that is not JSON",
    "partial": "accepted, then the connection is closed in the middle of the body",
    "stall": "accepted, then the answer is held until released",
    "trickle": "accepted, then answered one byte every `ms`",
}

# These are decided before the request is looked at.
REFUSING = frozenset({"status", "html", "drop_before"})

_HTML_PAGE = "<!DOCTYPE html>\n<html><head><title>{status}</title></head><body><h1>Error {status}</h1></body></html>\n"


@dataclass(slots=True)
class Fault:
    """One entry of the queue: what happens, to how many requests, and to which."""

    kind: str
    times: int | None = 1
    """How many requests it meets; None: all, until the faults are cleared."""
    endpoint: str | None = None
    """`/emails` or `/emails/batch`; None: both."""
    status: int | None = None
    """Of `status`, `html` and `error_after`; defaults 500, 502 and 500."""
    name: str | None = None
    """Resend's error name; by default the usual one for the status."""
    message: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Further response headers, such as retry-after."""
    body: str | None = None
    """The whole body of `status`, `html`, `error_after` or `garbage`, in place of Resend's JSON."""
    content_type: str | None = None
    ms: float = 0
    """Milliseconds, of `latency` and `trickle`."""

    def __post_init__(self) -> None:
        """Refuse what could not be meant."""
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of fault {self.kind!r}; kinds are {', '.join(KINDS)}")
        if self.times is not None and (not isinstance(self.times, int) or self.times < 1):
            raise ValueError(f"'times' must be a positive integer or null, not {self.times!r}")
        if self.endpoint is not None and self.endpoint not in SENDING_PATHS:
            raise ValueError(f"'endpoint' must be one of {', '.join(SENDING_PATHS)}, not {self.endpoint!r}")
        if self.status is not None and (not isinstance(self.status, int) or not 200 <= self.status <= 599):
            raise ValueError(f"'status' must be an HTTP status from 200 to 599, not {self.status!r}")
        for text in ("name", "message", "body", "content_type"):
            if not isinstance(getattr(self, text), (str, type(None))):
                raise ValueError(f"{text!r} must be a string")
        if not isinstance(self.headers, dict):
            raise ValueError("'headers' must be an object")
        self.headers = {str(name): str(value) for name, value in self.headers.items()}
        head = [*self.headers, *self.headers.values(), self.content_type or ""]
        if any(not text.isprintable() or not text.isascii() for text in head):
            raise ValueError("headers must be printable ASCII")
        if not is_number(self.ms):
            raise ValueError(f"'ms' must be a number of milliseconds, not {self.ms!r}")

    @classmethod
    def from_json(cls, value: object) -> Fault:
        """A fault from a JSON object; ValueError says what is wrong with it."""
        if not isinstance(value, dict) or "kind" not in value:
            raise ValueError("a fault must be an object with a 'kind'")
        known = [entry.name for entry in dataclasses.fields(cls)]
        for name in value:
            if name not in known:
                raise ValueError(f"unknown field {name!r} of a fault; fields are {', '.join(known)}")
        return cls(**value)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def response(self) -> Response:
        """The answer of `status`, `html`, `error_after` and `garbage`."""
        if self.kind == "garbage":
            body = "this is not JSON" if self.body is None else self.body
            return Response(200, body.encode(), self.content_type or "application/json; charset=utf-8", self.headers)
        status = self.status or (502 if self.kind == "html" else 500)
        if self.kind == "html":
            body = _HTML_PAGE.format(status=status) if self.body is None else self.body
            return Response(status, body.encode(), self.content_type or "text/html; charset=UTF-8", self.headers)
        if self.body is not None:
            return Response(status, self.body.encode(), self.content_type or "text/plain; charset=UTF-8", self.headers)
        name, message = DEFAULT_ERRORS.get(status, ("application_error", "An unexpected error occurred."))
        error = {"statusCode": status, "message": self.message or message, "name": self.name or name}
        plain = json_response(error, status)
        return Response(status, plain.body, self.content_type or plain.content_type, self.headers)


class FaultQueue:
    """Faults in the order they were asked for. Not locked: its owner is."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Append a copy, so that counting down does not change the caller's fault."""
        self._faults.append(dataclasses.replace(fault))

    def take(self, path: str) -> Fault | None:
        """The first fault that meets a request to `path`; used up when it has met its last."""
        for position, fault in enumerate(self._faults):
            if fault.endpoint in (None, path):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times == 0:
                        del self._faults[position]
                return fault
        return None

    def clear(self) -> None:
        self._faults.clear()

    def as_json(self) -> list[dict[str, Any]]:
        return [fault.as_json() for fault in self._faults]
