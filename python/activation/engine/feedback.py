"""What Resend knows and tells when it is asked: the events of a webhook, and its list of suppressed addresses.

No transaction is open while an answer is awaited, and every request has a token of the rate that sending shares.
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

from activation.engine.protocol import Database
from activation.errors import DeliveryError, KeyUnavailable
from activation.resend import credentials
from activation.resend.client import Resend

#: The largest page there is, and how many addresses are added or removed at a time.
PAGE = 100

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

    def __init__(self, db: Database, host: str, end: float) -> None:
        self._db = db
        self._end = end
        self.note: str | None = None
        self.idle = False
        state = db.execute("SELECT * FROM activation._pull_state($1)", host)[0]
        db.commit()
        self._webhook = state["webhook_id"]
        self._pulled_to = self._newest = float(state["pulled_to"])
        self.sync_due = bool(state["sync_due"]) and not state["problem"]
        self._resend: Resend | None = None
        if state["problem"]:
            self.note, self.idle = str(state["problem"]), True
            return
        try:
            self._resend = Resend(state["resend_url"], credentials.resolve(state["api_key"], self._stored_secret))
        except KeyUnavailable as problem:
            self.note = str(problem)
        db.commit()

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
            unknown = {row["id"] for row in self._rows("SELECT id FROM activation._unknown_events($1) AS id", wanted)}
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
        self._rows(
            "SELECT activation._keep_event($1, coalesce(activation._parse_event($2), $3::jsonb),"
            " pg_catalog.to_timestamp($4), activation._now())",
            event["id"],
            text,
            json.dumps({"type": event["type"]}),
            event["at"],
        )

    def _pulled(self, webhook: str, upto: float) -> None:
        self._rows("SELECT activation._note_pull($1, $2)", webhook, upto)
        self._db.commit()

    def sync(self) -> None:
        """Takes over what only Resend's list has, and brings to it what only ours has, or has no more."""
        try:
            for gone in _pages([row["address"] for row in self._rows("SELECT address FROM activation.unsuppression")]):
                self._call("POST", "/suppressions/batch/remove", {"emails": gone})
                self._rows("SELECT activation._note_unsuppressed($1)", gone)
                self._db.commit()
            known: list[str] = []
            after: str | None = None
            while True:
                query = urlencode({"limit": PAGE, **({"after": after} if after else {})})
                answer = self._call("GET", f"/suppressions?{query}")
                page = _entries(answer)
                listed = [entry for entry in page if _is_plain(entry.get("email"))]
                emails = [entry["email"] for entry in listed]
                origins = [entry["origin"] if _is_plain(entry.get("origin")) else None for entry in listed]
                self._rows("SELECT activation._import_suppressions($1, $2)", emails, origins)
                self._db.commit()
                known += emails
                if not page or not answer.get("has_more"):
                    break
                after = page[-1]["id"]
            lacking = self._rows("SELECT address FROM activation._unexported_suppressions($1) AS address", known)
            for new in _pages([row["address"] for row in lacking]):
                self._call("POST", "/suppressions/batch/add", {"emails": new})
            self._rows("SELECT activation._note_sync()")
            self._db.commit()
        except _Stopped as problem:
            self.note = str(problem)

    def _rows(self, sql: str, *arguments: object) -> list[dict[str, Any]]:
        return self._db.execute(sql, *arguments)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        if self._resend is None:
            raise _Stopped(self.note or "there is nobody to ask")
        token, free_at = self._token()
        time.sleep(max(0.0, free_at - time.time()))
        left = time.time()
        try:
            return self._resend.call(method, path, body)
        except DeliveryError as error:
            more = ": the API key must be one with full access" if error.name == "restricted_api_key" else ""
            raise _Stopped(f"{method} {path.partition('?')[0]}: {error.text}{more}") from None
        finally:
            if token:
                self._rows(
                    "SELECT activation._free_permit($1::integer, pg_catalog.to_timestamp($2),"
                    " pg_catalog.to_timestamp($3))",
                    token,
                    left,
                    time.time(),
                )
                self._db.commit()

    def _token(self) -> tuple[int, float]:
        """A permission for one request, and when it may leave (Unix time)."""
        while time.monotonic() < self._end:
            found = self._rows(
                "SELECT n, extract(epoch FROM free_at)::double precision AS free_at"
                " FROM activation._lock_permits(1, interval '1 second')"
            )
            if found:
                number = int(found[0]["n"])
                if number:
                    self._rows("SELECT activation._take_permits($1::integer[], interval '40 seconds')", [str(number)])
                self._db.commit()
                return number, float(found[0]["free_at"])
            self._db.commit()
            time.sleep(0.05)
        raise _Stopped("the time of this run is over; the next one goes on")

    def _stored_secret(self, name: str) -> str | None:
        found = self._rows("SELECT activation._secret($1) AS value", name)[0]["value"]
        return None if found is None else str(found)


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
