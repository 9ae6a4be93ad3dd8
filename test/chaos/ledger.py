"""The app's own truth: what its clients know of their transactions, and every error they met."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import psycopg


def lost_connection(error: psycopg.Error) -> bool:
    """Whether the server went away, rather than refused something."""
    return isinstance(error, psycopg.OperationalError) and (
        error.sqlstate is None or error.sqlstate.startswith(("57P", "08"))
    )


@dataclass(frozen=True)
class Complaint:
    """A statement that failed: when, whose, and with what."""

    at: float
    who: str
    lost: bool
    text: str


@dataclass
class Ledger:
    """Who signed up and who acted, as far as the clients know. Users whose commit was cut off are in neither set of
    people: the app's tables say what became of them."""

    committed: set[int] = field(default_factory=set)
    rolled_back: set[int] = field(default_factory=set)
    acted: dict[int, float] = field(default_factory=dict)
    """When an action was certainly committed: the client's clock after its commit."""
    complaints: list[Complaint] = field(default_factory=list)
    _ids: Iterable[int] = field(default_factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def new_ids(self, number: int) -> list[int]:
        """Keys for people who will try to sign up."""
        with self._lock:
            return list(itertools.islice(self._ids, number))

    def signed_up(self, ids: Iterable[int]) -> None:
        with self._lock:
            self.committed.update(ids)

    def gave_up(self, ids: Iterable[int]) -> None:
        with self._lock:
            self.rolled_back.update(ids)

    def has_acted(self, ids: Iterable[int]) -> None:
        now = time.time()
        with self._lock:
            for user in ids:
                self.acted.setdefault(user, now)

    def complain(self, who: str, error: psycopg.Error) -> None:
        with self._lock:
            text = f"{error.sqlstate or ''} {type(error).__name__}: {error}".strip()
            self.complaints.append(Complaint(time.time(), who, lost_connection(error), text))
