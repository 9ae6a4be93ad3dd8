"""Requests on their way: each in a thread that knows nothing of the database."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from activation.errors import DeliveryError, Unanswered
from activation.resend.client import TOTAL_TIMEOUT, Departure, Resend, Try

#: Requests in flight at once, of one deliverer.
THREADS = 32


@dataclass
class Flight:
    """A request on its way: its lease, the number of the permit that it holds (0 for none), whether it carries several
    emails, and since when. learnt: what its answer says of the provider is committed."""

    request_id: str
    lease_id: str
    permit: int
    batch: bool
    departure: Departure = dataclasses.field(default_factory=Departure)
    since: float = 0.0
    learnt: bool = False


@dataclass(frozen=True)
class Request:
    """A request that leaves once it is committed. not_before: when it may (Unix time)."""

    flight: Flight
    endpoint: str
    body: str
    emails: int
    not_before: float


@dataclass(frozen=True)
class Answer:
    """What came of a request."""

    future: Future[Try]
    flight: Flight
    tried: Try

    @property
    def error(self) -> DeliveryError | None:
        """What went wrong; None where the request was accepted."""
        return self.tried.outcome if isinstance(self.tried.outcome, DeliveryError) else None


class Flights:
    """The requests of one deliverer that are on their way, and the threads that send them."""

    def __init__(self) -> None:
        self._pool = _pool()
        self._flights: dict[Future[Try], Flight] = {}
        self._stuck: dict[Future[Try], Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._flights.values())

    def launch(self, client: Resend, request: Request) -> None:
        """Send a request that is stored and committed."""
        flight = request.flight
        flight.since = time.monotonic()
        sent = self._pool.submit(
            client.send,
            request.endpoint,
            request.body,
            flight.request_id,
            request.emails,
            request.not_before,
            flight.departure,
        )
        self._flights[sent] = flight

    def wait(self, seconds: float) -> None:
        """Wait until a request is answered, at most so long."""
        if self._flights:
            wait(self._flights, timeout=seconds, return_when=FIRST_COMPLETED)
        else:
            time.sleep(seconds)

    def answered(self) -> list[Answer]:
        """What came of those that are done. They stay until land()."""
        flights = [*self._flights.items(), *self._stuck.items()]
        return [Answer(future, flight, future.result()) for future, flight in flights if future.done()]

    def land(self, answered: list[Answer]) -> None:
        """These are written down."""
        for answer in answered:
            self._flights.pop(answer.future, None)
            self._stuck.pop(answer.future, None)

    def give_up_stuck(self) -> None:
        """A thread may be stuck where no timeout reaches. Its request has no answer in time; should one come after all,
        it is written down as that of somebody who has lost the lease."""
        now = time.monotonic()
        for future, flight in list(self._flights.items()):
            if now - flight.since > TOTAL_TIMEOUT + 5 and not future.done():
                self._pool.shutdown(wait=False)
                self._pool = _pool()
                del self._flights[future]
                self._stuck[future] = dataclasses.replace(flight, permit=0)
                ended = time.time()
                none: Future[Try] = Future()
                error = Unanswered("no answer in time", name="total_timeout")
                none.set_result(Try(error, None, ended - (now - flight.since), ended, ended))
                self._flights[none] = flight

    def close(self) -> None:
        """End without waiting for anything."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="activation", initializer=_quiet_thread)


def _quiet_thread() -> None:
    """Signals are the server's; none may be handled in a thread that knows nothing of it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
