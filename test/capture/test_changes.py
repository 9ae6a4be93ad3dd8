"""Capture follows what a migration does to a table, while clients go on inserting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from harness import Connection, Database, wait_until
from loops import APP, define, enrolled, journey, loop_status, tick


@pytest.fixture
def app(db: Database) -> Iterator[Connection]:
    """The app's connection, its tables, and two loops."""
    connection = db.connect()
    connection.execute(APP)
    define(connection)
    define(connection, name="filtered", filter="NEW.plan = 'free'")
    tick(db)
    yield connection
    connection.close()


class Clients:
    """Threads that sign people up, and remember who got through."""

    def __init__(self) -> None:
        self.emails: list[str] = []
        self.errors: list[BaseException] = []
        self.over = threading.Event()

    def run(self, db: Database, number: int) -> None:
        try:
            with db.connect() as connection:
                count = 0
                while not self.over.is_set():
                    count += 1
                    email = f"{number}.{count}@example.com"
                    connection.execute("INSERT INTO users (email, plan) VALUES (%s, 'free')", [email], prepare=True)
                    self.emails.append(email)
        except BaseException as error:
            self.errors.append(error)


@contextmanager
def clients(db: Database) -> Iterator[Clients]:
    """Three clients that sign people up all the time."""
    crowd = Clients()
    threads = [threading.Thread(target=crowd.run, args=(db, number)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(crowd.emails) > 10 or crowd.errors)
        yield crowd
        reached = len(crowd.emails)
        wait_until(lambda: len(crowd.emails) > reached + 10 or crowd.errors)
    finally:
        crowd.over.set()
        for thread in threads:
            thread.join()
    assert crowd.errors == []


def test_the_key_is_renamed_while_clients_insert(db: Database, app: Connection) -> None:
    """No INSERT fails, and nobody is lost."""
    with clients(db) as crowd:
        for old, new in [("id", "uid"), ("uid", "User Id"), ("User Id", "id"), ("id", "key")]:
            reached = len(crowd.emails)
            app.execute(f'ALTER TABLE users RENAME COLUMN "{old}" TO "{new}"')
            wait_until(lambda reached=reached: len(crowd.emails) > reached or crowd.errors)
    expected = sorted(str(row[0]) for row in db.sql("SELECT key FROM users"))
    assert len(expected) == len(crowd.emails)
    assert enrolled(db) == expected
    assert sorted(journey(db, "filtered")) == expected
    app.execute("INSERT INTO actions (user_id) SELECT key FROM users")
    tick(db)
    assert set(journey(db).values()) == {"completed"}
    assert db.value("SELECT count(*) FROM activation.message_log WHERE status = 'captured'") == 2 * len(expected)
    assert loop_status(db)[0] == "ok"


def test_a_rename_that_rolls_back(db: Database, app: Connection) -> None:
    app.execute("BEGIN; ALTER TABLE users RENAME COLUMN id TO uid; INSERT INTO users (uid, plan) VALUES (1, 'free')")
    app.execute("ROLLBACK; INSERT INTO users (id, plan) VALUES (2, 'free')")
    assert enrolled(db) == ["2"]
    assert sorted(journey(db, "filtered")) == ["2"]


def test_the_key_is_dropped_while_clients_insert(db: Database, app: Connection) -> None:
    """INSERTs go on, and the loops say what is wrong."""
    with clients(db), db.connect() as connection:
        connection.execute("SET client_min_messages = error; ALTER TABLE users DROP COLUMN id CASCADE")
    tick(db)
    for loop in ("first", "filtered"):
        state, detail = loop_status(db, loop)
        assert (state, "was dropped: define the loop again" in detail) == ("failing", True)
    app.execute("INSERT INTO users (email) VALUES ('later@example.com')")


def test_dropping_the_key_says_what_needs_it(db: Database, app: Connection) -> None:
    with pytest.raises(psycopg.errors.DependentObjectsStillExist) as raised:
        app.execute("ALTER TABLE users DROP COLUMN id")
    assert "first: users (1.v1)" in str(raised.value.diag.message_detail)


def test_a_column_of_the_filter(db: Database, app: Connection) -> None:
    """Renamed, it is followed; it is not dropped or changed unseen; dropped by force, the loop says so."""
    app.execute("ALTER TABLE users RENAME COLUMN plan TO tier")
    app.execute("INSERT INTO users (id, tier) VALUES (1, 'free'), (2, 'paid')")
    tick(db)
    assert list(journey(db, "filtered")) == ["1"]
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="tier"):
        app.execute("ALTER TABLE users ALTER tier TYPE varchar(20)")
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        app.execute("ALTER TABLE users DROP COLUMN tier")
    app.execute("SET client_min_messages = error; ALTER TABLE users DROP COLUMN tier CASCADE")
    app.execute("INSERT INTO users (id) VALUES (3)")
    tick(db)
    assert list(journey(db)) == ["1", "2", "3"]
    state, detail = loop_status(db, "filtered")
    assert (state, "that the filter reads was dropped" in detail) == ("failing", True)
    assert loop_status(db)[0] == "ok"


@pytest.mark.parametrize(
    ("dropped", "later"), [("DOMAIN kinds.number", "email"), ("TYPE kinds.plan", "id"), ("SCHEMA kinds", "email")]
)
def test_a_column_goes_with_its_type(db: Database, app: Connection, dropped: str, later: str) -> None:
    """INSERTs go on, and the loops that needed it say so."""
    app.execute(
        "CREATE SCHEMA kinds; CREATE DOMAIN kinds.number AS bigint; CREATE TYPE kinds.plan AS ENUM ('free', 'paid')"
    )
    app.execute("CREATE TABLE people (id kinds.number PRIMARY KEY, email text, plan kinds.plan)")
    app.execute("SELECT activation.set_users('people')")
    app.execute(
        "SELECT activation.define_loop('of_people', action => activation.email('activation_welcome'),"
        " trigger => activation.on_insert('people', filter => $$NEW.plan = 'free'$$))"
    )
    app.execute("INSERT INTO people VALUES (1, 'a@example.com', 'free')")
    tick(db)
    assert journey(db, "of_people") == {"1": "completed"}
    app.execute(f"SET client_min_messages = error; DROP {dropped} CASCADE".encode())
    app.execute(f"INSERT INTO people ({later}) VALUES ('2')".encode())
    tick(db)
    state, detail = loop_status(db, "of_people")
    assert (state, "was dropped: define the loop again" in detail) == ("failing", True)
    assert loop_status(db)[0] == "ok"


@pytest.mark.parametrize(
    ("change", "table"),
    [
        ("ALTER TABLE users RENAME TO people", "people"),
        ("CREATE SCHEMA app; ALTER TABLE users SET SCHEMA app", "app.users"),
        ("ALTER TABLE users ADD COLUMN age int DEFAULT 7", "users"),
        ("ALTER TABLE users DROP COLUMN name", "users"),
        ("ALTER TABLE users ALTER COLUMN name TYPE varchar(99), ALTER COLUMN name SET DEFAULT 'x'", "users"),
        ("ALTER TABLE users ADD COLUMN long_name text GENERATED ALWAYS AS (name || '!') STORED", "users"),
    ],
)
def test_other_changes(db: Database, app: Connection, change: str, table: str) -> None:
    # The users function and the templates read the whole row; only what they bind is in the way.
    app.execute("INSERT INTO users (id, email, plan) VALUES (1, 'a@example.com', 'free')")
    if "COLUMN name" in change:
        app.execute("SELECT activation.unbind('users')")
    app.execute(change)
    if "COLUMN name" in change:
        app.execute("SELECT activation.bind()")
    app.execute(f"INSERT INTO {table} (id, email, plan) VALUES (2, 'b@example.com', 'free')")
    tick(db)
    assert journey(db) == journey(db, "filtered") == {"1": "waiting", "2": "waiting"}
    app.execute("INSERT INTO actions (user_id) VALUES (1), (2)")
    tick(db)
    assert set(journey(db).values()) == {"completed"}
    assert db.value("SELECT count(*) FROM activation.message_log WHERE status = 'captured'") == 4


def test_the_watched_table_changes(db: Database, app: Connection) -> None:
    app.execute("INSERT INTO users (id) SELECT generate_series(1, 3)")
    tick(db)
    app.execute("ALTER TABLE actions RENAME COLUMN user_id TO who; INSERT INTO actions (who) VALUES (1)")
    tick(db)
    app.execute("ALTER TABLE actions RENAME TO deeds; INSERT INTO deeds (who) VALUES (2)")
    tick(db)
    app.execute("CREATE SCHEMA app; ALTER TABLE deeds SET SCHEMA app; INSERT INTO app.deeds (who) VALUES (3)")
    tick(db)
    assert set(journey(db).values()) == {"completed"}


def test_by_an_owner_who_is_nobody(db: Database) -> None:
    """A migration's role needs no right on anything of ours."""
    db.sql("DROP ROLE IF EXISTS migrator; CREATE ROLE migrator LOGIN; CREATE SCHEMA mig AUTHORIZATION migrator")
    with db.connect("migrator") as owner:
        owner.execute("SET search_path = mig")
        owner.execute(APP)
        db.sql("GRANT USAGE ON SCHEMA activation TO migrator")
        db.sql("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA activation TO migrator")
        define(owner)
        db.sql("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA activation FROM migrator")
        db.sql("REVOKE ALL ON SCHEMA activation FROM migrator")
        owner.execute("ALTER TABLE users RENAME COLUMN id TO uid; INSERT INTO users (uid) VALUES (1)")
        owner.execute("ALTER TABLE users ADD COLUMN x int; ALTER TABLE users RENAME TO people")
        owner.execute("INSERT INTO people (uid) VALUES (2); INSERT INTO actions (user_id) VALUES (2)")
    tick(db)
    assert journey(db) == {"1": "waiting", "2": "completed"}
    db.sql(
        "SET client_min_messages = error; DROP OWNED BY migrator CASCADE; DROP ROLE migrator; RESET client_min_messages"
    )
