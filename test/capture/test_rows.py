"""Capture: every way in which a row can come into a users table, and nothing that was rolled back."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from harness import Connection, Database
from loops import ACTED, APP, define, enrolled, journey, loop_status, tick

PARTITIONED = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text, name text, plan text) PARTITION BY RANGE (id);
    CREATE TABLE users_low PARTITION OF users FOR VALUES FROM (0) TO (100);
    CREATE TABLE users_high PARTITION OF users FOR VALUES FROM (100) TO (1000) PARTITION BY RANGE (id);
    CREATE TABLE users_higher PARTITION OF users_high DEFAULT;
    CREATE TABLE actions (user_id bigint NOT NULL, what text);
"""


@pytest.fixture
def app(db: Database) -> Iterator[Connection]:
    """The app's connection, its tables, and one loop for all its users."""
    connection = db.connect()
    connection.execute(APP)
    define(connection)
    yield connection
    connection.close()


def triggers(db: Database) -> list[tuple[str, str]]:
    return db.sql(
        "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE tgname LIKE 'activation%' ORDER BY 1, 2"
    )


@pytest.mark.parametrize("kind", ["plain", "filtered", "partitioned", "partitioned and filtered"])
def test_every_way_in(db: Database, kind: str) -> None:
    app = db.connect()
    app.execute(PARTITIONED if "partitioned" in kind else APP)
    define(app, filter="NEW.plan = 'free'" if "filtered" in kind else None)
    app.execute("INSERT INTO users (id, plan) VALUES (1, 'free'), (2, 'paid'), (3, NULL)")
    app.execute(
        "INSERT INTO users (id, plan) SELECT n, (ARRAY['paid', 'free'])[1 + n % 2] FROM generate_series(11, 14) n"
    )
    app.execute("INSERT INTO users (id, plan) SELECT 1, 'free' WHERE false")
    with app.cursor().copy("COPY users (id, plan) FROM STDIN") as copy:
        copy.write("21\tfree\n22\tpaid\n121\tfree\n")
    app.execute("""
        INSERT INTO users (id, plan) VALUES (1, 'free'), (31, 'free'), (32, 'paid')
        ON CONFLICT (id) DO UPDATE SET name = 'again'
    """)
    app.execute("INSERT INTO users (id, plan) VALUES (2, 'free'), (33, 'free') ON CONFLICT DO NOTHING")
    app.execute("""
        MERGE INTO users AS u USING (VALUES (2, 'free'), (41, 'free'), (42, 'paid')) AS n(id, plan) ON u.id = n.id
        WHEN MATCHED THEN UPDATE SET name = 'merged'
        WHEN NOT MATCHED THEN INSERT (id, plan) VALUES (n.id, n.plan)
    """)
    app.execute("""
        WITH one AS (INSERT INTO users (id, plan) VALUES (51, 'free') RETURNING id),
             two AS (INSERT INTO users (id, plan) SELECT id + 1, 'paid' FROM one RETURNING id)
        SELECT FROM two
    """)
    app.execute(
        "CREATE VIEW newest AS SELECT id, plan FROM users; INSERT INTO newest VALUES (61, 'free'), (62, 'paid')"
    )
    app.execute("PREPARE sign_up AS INSERT INTO users (id, plan) VALUES ($1, $2)")
    app.execute("EXECUTE sign_up(71, 'free'); EXECUTE sign_up(72, 'paid')")
    if "partitioned" in kind:
        app.execute("INSERT INTO users_low (id, plan) VALUES (81, 'free'), (82, 'paid')")
        app.execute("INSERT INTO users_high (id, plan) VALUES (181, 'free'), (182, 'paid')")
        app.execute("INSERT INTO users_higher (id, plan) VALUES (183, 'free'), (184, 'paid')")
        # Moving to another partition is no signup.
        app.execute("UPDATE users SET id = 190 WHERE id = 3")
    expected = [row[0] for row in app.execute("SELECT id FROM users WHERE id NOT IN (3, 190)").fetchall()] + [3]
    if "filtered" in kind:
        expected = [n for n in expected if n % 2 == 1 and n != 3]
    # Each was signalled once.
    assert sorted(row[0] for row in db.sql("SELECT user_id::int FROM activation.signal")) == sorted(expected)
    assert enrolled(db) == sorted(map(str, expected))
    assert {name for table, name in triggers(db) if table != "actions"} == {"activation_insert", "activation_delete"}
    app.close()


def test_new_partitions(db: Database) -> None:
    """One that is created, one that is attached, one that is detached."""
    app = db.connect()
    app.execute(PARTITIONED)
    define(app)
    app.execute("CREATE TABLE users_2000 PARTITION OF users FOR VALUES FROM (2000) TO (2100)")
    app.execute("CREATE TABLE users_3000 (LIKE users INCLUDING ALL); INSERT INTO users_3000 (id) VALUES (3000)")
    app.execute("ALTER TABLE users ATTACH PARTITION users_3000 FOR VALUES FROM (3000) TO (3100)")
    app.execute("INSERT INTO users (id) VALUES (1), (2001), (3001)")
    app.execute("INSERT INTO users_2000 (id) VALUES (2002); INSERT INTO users_3000 (id) VALUES (3002)")
    assert enrolled(db) == ["1", "2001", "2002", "3001", "3002"]
    app.execute("ALTER TABLE users DETACH PARTITION users_3000; INSERT INTO users_3000 (id) VALUES (3003)")
    app.close()


@pytest.mark.parametrize("watched", ["partitioned", "plain"])
def test_actions_in_a_partition(db: Database, watched: str) -> None:
    app = db.connect()
    app.execute(APP)
    if watched == "partitioned":
        app.execute("""
            DROP TABLE actions;
            CREATE TABLE actions (user_id bigint NOT NULL, what text) PARTITION BY LIST (what);
            CREATE TABLE actions_a PARTITION OF actions FOR VALUES IN ('a');
            CREATE TABLE actions_rest PARTITION OF actions DEFAULT;
        """)
    define(app)
    app.execute("INSERT INTO users (id) SELECT generate_series(1, 4)")
    tick(db)
    app.execute("INSERT INTO actions (user_id, what) VALUES (1, 'a'), (2, 'b')")
    if watched == "partitioned":
        app.execute("INSERT INTO actions_a (user_id, what) VALUES (3, 'a')")
        app.execute("CREATE TABLE actions_c PARTITION OF actions FOR VALUES IN ('c')")
        app.execute("INSERT INTO actions_c (user_id, what) VALUES (4, 'c')")
    else:
        app.execute("INSERT INTO actions (user_id) VALUES (3), (4)")
    tick(db)
    assert set(journey(db).values()) == {"completed"}
    app.close()


@pytest.mark.parametrize(
    ("key_type", "one", "two"),
    [
        ("bigint", "9223372036854775807", "-5"),
        ("int", "1", "2"),
        ("smallint", "1", "2"),
        ("uuid", "c0ffee00-0000-4000-8000-000000000001", "c0ffee00-0000-4000-8000-000000000002"),
        ("text", 'o\'neill %s \\ $1 {"a,b"}', "é 人 NULL"),
        ("varchar(40)", "a@b", ""),
        ("numeric", "1.50", "2"),
    ],
)
def test_types_of_keys(db: Database, key_type: str, one: str, two: str) -> None:
    app = db.connect()
    app.execute(f"""
        CREATE TABLE users (id {key_type} PRIMARY KEY, email text);
        CREATE TABLE actions (user_id {key_type}, what text);
    """)
    define(app)
    app.execute(
        f"INSERT INTO users VALUES (%s::{key_type}, 'a@example.com'), (%s::{key_type}, 'b@example.com')", [one, two]
    )
    tick(db)
    assert sorted(journey(db)) == sorted([one, two])
    app.execute(f"INSERT INTO actions VALUES (%s::{key_type}), (NULL)", [one])
    tick(db)
    assert journey(db) == {one: "completed", two: "waiting"}
    ((address,),) = db.sql("SELECT recipient FROM activation.message_log")
    assert address == "a@example.com"
    app.close()


def test_quoted_names_in_another_schema(db: Database) -> None:
    app = db.connect()
    app.execute("""
        CREATE SCHEMA "My App";
        CREATE TABLE "My App"."User"
            ("userId" uuid PRIMARY KEY DEFAULT gen_random_uuid(), email text, "Plan" text, "select" int);
        CREATE TABLE "My App"."User's actions" ("userId" uuid, "what?" text);
    """)
    define(
        app,
        'SELECT * FROM "My App"."User\'s actions" AS a WHERE a."userId" = $1 AND "what?" = \'done\'',
        'It\'s "first" %',
        table='"My App"."User"',
        filter='NEW."Plan" = \'free\' AND NEW."select" = 1',
    )
    tick(db)
    app.execute(
        "INSERT INTO \"My App\".\"User\" (email, \"Plan\", \"select\") VALUES ('a', 'free', 1), ('b', 'free', 2)"
    )
    app.execute('INSERT INTO "My App"."User\'s actions" SELECT "userId", \'done\' FROM "My App"."User"')
    tick(db)
    assert list(journey(db, 'It\'s "first" %').values()) == ["completed"]
    app.close()


def test_rolled_back(db: Database, app: Connection) -> None:
    tick(db)
    app.execute("INSERT INTO users (id) VALUES (1)")
    tick(db)
    app.execute("BEGIN; INSERT INTO users (id) VALUES (2); INSERT INTO actions (user_id) VALUES (1); ROLLBACK")
    app.execute("""
        BEGIN;
        SAVEPOINT a; INSERT INTO users (id) VALUES (3); INSERT INTO actions (user_id) VALUES (1); ROLLBACK TO a;
        SAVEPOINT b; INSERT INTO users (id) VALUES (4); RELEASE b;
        COMMIT
    """)
    app.execute("""
        DO $$
        BEGIN INSERT INTO users (id) VALUES (5); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END
        $$
    """)
    with pytest.raises(psycopg.errors.UniqueViolation):
        app.execute("INSERT INTO users (id) VALUES (6), (1)")
    tick(db)
    assert journey(db) == {"1": "waiting", "4": "waiting"}


def test_a_role_that_may_only_insert(db: Database, app: Connection) -> None:
    db.sql("DROP ROLE IF EXISTS app_role; CREATE ROLE app_role LOGIN; GRANT INSERT ON users, actions TO app_role")
    define(app, name="filtered", filter="NEW.plan = 'free'")
    tick(db)
    with db.connect("app_role") as limited:
        limited.execute("INSERT INTO users (id, plan) VALUES (1, 'free')")
        limited.execute("INSERT INTO actions (user_id) VALUES (1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            limited.execute("SELECT FROM activation.signal")
    tick(db)
    assert journey(db) == journey(db, "filtered") == {"1": "completed"}
    db.sql("DROP OWNED BY app_role; DROP ROLE app_role")


def test_several_loops_share_one_trigger(db: Database, app: Connection) -> None:
    for name in ("second", "third"):
        define(app, name=name)
    define(app, name="filtered", filter="NEW.plan = 'free'")
    # Conditions on the users table itself share its insert trigger, too.
    define(app, "SELECT FROM users WHERE id = $1 AND name IS NOT NULL", "named")
    tick(db)
    assert triggers(db) == [
        ("actions", "activation_insert"),
        ("actions", "activation_update"),
        ("users", "activation_delete"),
        ("users", "activation_insert"),
        ("users", "activation_update"),
    ]
    app.execute("INSERT INTO users (id, plan) VALUES (1, 'free'), (2, 'paid')")
    # One for the loops without a filter, one for each with one.
    assert db.sql("SELECT user_id, count(*) FROM activation.signal GROUP BY 1 ORDER BY 1") == [("1", 2), ("2", 1)]
    tick(db)
    for name in ("first", "second", "third", "named"):
        assert sorted(journey(db, name)) == ["1", "2"]
    assert sorted(journey(db, "filtered")) == ["1"]
    app.execute("UPDATE users SET name = 'N' WHERE id = 2")
    tick(db)
    assert journey(db, "named") == {"1": "waiting", "2": "completed"}


def test_wakes_only_while_somebody_reads_them(db: Database, app: Connection) -> None:
    wakes = "SELECT count(*) FROM activation.wake WHERE source_id <> 0"
    app.execute("INSERT INTO users (id) VALUES (1), (2)")
    app.execute("INSERT INTO actions (user_id) VALUES (1)")
    assert db.value(wakes) == 0
    tick(db)
    assert journey(db) == {"1": "completed", "2": "waiting"}
    app.execute("INSERT INTO actions (user_id) VALUES (3)")
    assert db.value(wakes) == 1
    db.sql("SELECT activation.stop()")
    tick_is_wanted = db.value("SELECT watching FROM activation.schedule")
    app.execute("INSERT INTO actions (user_id) VALUES (2)")
    assert (tick_is_wanted, db.value(wakes)) == (False, 1)
    # Signups are kept; whoever acted meanwhile is found by the sweep that the next tick begins with.
    app.execute("INSERT INTO users (id) VALUES (4)")
    tick(db)
    assert journey(db) == {"1": "completed", "2": "completed", "4": "waiting"}
    assert db.value("SELECT watching FROM activation.schedule")


def test_wakes_end_when_the_workers_are_gone(db: Database, app: Connection) -> None:
    """Without stop(): nobody reads them, and they would pile up. Whoever comes back sweeps."""
    wakes = "SELECT count(*) FROM activation.wake WHERE source_id <> 0"
    until = "SELECT watched_until > now() + interval '15 minutes' FROM activation.schedule"
    app.execute("INSERT INTO users (id) VALUES (1), (2)")
    tick(db)
    db.sql("UPDATE activation.schedule SET watched_until = now() - interval '1 second'")
    db.sql("SELECT activation._generate_capture('users'), activation._generate_capture('actions')")
    app.execute("INSERT INTO actions (user_id) VALUES (1)")
    assert db.value(wakes) == 0
    assert "none written since" in db.value("SELECT detail FROM activation.status WHERE component = 'queue'")
    tick(db)
    assert journey(db) == {"1": "completed", "2": "waiting"}
    assert db.value(until)
    assert "none written" not in db.value("SELECT detail FROM activation.status WHERE component = 'queue'")
    # Who comes back in time renews without a sweep.
    db.sql("UPDATE activation.schedule SET watched_until = now() + interval '5 minutes'")
    tick(db)
    assert db.value(until)
    assert db.value("SELECT min(due_at) > now() + interval '1 minute' FROM activation.sweep")
    app.execute("INSERT INTO actions (user_id) VALUES (2)")
    assert db.value(wakes) == 1


def test_updates_and_deletes_wake(db: Database) -> None:
    app = db.connect()
    app.execute(APP)
    define(app, "SELECT FROM actions WHERE user_id = $1 AND what = 'done'")
    define(
        app, "SELECT FROM users u WHERE u.id = $1 AND NOT EXISTS (SELECT FROM actions a WHERE a.user_id = $1)", "none"
    )
    app.execute("BEGIN; INSERT INTO users (id) SELECT generate_series(1, 5)")
    app.execute("INSERT INTO actions SELECT generate_series(1, 4), 'begun'; COMMIT")
    tick(db)
    assert journey(db, "none") == {"1": "waiting", "2": "waiting", "3": "waiting", "4": "waiting", "5": "completed"}
    app.execute("UPDATE actions SET what = 'done' WHERE user_id = 1")
    app.execute("DELETE FROM actions WHERE user_id = 2")
    # The row goes from one user to another.
    app.execute("UPDATE actions SET user_id = 4, what = 'done' WHERE user_id = 3")
    tick(db)
    assert journey(db) == {"1": "completed", "2": "waiting", "3": "waiting", "4": "completed", "5": "waiting"}
    assert journey(db, "none") == {"1": "waiting", "2": "completed", "3": "completed", "4": "waiting", "5": "completed"}
    app.close()


def test_a_busy_table(db: Database) -> None:
    """The first trigger on a table gives up soon, says who is in the way, and changes nothing."""
    app = db.connect()
    app.execute(APP)
    busy = db.connect(autocommit=False)
    busy.execute("SET application_name = 'a long report'")
    busy.execute("INSERT INTO users (id) VALUES (1)")
    with pytest.raises(psycopg.errors.LockNotAvailable, match=r"public\.users is busy") as raised:
        define(app)
    assert "a long report" in str(raised.value.diag.message_detail)
    assert "Try again" in str(raised.value.diag.message_hint)
    assert db.value("SELECT count(*) FROM activation.loop") == 0
    assert triggers(db) == []
    assert db.value("SELECT count(*) FROM pg_proc WHERE pronamespace = 'activation_compiled'::regnamespace") == 0
    assert app.execute("SHOW lock_timeout").fetchone() == ("0",)
    busy.commit()
    define(app)
    # The table has its trigger now: no other loop waits for anybody.
    busy.execute("INSERT INTO users (id) VALUES (2)")
    assert define(app, name="second") == 1
    assert define(app, "SELECT FROM actions WHERE user_id = $1 AND what = 'x'") == 2
    busy.commit()
    busy.close()
    assert enrolled(db) == ["2"]
    app.close()


def test_an_open_transaction_stops_nobody(db: Database, app: Connection) -> None:
    """The engine takes what is there while a signup is still open, and the app never waits for the engine."""
    slow = db.connect(autocommit=False)
    slow.execute("INSERT INTO users (id) VALUES (1)")
    app.execute("INSERT INTO users (id) VALUES (2)")
    assert enrolled(db) == ["2"]
    slow.commit()
    assert enrolled(db) == ["1", "2"]
    slow.close()


def test_what_is_not_seen(db: Database, app: Connection) -> None:
    """Documented: a replica's session, and TRUNCATE."""
    app.execute(
        "SET session_replication_role = replica; INSERT INTO users (id) VALUES (1); RESET session_replication_role"
    )
    assert enrolled(db) == []
    app.execute("TRUNCATE users")


def test_a_definition_that_rolls_back(db: Database) -> None:
    app = db.connect(autocommit=False)
    app.execute(APP)
    app.commit()
    define(app)
    app.rollback()
    assert triggers(db) == []
    app.execute("INSERT INTO users (id) VALUES (1)")
    app.commit()
    define(app)
    app.execute("INSERT INTO users (id) VALUES (2)")
    app.commit()
    assert enrolled(db) == ["2"]
    assert loop_status(db)[0] == "ok"
    app.close()


def test_the_extension_is_dropped(db: Database, app: Connection) -> None:
    define(app, name="filtered", filter="NEW.plan = 'free'")
    app.execute("INSERT INTO users (id) VALUES (1)")
    tick(db)
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        db.sql("DROP EXTENSION activation")
    db.sql("SET client_min_messages = warning; DROP EXTENSION activation CASCADE; RESET client_min_messages")
    app.execute("INSERT INTO users (id) VALUES (2)")
    app.execute("INSERT INTO actions (user_id) VALUES (2)")
    app.execute("ALTER TABLE users RENAME COLUMN id TO key")
    assert triggers(db) == []
    assert db.value("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'activation%'") == 0
    assert db.value("SELECT count(*) FROM pg_event_trigger") == 0
    db.sql("CREATE EXTENSION activation")
    define(app, "SELECT FROM actions WHERE user_id = $1")
    app.execute("INSERT INTO users (key) VALUES (3)")
    assert enrolled(db) == ["3"]


def test_dropped_tables(db: Database, app: Connection) -> None:
    """A table that goes is not the app's problem: it says what hangs on it, and CASCADE works."""
    with pytest.raises(psycopg.errors.DependentObjectsStillExist, match="actions"):
        app.execute("DROP TABLE actions")
    app.execute("SET client_min_messages = error")
    app.execute("INSERT INTO users (id) VALUES (1)")
    app.execute("DROP TABLE actions CASCADE")
    tick(db)
    assert loop_status(db)[0] == "failing"
    app.execute("INSERT INTO users (id) VALUES (2)")
    app.execute("DROP TABLE users CASCADE")
    tick(db)
    app.execute(APP)
    define(app, ACTED)
    app.execute("INSERT INTO users (id) VALUES (3)")
    tick(db)
    assert journey(db)["3"] == "waiting"
