"""A detector on a database in memory."""

from __future__ import annotations

import pytest

from activation.engine.calls import DetectCalls
from activation.engine.detect import MAX_FAILURES, Detector
from activation.engine.protocol import Cancelled, Failed
from engine_fakes import MemoryDetection


class Picky(MemoryDetection):
    """Its condition raises on some users."""

    def __init__(self, *users: str, bad: set[str], code: str = "22012") -> None:
        super().__init__(*users)
        self.bad, self.code = bad, code

    def condition(self, keys: list[str]) -> list[str]:
        if self.bad & set(keys):
            raise Failed("division by zero", self.code)
        return keys[:1]


def test_nothing_to_do() -> None:
    calls = MemoryDetection()
    assert not Detector(calls, 1).round()
    assert calls.calls == ["due", "commit"]


def test_a_round() -> None:
    calls = MemoryDetection("ada", "grace")
    assert Detector(calls, 1).round()
    assert calls.questions == [("ada", "grace")] and calls.data.acted == ["ada", "grace"]
    assert calls.calls[-1] == "commit"


def test_a_bad_user_is_found_by_halves() -> None:
    """That one alone is set aside, and only after the condition raised for that one by itself."""
    users = [f"u{n}" for n in range(16)]
    calls = Picky(*users, bad={"u5"})
    Detector(calls, 1).round()
    assert calls.data.aside == {"u5": "division by zero"}
    assert sorted(calls.data.asked) == sorted(set(users) - {"u5"})
    assert calls.questions.count(("u5",)) == 1 and len(calls.questions) < 2 * 5
    assert [what for what, *_ in calls.data.loops] == ["clear_strikes"]
    assert calls.calls.count("evaluation_ended") == len([asked for asked in calls.questions if "u5" in asked])


def test_a_loop_that_raises_for_everybody_gets_a_strike() -> None:
    users = [f"u{n}" for n in range(40)]
    calls = Picky(*users, bad=set(users))
    Detector(calls, 1).round()
    assert calls.data.loops == [("strike", 1, "its condition raised: division by zero")]
    assert calls.data.asked == [] and len(calls.questions) <= MAX_FAILURES + 1


@pytest.mark.parametrize(
    ("code", "deed"),
    [("42P01", "strike"), ("55P03", "postpone"), ("ACT04", "fail"), ("ACT05", "fail")],
)
def test_whose_fault_an_error_is(code: str, deed: str) -> None:
    """No user is blamed for a missing table, for a lock, or for a harmed session. One question is enough."""
    calls = Picky("ada", "grace", bad={"ada"}, code=code)
    Detector(calls, 1).round()
    ((done, _, said),) = calls.data.loops
    assert done == deed and calls.data.aside == {} and len(calls.questions) == 1
    if deed == "fail":
        assert said is (code == "ACT05")


def test_a_condition_that_was_cancelled() -> None:
    calls = MemoryDetection("ada")
    calls.raising["ask"] = [Cancelled("too slow")]
    detector = Detector(calls, 1)
    detector.round()
    assert [what for what, *_ in calls.data.loops] == ["cancelled"] and calls.data.asked == []
    detector.round()
    assert calls.data.asked == ["ada"], "the next round asks again"


def test_an_error_elsewhere_undoes_the_round() -> None:
    calls = MemoryDetection("ada")
    calls.raising["take"] = [Failed("a lock", "55P03")]
    with pytest.raises(Failed):
        Detector(calls, 1).round()
    assert calls.calls[-1] == "rollback" and calls.data.asked == []
    assert Detector(calls, 1).round() and calls.data.asked == ["ada"]


def test_the_fake_answers_all_calls() -> None:
    """None of them would go to a database."""
    assert {name for name in vars(DetectCalls) if name[0] != "_"} <= set(vars(MemoryDetection))


def test_a_loop_that_somebody_holds() -> None:
    """Nothing can be written about it: the detector remembers that by itself, and has its people swept afterwards."""
    calls = MemoryDetection("ada")
    calls.held = True
    calls.raising["decide"] = [Failed("canceling statement due to lock timeout", "55P03")]
    detector = Detector(calls, 1)
    assert detector.round()
    assert [what for what, *_ in calls.data.loops] == ["postpone"]
    assert not detector.round() and len(calls.questions) == 1, "it is not asked, and that is no work"
    detector._held[1] = 0.0
    assert not detector.round() and calls.data.loops[-1][0] == "sweep" and calls.data.asked == []
    calls.held = False
    detector._held[1] = 0.0
    assert detector.round()
    assert [what for what, *_ in calls.data.loops][-2:] == ["sweep", "clear_strikes"] and calls.data.acted == ["ada"]
