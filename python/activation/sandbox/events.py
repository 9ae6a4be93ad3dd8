"""What Resend tells about an email: the events of its webhooks."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Any

from .records import Email
from .signing import signature

# What happens to mail that ends so, before it does.
_BEFORE = {
    "delivered": ["sent"],
    "bounced": ["sent"],
    "complained": ["sent", "delivered"],
    "suppressed": [],
    "scheduled": [],
}

_EXTRA: dict[str, dict[str, Any]] = {
    "bounced": {
        "bounce": {
            "type": "Permanent",
            "subType": "General",
            "message": "The recipient's email provider sent a hard bounce message.",
        }
    },
    "suppressed": {
        "suppressed": {
            "type": "OnAccountSuppressionList",
            "reason": "previous_bounce",
            "message": "The recipient is on the account's suppression list.",
        }
    },
}


@dataclass(frozen=True, slots=True)
class Event:
    """One event. at: when it happened (Unix time); payload: the webhook's body."""

    id: str
    at: float
    payload: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The event as a list of events holds it."""
        return {"id": self.id, "type": self.payload["type"], "created_at": iso(self.at), "status": "success"}


def iso(at: float) -> str:
    """A time as Resend writes it."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def events_of(email: Email) -> list[Event]:
    """What happens to an email, in its order, a millisecond apart."""
    last = email.last_event
    found = []
    for place, what in enumerate([*_BEFORE[last], last]):
        at = email.received_at + place / 1000
        data = {
            "email_id": email.id,
            "message_id": f"<{email.id}@sandbox.invalid>",
            "created_at": iso(email.received_at),
            "from": email.sender,
            "to": email.to,
            "subject": email.subject,
            "tags": email.tags,
            **_EXTRA.get(what, {}),
        }
        payload = {"type": f"email.{what}", "created_at": iso(at), "data": data}
        found.append(Event(f"msg_{email.id.replace('-', '')}{place}", at, payload))
    return found


def signed(event: Event, secret: str, now: float) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of the request that brings an event. secret: `whsec_` and base64."""
    body = json.dumps(event.payload, ensure_ascii=False).encode()
    timestamp = str(int(now))
    return body, {
        "Content-Type": "application/json",
        "svix-id": event.id,
        "svix-timestamp": timestamp,
        "svix-signature": signature(secret, event.id, timestamp, body),
    }
