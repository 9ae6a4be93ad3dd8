"""Filters run in the app's transaction: whatever they do, the app's statement goes on and nothing of theirs stays."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from harness import Connection, Database
from loops import APP, define, enrolled, journey, loop_status, tick


@pytest.fixture
def app(db: Database) -> Iterator[Connection]:
    """The app's connection, and its tables."""
    connection = db.connect()
    connection.execute(APP)
    yield connection
    connection.close()


def warnings(connection: Connection) -> list[str]:
    """What the server says to this session from now on."""
    heard: list[str] = []
    connection.add_notice_handler(lambda notice: heard.append(f"{notice.severity}: {notice.message_primary}"))
    return heard


def test_true_false_and_null(db: Database, app: Connection) -> None:
    define(app, filter="NEW.plan = 'free'")
    app.execute("INSERT INTO users (id, plan) VALUES (1, 'free'), (2, 'paid'), (3, NULL)")
    assert enrolled(db) == ["1"]
    ((event, detail),) = db.sql("SELECT event, detail FROM activation.why('3', 'first')")
    assert (event, "NEW.plan = 'free'" in detail) == ("not enrolled", True)


@pytest.mark.parametrize(
    ("expression", "passes"),
    [
        ("new.plan IN ('free', 'trial') -- comment", ["1"]),
        ("NEW.name IS NULL AND new.\"plan\" <> 'x' AND 'NEW.nothing' <> '' /* NEW.nothing */", ["1", "2"]),
        ("EXISTS (SELECT FROM actions a WHERE a.user_id = NEW.id)", ["2"]),
        ("(SELECT count(*) FROM users WHERE plan = NEW.plan) = 1", ["1", "2"]),
        ("to_jsonb(NEW) ->> 'plan' = 'paid'", ["2"]),
        ("NEW IS NOT NULL", []),
        ("CASE NEW.plan WHEN 'free' THEN true ELSE NULL END", ["1"]),
    ],
)
def test_expressions(db: Database, app: Connection, expression: str, passes: list[str]) -> None:
    app.execute("INSERT INTO actions (user_id) VALUES (2)")
    define(app, "SELECT FROM actions WHERE user_id = $1 AND what = 'never'", filter=expression)
    app.execute("INSERT INTO users (id, plan) VALUES (1, 'free'), (2, 'paid')")
    assert enrolled(db) == passes


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("RETURN 1 / length(plan) >= 0;", "division by zero"),
        ("ASSERT plan <> '', 'no plan'; RETURN true;", "no plan"),
        ("IF plan = '' THEN RAISE SQLSTATE 'ACT00' USING MESSAGE = 'mine'; END IF; RETURN true;", "mine"),
        ("IF plan = '' THEN RAISE query_canceled USING MESSAGE = 'gone'; END IF; RETURN true;", "gone"),
        ("IF plan = '' THEN PERFORM accepts(plan || '!'); RETURN accepts(plan); END IF; RETURN true;", "stack depth"),
        ("IF plan = '' THEN INSERT INTO actions VALUES (1); END IF; RETURN true;", "read-only transaction"),
        ("IF plan = '' THEN PERFORM nextval('users_id_seq'); END IF; RETURN true;", "read-only transaction"),
        (
            "IF plan = '' THEN PERFORM set_config('transaction_read_only', 'off', true); END IF; RETURN true;",
            "read-write mode inside a read-only transaction",
        ),
        ("IF plan = '' THEN ROLLBACK; END IF; RETURN true;", "invalid transaction termination"),
    ],
)
def test_one_that_raises(db: Database, app: Connection, body: str, error: str) -> None:
    """The signup goes through, with a warning; what failed is shown, and other loops are not concerned."""
    app.execute(f"CREATE FUNCTION accepts(plan text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN {body} END$$")
    define(app, filter="accepts(NEW.plan)")
    define(app, name="other", filter="NEW.plan = ''")
    define(app, name="unfiltered")
    heard = warnings(app)
    app.execute("INSERT INTO users (id, plan) VALUES (1, 'free')")
    assert heard == []
    app.execute("INSERT INTO users (id, plan) VALUES (2, '')")
    ((warning),) = heard
    assert warning.startswith("WARNING: the filter of activation loop first raised: ")
    assert error in warning
    tick(db)
    assert list(journey(db)) == ["1"]
    assert list(journey(db, "other")) == ["2"]
    assert list(journey(db, "unfiltered")) == ["1", "2"]
    ((event, detail),) = db.sql("SELECT event, detail FROM activation.why('2', 'first')")
    assert (event, error in detail) == ("not enrolled", True)
    assert "1 people not enrolled: the filter raised" in loop_status(db)[1]
    assert loop_status(db, "other") == ("ok", "version 1")


def test_one_that_is_cancelled(db: Database, app: Connection) -> None:
    app.execute("""
        CREATE FUNCTION accepts(plan text) RETURNS boolean LANGUAGE plpgsql AS
            $$BEGIN PERFORM CASE plan WHEN 'slow' THEN pg_sleep(600) END; RETURN true; END$$
    """)
    define(app, filter="accepts(NEW.plan)")
    heard = warnings(app)
    app.execute("SET statement_timeout = 200; INSERT INTO users (id, plan) VALUES (1, 'slow'), (2, 'free')")
    app.execute("RESET statement_timeout")
    assert heard == [
        "WARNING: the filter of activation loop first raised: canceling statement due to statement timeout"
    ]
    assert db.value("SELECT count(*) FROM users") == 2
    assert enrolled(db) == []
    assert db.sql("SELECT user_id FROM activation.capture_failure ORDER BY 1") == [("1",), ("2",)]


def test_nothing_stays_in_the_apps_session(db: Database, app: Connection) -> None:
    """A filter that tries to leave a cursor, settings, a temporary table with a deferred trigger, or a listener."""
    app.execute("""
        CREATE TABLE ran (what text);
        CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO ran VALUES ('the deferred trigger'); RETURN NULL; END$$;
        CREATE TEMP TABLE bag (what text);
        CREATE CONSTRAINT TRIGGER later AFTER INSERT ON bag DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION later();
        CREATE FUNCTION accepts(plan text) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM set_config('search_path', 'pg_temp', false), set_config('work_mem', '64kB', false);
            PERFORM set_config('app.tenant', 'stolen', false);
            SET SESSION statement_timeout = '1ms';
            EXECUTE 'DECLARE kept CURSOR WITH HOLD FOR SELECT 1';
            EXECUTE 'LISTEN something';
            -- A temporary table may be written in a read-only transaction.
            INSERT INTO pg_temp.bag VALUES (plan);
            RETURN true;
        END $$;
        SET work_mem = '5MB'; SET app.tenant = 'mine';
    """)
    define(app, filter="accepts(NEW.plan)")
    app.execute("BEGIN; INSERT INTO users (id, plan) VALUES (1, 'free')")
    state = """
        SELECT current_setting('search_path'), current_setting('work_mem'), current_setting('app.tenant'),
               current_setting('statement_timeout'), current_setting('transaction_read_only'),
               (SELECT count(*) FROM pg_cursors WHERE name = 'kept'), (SELECT count(*) FROM bag)
    """
    expected = ('"$user", public', "5MB", "mine", "0", "off", 0, 0)
    assert app.execute(state).fetchone() == expected
    app.execute("COMMIT")
    assert app.execute(state).fetchone() == expected
    assert app.execute("SELECT count(*) FROM pg_listening_channels()").fetchone() == (0,)
    assert db.value("SELECT count(*) FROM ran") == 0
    assert enrolled(db) == ["1"]


def test_it_sees_what_the_app_has_done(db: Database, app: Connection) -> None:
    """The filter looks at the app's own uncommitted rows."""
    define(app, filter="EXISTS (SELECT FROM actions a WHERE a.user_id = NEW.id)")
    app.execute("BEGIN; INSERT INTO actions (user_id) VALUES (1); INSERT INTO users (id) VALUES (1), (2); COMMIT")
    assert enrolled(db) == ["1"]


def test_it_runs_with_its_owners_rights_and_path(db: Database, app: Connection) -> None:
    db.sql("DROP ROLE IF EXISTS app_role; CREATE ROLE app_role LOGIN")
    app.execute("""
        CREATE SCHEMA house; CREATE TABLE house.plans (name text); INSERT INTO house.plans VALUES ('free');
        CREATE FUNCTION house.known(plan text) RETURNS boolean LANGUAGE plpgsql AS
            $$BEGIN RETURN EXISTS (SELECT FROM plans WHERE name = plan); END$$;
        GRANT INSERT ON users TO app_role;
        SET search_path = house, public;
    """)
    define(app, "SELECT FROM actions WHERE user_id = $1", filter="known(NEW.plan)")
    with db.connect("app_role") as limited:
        limited.execute("SET search_path = pg_temp; INSERT INTO public.users (id, plan) VALUES (1, 'free'), (2, 'x')")
    assert enrolled(db) == ["1"]
    db.sql("DROP OWNED BY app_role; DROP ROLE app_role")


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("NEW.nothing = 1", "names no column"),
        ("NEW.nothing = NEW.plan", "nothing"),
        ("true) OR (NEW.plan = 'x'", "syntax error"),
        ("NEW.plan = 'x' LIMIT 1", "syntax error"),
        ("plan = 'free'", "names no column"),
        ("NEW.plan", "boolean"),
        ("NEW.plan = 'free'; SELECT 1", "syntax error"),
        ("NEW.plan = ", "syntax error"),
        ("", "filter"),
        ("OLD.plan = NEW.plan", "old"),
        ("count(NEW.plan) > 1", "aggregate"),
    ],
)
def test_refused(db: Database, app: Connection, expression: str, error: str) -> None:
    with pytest.raises(psycopg.Error, match=f"(?is)filter.*{error}|{error}.*filter"):
        define(app, filter=expression)
    assert db.value("SELECT count(*) FROM activation.loop") == 0
    assert db.value("SELECT count(*) FROM pg_proc WHERE pronamespace = 'activation_compiled'::regnamespace") == 0


def test_a_filter_that_changes(db: Database, app: Connection) -> None:
    """Who signed up is in the loop by the filter of that moment, also when it is another one before anybody looks."""
    define(app)
    app.execute("INSERT INTO users (id, plan) VALUES (1, 'free'), (2, 'paid')")
    define(app, filter="NEW.plan = 'free'")
    app.execute("INSERT INTO users (id, plan) VALUES (3, 'free'), (4, 'paid')")
    define(app, filter="NEW.plan = 'paid'")
    app.execute("INSERT INTO users (id, plan) VALUES (5, 'free'), (6, 'paid')")
    define(app, name="another")
    define(app)
    app.execute("INSERT INTO users (id, plan) VALUES (7, 'free'), (8, NULL)")
    assert enrolled(db) == ["1", "2", "3", "6", "7", "8"]
    assert sorted(journey(db, "another")) == ["7", "8"]


def test_an_archived_loop_that_comes_back(db: Database, app: Connection) -> None:
    """It takes nobody from before."""
    for filter in (None, "NEW.plan IS NOT NULL"):
        define(app, filter=filter)
        app.execute("INSERT INTO users (id, plan) VALUES (1, 'free')")
        app.execute("SELECT activation.archive_loop('first'); INSERT INTO users (id, plan) VALUES (2, 'free')")
        define(app, filter=filter)
        app.execute("INSERT INTO users (id, plan) VALUES (3, 'free')")
        assert enrolled(db) == ["3"]
        app.execute("DELETE FROM users; DELETE FROM activation.message; DELETE FROM activation.enrollment")
        app.execute("SELECT activation.archive_loop('first')")
