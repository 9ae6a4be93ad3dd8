"""The provider's rate: learnt, kept to, shared, and used in full."""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta

import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database, wait_until
from loops import tick
from mail import Worker, one_by_one, promise, received, sign_up, status, statuses


def most_in_a_second(sandbox: Sandbox) -> int:
    return max(Counter(int(entry.at) for entry in sandbox.log).values())


def test_two_deliverers_share_the_rate(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Neither sends what the other does, and together they keep to what the provider allows."""
    sandbox.configure(rate=5, latency_ms=30)
    promise(db, live, *range(1, 21))
    one_by_one(db)
    workers = [Worker(db, slot) for slot in (1, 2)]
    sandbox.wait_for(lambda s: len(s.emails) == 20, 60)
    db.sql("SELECT activation.stop()")
    assert all(worker.ended(30) for worker in workers)
    for worker in workers:
        worker.connection.close()
    assert {entry.status for entry in sandbox.log} == {200} and len(sandbox.log) == 20
    assert most_in_a_second(sandbox) <= 5
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in range(1, 21)}
    assert Counter(statuses(db).values()) == {"sent": 20}


def test_the_rate_is_learnt(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A provider that allows five requests a second gets no more than that, and no 429 comes back."""
    sandbox.configure(rate=5)
    for user in range(1, 13):
        # Different retries keep them in requests of their own.
        live.execute(
            "SELECT activation.define_loop(%s, trigger => activation.on_insert('users'),"
            " action => activation.email('activation_welcome'), recovery => activation.retry(%s))",
            [f"loop {user}", user],
        )
    sign_up(live, 1)
    tick(db)
    assert len(sandbox.emails) == 13
    assert {entry.status for entry in sandbox.log} == {200}
    assert most_in_a_second(sandbox) <= 5
    assert "5 requests a second" in status(db, "provider")[1]


def test_a_rate_that_is_set(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """For a provider that names none."""
    live.execute("SELECT activation.configure(rate => 3)")
    promise(db, live, *range(1, 8))
    one_by_one(db)
    tick(db)
    assert most_in_a_second(sandbox) <= 3 and len(sandbox.log) == 7
    assert "3 requests a second" in status(db, "provider")[1]


def test_a_rate_that_falls(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """What was refused for it goes again; no try is spent, and the new limit is kept to."""
    sandbox.configure(rate=50)
    sign_up(live, 1)
    tick(db)
    sandbox.configure(rate=2)
    promise(db, live, *range(2, 8))
    one_by_one(db)
    for minute in range(6):
        tick(db, f"{minute} minutes")
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in range(1, 8)}
    assert db.value("SELECT count(*) FROM activation.attempt WHERE outcome NOT IN ('sent', 'refused')") == 0
    assert db.value("SELECT count(*) FROM activation.rate_permit") == 2
    # While it is paused for a moment, Resend's own words.
    assert re.search("2 requests (a|per) second", status(db, "provider")[1])


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("counted", ["on arrival", "after the way"])
def test_any_second_of_the_providers(
    db: Database, live: Connection, sandbox: Sandbox, sliding: bool, counted: str
) -> None:
    """However it counts, no second gets one too many: each of five permits is used again a second later or more.
    Where the time goes before it counts, once a 429 has told so, nothing is refused. Where it counts on arrival, a busy
    machine may hold one request up and not the next; then one is refused that has left in time, and goes later."""
    sandbox.configure(rate=5, sliding=sliding)
    if counted == "on arrival":
        sandbox.configure(latency_ms=20, jitter_ms=100)
    else:
        # No way is shorter than half of another: that much is believed of the way there.
        sandbox.configure(latency_ms=60, jitter_ms=60, way_there=1.0)
        db.sql("SELECT activation._learn_from_answer(NULL, NULL, NULL, NULL, 'key', true)")
    promise(db, live, *range(1, 26))
    one_by_one(db)
    for minute in range(4):
        tick(db, f"{minute} minutes")
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in range(1, 26)}
    began = [at for (at,) in db.sql("SELECT extract(epoch FROM started_at)::float FROM activation.attempt ORDER BY 1")]
    assert all(sixth - first >= 1 for first, sixth in zip(began, began[5:], strict=False))
    if counted == "after the way":
        assert {entry.status for entry in sandbox.log} == {200}
    # Five at a time take five seconds; one at a time would take 24.
    assert began[-1] - began[0] < 20


def test_the_lower_of_both(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A limit of one's own leaves the rest to others; the provider's is kept to in any case."""
    sandbox.configure(rate=4)
    live.execute("SELECT activation.configure(rate => 2)")
    sign_up(live, 1)
    tick(db)
    assert "2 requests a second" in status(db, "provider")[1]
    live.execute("SELECT activation.configure(rate => 50)")
    promise(db, live, *range(2, 14))
    one_by_one(db)
    tick(db)
    assert "4 requests a second" in status(db, "provider")[1]
    assert {entry.status for entry in sandbox.log} == {200} and most_in_a_second(sandbox) <= 4


def test_a_fraction(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute("SELECT activation.configure(rate => 0.5)")
    promise(db, live, 1, 2)
    one_by_one(db)
    tick(db)
    ((first,), (second,)) = db.sql("SELECT started_at FROM activation.attempt ORDER BY 1")
    assert second - first >= timedelta(seconds=2) and statuses(db) == {"1": "sent", "2": "sent"}


def test_too_many_is_a_pause_for_all(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Others use the same limit: until retry-after nothing is tried, then all goes on; no try is spent."""
    promise(db, live, 1, 2, 3)
    one_by_one(db)
    sandbox.fail("status", status=429, name="rate_limit_exceeded", headers={"retry-after": "20"})
    tick(db)
    assert len(sandbox.log) == 1 and set(statuses(db).values()) == {"queued"}
    state, detail = status(db, "provider")
    assert state == "paused" and "3 messages wait" in detail
    tick(db, "10 seconds")
    assert len(sandbox.log) == 1
    tick(db, "25 seconds")
    assert set(statuses(db).values()) == {"sent"} and len(sandbox.log) == 4
    assert db.value("SELECT cautious_until > now() FROM activation.provider")
    assert db.value("SELECT max(error_tries) FROM activation.request") == 0


def test_the_token_of_who_is_gone(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Its request may have left at the last moment, so that it counts for another second."""
    sandbox.configure(rate=1)
    sign_up(live, 1)
    tick(db)
    promise(db, live, 2)
    sandbox.fail("stall", times=1)
    worker = Worker(db)
    sandbox.wait_for(lambda s: s.held == 1)
    assert db.value("SELECT holder_pid FROM activation.rate_permit") == worker.pid
    db.sql("SELECT pg_terminate_backend(%s)", worker.pid)
    assert worker.ended(10)
    gone = db.value("SELECT extract(epoch FROM clock_timestamp())")
    worker.connection.close()
    sandbox.release()
    tick(db)
    assert sandbox.log[-1].at >= float(gone) + 1
    assert statuses(db) == {"1": "sent", "2": "sent"} and received(sandbox) == {"u1@acme.dev": 1, "u2@acme.dev": 1}
    assert {entry.status for entry in sandbox.log if entry.status} == {200}


def test_a_way_that_becomes_longer(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """It is believed by and by: a network that held all up for a moment lets a short way follow a long one."""
    shortest = "SELECT min_rtt FROM activation.provider"
    # As they were recorded, which is never less than what is learnt: that begins when the request has left.
    slowest = "SELECT max(extract(epoch FROM a.finished_at - a.started_at)::float) FROM activation.attempt a"
    sandbox.configure(rate=50)
    sign_up(live, 1)
    tick(db)
    first = db.value(shortest)
    sandbox.configure(latency_ms=500)
    for user in range(2, 16):
        before = db.value(shortest)
        db.sql("UPDATE activation.provider SET rtt_since = rtt_since - interval '10 seconds'")
        sign_up(live, user)
        tick(db)
        assert db.value(shortest) <= before * 1.25 + 0.0101
    assert first <= 0.5 <= db.value(shortest) <= db.value(slowest)
    sandbox.configure(latency_ms=0)
    sign_up(live, 99)
    tick(db)
    assert db.value(shortest) <= db.value(f"{slowest} JOIN activation.message USING (message_id) WHERE user_id = '99'")


def notes(db: Database) -> str:
    return " ".join(
        detail for (detail,) in db.sql("SELECT detail FROM activation.status WHERE component ~ 'deliverer'")
    )


def test_more_is_allowed_than_one_can_do(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Status says so, and that it needs more deliverers; not while the rate is what limits it."""
    sandbox.configure(rate=500, latency_ms=1000)
    sign_up(live, 1)
    tick(db)
    promise(db, live, *range(2, 600))
    one_by_one(db)
    worker = Worker(db)
    try:
        wait_until(lambda: "activation.start(deliverers => …)" in notes(db), 20)
    finally:
        sandbox.configure(latency_ms=0)
        db.sql("SELECT activation.stop()")
        assert worker.ended(30)
        worker.connection.close()
