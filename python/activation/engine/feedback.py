"""What Resend knows and tells when it is asked: the events of a webhook, and its list of suppressed addresses.

No transaction is open while an answer is awaited, and every request has a permit of the rate that sending shares.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from activation.engine.calls import FeedbackCalls, Permit
from activation.errors import DeliveryError, KeyUnavailable
from activation.resend import credentials
from activation.resend.client import Resend

#: The largest page there is, and how many addresses are added or removed at a time.
PAGE = 100

#: A permit is taken this long before it is free, and is ours for so long (seconds).
AHEAD, LEASE = 1.0, 40.0

#: An event may be seen this much later than one that came after it (seconds).
OVERLAP = 600.0

#: What is asked for: what becomes of mails and of addresses.
_TOLD = re.compile(r"(email|suppression)\.[a-z_.]{1,80}")
_UNTOLD = ("email.received",)

_ID = re.compile(r"[\x21-\x7e]{1,256}")


class _Stopped(Exception):
    """The text says why there is no more to be had now."""


class Feedback:
    """One run. end: until when (time.monotonic()). note: why it read less than there is, or None. idle: because nothing
    is to be asked of Resend from here."""

    def __init__(self, calls: FeedbackCalls, host: str, end: float) -> None:
        self._calls = calls
        self._end = end
        self.note: str | None = None
        self.idle = False
        state = calls.state(host)
        calls.commit()
        self._webhook = state.webhook_id
        self._pulled_to = self._newest = float(state.pulled_to)
        self.sync_due = state.sync_due and not state.problem
        self._resend: Resend | None = None
        if state.problem:
            self.note, self.idle = state.problem, True
            return
        try:
            self._resend = Resend(str(state.resend_url), credentials.resolve(state.api_key, calls.stored_secret))
        except KeyUnavailable as problem:
            self.note = str(problem)
        calls.commit()

    def pull(self) -> int:
        """Reads the events that are new, the oldest first, and returns how many. What it has read, it has read for
        good: an end in the middle costs nothing."""
        read = 0
        try:
            webhook = self._webhook or self._only_webhook()
            upto = self._pulled_to
            for event in reversed(list(self._new_events(webhook))):
                whole = self._call("GET", f"/webhooks/{webhook}/events/{quote(event['id'], safe='')}")
                upto = max(upto, event["at"])
                self._keep(event, whole.get("payload") if isinstance(whole, dict) else None)
                self._pulled(webhook, upto)
                read += 1
            self._pulled(webhook, max(upto, self._newest))
        except _Stopped as problem:
            self.note = str(problem)
        return read

    def _only_webhook(self) -> str:
        found = _entries(self._call("GET", f"/webhooks?limit={PAGE}"))
        if len(found) != 1:
            raise _Stopped(
                f"the account has {len(found)} webhooks: SELECT activation.configure(webhook_id => '…') says which"
                if found
                else "the account has no webhook: make one, of any https endpoint, so that there are events to read"
            )
        return str(found[0]["id"])

    def _new_events(self, webhook: str) -> Iterator[dict[str, Any]]:
        """Those that are not known, newest first: their id, and when they were created (Unix time)."""
        after: str | None = None
        while True:
            query = urlencode({"limit": PAGE, **({"after": after} if after else {})})
            answer = self._call("GET", f"/webhooks/{webhook}/events?{query}")
            page = [{**entry, "at": _time(entry.get("created_at"))} for entry in _entries(answer)]
            self._newest = max([self._newest, *(entry["at"] for entry in page)])
            told = [entry for entry in page if entry["at"] >= self._pulled_to - OVERLAP]
            wanted = [entry["id"] for entry in told if _is_told(entry.get("type"))]
            unknown = self._calls.unknown_events(wanted)
            yield from (entry for entry in told if entry["id"] in unknown)
            if len(told) < len(page) or not page or not answer.get("has_more"):
                return
            after = page[-1]["id"]

    def _keep(self, event: dict[str, Any], payload: Any) -> None:
        """What is not to be understood, in Python or for PostgreSQL, is kept by its type, and not asked for again."""
        text = ""
        if isinstance(payload, dict) and payload.get("type") == event["type"]:
            with contextlib.suppress(ValueError, RecursionError):
                text = json.dumps(payload)
        self._calls.keep_event(event["id"], text, json.dumps({"type": event["type"]}), event["at"])

    def _pulled(self, webhook: str, upto: float) -> None:
        self._calls.pulled(webhook, upto)
        self._calls.commit()

    def sync(self) -> None:
        """Takes over what only Resend's list has, and brings to it what only ours has, or has no more."""
        try:
            for gone in _pages(self._calls.to_unsuppress()):
                self._call("POST", "/suppressions/batch/remove", {"emails": gone})
                self._calls.unsuppressed(gone)
                self._calls.commit()
            known: list[str] = []
            after: str | None = None
            while True:
                query = urlencode({"limit": PAGE, **({"after": after} if after else {})})
                answer = self._call("GET", f"/suppressions?{query}")
                page = _entries(answer)
                listed = [entry for entry in page if _is_plain(entry.get("email"))]
                emails = [entry["email"] for entry in listed]
                origins = [entry["origin"] if _is_plain(entry.get("origin")) else None for entry in listed]
                self._calls.import_suppressions(emails, origins)
                self._calls.commit()
                known += emails
                if not page or not answer.get("has_more"):
                    break
                after = page[-1]["id"]
            for new in _pages(self._calls.unexported_suppressions(known)):
                self._call("POST", "/suppressions/batch/add", {"emails": new})
            self._calls.synced()
            self._calls.commit()
        except _Stopped as problem:
            self.note = str(problem)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        if self._resend is None:
            raise _Stopped(self.note or "there is nobody to ask")
        permit = self._permit()
        time.sleep(max(0.0, permit.free_at - time.time()))
        left = time.time()
        try:
            return self._resend.call(method, path, body)
        except DeliveryError as error:
            more = ": the API key must be one with full access" if error.name == "restricted_api_key" else ""
            raise _Stopped(f"{method} {path.partition('?')[0]}: {error.text}{more}") from None
        finally:
            if permit.number:
                self._calls.free_permit(permit.number, left, time.time())
                self._calls.commit()

    def _permit(self) -> Permit:
        """A permit for one request."""
        while time.monotonic() < self._end:
            found = self._calls.lock_permits(1, AHEAD)
            if found:
                if found[0].number:
                    self._calls.take_permits([found[0].number], LEASE)
                self._calls.commit()
                return found[0]
            self._calls.commit()
            time.sleep(0.05)
        raise _Stopped("the time of this run is over; the next one goes on")


def _is_told(kind: object) -> bool:
    return isinstance(kind, str) and _TOLD.fullmatch(kind) is not None and kind not in _UNTOLD


def _is_plain(text: object) -> bool:
    """Whether it is a text that PostgreSQL takes: neither NUL nor half a character."""
    return (
        isinstance(text, str) and "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
    )


def _entries(answer: Any) -> list[dict[str, Any]]:
    """What a list holds: objects with an id. Raises _Stopped for anything else."""
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("id"), str) and _ID.fullmatch(entry["id"]) for entry in entries
    ):
        raise _Stopped("the answer is not a list")
    return entries


def _time(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError):
        raise _Stopped(f"an event was created at {str(text)[:40]!r}, which is no time") from None


def _pages(items: list[str]) -> list[list[str]]:
    return [items[start : start + PAGE] for start in range(0, len(items), PAGE)]
