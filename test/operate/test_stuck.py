"""Workers watch each other: who is stuck in a loop's own code is cancelled, and the loop is to blame."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database, wait_until
from loops import define, journey, loop_status, tick
from mail import sign_up, statuses

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


@pytest.fixture(autouse=True)
def short_conditions(live: Connection) -> None:
    live.execute("SELECT activation.configure(condition_timeout => '1 second')")


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


@pytest.mark.parametrize("label", ["psql", "activation loop 1 since 0"])
def test_what_it_calls_itself(db: Database, live: Connection, workers: Workers, label: str) -> None:
    """A loop's code that hides behind a name, or behind another loop: it is found all the same, and nobody else is."""
    live.execute(f"""
        CREATE FUNCTION hides(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM set_config('application_name', '{label}', false), pg_sleep(3600);
            RETURN true;
        END$$;
    """)
    assert db.value("SELECT loop_id FROM activation.loop WHERE name = 'first'") == 1
    define(live, "SELECT FROM users WHERE id = $1 AND hides(id)", "endless")
    sign_up(live, 1)
    wait_until(lambda: struck(db), 15)
    assert struck(db) == {"endless"} and "ran too long" in loop_status(db, "endless")[1]
    wait_until(lambda: statuses(db) == {"1": "sent"}, 15)
    assert workers.ended == []


def struck(db: Database) -> set[str]:
    """The loops that have a strike."""
    return {name for (name,) in db.sql("SELECT name FROM activation.strike JOIN activation.loop USING (loop_id)")}


@pytest.fixture
def held(db: Database) -> Iterator[Connection]:
    """A session that works in a slot, and does whatever the test has it do."""
    connection = db.connect()
    assert connection.execute("SELECT activation._take_slot('detector', 2)").fetchone() == (True,)
    yield connection
    connection.close()


def silent_for(db: Database, ages: str) -> None:
    """Has the worker's last sign of life be so long ago."""
    db.sql("UPDATE activation.worker SET started_at = now() - %s::interval, beat_at = now() - %s::interval", ages, ages)


def says(db: Database, loop: str, seconds: int) -> None:
    """Has the worker be in a loop's code for so long."""
    db.sql(
        "SELECT setval('activation.detector_2', (extract(epoch FROM now())::bigint - %s) << 31 | loop_id)"
        " FROM activation.loop WHERE name = %s",
        seconds,
        loop,
    )


def end_overdue(db: Database) -> list[str]:
    return [deed for (deed,) in db.sql("SELECT deed FROM activation._end_overdue()")]


def slot_two(db: Database) -> tuple[str, str]:
    ((state, detail),) = db.sql("SELECT state, detail FROM activation.status WHERE component = 'detector 2'")
    return state, detail


def test_a_worker_that_is_silent(db: Database, live: Connection, held: Connection) -> None:
    """Whatever it does, and though it says nothing of it: it is cancelled, then terminated, and no loop is to blame."""
    assert slot_two(db)[0] == "ok" and end_overdue(db) == []
    silent_for(db, "20 seconds")
    assert slot_two(db)[0] == "failing" and "no sign of life for" in slot_two(db)[1]
    # A second for the condition and half a minute more.
    assert end_overdue(db) == []
    silent_for(db, "35 seconds")
    # To have come out of a loop's code is a sign of life.
    held.execute("SELECT activation._evaluating(1), activation._evaluating(NULL)")
    assert end_overdue(db) == [] and slot_two(db)[0] == "ok"
    held.execute("SELECT setval('activation.detector_2', 0)")
    sleeping = threading.Event()
    ended: list[psycopg.Error] = []

    def sleep() -> None:
        sleeping.set()
        try:
            held.execute("SELECT pg_sleep(3600)")
        except psycopg.Error as error:
            ended.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    wait_until(lambda: db.sql("SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
    assert end_overdue(db) == ["cancelled"]
    thread.join(10)
    assert [type(error) for error in ended] == [psycopg.errors.QueryCanceled]
    silent_for(db, "45 seconds")
    assert end_overdue(db) == ["terminated"]
    with pytest.raises(psycopg.OperationalError):
        held.execute("SELECT 1")
    assert end_overdue(db) == [] and struck(db) == set()


def test_the_strike_comes_before_the_end(db: Database, live: Connection, held: Connection) -> None:
    """Whoever takes over is to know that the loop is struck, so the worker is terminated when that is committed. One
    strike is enough, also where several look."""
    says(db, "first", 5)
    assert "runs code of loop first for" in slot_two(db)[1]
    assert end_overdue(db) == ["cancelled"]
    says(db, "first", 15)
    assert end_overdue(db) == ["struck"]
    assert held.execute("SELECT 1").fetchone() == (1,)
    assert end_overdue(db) == ["terminated"]
    assert db.sql("SELECT kind, strikes FROM activation.strike") == [("detect", 1)]


def test_the_strike_that_it_holds_up_itself(db: Database, live: Connection, held: Connection) -> None:
    """Then it is terminated first."""
    db.sql("INSERT INTO activation.strike SELECT loop_id, 'detect', 1, now(), 'x', now() FROM activation.loop")
    held.execute("BEGIN; SELECT FROM activation.strike FOR UPDATE")
    says(db, "first", 15)
    assert end_overdue(db) == ["terminated"]
    assert db.value("SELECT strikes FROM activation.strike") == 2


def test_one_at_a_time_ends_it(db: Database, live: Connection, held: Connection) -> None:
    """Meanwhile others leave it alone, and nobody takes its slot."""
    says(db, "first", 15)
    with db.connect(autocommit=False) as other:
        assert other.execute("SELECT deed FROM activation._end_overdue()").fetchall() == [("struck",)]
        assert end_overdue(db) == []
        with db.connect() as third:
            third.execute("SET lock_timeout = '100ms'")
            assert third.execute("SELECT activation._take_slot('detector', 2)").fetchone() == (False,)


def test_what_raises_is_not_said_any_more(db: Database, live: Connection) -> None:
    """What is said of a loop's code is not undone with its transaction."""
    define(live, "SELECT FROM users WHERE id = $1 AND 1 / (id - 1) > 0", "raises")
    with db.connect() as worker:
        # A statement_timeout ends a run a little before.
        worker.execute("SET statement_timeout = '4s'")
        sign_up(live, 1)
        worker.execute("CALL activation.detect(2)")
    assert struck(db) == set() and "division by zero" in loop_status(db, "raises")[1]
    assert db.value("SELECT last_value & 2147483647 FROM activation.detector_2") == 0


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
