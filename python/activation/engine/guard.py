"""What a round owes to loops: how many people each is asked about at once, and what comes of one whose code raises."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from activation.engine.calls import DetectCalls, Question, Sweep
from activation.engine.protocol import Cancelled, Failed, storable

#: About how many a loop is asked about at once, at first.
FIRST_ASKED = 50

#: That, and how many enrollments a round takes, follow how long it took, and stay between these.
SMALLEST_BATCH, LARGEST_BATCH = 20, 4000

#: They double where it took less than the first, and halve where it took more than the second (seconds). A round's
#: locks and snapshot last little longer than LONG, however slow a condition is: whoever has not been asked about by
#: then is put off to the next round.
SHORT, LONG = 0.1, 0.4

#: A loop whose rows somebody's open transaction holds is left alone for so long (seconds), or for so many times as long
#: as its code ran: what would say so in the database is held as well.
HOLD, HOLD_TIMES = 3.0, 10

#: An author's code changed what the session holds: something was new, and is gone again; something is missing.
HARMED, LOST = "ACT04", "ACT05"

Work = TypeVar("Work", Question, Sweep)


def adapted(size: int, used: int, seconds: float, largest: int = LARGEST_BATCH) -> int:
    """The next size of a batch of this size, of which so much was used, and which took so long."""
    if seconds > LONG:
        return max(size // 2, SMALLEST_BATCH)
    return min(size * 2, largest) if seconds < SHORT and used >= size else size


class Guard:
    """Runs what is about one loop so that it harms no other, and remembers which loops to leave alone."""

    def __init__(self, calls: DetectCalls) -> None:
        self._calls = calls
        #: Loops that are left alone for the rest of the round.
        self._aside: set[int] = set()
        #: About how many each loop is asked at once.
        self._sizes: dict[int, int] = {}
        #: When each loop was asked last.
        self._asked_at: dict[int, float] = {}
        #: Until when loops are left alone about which nothing can be written, and those of them that owe a sweep.
        self._held: dict[int, float] = {}
        self._owed: set[int] = set()
        #: What the last round could not do and left aside, for status; None when all is well.
        self.note: str | None = None

    def _release(self) -> None:
        """Orders the sweeps that are owed to loops which were left alone."""
        if not self._held:
            return
        now = time.monotonic()
        for loop_id in [loop_id for loop_id, until in self._held.items() if until <= now]:
            if loop_id in self._owed and not self._calls.order_sweep(loop_id):
                self._held[loop_id] = now + HOLD
            else:
                del self._held[loop_id]
                self._owed.discard(loop_id)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """What runs an author's code, in a subtransaction. Where it raised, this says that it is over: no rollback
        does."""
        try:
            with self._calls.subtransaction():
                yield
        except (Cancelled, Failed):
            self._calls.evaluation_ended()
            raise

    @contextlib.contextmanager
    def _apart(self, what: str) -> Iterator[None]:
        """A part of a round that harms no other: what raises in it is undone and told by status. Only who met others,
        a lock or a serialization failure, ends the round, which is made anew."""
        try:
            with self._calls.subtransaction():
                yield
        except Failed as error:
            if error.passing:
                raise
            self.note = storable(f"{what}: {error.text}")

    def _of_loop(self, work: Work, act: Callable[[Work], None]) -> None:
        """A part of a round that is about a loop. When it raises, the loop is left alone for a while, and then its
        people are swept, since what was to be asked about them is forgotten. So it is with locks: an author may hold
        what is about her loop in an open transaction (a new version, migrate_loop), and nobody else waits for it."""
        loop_id, began = work.loop_id, time.monotonic()
        try:
            with self._calls.subtransaction():
                act(work)
            return
        except Failed as error:
            failed = error
        self._set_aside(loop_id)
        try:
            with self._calls.subtransaction():
                if failed.passing:
                    written = self._calls.postpone(loop_id, f"somebody holds its people: {failed.text}")
                else:
                    self.note = storable(f"loop {loop_id}: {failed.text}")
                    written = self._calls.strike(loop_id, self.note or "")
        except Failed:
            written = False
        self._hold(loop_id, written, began)

    def _size(self, loop_id: int) -> int:
        return self._sizes.get(loop_id, FIRST_ASKED)

    def _asked(self, loop_id: int, people: int, began: float) -> None:
        self._asked_at[loop_id] = began
        self._sizes[loop_id] = adapted(self._size(loop_id), people, time.monotonic() - began)

    def _strike(self, loop_id: int, text: str) -> None:
        self._set_aside(loop_id)
        written = self._calls.strike(loop_id, storable(f"its condition raised: {text}") or "")
        self._hold(loop_id, written, self._asked_at.get(loop_id, time.monotonic()))

    def _cancelled(self, loop_id: int, began: float) -> None:
        self._set_aside(loop_id)
        self._hold(loop_id, self._calls.cancelled(loop_id, time.monotonic() - began), began)

    def _fail_at_once(self, loop_id: int, error: Failed) -> None:
        self._aside.add(loop_id)
        written = self._calls.fail_at_once(loop_id, storable(error.text), error.code == LOST)
        self._hold(loop_id, written, time.monotonic())

    def _hold(self, loop_id: int, written: bool, began: float) -> None:
        """Leave a loop alone, where the database could not be told to."""
        if not written:
            now = time.monotonic()
            self._held[loop_id] = now + max(HOLD, HOLD_TIMES * (now - began))
            self._owed.add(loop_id)

    def _set_aside(self, loop_id: int) -> None:
        """Leave a loop alone for the rest of the round, and then ask it about few at a time."""
        self._aside.add(loop_id)
        self._sizes[loop_id] = SMALLEST_BATCH
