"""Workers watch each other: who is stuck in a loop's own code is cancelled, and the loop is to blame."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database, wait_until
from loops import define, journey, loop_status, tick
from mail import go_live, sign_up, statuses

SLOW = """
    CREATE TABLE slow_for (user_id bigint, seconds double precision);
    CREATE FUNCTION slow(id bigint) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_sleep(seconds) FROM public.slow_for WHERE user_id = id;
        RETURN true;
    END$$;
"""
STUBBORN = """
    CREATE FUNCTION stubborn(id bigint) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        FOR i IN 1 .. 1000 LOOP
            BEGIN
                PERFORM pg_sleep(3600);
            EXCEPTION WHEN query_canceled THEN NULL;
            END;
        END LOOP;
        RETURN true;
    END$$;
"""


@pytest.fixture
def live(db: Database, sandbox: Sandbox) -> Iterator[Connection]:
    connection = db.connect()
    go_live(connection, sandbox)
    connection.execute("SELECT activation.configure(condition_timeout => '1 second')")
    yield connection
    connection.close()


class Workers:
    """A detector and a deliverer that are started again when they end, as pg_cron does, but at once."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._stopping = False
        self.ended: list[psycopg.Error] = []
        self._threads = [threading.Thread(target=self._run, args=[kind]) for kind in ("detect", "deliver")]
        for thread in self._threads:
            thread.start()

    def _run(self, kind: str) -> None:
        while not self._stopping:
            try:
                with self._db.connect() as connection:
                    connection.execute(f"CALL activation.{kind}(1)")
            except psycopg.Error as error:
                self.ended.append(error)

    def stop(self) -> None:
        self._stopping = True
        self._db.sql("SELECT activation.stop()")
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def workers(db: Database, live: Connection) -> Iterator[Workers]:
    made = Workers(db)
    yield made
    made.stop()


def test_a_condition_that_runs_for_ever(db: Database, live: Connection, workers: Workers) -> None:
    """With one detector: it is cancelled, other loops go on, after three strikes the loop is failing."""
    live.execute(SLOW)
    live.execute("SET client_min_messages = error")
    define(live, "SELECT FROM users WHERE id = $1 AND slow(id)", "endless")
    live.execute("INSERT INTO slow_for VALUES (1, 3600)")
    sign_up(live, 1)
    wait_until(lambda: "runs code of loop endless" in detector(db), 10)
    wait_until(lambda: statuses(db) == {"1": "sent"}, 15)
    sign_up(live, 2)
    wait_until(lambda: statuses(db).get("2") == "sent", 15)
    wait_until(lambda: loop_status(db, "endless")[0] == "failing", 10)
    assert "ran too long" in loop_status(db, "endless")[1]
    wait_until(lambda: db.value("SELECT state FROM activation.loop WHERE name = 'endless'") == "failing", 60)
    assert "cancelled a worker that ran code of loop" in db.cluster.log
    # It was cancelled, not ended.
    assert workers.ended == []
    live.execute("DELETE FROM slow_for; SELECT activation.resume_loop('endless')")
    wait_until(lambda: set(journey(db, "endless").values()) == {"completed"}, 10)
    assert loop_status(db, "endless")[0] == "ok"


def detector(db: Database) -> str:
    return " ".join(
        detail for (detail,) in db.sql("SELECT detail FROM activation.status WHERE component = 'detector 1'")
    )


def test_a_condition_that_will_not_be_cancelled(db: Database, live: Connection, workers: Workers) -> None:
    """Its worker is terminated, the strike is the watcher's, and other loops go on."""
    live.execute(STUBBORN)
    live.execute("SET client_min_messages = error")
    define(live, "SELECT FROM users WHERE id = $1 AND stubborn(id)", "endless")
    sign_up(live, 1)
    wait_until(lambda: statuses(db) == {"1": "sent"}, 40)
    assert "could not be cancelled" in loop_status(db, "endless")[1]
    assert [type(error) for error in workers.ended] == [psycopg.errors.AdminShutdown]


def test_cancelled_by_somebody_else(db: Database, live: Connection, workers: Workers) -> None:
    """That is no strike against the loop whose code happened to run, nor the end of the run."""
    live.execute(SLOW)
    live.execute("SELECT activation.configure(condition_timeout => '1 hour')")
    define(live, "SELECT FROM users WHERE id = $1 AND slow(id)", "slow")
    live.execute("INSERT INTO slow_for VALUES (1, 3600)")
    sign_up(live, 1)
    wait_until(lambda: "runs code of loop slow" in detector(db), 10)
    live.execute("DELETE FROM slow_for")
    live.execute("SELECT pg_cancel_backend(pid) FROM activation.worker WHERE kind = 'detector'")
    wait_until(lambda: journey(db, "slow") == {"1": "completed"}, 10)
    assert workers.ended == [] and db.sql("SELECT FROM activation.strike") == []


def test_endless_at_the_claim(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A view or a policy on the users table can be as slow as a condition; other loops' mail goes out."""
    live.execute(SLOW)
    live.execute("CREATE TABLE people (id bigint PRIMARY KEY, email text)")
    live.execute("CREATE ROLE clerk; GRANT ALL ON people, slow_for TO clerk; ALTER TABLE people OWNER TO clerk")
    live.execute("ALTER TABLE people ENABLE ROW LEVEL SECURITY; ALTER TABLE people FORCE ROW LEVEL SECURITY")
    live.execute("CREATE POLICY anybody ON people USING (slow(id))")
    live.execute("SET client_min_messages = error")
    define(live, None, "endless", table="people", owner="clerk")
    live.execute("SELECT activation.set_mode('live', backlog => 'cancel')")
    live.execute("INSERT INTO slow_for VALUES (1, 3600)")
    live.execute("INSERT INTO people VALUES (1, 'ada@acme.dev')")
    workers = Workers(db)
    try:
        sign_up(live, 2)
        wait_until(lambda: statuses(db).get("2") == "sent", 15)
        wait_until(lambda: db.value("SELECT state FROM activation.loop WHERE name = 'endless'") == "failing", 60)
        assert loop_status(db, "endless")[0] == "failing" and statuses(db)["1"] == "queued"
        assert workers.ended == []
        live.execute("DELETE FROM slow_for; SELECT activation.resume_loop('endless')")
        wait_until(lambda: statuses(db)["1"] == "sent", 15)
    finally:
        workers.stop()
        live.execute("DROP OWNED BY clerk CASCADE; DROP ROLE clerk")


def test_waiting_for_a_lock_is_no_strike(db: Database, live: Connection, workers: Workers) -> None:
    """A migration of the app holds a table that a condition reads: the loop waits, others go on, nothing fails."""
    live.execute("CREATE TABLE projects (owner bigint)")
    define(live, "SELECT FROM projects WHERE owner = $1", "projects")
    with db.connect(autocommit=False) as migration:
        migration.execute("LOCK projects")
        sign_up(live, 1)
        wait_until(lambda: statuses(db) == {"1": "sent"}, 15)
        wait_until(lambda: "waited for a lock" in loop_status(db, "projects")[1], 15)
        # More often than three strikes.
        for _ in range(4):
            last = db.value("SELECT max(struck_at) FROM activation.strike")
            wait_until(lambda: db.value("SELECT max(struck_at) FROM activation.strike") != last, 15)  # noqa: B023
        assert db.value("SELECT state FROM activation.loop WHERE name = 'projects'") == "active"
        migration.execute("INSERT INTO projects VALUES (1)")
    wait_until(lambda: journey(db, "projects") == {"1": "completed"}, 15)
    assert loop_status(db, "projects")[0] == "ok" and workers.ended == []


def test_only_workers_are_cancelled(db: Database, live: Connection, workers: Workers) -> None:
    """A session that calls itself like one is left alone."""
    with db.connect() as other:
        other.execute("SET application_name = 'activation loop 1 since 0'")
        pid = other.info.backend_pid
        beats = "SELECT max(beat_at) FROM activation.worker"
        first = wait_until(lambda: db.value(beats))
        wait_until(lambda: db.value("SELECT count(*) = 2 FROM activation.worker WHERE beat_at > %s", first), 10)
        assert other.execute("SELECT pg_backend_pid()").fetchone() == (pid,)
    assert db.sql("SELECT FROM activation.strike") == []
    tick(db)
