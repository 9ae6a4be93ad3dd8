"""Detection: one round takes signals and wakes, enrolls, evaluates and decides.

A round is one transaction under the locks of the parts of the users it covers. A loop that raises harms nobody but
itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from activation.engine.protocol import Cancelled, Database, Failed, storable

#: How many enrollments are taken at once, and about how many a loop is asked at once: at first, at least and at most;
#: as many as keep each of these between so many seconds. A round's locks and snapshot last little longer, however slow
#: a condition is: who has not been asked about by then is put off to the next one.
FIRST_BATCH, FIRST_ASKED, SMALLEST_BATCH, LARGEST_BATCH = 500, 50, 20, 4000
SHORT, LONG = 0.1, 0.4

#: How many users at once become signals when they are walked over: at first and at most.
FIRST_ROLL, LARGEST_ROLL = 2000, 20000

#: Looks whether the table of wakes has grown so often, and so long after it could not be renewed (seconds).
RENEW, RENEW_AGAIN = 0.5, 10.0

#: So many failed evaluations in the search for bad users, and the loop itself is to blame.
MAX_FAILURES = 20

#: An author's code changed what the session holds: something was new, and is gone again; something is missing.
HARMED, LOST = "ACT04", "ACT05"

_ASK = "SELECT activation._detect_ask($1::integer, $2::integer, $3::integer, $4::bigint[], $5) AS true_keys"
_SWEEPS = "SELECT * FROM activation._detect_sweeps($1::integer[])"
_ROLL = "SELECT activation._backfill_chunk($1::integer, $2::integer) AS people"
_STEP = "$1::integer, $2::integer, $3::integer, $4::integer"
_SWEEP = f"SELECT activation._detect_sweep({_STEP}, $5::bigint, $6::integer) AS people"
_STRETCH = f"SELECT ids FROM activation._detect_stretch({_STEP}, $5::bigint, $6::integer)"
_SWEPT = f"SELECT activation._advance_sweep({_STEP}, $5::bigint[], $6::integer)"
_DEFER = "SELECT activation._detect_defer($1::bigint[], $2::timestamptz[], $3::boolean[])"
_BAD_USER = "SELECT activation._detect_bad_user($1::bigint, $2)"
_DECIDE = "SELECT activation._detect_decide($1::integer, $2::bigint[], $3::timestamptz[], $4::boolean[], $5::text[])"


#: An enrollment that is asked about: its id, when its user was last woken, whether it is new.
_Row = tuple[int, str | None, bool]


def adapted(size: int, used: int, seconds: float, largest: int = LARGEST_BATCH) -> int:
    """The next size of a batch of this size, of which so much was used, and which took so long."""
    if seconds > LONG:
        return max(size // 2, SMALLEST_BATCH)
    return min(size * 2, largest) if seconds < SHORT and used >= size else size


class Detector:
    """Runs rounds. slot: which detector this is; None takes every part and waits for it (tick)."""

    def __init__(self, db: Database, slot: int | None) -> None:
        self._db = db
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
        self._rolled = FIRST_ROLL
        #: About how many each loop is asked at once.
        self._sizes: dict[int, int] = {}
        #: When each loop was asked last.
        self._asked_at: dict[int, float] = {}

    def round(self) -> bool:
        """One committed round. Returns whether there was anything to do; see `more`."""
        db = self._db
        self.taken, self.more = 0, False
        try:
            due = db.execute("SELECT * FROM activation._detect_due()")[0]
            if not any(due.values()):
                db.commit()
                return False
            parts = self._lock()
            self._began = time.monotonic()
            self._aside.clear()
            self._put_off.clear()
            self.note = None
            work = self._take(parts, due) if parts else []
            self._ask_all(work)
            if parts and due["sweeps"] and self._sweeps(parts):
                self.more = True
            if due["rolls"] and self._roll():
                self.more = True
        except BaseException:
            db.rollback()
            raise
        db.commit()
        if due["wakes"] and not self.more:
            self._renew_wake()
        return bool(self.taken or work or self.more)

    def _ask_all(self, work: list[dict[str, Any]]) -> None:
        """Asks the loops, the quick before the slow, for as long as a round may last; of the others the one that was
        asked longest ago. The rest is put off to the next round: slow loops hold the quick ones up by one of them."""
        late: list[dict[str, Any]] = []
        for place, item in enumerate(sorted(work, key=lambda item: -self._size(item["loop_id"]))):
            if place and self._late():
                late.append(item)
            elif item["loop_id"] not in self._aside:
                self._of_loop(item, self._loop)
        late.sort(key=lambda item: self._asked_at.get(item["loop_id"], 0.0))
        for place, item in enumerate(late):
            if item["loop_id"] in self._aside:
                continue
            if place:
                self.more = True
                self._db.execute(_DEFER, item["ids"], item["woken_at"], item["is_new"])
            else:
                self._of_loop(item, self._loop)

    def _renew_wake(self) -> None:
        if time.monotonic() >= self._renew_at:
            renewed = self._db.execute("SELECT activation._renew_wake() AS renewed")[0]["renewed"]
            self._db.commit()
            self._renew_at = time.monotonic() + (RENEW_AGAIN if renewed is False else RENEW)

    def _take(self, parts: list[int], due: dict[str, Any]) -> list[dict[str, Any]]:
        """Who is to be asked about, by loop."""
        count, *work = self._db.execute(
            "SELECT * FROM activation._detect_take($1::integer[], $2::integer, $3, $4, $5)",
            parts,
            self._batch,
            due["signals"],
            due["wakes"],
            due["people"],
        )
        self.taken = count["taken"] or 0
        self.note = count["problem"]
        self.more = self.taken >= self._batch
        self._batch = adapted(self._batch, self.taken, time.monotonic() - self._began)
        return work

    def _roll(self) -> bool:
        """A chunk of users that are enrolled by walking over them. Returns whether there were any."""
        loop_id = None
        with self._apart("walks over users"):
            loop_id = self._db.execute("SELECT activation._next_backfill() AS loop_id")[0]["loop_id"]
        if loop_id is None:
            return False
        size, began, people = self._rolled, time.monotonic(), 0
        try:
            with self._asking():
                people = int(self._db.execute(_ROLL, loop_id, size)[0]["people"])
        except Cancelled:
            self._set_aside("_detect_cancelled", {"loop_id": loop_id}, time.monotonic() - began)
        except Failed as error:
            if error.code in (HARMED, LOST):
                self._fail_at_once({"loop_id": loop_id}, error)
            else:
                self._strike({"loop_id": loop_id}, error.text)
        self._rolled = adapted(size, people, time.monotonic() - began, LARGEST_ROLL)
        return people > 0

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """What runs an author's code, in a subtransaction. Where it raised, this says that it is over: no rollback
        does."""
        try:
            with self._db.subtransaction():
                yield
        except (Cancelled, Failed):
            self._db.execute("SELECT activation._evaluating(NULL)")
            raise

    @contextlib.contextmanager
    def _apart(self, what: str) -> Iterator[None]:
        """A part of a round that harms no other: what raises in it is undone and told by status. Only who met others,
        a lock or a serialization failure, ends the round, which is made anew."""
        try:
            with self._db.subtransaction():
                yield
        except Failed as error:
            if error.passing:
                raise
            self.note = storable(f"{what}: {error.text}")

    def _of_loop(self, item: dict[str, Any], act: Callable[[dict[str, Any]], None]) -> None:
        """A part of a round that is about a loop. When it raises, the loop is left alone for a while, and then its
        people are swept, since what was to be asked about them is forgotten."""
        what, done = f"loop {item['loop_id']}", False
        with self._apart(what):
            act(item)
            done = True
        if not done:
            with self._apart(what):
                self._set_aside("_detect_strike", item, self.note or what)

    def _size(self, loop_id: int) -> int:
        return self._sizes.get(loop_id, FIRST_ASKED)

    def _asked(self, loop_id: int, people: int, began: float) -> None:
        self._asked_at[loop_id] = began
        self._sizes[loop_id] = adapted(self._size(loop_id), people, time.monotonic() - began)

    def _late(self) -> bool:
        return time.monotonic() - self._began > LONG

    def _lock(self) -> list[int]:
        if self._slot is None:
            sql = "SELECT activation._lock_buckets(activation._all_buckets(), true) AS parts"
            return list(self._db.execute(sql)[0]["parts"])
        sql = "SELECT activation._lock_buckets(activation._my_buckets($1::integer), false) AS parts"
        return list(self._db.execute(sql, self._slot)[0]["parts"])

    def _sweeps(self, parts: list[int]) -> bool:
        """Stretches of the sweeps that are due, one at least. Returns whether there were any."""
        swept: set[int] = set()
        due: list[dict[str, Any]] = []
        with self._apart("sweeps"):
            due = self._db.execute(_SWEEPS, parts)
        for sweep in due:
            if swept and self._late():
                # They stay due, and those come first that are due longest.
                break
            if sweep["loop_id"] not in self._aside:
                swept.add(sweep["loop_id"])
                self._of_loop(sweep, self._sweep)
        return bool(swept)

    def _sweep(self, sweep: dict[str, Any]) -> None:
        loop_id = sweep["loop_id"]
        step, size = (loop_id, sweep["version"], sweep["step"], sweep["part"]), self._size(loop_id)
        began = time.monotonic()
        try:
            with self._asking():
                people = int(self._db.execute(_SWEEP, *step, sweep["mark"], size)[0]["people"])
        except Cancelled:
            self._set_aside("_detect_cancelled", sweep, time.monotonic() - began)
        except Failed as error:
            if error.code in (HARMED, LOST):
                self._fail_at_once(sweep, error)
                return
            ids = self._db.execute(_STRETCH, *step, sweep["mark"], size)[0]["ids"]
            self._ask(sweep, [(id_, None, False) for id_ in ids])
            if loop_id not in self._aside:
                self._db.execute(_SWEPT, *step, ids, size)
        else:
            self._asked(loop_id, people, began)

    def _loop(self, item: dict[str, Any]) -> None:
        """Asks a loop about its people, the first of them at least. Who was put off about one question is put off about
        all of them."""
        rows: list[_Row] = list(zip(item["ids"], item["woken_at"], item["is_new"], strict=True))
        while rows and item["loop_id"] not in self._aside and item["loop_id"] not in self._put_off:
            size, began = self._size(item["loop_id"]), time.monotonic()
            self._ask(item, rows[:size])
            self._asked(item["loop_id"], len(rows[:size]), began)
            rows = rows[size:]
            if rows and self._late():
                self._put_off.add(item["loop_id"])
        if rows and item["loop_id"] in self._put_off:
            self.more = True
            self._db.execute(_DEFER, *([row[i] for row in rows] for i in range(3)))

    def _ask(self, item: dict[str, Any], rows: list[_Row]) -> None:
        failures: list[Failed] = []
        spared = 0
        todo = [rows]
        # Halving finds the users on whom the condition raises: only a single key that raises proves a bad user, and
        # only by a plan that does not compute with others' rows as well.
        while todo:
            part = todo.pop()
            one_by_one = bool(failures)
            ids = [row[0] for row in part]
            step = (item["loop_id"], item["version"], item["step"])
            began = time.monotonic()
            try:
                with self._asking():
                    true_keys = self._db.execute(_ASK, *step, ids, one_by_one)[0]["true_keys"]
            except Cancelled:
                self._set_aside("_detect_cancelled", item, time.monotonic() - began)
                return
            except Failed as error:
                if error.passing:
                    self._set_aside("_detect_postpone", item, f"its condition waited for a lock: {error.text}")
                    return
                if error.code in (HARMED, LOST):
                    self._fail_at_once(item, error)
                    return
                failures.append(error)
                if len(failures) > MAX_FAILURES or not error.of_a_person:
                    self._strike(item, error.text)
                    return
                if len(part) == 1 and not one_by_one:
                    todo.append(part)
                elif len(part) == 1:
                    self._db.execute(_BAD_USER, part[0][0], storable(error.text))
                else:
                    middle = len(part) // 2
                    todo += [part[middle:], part[:middle]]
            else:
                spared += self._decide(item, part, true_keys, failures)
                if len(failures) > MAX_FAILURES:
                    self._strike(item, failures[-1].text)
                    return
        if failures and not spared and len(rows) > 1:
            self._strike(item, failures[-1].text)
        elif spared:
            self._db.execute("SELECT activation._clear_strikes($1::integer)", item["loop_id"])

    def _decide(
        self, item: dict[str, Any], rows: list[_Row], true_keys: list[str] | None, failures: list[Failed]
    ) -> int:
        """Writes down what an answer means. Returns for how many: whoever that raises on is found by halves."""
        ids, woken, fresh = ([row[i] for row in rows] for i in range(3))
        try:
            with self._db.subtransaction():
                self._db.execute(_DECIDE, item["step"], ids, woken, fresh, true_keys)
            return len(rows)
        except Failed as error:
            if error.passing:
                raise
            if len(failures) > MAX_FAILURES:
                return 0
            failures.append(error)
            if len(rows) == 1:
                self._db.execute(_BAD_USER, rows[0][0], storable(error.text))
                return 0
        middle = len(rows) // 2
        return sum(self._decide(item, half, true_keys, failures) for half in (rows[:middle], rows[middle:]))

    def _strike(self, item: dict[str, Any], text: str) -> None:
        self._set_aside("_detect_strike", item, storable(f"its condition raised: {text}") or "")

    def _fail_at_once(self, item: dict[str, Any], error: Failed) -> None:
        self._aside.add(item["loop_id"])
        self._db.execute(
            "SELECT activation._fail_at_once($1::integer, 'detect', $2, $3)",
            item["loop_id"],
            storable(error.text),
            error.code == LOST,
        )

    def _set_aside(self, function: str, item: dict[str, Any], why: str | float) -> None:
        self._aside.add(item["loop_id"])
        self._sizes[item["loop_id"]] = SMALLEST_BATCH
        self._db.execute(f"SELECT activation.{function}($1::integer, $2)", item["loop_id"], why)
