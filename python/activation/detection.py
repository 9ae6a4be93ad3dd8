"""Detection: one round takes signals and wakes, enrolls, evaluates and decides.

A round is one transaction under the locks of the parts of the users it covers. A loop that raises harms nobody but
itself.
"""

from __future__ import annotations

import time
from typing import Any

from activation.database import Cancelled, Database, Failed

#: How many enrollments one round takes of each kind: at first, at least and at most; as many as keep a round between
#: these times (seconds). Its locks and its snapshot last no longer, however slow a condition is.
FIRST_BATCH, SMALLEST_BATCH, LARGEST_BATCH = 500, 20, 4000
SHORT, LONG = 0.1, 0.4

#: So many failed evaluations in the search for bad users, and the loop itself is to blame.
MAX_FAILURES = 20

_ASK = "SELECT activation._detect_ask($1::integer, $2::integer, $3::integer, $4::bigint[], $5) AS true_keys"
_SWEEPS = "SELECT * FROM activation._detect_sweeps($1::integer[])"
_STEP = "$1::integer, $2::integer, $3::integer, $4::integer"
_SWEEP = f"SELECT activation._detect_sweep({_STEP}, $5::bigint, $6::integer) AS people"
_STRETCH = f"SELECT ids FROM activation._detect_stretch({_STEP}, $5::bigint, $6::integer)"
_SWEPT = f"SELECT activation._detect_swept({_STEP}, $5::bigint[], $6::integer)"
_DECIDE = "SELECT activation._detect_decide($1::bigint[], $2::timestamptz[], $3::boolean[], $4::text[])"


class Detector:
    """Runs rounds. slot: which detector this is; None takes every part and waits for it (tick)."""

    def __init__(self, db: Database, slot: int | None) -> None:
        self._db = db
        self._slot = slot
        self._aside: set[int] = set()
        #: How many enrollments of each kind the next round takes.
        self.batch = FIRST_BATCH

    def round(self) -> bool:
        """One committed round. Returns whether there was anything to do."""
        db = self._db
        began = time.monotonic()
        try:
            if not db.execute("SELECT activation._detect_due() AS due")[0]["due"]:
                db.commit()
                return False
            parts = self._lock()
            work = (
                db.execute("SELECT * FROM activation._detect_take($1::integer[], $2::integer)", parts, self.batch)
                if parts
                else []
            )
            self._aside.clear()
            for item in work:
                if item["loop_id"] not in self._aside:
                    self._loop(item)
            swept = self._sweeps(parts) if parts else 0
            more = bool(work) or swept > 0
            if self._slot is None and not more:
                more = bool(db.execute("SELECT EXISTS (SELECT FROM activation.signal) AS more")[0]["more"])
        except BaseException:
            db.rollback()
            raise
        db.commit()
        self.adapt(sum(len(item["ids"]) for item in work) + swept, time.monotonic() - began)
        return more

    def adapt(self, evaluated: int, seconds: float) -> None:
        """Makes the next round smaller after one that took long, larger after one that was full and short."""
        if seconds > LONG:
            self.batch = max(self.batch // 2, SMALLEST_BATCH)
        elif seconds < SHORT and evaluated >= self.batch:
            self.batch = min(self.batch * 2, LARGEST_BATCH)

    def _lock(self) -> list[int]:
        if self._slot is None:
            sql = "SELECT activation._lock_parts(activation._all_parts(), true) AS parts"
            return list(self._db.execute(sql)[0]["parts"])
        sql = "SELECT activation._lock_parts(activation._my_parts($1::integer), false) AS parts"
        return list(self._db.execute(sql, self._slot)[0]["parts"])

    def _sweeps(self, parts: list[int]) -> int:
        """A stretch of each sweep that is due, until it is enough for a round. Returns how many people it was."""
        people = 0
        for sweep in self._db.execute(_SWEEPS, parts):
            if people >= self.batch:
                break
            if sweep["loop_id"] not in self._aside:
                people += self._sweep(sweep)
        return people

    def _sweep(self, sweep: dict[str, Any]) -> int:
        step = (sweep["loop_id"], sweep["version"], sweep["step"], sweep["part"])
        began = time.monotonic()
        try:
            with self._db.subtransaction():
                return int(self._db.execute(_SWEEP, *step, sweep["mark"], self.batch)[0]["people"])
        except Cancelled:
            self._set_aside("_detect_cancelled", sweep, time.monotonic() - began)
            return 1
        except Failed:
            ids = self._db.execute(_STRETCH, *step, sweep["mark"], self.batch)[0]["ids"]
            self._loop({**sweep, "ids": ids, "woken": [None] * len(ids), "fresh": [False] * len(ids)})
            if sweep["loop_id"] not in self._aside:
                self._db.execute(_SWEPT, *step, ids, self.batch)
            return len(ids)

    def _loop(self, item: dict[str, Any]) -> None:
        failures: list[Failed] = []
        spared = 0
        todo = [list(zip(item["ids"], item["woken"], item["fresh"], strict=True))]
        # Halving finds the users on whom the condition raises: only a single key that raises proves a bad user, and
        # only by a plan that does not compute with others' rows as well.
        while todo:
            part = todo.pop()
            one_by_one = bool(failures)
            ids, woken, fresh = ([row[i] for row in part] for i in range(3))
            step = (item["loop_id"], item["version"], item["step"])
            began = time.monotonic()
            try:
                with self._db.subtransaction():
                    true_keys = self._db.execute(_ASK, *step, ids, one_by_one)[0]["true_keys"]
            except Cancelled:
                self._set_aside("_detect_cancelled", item, time.monotonic() - began)
                return
            except Failed as error:
                if error.passing:
                    self._set_aside("_detect_postpone", item, f"its condition waited for a lock: {error.text}")
                    return
                failures.append(error)
                if len(failures) > MAX_FAILURES or error.code in ("ACT02", "42501", "42P01", "42883", "42703", "25006"):
                    self._strike(item, error.text)
                    return
                if len(part) == 1 and not one_by_one:
                    todo.append(part)
                elif len(part) == 1:
                    self._db.execute("SELECT activation._detect_bad_user($1::bigint, $2)", part[0][0], error.text)
                else:
                    middle = len(part) // 2
                    todo += [part[middle:], part[:middle]]
            else:
                self._db.execute(_DECIDE, ids, woken, fresh, true_keys)
                spared += len(part)
        if failures and not spared and len(item["ids"]) > 1:
            self._strike(item, failures[-1].text)
        elif spared:
            self._db.execute("SELECT activation._detect_well($1::integer)", item["loop_id"])

    def _strike(self, item: dict[str, Any], text: str) -> None:
        self._set_aside("_detect_strike", item, f"its condition raised: {text}")

    def _set_aside(self, function: str, item: dict[str, Any], why: str | float) -> None:
        self._aside.add(item["loop_id"])
        self._db.execute(f"SELECT activation.{function}($1::integer, $2)", item["loop_id"], why)
