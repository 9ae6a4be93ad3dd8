"""How long a claim renders."""

from __future__ import annotations

from typing import Any

import pytest

from activation.engine import composer


class Clock:
    """Every look at it takes 15 ms: one before a mail, one after it."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 0.015
        return self.now


class Asked:
    """A database that counts how often a cancel could get through."""

    looked = 0

    def execute(self, *_: object) -> list[dict[str, Any]]:
        self.looked += 1
        return []


def test_slow_rendering_is_cut_into_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a claim cannot render in its time stays queued, and comes with the next."""
    asked = Asked()
    monkeypatch.setattr(composer, "time", Clock())
    made = composer.Composer(asked)  # type: ignore[arg-type]
    monkeypatch.setattr(made, "_mail", lambda row, _: row)
    rows = [{"message_id": str(n), "loop_id": 1, "user_row": "{}", "email": "a@b.de"} for n in range(500)]
    mails, ended, in_time = made.compose(rows, {})
    assert not in_time and 80 < len(mails) < 120 and ended.ids == []
    assert asked.looked >= 30
    assert made.compose(rows[:10], {})[2], "ten are made in time"
