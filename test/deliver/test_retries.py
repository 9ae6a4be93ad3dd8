"""When a try is made again: the waits between tries, what spends one, and what is told of each."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import tick
from mail import last_error, received, sign_up, status, statuses, tick_at

START = datetime.fromisoformat("2030-01-01 12:00:00+00:00")


def define_with(connection: Connection, recovery: str) -> None:
    """The loop `first` again, with another recovery."""
    connection.execute(
        "SELECT activation.define_loop('first', trigger => activation.on_insert('users'),"
        f" action => activation.email('activation_welcome'), recovery => {recovery})"
    )


def waits_until_done(db: Database) -> list[float]:
    """Tick at the very moment each try is due; the waits between them, in seconds."""
    at, waits = START, []
    while True:
        tick_at(db, at.isoformat())
        due = db.sql("SELECT next_try_at FROM activation.request WHERE state = 'open' AND next_try_at < 'infinity'")
        if not due:
            return waits
        waits.append((due[0][0] - at).total_seconds())
        # Not before it is due.
        tries = db.value("SELECT max(attempts) FROM activation.message_log")
        tick_at(db, (due[0][0] - timedelta(milliseconds=1)).isoformat())
        assert db.value("SELECT max(attempts) FROM activation.message_log") == tries
        at = due[0][0]


@pytest.mark.parametrize(
    ("recovery", "bases"),
    [
        ("activation.retry()", [30, 60, 120]),
        ("activation.retry(0)", []),
        ("activation.retry(2, 'fixed', initial => '10 seconds')", [10, 10]),
        ("activation.retry(5, initial => '1 minute', max => '3 minutes')", [60, 120, 180, 180, 180]),
    ],
)
def test_the_waits_between_tries(
    db: Database, live: Connection, sandbox: Sandbox, recovery: str, bases: list[float]
) -> None:
    """As the loop says, a fifth more or less; then the message has failed, and nothing was accepted."""
    define_with(live, recovery)
    sandbox.fail("status", status=500, message="oops", times=None)
    sign_up(live, 1, 2, 3)
    waits = waits_until_done(db)
    assert len(waits) == len(bases)
    for wait, base in zip(waits, bases, strict=True):
        assert base * 0.8 <= wait <= base * 1.2
    if bases == [30, 60, 120]:
        assert waits[0] < waits[1] < waits[2]
    assert statuses(db) == {"1": "failed", "2": "failed", "3": "failed"}
    assert "oops" in last_error(db, 1)
    tries = len(bases) + 1
    assert len(sandbox.log) == tries and len({(entry.idempotency_key, entry.body_sha256) for entry in sandbox.log}) == 1
    assert db.sql("SELECT outcome, http_status, count(*) FROM activation.attempt GROUP BY 1, 2") == [
        ("erred", 500, 3 * tries)
    ]
    assert db.value("SELECT count(retry_at) FROM activation.attempt") == 3 * len(bases)
    tick_at(db, (START + timedelta(days=3)).isoformat())
    assert len(sandbox.log) == tries and received(sandbox) == {}


def test_waits_differ(db: Database) -> None:
    """So that many who failed together do not come back together."""
    waits = db.sql(
        "SELECT extract(epoch FROM activation._backoff(activation.retry(), 1))::float FROM generate_series(1, 200)"
    )
    found = {wait for (wait,) in waits}
    assert len(found) > 100 and 24 <= min(found) < 27 and 33 < max(found) <= 36


def test_no_answer_spends_no_try(db: Database, live: Connection, sandbox: Sandbox) -> None:
    define_with(live, "activation.retry(0)")
    sandbox.fail("drop_before", times=6)
    sign_up(live, 1)
    assert len(waits_until_done(db)) == 6
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}


def test_rate_limit_spends_no_try(db: Database, live: Connection, sandbox: Sandbox) -> None:
    headers = {"retry-after": "1"}
    sandbox.fail("status", status=429, name="rate_limit_exceeded", message="slow down", headers=headers, times=6)
    sign_up(live, 1)
    for minutes in range(7):
        tick(db, f"{minutes} minutes")
    assert statuses(db) == {"1": "sent"}
    assert db.value("SELECT count(*) FROM activation.attempt WHERE outcome = 'refused'") == 6
    assert received(sandbox) == {"u1@acme.dev": 1}


def test_tries_spent_after_one_without_an_answer(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """One try may have been accepted (this one was): not failed, never sent again, and shown as unknown in the end."""
    define_with(live, "activation.retry(1)")
    sandbox.fail("drop_after")
    sandbox.fail("status", status=503, times=None)
    sign_up(live, 1)
    assert len(waits_until_done(db)) == 2
    assert statuses(db) == {"1": "sending"} and len(sandbox.log) == 3
    tick_at(db, (START + timedelta(hours=22)).isoformat())
    assert statuses(db) == {"1": "sending"} and len(sandbox.log) == 3
    tick_at(db, (START + timedelta(hours=24)).isoformat())
    assert statuses(db) == {"1": "unknown"} and len(sandbox.log) == 3
    assert received(sandbox) == {"u1@acme.dev": 1}
    assert status(db, "queue")[0] == "failing" and "1 unknown" in status(db, "queue")[1]


def test_why_tells_each_attempt(db: Database, live: Connection, sandbox: Sandbox) -> None:
    sandbox.fail("status", status=503, name="service_unavailable", message="later", times=1)
    sign_up(live, 1)
    tick(db)
    tick(db, "5 minutes")
    told = db.sql("SELECT event, detail FROM activation.why('1', 'first')")
    assert [event for event, _ in told] == [
        "enrolled",
        "activated",
        "evaluated",
        "message promised",
        "message rendered",
        "attempt",
        "attempt",
        "sent",
    ] or Counter(event for event, _ in told) == Counter(
        ["enrolled", "evaluated", "activated", "message promised", "message rendered", "attempt", "attempt", "sent"]
    )
    attempts = [detail for event, detail in told if event == "attempt"]
    assert "erred" in attempts[0] and "service_unavailable" in attempts[0] and "sent" in attempts[1]
