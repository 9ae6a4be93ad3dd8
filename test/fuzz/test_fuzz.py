"""A short run, the same each time; `make fuzz` is the long one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest

import fuzz
import targets
from targets import Escape, Target

#: So many inputs of each take half a minute together.
INPUTS = {
    "import_loop": 6_000,
    "import_skene": 2_000,
    "import_journey": 6_000,
    "receive_webhook": 6_000,
    "tokens": 10_000,
    "set_template": 1_200,
    "import_loop in SQL": 120,
    "import_skene in SQL": 160,
    "import_journey in SQL": 120,
    "set_template in SQL": 200,
    "receive_webhook in SQL": 600,
    "track in SQL": 600,
    "track_all in SQL": 300,
    "unsubscribe in SQL": 600,
}


def test_hostile_inputs(tmp_path: Path) -> None:
    assert list(INPUTS) == [kind.name for kind in targets.TARGETS]
    with fuzz.database(True) as dsn:
        reports = fuzz.run(1, 8, 2, INPUTS, dsn)
    assert {name: report.inputs for name, report in reports.items()} == INPUTS
    assert not any(report.failures for report in reports.values()), fuzz.shown(reports, 1, tmp_path)


class _Bad(Target):
    name: ClassVar[str] = "bad"

    def make(self, rng: Any) -> Any:
        return rng.randrange(10**9)

    def run(self, given: Any) -> str:
        if given % 3 == 0:
            raise Escape("a kind: of its own")
        return {}[given] if given % 3 == 1 else "good"


def test_what_is_wrong_is_told_once_and_can_be_repeated(tmp_path: Path) -> None:
    report = fuzz.Report()
    for number in range(300):
        fuzz.one(7, _Bad(), number, report)
    assert report.inputs == 300 and report.outcomes["good"] + report.outcomes["FAILED"] == 300
    assert sorted(report.failures) == ["Escape a kind", "KeyError"]
    assert sum(failure.times for failure in report.failures.values()) == report.outcomes["FAILED"]
    text = fuzz.shown({"bad": report}, 7, tmp_path)
    for failure in report.failures.values():
        assert f"make fuzz SEED=7 ARGS=\"--target 'bad' --only {failure.number}\"" in text
        assert (tmp_path / f"bad-{failure.number}.json").read_text() == json.dumps(fuzz.made(7, _Bad(), failure.number))
        again = fuzz.Report()
        fuzz.one(7, _Bad(), failure.number, again)
        assert list(again.failures) == [failure.kind]


def test_slow_ones_and_dead_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(_Bad):
        def run(self, given: Any) -> str:
            return "late"

    class Dead(_Bad):
        def run(self, given: Any) -> NoReturn:
            os._exit(3)

    class Endless(_Bad):
        def run(self, given: Any) -> NoReturn:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            while True:
                signal.pause()

    monkeypatch.setattr(fuzz, "LIMIT", -1.0)
    monkeypatch.setattr(targets, "TARGETS", [Slow])
    reports = fuzz.run(1, 1, 2, {"bad": 10}, "")
    assert list(reports["bad"].failures) == ["slow (late)"] and reports["bad"].failures["slow (late)"].times == 10
    monkeypatch.setattr(targets, "TARGETS", [Dead])
    (failure,) = fuzz.run(1, 1, 1, {"bad": 10}, "")["bad"].failures.values()
    assert failure.kind == "the process died (3)" and failure.number == 0
    monkeypatch.setattr(fuzz, "PATIENCE", 0.5)
    monkeypatch.setattr(targets, "TARGETS", [Endless])
    (failure,) = fuzz.run(1, 1, 1, {"bad": 10}, "")["bad"].failures.values()
    assert failure.kind == "it never ended" and failure.number == 0
