"""How long a claim renders."""

from __future__ import annotations

import pytest

from activation.engine import composer
from activation.engine.calls import Claimed, DeliverCalls, DeliveryState

STATE = DeliveryState("live", *[None] * 6, "", None, None, None, False, True, False)


class Clock:
    """Every look at it takes 15 ms: one before a mail, one after it."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 0.015
        return self.now


class Asked(DeliverCalls):
    """Counts how often a cancel could get through."""

    looked = 0

    def __init__(self) -> None:
        pass

    def look(self) -> None:
        self.looked += 1


def test_slow_rendering_is_cut_into_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a claim cannot render in its time stays queued, and comes with the next."""
    asked = Asked()
    monkeypatch.setattr(composer, "time", Clock())
    made = composer.Composer(asked)
    monkeypatch.setattr(made, "_mail", lambda row, _: row)
    rows = [Claimed(str(n), 1, 1, 1, "action", "", None, "a@b.de", "{}", 0, None, n) for n in range(500)]
    mails, ended, in_time = made.compose(rows, STATE)
    assert not in_time and 80 < len(mails) < 120 and ended.ids == []
    assert asked.looked >= 30
    assert made.compose(rows[:10], STATE)[2], "ten are made in time"
