"""Deliverers at work: several at once, stopped, killed, and with a lease that has passed to another."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Any

import psycopg
import pytest

from activation.sandbox import Sandbox
from harness import Cluster, Connection, Database, wait_until
from loops import tick
from mail import Worker, go_live, promise, received, sign_up, statuses


def holds(db: Database, pid: int) -> tuple[object, object, list[str]]:
    """A session's snapshot, transaction id, and locks on our tables."""
    ((xmin, xid),) = db.sql("SELECT backend_xmin, backend_xid FROM pg_stat_activity WHERE pid = %s", pid)
    locks = db.sql("SELECT relation::regclass::text FROM pg_locks WHERE pid = %s AND relation IS NOT NULL", pid)
    return xmin, xid, [name for (name,) in locks if name.startswith("activation.")]


def test_nothing_is_held_while_a_request_is_on_its_way(db: Database, live: Connection, sandbox: Sandbox) -> None:
    promise(db, live)
    sandbox.fail("stall", times=1)
    worker = Worker(db)
    sandbox.wait_for(lambda s: s.held == 1)
    # Its polls hold a snapshot for a moment; the request on its way holds nothing, so every look soon finds nothing.
    for _ in range(20):
        wait_until(lambda: holds(db, worker.pid) == (None, None, []), 5)
    live.execute("SELECT activation.stop()")
    sandbox.release()
    assert worker.ended(20)
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}


@pytest.mark.parametrize("function", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_worker_can_be_stopped(db: Database, live: Connection, sandbox: Sandbox, function: str) -> None:
    """While the provider stalls; the request is then repeated, and the sandbox holds the mail once."""
    promise(db, live)
    sandbox.fail("stall", times=1)
    worker = Worker(db)
    sandbox.wait_for(lambda s: s.held == 1)
    db.sql(f"SELECT {function}(%s)", worker.pid)
    # It takes tens of milliseconds; the request would be given up after 25 s.
    assert worker.ended(5)
    assert isinstance(worker.error, psycopg.errors.QueryCanceled | psycopg.OperationalError)
    sandbox.release()
    worker.connection.close()
    wait_until(lambda: not db.sql("SELECT FROM pg_stat_activity WHERE pid = %s", worker.pid))
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}
    assert len({(entry.idempotency_key, entry.body_sha256) for entry in sandbox.log}) == 1 and len(sandbox.log) == 2


def crash(cluster: Cluster, sandbox: Sandbox, kill: Any) -> None:
    db = cluster.create_database()
    app = db.connect()
    go_live(app, sandbox)
    promise(db, app)
    app.close()
    sandbox.fail("stall", times=1)
    worker = Worker(db)
    sandbox.wait_for(lambda s: s.held == 1 and len(s.emails) == 1)
    db.close()
    kill(cluster, worker)
    assert worker.ended(20)
    sandbox.release()
    wait_until(lambda: _answers(cluster), 60)
    assert statuses(db) == {"1": "sending"}
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}
    assert len({(entry.idempotency_key, entry.body_sha256) for entry in sandbox.log}) == 1 and len(sandbox.log) == 2


def _answers(cluster: Cluster) -> bool:
    try:
        cluster.close()
        return bool(cluster.value("SELECT true"))
    except psycopg.OperationalError:
        return False


def test_kill_of_the_backend(sandbox: Sandbox) -> None:
    with Cluster(fsync=True, environment={"RESEND_API_KEY": "re_test"}) as cluster:
        crash(cluster, sandbox, lambda _, worker: os.kill(worker.pid, signal.SIGKILL))


def test_kill_of_the_postmaster(sandbox: Sandbox) -> None:
    def kill(cluster: Cluster, _: Worker) -> None:
        cluster.kill9()
        cluster.start()

    with Cluster(fsync=True, environment={"RESEND_API_KEY": "re_test"}) as cluster:
        crash(cluster, sandbox, kill)


def test_fast_shutdown(sandbox: Sandbox) -> None:
    def stop(cluster: Cluster, worker: Worker) -> None:
        cluster.stop("fast")
        assert worker.ended(5)
        cluster.start()

    with Cluster(environment={"RESEND_API_KEY": "re_test"}) as cluster:
        crash(cluster, sandbox, stop)


@pytest.mark.parametrize(
    ("fault", "repeated", "recorded"),
    [("stall", 200, "sent"), ("stall_before", 409, "unanswered")],
)
def test_a_worker_whose_lease_has_passed_on(
    db: Database, live: Connection, sandbox: Sandbox, fault: str, repeated: int, recorded: str
) -> None:
    """It comes back with an answer when another has taken over: it records nothing over that one's, but what it has
    learnt counts, and the mail exists once."""
    sign_up(live, 1)
    tick(db)
    sandbox.fail(fault, times=1)
    promise(db, live, 2)
    worker = Worker(db)
    sandbox.wait_for(lambda s: s.held == 1)
    tick(db, "50 seconds")
    assert len(sandbox.log) == 2
    # The lease is over; the worker does not know.
    tick(db, "70 seconds")
    assert [entry.status for entry in sandbox.log][2:] == [repeated]
    sandbox.release()
    wait_until(lambda: sandbox.log[1].status == 200)
    db.sql("SELECT activation.stop()")
    assert worker.ended(30) and worker.error is None
    worker.connection.close()
    assert statuses(db) == {"1": "sent", "2": "sent"}
    attempts = "SELECT outcome FROM activation.attempt a JOIN activation.message m USING (message_id)"
    assert db.sql(f"{attempts} WHERE user_id = '2' ORDER BY attempt") == [(recorded,), ("sent",)]
    tick(db, "3 minutes")
    assert received(sandbox) == {"u1@acme.dev": 1, "u2@acme.dev": 1}
    assert sorted(Counter(entry.idempotency_key for entry in sandbox.log).values()) == [1, 2]


def test_a_cancel_while_recording_is_obeyed_afterwards(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """What was accepted is written down first."""
    promise(db, live)
    sandbox.fail("stall", times=1)
    worker = Worker(db)
    sandbox.wait_for(lambda s: s.held == 1)

    def blocked_since() -> object:
        """When the statement that waits for a row began."""
        rows = db.sql(
            "SELECT query_start, xact_start FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'",
            worker.pid,
        )
        return rows and rows[0]

    with db.connect(autocommit=False) as other:
        other.execute("SELECT FROM activation.request FOR UPDATE")
        sandbox.release()
        first = wait_until(blocked_since)
        db.sql("SELECT pg_cancel_backend(%s)", worker.pid)
        wait_until(lambda: (now := blocked_since()) and now != first)
    assert worker.ended(20)
    assert isinstance(worker.error, psycopg.errors.QueryCanceled)
    worker.connection.close()
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}


def busy(db: Database, app: Connection, users: range, slots: tuple[int, ...]) -> None:
    """Workers of both kinds in these slots, until everybody who signs up meanwhile has their mail."""
    workers = [Worker(db, slot, kind) for kind in ("detect", "deliver") for slot in slots]
    sent = "SELECT count(*) FROM activation.message_log WHERE status = 'sent'"
    try:
        for user in users:
            sign_up(app, user)
            app.execute("INSERT INTO actions (user_id) VALUES (%s), (%s)", [user, user])
        wait_until(lambda: db.value(sent) == len(users), 60)
    finally:
        db.sql("SELECT activation.stop()")
        assert all([worker.ended(60) for worker in workers])
        for worker in workers:
            worker.connection.close()


@pytest.mark.parametrize(
    ("slots", "latency"), [((1, 2), 0), ((1, 1, 2), 300)], ids=["two of each", "runs that overlap"]
)
def test_no_duplicates(db: Database, live: Connection, sandbox: Sandbox, slots: tuple[int, ...], latency: int) -> None:
    """Everybody has one mail, nobody two and nobody none: with actions that come several times, and with a run that
    begins while another one works in its slot."""
    sandbox.configure(latency_ms=latency)
    people = range(1, 301)
    busy(db, live, people, slots)
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in people}
