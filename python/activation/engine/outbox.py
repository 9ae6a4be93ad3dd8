"""The requests that one claim makes: stored with their bytes before they are sent."""

from __future__ import annotations

import json
import uuid
from collections import Counter

from activation.engine.calls import DeliverCalls, Permit
from activation.engine.composer import Mail, groups
from activation.engine.flights import Flight, Request
from activation.engine.permits import LEASE
from activation.engine.protocol import storable


class Outbox:
    """What one claim sends, a request for each permit at most."""

    def __init__(self, calls: DeliverCalls, permits: list[Permit]) -> None:
        self._calls = calls
        self._permits = permits
        self._lease_id = str(uuid.uuid4())
        self.requests: list[Request] = []

    @property
    def room(self) -> int:
        """For how many more requests there are permits."""
        return len(self._permits) - len(self.requests)

    @property
    def used(self) -> list[Permit]:
        """The permits that its requests have."""
        return self._permits[: len(self.requests)]

    def repeat(self) -> bool:
        """Add the requests whose outcome is not known, byte for byte. Returns whether there are any."""
        repeats = self._calls.claim_requests(self._lease_id, LEASE, self.room)
        for request_id, endpoint, body in repeats:
            self._add(request_id, endpoint, body, len(json.loads(body)) if endpoint == "/emails/batch" else 1)
        return bool(repeats)

    def fill(self, mails: list[Mail], mode: str) -> bool:
        """Make requests of these mails, and store them. Returns whether there was room for all."""
        leaving: Counter[int] = Counter()
        found = groups(mails)
        room = self.room
        for group in found[:room]:
            self._store(group, mode)
            leaving.update(mail.loop_id for mail in group)
        if leaving:
            # Last before the commit: deliverers wait for each other here.
            self._calls.count_hourly_sends(leaving)
        return len(found) <= room

    def _store(self, group: list[Mail], mode: str) -> None:
        request_id = str(uuid.uuid4())
        endpoint = "/emails" if len(group) == 1 else "/emails/batch"
        emails = [mail.email for mail in group]
        body = json.dumps(emails[0] if len(group) == 1 else emails, separators=(",", ":"))
        self._calls.store_request(
            request_id,
            endpoint,
            body,
            [mail.message_id for mail in group],
            [storable(mail.email["to"][0]) for mail in group],
            [storable(mail.email["subject"]) for mail in group],
            mode,
            group[0].recovery,
            self._lease_id,
            LEASE,
        )
        self._add(request_id, endpoint, body, len(group))

    def _add(self, request_id: str, endpoint: str, body: str, emails: int) -> None:
        permit = self._permits[len(self.requests)]
        flight = Flight(request_id, self._lease_id, permit.number, endpoint == "/emails/batch")
        self.requests.append(Request(flight, endpoint, body, emails, permit.free_at))
