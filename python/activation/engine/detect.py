"""Detection: one round takes signals and wakes, enrolls, evaluates and decides.

A round is one transaction under the locks of the buckets of users that it covers. A loop that raises harms itself
alone.
"""

from __future__ import annotations

import time

from activation.engine.calls import DetectCalls, Due, Question, Sweep
from activation.engine.guard import HARMED, LONG, LOST, Guard, adapted
from activation.engine.protocol import Cancelled, Failed, storable

#: How many enrollments are taken at once, at first.
FIRST_BATCH = 500

#: How many users at once become signals when they are walked over: at first and at most.
FIRST_BACKFILL, LARGEST_BACKFILL = 2000, 20000

#: Looks whether the table of wakes has grown so often, and so long after it could not be renewed (seconds).
RENEW, RENEW_AGAIN = 0.5, 10.0

#: So many failed evaluations in the search for bad users, and the loop itself is to blame.
MAX_FAILURES = 20

#: An enrollment that is asked about: its id, when its user was last woken, whether it is new.
_Row = tuple[int, str | None, bool]


class Detector(Guard):
    """Runs rounds. slot: which detector this is; None takes every bucket and waits for it (tick)."""

    def __init__(self, calls: DetectCalls, slot: int | None) -> None:
        super().__init__(calls)
        self._slot = slot
        self._put_off: set[int] = set()
        self._began = 0.0
        self._renew_at = 0.0
        #: How many the last round took, and whether the next one would find something at once.
        self.taken = 0
        self.more = False
        #: How many enrollments of each kind the next round takes.
        self._batch = FIRST_BATCH
        self._backfilled = FIRST_BACKFILL

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


def _columns(rows: list[_Row]) -> tuple[list[int], list[str | None], list[bool]]:
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
