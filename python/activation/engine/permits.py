"""The rate that the provider allows, as permits for one request each. Deliverers share them in the database."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from activation.engine.flights import Flight
from activation.engine.protocol import Database

#: A request is made this long before its permit is free (seconds): longer than a poll and a claim take.
AHEAD = 0.2

#: How long a request, and its permit, belong to the worker that sends it (seconds).
LEASE = 60
LEASE_SQL = f"interval '{LEASE} seconds'"

#: So long without a moment in which all that the provider allows was used, and status says so (seconds).
BEHIND = 5.0


@dataclass(frozen=True)
class Permit:
    """A permit for one request: its number (0 where there is no limit), and when the request may leave (Unix time)."""

    number: int
    free_at: float


class Permits:
    """The permits of one deliverer's claims, and whether it keeps up with them."""

    def __init__(self, db: Database) -> None:
        self._db = db
        #: Whether the last claim found none.
        self.none_left = False
        #: Since when this deliverer, and not the rate, has been what limits it.
        self._behind_since: float | None = None
        #: Whose permits are given back by the transaction that is open.
        self._departed: list[Flight] = []

    @property
    def behind(self) -> bool:
        """Whether the provider has long allowed more than this deliverer can do."""
        return self._behind_since is not None and time.monotonic() - self._behind_since > BEHIND

    def begin(self) -> None:
        """A claim begins."""
        self._departed.clear()

    def committed(self) -> None:
        """What was given back in this claim is given back."""
        for flight in self._departed:
            flight.permit = 0

    def nothing_to_send(self) -> None:
        """Nothing is due, so nothing is behind."""
        self._behind_since = None

    def lock(self, wanted: int) -> list[Permit]:
        """At most so many permits. They are taken by take() in the same transaction, or stay as they are."""
        rows = self._db.execute(
            "SELECT n, extract(epoch FROM free_at)::double precision AS free_at"
            f" FROM activation._lock_tokens($1::integer, interval '{AHEAD} seconds')",
            wanted,
        )
        self.none_left = not rows
        if not rows:
            self._behind_since = None
        return [Permit(row["n"], row["free_at"]) for row in rows]

    def take(self, locked: list[Permit], used: list[Permit]) -> None:
        """Of those that were locked these are used."""
        limited = any(permit.number for permit in locked)
        if not limited or len(used) < len(locked):
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = time.monotonic()
        numbers = [str(permit.number) for permit in used]
        if any(permit.number for permit in used):
            self._db.execute(f"SELECT activation._take_tokens($1::text[]::integer[], {LEASE_SQL})", numbers)

    def free_departed(self, flights: Iterable[Flight]) -> None:
        """From a provider that always takes its time, the answer would come too late for its permit: that is free when
        the request has left."""
        for flight in flights:
            if flight.permit and flight.departure.at is not None:
                self._db.execute(
                    "SELECT activation._free_token($1::integer, to_timestamp($2::double precision), NULL)",
                    flight.permit,
                    flight.departure.at,
                )
                self._departed.append(flight)
