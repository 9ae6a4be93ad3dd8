"""Detection: one round takes signals and wakes, enrolls, evaluates and decides.

A round is one transaction under the locks of the buckets of users that it covers. A loop that raises harms itself
alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from activation.engine.calls import DetectCalls, Due, Question, Sweep
from activation.engine.protocol import Cancelled, Failed, storable

#: How many enrollments are taken at once, at first.
FIRST_BATCH = 500

#: About how many a loop is asked about at once, at first.
FIRST_ASKED = 50

#: Both follow how long that took, and stay between these.
SMALLEST_BATCH, LARGEST_BATCH = 20, 4000

#: They double where it took less than the first, and halve where it took more than the second (seconds). A round's
#: locks and snapshot last little longer than LONG, however slow a condition is: whoever has not been asked about by
#: then is put off to the next round.
SHORT, LONG = 0.1, 0.4

#: How many users at once become signals when they are walked over: at first and at most.
FIRST_BACKFILL, LARGEST_BACKFILL = 2000, 20000

#: Looks whether the table of wakes has grown so often, and so long after it could not be renewed (seconds).
RENEW, RENEW_AGAIN = 0.5, 10.0

#: A loop whose rows somebody's open transaction holds is left alone for so long (seconds), or for so many times as long
#: as its code ran: what would say so in the database is held as well.
HOLD, HOLD_TIMES = 3.0, 10

#: So many failed evaluations in the search for bad users, and the loop itself is to blame.
MAX_FAILURES = 20

#: An author's code changed what the session holds: something was new, and is gone again; something is missing.
HARMED, LOST = "ACT04", "ACT05"

#: An enrollment that is asked about: its id, when its user was last woken, whether it is new.
_Row = tuple[int, str | None, bool]

Work = TypeVar("Work", Question, Sweep)


def adapted(size: int, used: int, seconds: float, largest: int = LARGEST_BATCH) -> int:
    """The next size of a batch of this size, of which so much was used, and which took so long."""
    if seconds > LONG:
        return max(size // 2, SMALLEST_BATCH)
    return min(size * 2, largest) if seconds < SHORT and used >= size else size


class Detector:
    """Runs rounds. slot: which detector this is; None takes every bucket and waits for it (tick)."""

    def __init__(self, calls: DetectCalls, slot: int | None) -> None:
        self._calls = calls
        self._slot = slot
        self._aside: set[int] = set()
        self._put_off: set[int] = set()
        self._began = 0.0
        self._renew_at = 0.0
        #: What the last round could not do and left aside, for status; None when all is well.
        self.note: str | None = None
        #: How many the last round took, and whether the next one would find something at once.
        self.taken = 0
        self.more = False
        #: How many enrollments of each kind the next round takes.
        self._batch = FIRST_BATCH
        self._backfilled = FIRST_BACKFILL
        #: About how many each loop is asked at once.
        self._sizes: dict[int, int] = {}
        #: When each loop was asked last.
        self._asked_at: dict[int, float] = {}
        #: Until when loops are left alone about which nothing can be written, and those of them that owe a sweep.
        self._held: dict[int, float] = {}
        self._owed: set[int] = set()

    def round(self) -> bool:
        """One committed round. Returns whether there was anything to do; see `more`."""
        calls = self._calls
        self.taken, self.more = 0, False
        try:
            self._release()
            due = calls.due()
            if not any(due):
                calls.commit()
                return False
            buckets = calls.lock_buckets(self._slot)
            self._began = time.monotonic()
            self._aside.clear()
            self._put_off.clear()
            self.note = None
            work = self._take(buckets, due) if buckets else []
            self._ask_all(self._unheld(work))
            if buckets and due.sweeps and self._sweeps(buckets):
                self.more = True
            if due.backfills and self._backfill():
                self.more = True
        except BaseException:
            calls.rollback()
            raise
        calls.commit()
        if due.wakes and not self.more:
            self._renew_wake()
        return bool(self.taken or work or self.more)

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

    def _unheld(self, work: list[Question]) -> list[Question]:
        """What is asked of loops that are not left alone. The others owe a sweep; a round that is about them alone did
        nothing."""
        if not self._held:
            return work
        free = [question for question in work if question.loop_id not in self._held]
        self._owed.update(question.loop_id for question in work if question.loop_id in self._held)
        if work and not free:
            self.taken, self.more = 0, False
            work.clear()
        return free

    def _ask_all(self, work: list[Question]) -> None:
        """Asks the loops, the quick before the slow, for as long as a round may last; of the others the one that was
        asked longest ago. The rest is put off to the next round: slow loops hold the quick ones up by one of them."""
        late: list[Question] = []
        for place, question in enumerate(sorted(work, key=lambda question: -self._size(question.loop_id))):
            if place and self._late():
                late.append(question)
            elif question.loop_id not in self._aside:
                self._of_loop(question, self._ask_loop)
        late.sort(key=lambda question: self._asked_at.get(question.loop_id, 0.0))
        for place, question in enumerate(late):
            if question.loop_id in self._aside:
                continue
            if place:
                self.more = True
                self._calls.defer(question.ids, question.woken_at, question.is_new)
            else:
                self._of_loop(question, self._ask_loop)

    def _renew_wake(self) -> None:
        if time.monotonic() >= self._renew_at:
            renewed = self._calls.renew_wake()
            self._calls.commit()
            self._renew_at = time.monotonic() + (RENEW_AGAIN if renewed is False else RENEW)

    def _take(self, buckets: list[int], due: Due) -> list[Question]:
        """Who is to be asked about, by loop."""
        count, work = self._calls.take(buckets, self._batch, due)
        self.taken = count.taken or 0
        self.note = count.problem
        self.more = self.taken >= self._batch
        self._batch = adapted(self._batch, self.taken, time.monotonic() - self._began)
        return work

    def _backfill(self) -> bool:
        """A chunk of users that are enrolled by walking over them. Returns whether there were any."""
        loop_id = None
        with self._apart("walks over users"):
            loop_id = self._calls.backfill_due()
        if loop_id is None:
            return False
        size, began, people = self._backfilled, time.monotonic(), 0
        try:
            with self._asking():
                people = self._calls.backfill(loop_id, size)
        except Cancelled:
            self._cancelled(loop_id, began)
        except Failed as error:
            if error.code in (HARMED, LOST):
                self._fail_at_once(loop_id, error)
            else:
                self._strike(loop_id, error.text)
        self._backfilled = adapted(size, people, time.monotonic() - began, LARGEST_BACKFILL)
        return people > 0

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

    def _late(self) -> bool:
        return time.monotonic() - self._began > LONG

    def _sweeps(self, buckets: list[int]) -> bool:
        """Stretches of the sweeps that are due, one at least. Returns whether there were any."""
        swept: set[int] = set()
        due: list[Sweep] = []
        with self._apart("sweeps"):
            due = self._calls.sweeps(buckets)
        for sweep in due:
            if swept and self._late():
                # They stay due, and those come first that are due longest.
                break
            if sweep.loop_id not in self._aside and sweep.loop_id not in self._held:
                swept.add(sweep.loop_id)
                self._of_loop(sweep, self._sweep)
        return bool(swept)

    def _sweep(self, sweep: Sweep) -> None:
        loop_id = sweep.loop_id
        size, began = self._size(loop_id), time.monotonic()
        try:
            with self._asking():
                people = self._calls.sweep(sweep, size)
        except Cancelled:
            self._cancelled(loop_id, began)
        except Failed as error:
            if error.code in (HARMED, LOST):
                self._fail_at_once(loop_id, error)
                return
            ids = self._calls.stretch(sweep, size)
            self._ask(sweep, [(id_, None, False) for id_ in ids])
            if loop_id not in self._aside:
                self._calls.advance_sweep(sweep, ids, size)
        else:
            self._asked(loop_id, people, began)

    def _ask_loop(self, question: Question) -> None:
        """Asks a loop about its people, the first of them at least. Who was put off about one question is put off about
        all of them."""
        loop_id = question.loop_id
        rows: list[_Row] = list(zip(question.ids, question.woken_at, question.is_new, strict=True))
        while rows and loop_id not in self._aside and loop_id not in self._put_off:
            size, began = self._size(loop_id), time.monotonic()
            self._ask(question, rows[:size])
            self._asked(loop_id, len(rows[:size]), began)
            rows = rows[size:]
            if rows and self._late():
                self._put_off.add(loop_id)
        if rows and loop_id in self._put_off:
            self.more = True
            self._calls.defer(*_columns(rows))

    def _ask(self, work: Question | Sweep, rows: list[_Row]) -> None:
        loop_id = work.loop_id
        failures: list[Failed] = []
        spared = 0
        todo = [rows]
        # Halving finds the users on whom the condition raises: only a single key that raises proves a bad user, and
        # only by a plan that does not compute with others' rows as well.
        while todo:
            part = todo.pop()
            one_by_one = bool(failures)
            ids = [row[0] for row in part]
            began = time.monotonic()
            try:
                with self._asking():
                    true_keys = self._calls.ask(loop_id, work.version, work.step, ids, one_by_one)
            except Cancelled:
                self._cancelled(loop_id, began)
                return
            except Failed as error:
                if error.passing:
                    self._set_aside(loop_id)
                    written = self._calls.postpone(loop_id, f"its condition waited for a lock: {error.text}")
                    self._hold(loop_id, written, began)
                    return
                if error.code in (HARMED, LOST):
                    self._fail_at_once(loop_id, error)
                    return
                failures.append(error)
                if len(failures) > MAX_FAILURES or not error.of_a_person:
                    self._strike(loop_id, error.text)
                    return
                if len(part) == 1 and not one_by_one:
                    todo.append(part)
                elif len(part) == 1:
                    self._calls.set_user_aside(part[0][0], storable(error.text))
                else:
                    middle = len(part) // 2
                    todo += [part[middle:], part[:middle]]
            else:
                spared += self._decide(work.step, part, true_keys, failures)
                if len(failures) > MAX_FAILURES:
                    self._strike(loop_id, failures[-1].text)
                    return
        if failures and not spared and len(rows) > 1:
            self._strike(loop_id, failures[-1].text)
        elif spared:
            self._calls.clear_strikes(loop_id)

    def _decide(self, step: int, rows: list[_Row], true_keys: list[str] | None, failures: list[Failed]) -> int:
        """Writes down what an answer means. Returns for how many: whoever that raises on is found by halves."""
        try:
            with self._calls.subtransaction():
                self._calls.decide(step, *_columns(rows), true_keys)
            return len(rows)
        except Failed as error:
            if error.passing:
                raise
            if len(failures) > MAX_FAILURES:
                return 0
            failures.append(error)
            if len(rows) == 1:
                self._calls.set_user_aside(rows[0][0], storable(error.text))
                return 0
        middle = len(rows) // 2
        return sum(self._decide(step, half, true_keys, failures) for half in (rows[:middle], rows[middle:]))

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


def _columns(rows: list[_Row]) -> tuple[list[int], list[str | None], list[bool]]:
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
