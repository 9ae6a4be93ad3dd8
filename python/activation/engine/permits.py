"""The rate that the provider allows, as permits for one request each. Deliverers share them in the database."""

from __future__ import annotations

import time
from collections.abc import Iterable

from activation.engine.calls import Permit, ProviderCalls
from activation.engine.flights import Flight

#: A request is made this long before its permit is free (seconds): longer than a poll and a claim take.
AHEAD = 0.2

#: How long a request, and its permit, belong to the worker that sends it (seconds).
LEASE = 60.0

#: So long without a moment in which all that the provider allows was used, and status says so (seconds).
BEHIND = 5.0


class Permits:
    """The permits of one deliverer's claims, and whether it keeps up with them."""

    def __init__(self, calls: ProviderCalls) -> None:
        self._calls = calls
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
        found = self._calls.lock_permits(wanted, AHEAD)
        self.none_left = not found
        if not found:
            self._behind_since = None
        return found

    def take(self, locked: list[Permit], used: list[Permit]) -> None:
        """Of those that were locked these are used."""
        limited = any(permit.number for permit in locked)
        if not limited or len(used) < len(locked):
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = time.monotonic()
        numbers = [permit.number for permit in used]
        if any(numbers):
            self._calls.take_permits(numbers, LEASE)

    def free_departed(self, flights: Iterable[Flight]) -> None:
        """From a provider that always takes its time, the answer would come too late for its permit: that is free when
        the request has left."""
        for flight in flights:
            if flight.permit and flight.departure.at is not None:
                self._calls.free_permit(flight.permit, flight.departure.at, None)
                self._departed.append(flight)
