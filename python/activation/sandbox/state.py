"""All that the sandbox remembers, behind one lock."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .events import Event, events_of, iso
from .faults import Fault, FaultQueue
from .messages import ApiError, Response
from .records import Email, LogEntry, Settings

# How often a held request looks whether its client has hung up.
_HANG_UP_CHECK = 0.05

# Resend's scope of an idempotency key: the key, the HTTP method and the endpoint.
Slot = tuple[str, str, str]


@dataclass(slots=True)
class _KeyRecord:
    """What an idempotency key was used for; no response yet: in flight."""

    at: float
    body_sha256: str
    response: Response | None = None


@dataclass(frozen=True, slots=True)
class Suppression:
    """An address that gets no mail. origin: bounce, complaint or manual."""

    id: str
    email: str
    origin: str
    at: float

    def as_resend(self) -> dict[str, object]:
        """As `GET /suppressions` returns it."""
        return {
            "object": "suppression",
            "id": self.id,
            "email": self.email,
            "origin": self.origin,
            "source_id": None,
            "created_at": iso(self.at),
        }


class State:
    """Emails, log, faults, idempotency keys, settings. Every method is thread safe; `changed` guards them all."""

    def __init__(self, settings: Settings) -> None:
        self.changed = threading.Condition()  # Reentrant, so that a predicate of wait_for may ask us things.
        self.settings = settings
        self.emails: list[Email] = []
        self.log: list[LogEntry] = []
        self.faults = FaultQueue()
        self.held = 0
        self.suppressions: dict[str, Suppression] = {}
        self._happened: list[Event] = []
        self._pushed_emails = self._pushed_events = 0
        self._places: dict[str, int] = {}
        self._keys: dict[Slot, _KeyRecord] = {}
        self._releases = 0
        self._counted: deque[float] = deque()

    def begin(self, entry: LogEntry) -> None:
        """Log a request that has arrived."""
        with self.changed:
            self.log.append(entry)
            self.changed.notify_all()

    def finish(self, entry: LogEntry, status: int | None) -> None:
        """Note how a request was answered."""
        with self.changed:
            entry.answered_at = time.time()
            entry.status = status
            self.changed.notify_all()

    def count_against_rate(self) -> dict[str, str]:
        """Count a request; its rate headers, or 429 when this second, or the last one, is used up."""
        with self.changed:
            limit = self.settings.rate
            if limit is None:
                return {}
            now = time.time()
            begin = now - 1 if self.settings.sliding else float(int(now))
            while self._counted and self._counted[0] < begin:
                self._counted.popleft()
            self._counted.append(now)
            used = len(self._counted)
            headers = {
                "ratelimit-limit": str(limit),
                "ratelimit-remaining": str(max(0, limit - used)),
                "ratelimit-reset": "1",
                "ratelimit-policy": f"{limit};w=1",
            }
            if used > limit:
                message = f"Too many requests. You can only make {limit} requests per second."
                raise ApiError(429, "rate_limit_exceeded", message, {**headers, "retry-after": "1"})
            return headers

    def take_fault(self, entry: LogEntry) -> Fault | None:
        """The fault that this request meets."""
        with self.changed:
            fault = self.faults.take(entry.path)
            if fault is not None:
                entry.fault = fault.kind
                self.changed.notify_all()
            return fault

    def reserve(self, slot: Slot, body_sha256: str) -> Response | None:
        """Put a key in flight; or the response it already had; or 409."""
        with self.changed:
            now = time.time()
            # The oldest record comes first, so that forgetting costs nothing where nothing is forgotten.
            while self._keys and next(iter(self._keys.values())).at + self.settings.key_seconds <= now:
                del self._keys[next(iter(self._keys))]
            record = self._keys.get(slot)
            if record is None:
                self._keys[slot] = _KeyRecord(now, body_sha256)
                return None
            if record.response is None:
                message = "Another request with this idempotency key is in progress. Try the request again later."
                raise ApiError(409, "concurrent_idempotent_requests", message)
            if record.body_sha256 != body_sha256:
                message = (
                    "This idempotency key has been used with this HTTP method and endpoint within the last 24 hours, "
                    "but the request body was modified and doesn't match the original request."
                )
                raise ApiError(409, "invalid_idempotent_request", message)
            return record.response

    def settle(self, slot: Slot | None, response: Response, emails: list[Email], entry: LogEntry) -> None:
        """Accept emails and keep the response under the key, in one step: nobody sees the one without the other."""
        with self.changed:
            for email in emails:
                self._places[email.id] = len(self.emails)
                self.emails.append(email)
            entry.accepted = len(emails)
            if slot is not None:
                if response.status < 400 or self.settings.store_errors:
                    # The record is gone if everything was cleared meanwhile.
                    if slot in self._keys:
                        self._keys[slot].response = response
                else:
                    self._keys.pop(slot, None)
            self.changed.notify_all()

    def forget(self, slot: Slot) -> None:
        """Take a key out of flight, as if it had not been used."""
        with self.changed:
            self._keys.pop(slot, None)

    def hold(self, hung_up: Callable[[], bool]) -> bool:
        """Wait until released. False if the client hung up first."""
        with self.changed:
            releases = self._releases
            self.held += 1
            self.changed.notify_all()
            try:
                while self._releases == releases:
                    if hung_up():
                        return False
                    self.changed.wait(_HANG_UP_CHECK)
                return True
            finally:
                self.held -= 1
                self.changed.notify_all()

    def release(self) -> None:
        """Let go of all that is held at this moment."""
        with self.changed:
            self._releases += 1
            self.changed.notify_all()

    def find(self, email_id: str) -> Email | None:
        """The accepted email with this id."""
        with self.changed:
            place = self._places.get(email_id)
            return None if place is None else self.emails[place]

    def newest(self, limit: int, before: str | None = None, to: str | None = None) -> tuple[list[Email], bool]:
        """Up to `limit` emails, newest first, older than the one named; and whether there are more."""
        with self.changed:
            start = len(self.emails) if before is None else self._places.get(before, 0)
            found: list[Email] = []
            for place in range(start - 1, -1, -1):
                email = self.emails[place]
                if to is None or any(to.lower() in address.lower() for address in email.to):
                    if len(found) == limit:
                        return found, True
                    found.append(email)
            return found, False

    def newer(self, limit: int, after: str) -> tuple[list[Email], bool]:
        """Up to `limit` emails that came next after the one named, newest first; and whether there are more."""
        with self.changed:
            start = self._places.get(after, len(self.emails)) + 1
            return self.emails[start : start + limit][::-1], len(self.emails) > start + limit

    def events(self) -> list[Event]:
        """All that has happened to mails, and what was told besides, newest first."""
        with self.changed:
            found = [event for email in self.emails for event in events_of(email)]
            return sorted([*found, *self._happened], key=lambda event: event.at, reverse=True)

    def happen(self, payload: dict[str, Any]) -> Event:
        """Something else that Resend tells: a payload with `type` and `data`."""
        with self.changed:
            at = time.time()
            event = Event(f"msg_{uuid.uuid4().hex}", at, {"created_at": iso(at), **payload})
            self._happened.append(event)
            self.changed.notify_all()
            return event

    def unpushed(self) -> bool:
        """Whether something has happened that no webhook has told, and where to is known."""
        return self.settings.webhook_url is not None and (
            self._pushed_emails < len(self.emails) or self._pushed_events < len(self._happened)
        )

    def take_unpushed(self) -> list[Event]:
        """That, oldest first; it counts as told."""
        with self.changed:
            if not self.unpushed():
                return []
            found = [event for email in self.emails[self._pushed_emails :] for event in events_of(email)]
            found += self._happened[self._pushed_events :]
            self._pushed_emails, self._pushed_events = len(self.emails), len(self._happened)
            return sorted(found, key=lambda event: event.at)

    def suppress(self, email: str, origin: str = "manual") -> Suppression:
        """Put an address on the list, or find it there."""
        with self.changed:
            key = email.strip().lower()
            known = self.suppressions.get(key)
            if known is None:
                known = self.suppressions[key] = Suppression(str(uuid.uuid4()), email.strip(), origin, time.time())
                self._tell_suppression("added", known)
            return known

    def unsuppress(self, email_or_id: str) -> Suppression | None:
        """Take an address off the list."""
        with self.changed:
            for key, known in self.suppressions.items():
                if email_or_id.strip().lower() in (key, known.id):
                    del self.suppressions[key]
                    self._tell_suppression("removed", known)
                    return known
            return None

    def _tell_suppression(self, what: str, known: Suppression) -> None:
        data = {name: value for name, value in known.as_resend().items() if name != "object"}
        self.happen({"type": f"suppression.{what}", "data": data})

    def is_suppressed(self, addresses: list[str]) -> bool:
        """Whether one of the addresses is on the list."""
        return any(
            address.rstrip("> ").rpartition("<")[2].strip().lower() in self.suppressions for address in addresses
        )

    def clear_faults(self) -> None:
        """Drop the queue of faults and release what is held."""
        with self.changed:
            self.faults.clear()
            self.release()

    def clear(self) -> None:
        """Forget everything but the settings."""
        with self.changed:
            self.clear_faults()
            self.emails, self.log, self._happened = [], [], []
            self._pushed_emails = self._pushed_events = 0
            self.suppressions.clear()
            self._places.clear()
            self._keys.clear()
            self.changed.notify_all()
