"""What the dashboard says, without a database and without a browser."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from activation.pages import overview


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        ({"type": "schedule", "cron": "0 9 * * Mon"}, "On schedule 0 9 * * Mon"),
        ({"type": "event", "event": "paid"}, "Event paid"),
        ({"type": "event", "event": "insert"}, "Event insert"),
        ({"type": "database", "event": "insert", "table": "users", "columns": None}, "Insert into users"),
        ({"type": "database", "event": "update", "table": "users", "columns": ["plan"]}, "Update of plan in users"),
    ],
)
def test_triggers_in_words(trigger: Mapping[str, object], words: str) -> None:
    """An app may call its events as it likes."""
    assert overview.trigger(trigger) == words
