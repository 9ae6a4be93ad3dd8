"""Detection: who is enrolled, what is asked when, and what follows from the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from harness import Connection, Database, wait_until
from loops import ACTED, APP, define, enrolled, journey, loop_status, messages, tick
from mail import Worker


@pytest.fixture
def app(db: Database) -> Iterator[Connection]:
    """The app's connection, and its tables."""
    connection = db.connect()
    connection.execute(APP)
    yield connection
    connection.close()


def enrollment(db: Database, user_id: int, loop: str = "first") -> Any:
    """state, activated_at, deadline, when enrolled, when decided."""
    ((row),) = db.sql(
        "SELECT state, activated_at, deadline, enrolled_at, decided_at FROM activation.journey"
        " WHERE user_id = %s::text AND loop = %s",
        user_id,
        loop,
    )
    return row


def test_true_at_enrollment(db: Database, app: Connection) -> None:
    """Who has acted before anybody looked: activated from the start, and the message at once."""
    define(app, timeout="5m", otherwise=True)
    app.execute("BEGIN; INSERT INTO users (id) VALUES (1); INSERT INTO actions (user_id) VALUES (1); COMMIT")
    app.execute("INSERT INTO actions (user_id) VALUES (2)")
    app.execute("INSERT INTO users (id) VALUES (2), (3)")
    tick(db)
    for user in (1, 2):
        state, activated_at, _, enrolled_at, _ = enrollment(db, user)
        assert (state, activated_at) == ("completed", enrolled_at)
    assert messages(db) == [("1", "action"), ("2", "action")]
    assert journey(db)["3"] == "waiting"


def test_enrolled_when_the_transaction_began(db: Database, app: Connection) -> None:
    define(app, timeout="5m")
    app.execute("BEGIN")
    ((began,),) = app.execute("SELECT now()").fetchall()
    app.execute("INSERT INTO users (id) VALUES (1); COMMIT")
    tick(db, "1 minute")
    _, _, deadline, enrolled_at, _ = enrollment(db, 1)
    assert (enrolled_at, (deadline - enrolled_at).total_seconds()) == (began, 300)


def test_a_later_action(db: Database, app: Connection) -> None:
    """Activated at the newest wake that the evaluation took."""
    define(app, "SELECT FROM actions WHERE user_id = $1 HAVING count(*) >= 2", timeout="5m", otherwise=True)
    app.execute("INSERT INTO users (id) VALUES (1)")
    tick(db)
    app.execute("INSERT INTO actions (user_id) VALUES (1)")
    tick(db, "1 minute")
    assert journey(db) == {"1": "waiting"}
    app.execute("INSERT INTO actions (user_id) VALUES (1)")
    ((acted,),) = app.execute("SELECT max(at) FROM actions").fetchall()
    tick(db, "2 minutes")
    state, activated_at, _, _, decided_at = enrollment(db, 1)
    assert (state, activated_at) == ("completed", acted)
    assert decided_at > acted
    assert messages(db) == [("1", "action")]


@pytest.mark.parametrize("otherwise", [True, False])
def test_timed_out(db: Database, app: Connection, otherwise: bool) -> None:
    """And late activation, which is recorded and sends nothing."""
    define(app, timeout="5m", otherwise=otherwise)
    app.execute("INSERT INTO users (id) VALUES (1), (2)")
    tick(db, "4 minutes")
    assert journey(db) == {"1": "waiting", "2": "waiting"}
    tick(db, "6 minutes")
    assert journey(db) == {"1": "timed_out", "2": "timed_out"}
    expected = [("1", "otherwise"), ("2", "otherwise")] if otherwise else []
    assert messages(db) == expected
    app.execute("INSERT INTO actions (user_id) VALUES (1)")
    ((acted,),) = app.execute("SELECT max(at) FROM actions").fetchall()
    tick(db, "7 minutes")
    assert enrollment(db, 1)[:2] == ("timed_out", acted)
    assert enrollment(db, 2)[:2] == ("timed_out", None)
    assert messages(db) == expected
    tick(db, "30 days")
    assert messages(db) == expected


def test_the_last_evaluation(db: Database, app: Connection) -> None:
    """At the deadline the condition is asked once more: here nothing had told that it became true."""
    define(app, timeout="5m", otherwise=True)
    app.execute("INSERT INTO users (id) VALUES (1), (2)")
    tick(db)
    app.execute("SET session_replication_role = replica; INSERT INTO actions (user_id) VALUES (1)")
    tick(db, "4 minutes")
    assert journey(db) == {"1": "waiting", "2": "waiting"}
    tick(db, "6 minutes")
    assert journey(db) == {"1": "completed", "2": "timed_out"}
    assert messages(db) == [("1", "action"), ("2", "otherwise")]


def test_after_downtime(db: Database, app: Connection) -> None:
    """Everybody is evaluated before anybody is timed out."""
    define(app, timeout="5m", otherwise=True)
    app.execute("INSERT INTO users (id) VALUES (1), (2); INSERT INTO actions (user_id) VALUES (1)")
    tick(db, "3 days")
    assert messages(db) == [("1", "action"), ("2", "otherwise")]


def test_no_timeout(db: Database, app: Connection) -> None:
    define(app)
    app.execute("INSERT INTO users (id) VALUES (1)")
    tick(db, "10 years")
    assert journey(db) == {"1": "waiting"}
    app.execute("INSERT INTO actions (user_id) VALUES (1)")
    tick(db)
    assert messages(db) == [("1", "action")]


def test_no_condition(db: Database, app: Connection) -> None:
    define(app, None)
    app.execute("INSERT INTO users (id) VALUES (1)")
    tick(db)
    assert enrollment(db, 1)[:2] == ("completed", None)
    assert messages(db) == [("1", "action")]


def test_the_slow_sweep(db: Database, app: Connection) -> None:
    """Whatever nothing told us is found within ten minutes."""
    define(app)
    app.execute("INSERT INTO users (id) VALUES (1)")
    tick(db)
    app.execute("SET session_replication_role = replica; INSERT INTO actions (user_id) VALUES (1)")
    tick(db, "1 minute")
    assert journey(db) == {"1": "waiting"}
    tick(db, "11 minutes")
    assert journey(db) == {"1": "completed"}


def test_the_time_of_day(db: Database, app: Connection) -> None:
    """A condition that time makes true is asked again, every minute or as often as it says."""
    app.execute("ALTER TABLE users ADD COLUMN due timestamptz")
    heard: list[str] = []
    app.add_notice_handler(lambda notice: heard.append(str(notice.message_primary)))
    define(app, "SELECT FROM users WHERE id = $1 AND due <= now()")
    assert heard == ['loop "first": its condition is asked again every minute for all who wait']
    define(app, "SELECT FROM users WHERE id = $1 AND due <= clock_timestamp()", "slow", every="5m")
    assert len(heard) == 1
    app.execute("INSERT INTO users (id, due) VALUES (1, 'infinity')")
    app.execute("INSERT INTO users (id, due) VALUES (2, clock_timestamp() + '0.5 s')")
    tick(db)
    assert journey(db)["1"] == "waiting"
    # Nothing happens but that time passes.
    wait_until(lambda: db.value("SELECT due < now() FROM users WHERE id = 2"))
    tick(db, "2 minutes")
    assert journey(db) == {"1": "waiting", "2": "completed"}
    tick(db, "6 minutes")
    assert journey(db, "slow") == {"1": "waiting", "2": "completed"}


def test_a_function_that_cannot_be_looked_into(db: Database, app: Connection) -> None:
    """Asked again every minute, unless watch says which table tells."""
    app.execute("""
        CREATE FUNCTION has_acted(bigint) RETURNS boolean STABLE LANGUAGE plpgsql AS
            $$BEGIN RETURN EXISTS (SELECT FROM actions WHERE user_id = $1); END$$
    """)
    define(app, "SELECT FROM users WHERE id = $1 AND has_acted(id)", "polled")
    app.execute("""
        SELECT activation.define_loop('watched', trigger => activation.on_insert('users'),
            condition => activation.query('SELECT FROM users WHERE id = $1 AND has_acted(id)', every => '1 day',
                                          watch => '{"public.actions": "user_id"}'),
            action => activation.email('activation_welcome'))
    """)
    app.execute("INSERT INTO users (id) VALUES (1)")
    tick(db)
    app.execute("INSERT INTO actions (user_id) VALUES (1)")
    tick(db)
    assert journey(db, "watched") == {"1": "completed"}
    tick(db, "2 minutes")
    assert journey(db, "polled") == {"1": "completed"}


def test_it_raises_for_one(db: Database, app: Connection) -> None:
    """The others go on; the one is shown, tried again, and let through when the cause is gone."""
    define(app, "SELECT FROM users u WHERE u.id = $1 AND 10 / length(u.plan) > 0", timeout="5m", otherwise=True)
    app.execute(
        "INSERT INTO users (id, plan) SELECT n, CASE n WHEN 137 THEN '' ELSE 'free' END FROM generate_series(1, 300) n"
    )
    tick(db)
    assert db.sql("SELECT user_id, reason FROM activation.journey WHERE state = 'waiting'") == [
        ("137", "division by zero")
    ]
    assert len(messages(db)) == 299
    state, detail = loop_status(db)
    assert (state, "1 people cannot be evaluated: division by zero" in detail) == ("failing", True)
    why = [row[3] for row in db.sql("SELECT * FROM activation.why('137', 'first') WHERE event = 'waiting'")]
    assert "division by zero" in why[0]
    # Somebody who is looked at alone is not blamed for it.
    app.execute("INSERT INTO users (id, plan) VALUES (301, 'free')")
    tick(db)
    assert journey(db)["301"] == "completed"
    # It is not forgotten, not even at its deadline.
    tick(db, "10 minutes")
    assert journey(db)["137"] == "waiting"
    app.execute("UPDATE users SET plan = 'free' WHERE id = 137")
    tick(db)
    assert journey(db)["137"] == "completed"
    assert loop_status(db)[0] == "ok"


@pytest.mark.parametrize(
    "body",
    [
        "RAISE EXCEPTION 'broken';",
        "ASSERT false, 'broken';",
        "RAISE SQLSTATE 'ACT00' USING MESSAGE = 'broken';",
        "RAISE SQLSTATE 'XY123' USING MESSAGE = 'broken';",
        "RAISE query_canceled USING MESSAGE = 'broken';",
        "ROLLBACK;",
        "PERFORM broken(id + 1);",
    ],
)
def test_it_raises_for_all(db: Database, app: Connection, body: str) -> None:
    """Three strikes and the loop is failing, until resumed; other loops go on in the same call."""
    app.execute(
        f"CREATE FUNCTION broken(id bigint) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN {body} RETURN true; END$$"
    )
    app.execute("SET client_min_messages = error")
    define(app, "SELECT FROM users WHERE id = $1 AND broken(id)")
    define(app, "SELECT FROM users WHERE id = $1", "other")
    app.execute("INSERT INTO users (id) SELECT generate_series(1, 40)")
    tick(db)
    assert set(journey(db, "other").values()) == {"completed"}
    assert loop_status(db, "other")[0] == "ok"
    assert set(journey(db).values()) == {"waiting"}
    assert db.value("SELECT state FROM activation.loop WHERE name = 'first'") == "active"
    # A first cancel may be anybody's.
    for minute in range(1, 4):
        tick(db, f"{minute} minutes")
    assert db.value("SELECT state FROM activation.loop WHERE name = 'first'") == "failing"
    state, detail = loop_status(db)
    assert (state, "its condition raised" in detail) == ("failing", True)
    assert db.value("SELECT strikes FROM activation.strike") == 3
    # Left alone from now on; signups are still enrolled.
    struck = db.value("SELECT strikes FROM activation.strike")
    app.execute("INSERT INTO users (id) VALUES (41)")
    tick(db, "1 hour")
    assert db.value("SELECT strikes FROM activation.strike") == struck
    assert journey(db)["41"] == "waiting"
    assert journey(db, "other")["41"] == "completed"
    app.execute("CREATE OR REPLACE FUNCTION broken(id bigint) RETURNS boolean LANGUAGE sql RETURN true")
    app.execute("SELECT activation.resume_loop('first')")
    tick(db)
    assert set(journey(db).values()) == {"completed"}
    assert len(messages(db)) == 41
    assert loop_status(db)[0] == "ok"


def test_missing_rights(db: Database, app: Connection) -> None:
    """A right that is taken away later fails the loop, and comes back with it."""
    db.sql("DROP ROLE IF EXISTS author; CREATE ROLE author; ALTER TABLE users OWNER TO author")
    db.sql("GRANT SELECT ON actions TO author")
    define(app, ACTED, owner="author")
    define(app, "SELECT FROM users WHERE id = $1", "other")
    app.execute("INSERT INTO users (id) VALUES (1); INSERT INTO actions (user_id) VALUES (1)")
    db.sql("REVOKE SELECT ON actions FROM author")
    tick(db)
    assert journey(db) == {"1": "waiting"}
    assert "permission denied for table actions" in loop_status(db)[1]
    assert journey(db, "other") == {"1": "completed"}
    db.sql("GRANT SELECT ON actions TO author")
    tick(db, "1 minute")
    assert journey(db) == {"1": "completed"}
    db.sql("DROP OWNED BY author CASCADE; DROP ROLE author")


def test_once_only(db: Database, app: Connection) -> None:
    """A row deleted and made again under the same key is the same user."""
    define(app)
    app.execute("INSERT INTO users (id) VALUES (1), (2); INSERT INTO actions (user_id) VALUES (1)")
    tick(db)
    app.execute("DELETE FROM users; INSERT INTO users (id) VALUES (1), (2)")
    tick(db)
    assert db.sql("SELECT user_id, state FROM activation.journey ORDER BY 1") == [("1", "completed"), ("2", "waiting")]
    assert messages(db) == [("1", "action")]


def test_who_was_there_before(db: Database, app: Connection) -> None:
    """A loop takes those who come after it, whatever other loops there were."""
    define(app)
    app.execute("INSERT INTO users (id) VALUES (1)")
    define(app, name="second")
    app.execute("INSERT INTO users (id) VALUES (2)")
    assert enrolled(db) == ["1", "2"]
    assert sorted(journey(db, "second")) == ["2"]


def test_redefinition(db: Database, app: Connection) -> None:
    """Who is on the way keeps the version that they began with."""
    assert define(app, timeout="5m", otherwise=True) == 1
    app.execute("INSERT INTO users (id) VALUES (1), (2)")
    tick(db)
    assert define(app, timeout="5m", otherwise=True) == 1
    assert define(app, "SELECT FROM actions WHERE user_id = $1 AND what = 'done'", timeout="1 hour") == 2
    app.execute("INSERT INTO users (id) VALUES (3), (4)")
    tick(db)
    assert db.sql("SELECT user_id, version FROM activation.journey ORDER BY 1") == [
        ("1", 1),
        ("2", 1),
        ("3", 2),
        ("4", 2),
    ]
    app.execute("INSERT INTO actions (user_id, what) VALUES (1, 'begun'), (3, 'begun')")
    tick(db)
    assert journey(db) == {"1": "completed", "2": "waiting", "3": "waiting", "4": "waiting"}
    app.execute("INSERT INTO actions (user_id, what) VALUES (4, 'done')")
    tick(db, "6 minutes")
    assert journey(db) == {"1": "completed", "2": "timed_out", "3": "waiting", "4": "completed"}
    tick(db, "2 hours")
    assert messages(db) == [("1", "action"), ("2", "otherwise"), ("4", "action")]
    assert journey(db)["3"] == "timed_out"


def test_pause_and_resume(db: Database, app: Connection) -> None:
    """Signals are kept, nothing is asked; on resume first evaluated, then timed out."""
    define(app, timeout="5m", otherwise=True)
    app.execute("INSERT INTO users (id) VALUES (1), (2)")
    tick(db)
    app.execute("SELECT activation.pause_loop('first')")
    app.execute("INSERT INTO users (id) VALUES (3), (4); INSERT INTO actions (user_id) VALUES (1), (3)")
    tick(db)
    tick(db, "6 minutes")
    assert set(journey(db).values()) == {"waiting"}
    assert messages(db) == []
    assert loop_status(db)[0] == "paused"
    app.execute("SELECT activation.resume_loop('first')")
    tick(db, "7 minutes")
    assert journey(db) == {"1": "completed", "2": "timed_out", "3": "completed", "4": "timed_out"}
    assert messages(db) == [("1", "action"), ("2", "otherwise"), ("3", "action"), ("4", "otherwise")]


def test_archive(db: Database, app: Connection) -> None:
    define(app, timeout="5m", otherwise=True)
    app.execute("INSERT INTO users (id) VALUES (1)")
    tick(db)
    app.execute("SELECT activation.archive_loop('first')")
    app.execute("INSERT INTO users (id) VALUES (2); INSERT INTO actions (user_id) VALUES (1)")
    tick(db, "1 hour")
    assert journey(db) == {"1": "exited"}
    assert messages(db) == []
    assert db.value("SELECT count(*) FROM activation.signal") == 0
    assert loop_status(db)[0] == "stopped"
    # It comes back as a new version, for those who come then.
    assert define(app, timeout="5m", otherwise=True) == 2
    app.execute("INSERT INTO users (id) VALUES (3)")
    tick(db)
    assert journey(db) == {"1": "exited", "3": "waiting"}


def test_more_people_than_one_round_takes(db: Database, app: Connection) -> None:
    """Signals, wakes, deadlines and sweeps beyond one batch."""
    people = 12_000
    define(app, timeout="5m", otherwise=True)
    app.execute("INSERT INTO users (id) SELECT generate_series(1, %s)", [people])
    tick(db)
    assert db.value("SELECT count(*) FROM activation.journey WHERE state = 'waiting'") == people
    app.execute("INSERT INTO actions (user_id) SELECT generate_series(1, %s, 2)", [people])
    app.execute("SET session_replication_role = replica")
    app.execute("INSERT INTO actions (user_id) SELECT generate_series(2, %s, 4)", [people])
    tick(db)
    assert db.value("SELECT count(*) FROM activation.journey WHERE state = 'completed'") == people // 2
    tick(db, "6 minutes")
    assert db.sql("SELECT state, count(*) FROM activation.journey GROUP BY 1 ORDER BY 1") == [
        ("completed", people * 3 // 4),
        ("timed_out", people // 4),
    ]
    assert db.value("SELECT count(*) FROM activation.message") == people


def test_a_slow_loop_does_not_hold_up_the_others(db: Database, app: Connection) -> None:
    """Who it has no time for is put off, and asked in the end."""
    people = 400
    app.execute("""
        CREATE FUNCTION slowly(bigint) RETURNS boolean LANGUAGE plpgsql AS
            $$BEGIN PERFORM pg_catalog.pg_sleep(0.01); RETURN $1 % 2 = 0; END$$;
        CREATE TABLE members (LIKE users INCLUDING ALL);
        """)
    define(app, "SELECT FROM users WHERE id = $1 AND slowly(id)", "slow")
    define(app, name="quick", table="members")
    worker = Worker(db, kind="detect")
    try:
        app.execute("INSERT INTO users (id) SELECT generate_series(1, %s)", [people])
        wait_until(lambda: db.value("SELECT count(*) FROM activation.journey WHERE loop = 'slow'") == people)
        app.execute("INSERT INTO members (id) VALUES (7); INSERT INTO actions (user_id) VALUES (7)")
        wait_until(lambda: db.sql("SELECT FROM activation.message WHERE user_id = '7' AND loop_id = 2"))
        asked = "SELECT count(*) FROM activation.journey WHERE loop = 'slow' AND state = 'completed'"
        assert db.value(asked) < people // 4
        wait_until(lambda: db.value(asked) == people // 2, 30)
    finally:
        db.sql("SELECT activation.stop()")
        assert worker.ended(5)
    assert db.value("SELECT count(*) FROM activation.enrollment WHERE retry_at IS NOT NULL") == 0
    assert db.value("SELECT count(*) FROM activation.message") == people // 2 + 1
    # Who was put off before the first question activated at enrollment all the same.
    assert db.value("SELECT count(*) FROM activation.journey WHERE activated_at > enrolled_at AND loop = 'slow'") == 0


def test_wakes_leave_nothing_behind(db: Database, app: Connection) -> None:
    """Their table is emptied when it has grown, but never under a transaction that has written to it."""
    define(app)
    app.execute("INSERT INTO users (id) VALUES (1)")
    grown = "SELECT pg_relation_size('activation.wake') >= 2 * 1024 * 1024"
    strangers = "INSERT INTO actions (user_id) SELECT generate_series(1000, 60000)"
    wakes = "SELECT count(*) FROM activation.wake WHERE source_id <> 0"
    worker = Worker(db, kind="detect")
    try:
        wait_until(lambda: "1" in journey(db))
        with db.connect() as late:
            late.execute("BEGIN; INSERT INTO actions (user_id) VALUES (1)")
            app.execute(strangers)
            wait_until(lambda: db.value(wakes) == 0, 30)
            assert db.value("SELECT activation._renew_wake()") is False
            assert db.value(grown)
            late.execute("COMMIT")
        wait_until(lambda: messages(db) == [("1", "action")])

        def renewed() -> bool:
            app.execute("INSERT INTO actions (user_id) VALUES (1000)")
            return not db.value(grown)

        wait_until(renewed, 30)
        wait_until(lambda: db.value(wakes) == 0)
        assert db.value("SELECT count(*) FROM activation.wake") == 1, "what tells a crash is still there"
    finally:
        db.sql("SELECT activation.stop()")
        assert worker.ended(5)


def test_statistics_from_a_quiet_time(db: Database, app: Connection) -> None:
    """When nobody waited as the tables were analyzed, a crowd that comes afterwards is found one by one all the same,
    and not by walking over all who wait for each of them."""
    define(app, timeout="5m", otherwise=True)
    for table in ("enrollment", "message", "signal"):
        db.sql(f"ALTER TABLE activation.{table} SET (autovacuum_enabled = false)")
    crowd = """
        WITH u AS (INSERT INTO users (email) SELECT 'u@acme.dev' FROM generate_series(1, %s::integer) RETURNING id)
        INSERT INTO actions (user_id) SELECT id FROM u
    """
    entries_read = """
        SELECT sum(s.idx_tup_read) + max(t.seq_tup_read)
          FROM pg_stat_user_indexes s JOIN pg_stat_user_tables t USING (relid)
         WHERE relid = 'activation.enrollment'::regclass
    """
    db.sql(crowd, 300)
    tick(db)
    db.sql("ANALYZE activation.enrollment, activation.message, activation.signal")
    db.sql("SELECT pg_stat_force_next_flush()")
    before = db.value(entries_read)
    people = 4_000
    db.sql(crowd, people)
    db.sql("INSERT INTO users (email) SELECT 'u@acme.dev' FROM generate_series(1, %s::integer)", people)
    tick(db)
    tick(db, "1 hour")
    assert len(messages(db)) == 300 + 2 * people
    db.sql("SELECT pg_stat_force_next_flush()")
    assert db.value(entries_read) - before < 200 * people


def test_who_merely_waits_is_not_read(db: Database, app: Connection) -> None:
    """One person's deadline costs the same however many others have theirs later."""
    define(app, timeout="1 hour", otherwise=True)
    db.sql("INSERT INTO users (email) SELECT 'u@acme.dev' FROM generate_series(1, 5000)")
    tick(db)
    db.sql("UPDATE activation.enrollment SET deadline = now() - interval '1 minute' WHERE user_id = '7'")
    db.sql("UPDATE activation.enrollment SET retry_at = now() + interval '1 hour' WHERE user_id::integer > 3000")
    db.sql("VACUUM ANALYZE activation.enrollment")
    read = """
        SELECT sum(s.idx_tup_read) + max(t.seq_tup_read)
          FROM pg_stat_user_indexes s JOIN pg_stat_user_tables t USING (relid)
         WHERE relid = 'activation.enrollment'::regclass
    """
    db.sql("SELECT pg_stat_force_next_flush()")
    before = db.value(read)
    tick(db)
    assert messages(db) == [("7", "otherwise")]
    db.sql("SELECT pg_stat_force_next_flush()")
    assert db.value(read) - before < 500


def test_inside_a_transaction(db: Database) -> None:
    with (
        db.connect() as connection,
        pytest.raises(psycopg.Error, match="commits, so it cannot be called inside a transaction"),
    ):
        connection.execute("BEGIN")
        connection.execute("CALL activation.tick()")


def test_a_strict_session(db: Database, app: Connection) -> None:
    """Where the role's transactions are serializable and its path is odd, the engine works all the same."""
    define(app)
    app.execute("INSERT INTO users (id) VALUES (1); INSERT INTO actions (user_id) VALUES (1)")
    with db.connect() as worker:
        worker.execute("SET default_transaction_isolation = serializable; SET search_path = pg_temp")
        worker.execute("CALL activation.tick()")
        assert worker.execute("SHOW search_path").fetchone() == ("pg_temp",)
        assert worker.execute("SHOW default_transaction_isolation").fetchone() == ("serializable",)
    assert journey(db) == {"1": "completed"}
