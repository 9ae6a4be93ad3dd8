# ruff: noqa: E501
"""One person's data stops nobody else: what cannot be processed is found, set aside with its reason, and the rest goes on
in the same run."""

from __future__ import annotations

import json

import psycopg
import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database, wait_until
from loops import APP, define, journey, loop_status, tick
from mail import Worker, last_error, sign_up, statuses


@pytest.fixture
def app(db: Database) -> Connection:
    """The small app; nothing leaves, mails end as captured."""
    connection = db.connect()
    connection.execute(APP)
    return connection


def note(db: Database) -> str:
    """What the workers say of themselves."""
    return " ".join(detail for (detail,) in db.sql("SELECT detail FROM activation.status WHERE component ~ '^de'"))


def why(db: Database, user: str) -> str:
    return "\n".join(
        f"{event}: {detail}" for event, detail in db.sql("SELECT event, detail FROM activation.why(%s)", user)
    )


UNREADABLE = {
    "jsonb nested too deeply": ("jsonb", "(repeat('[', 3000) || repeat(']', 3000))::jsonb"),
    "a NUL in json": ("json", r"""'{"a": "\u0000"}'"""),
    "half a character in json": ("json", r"""'{"a": "\ud800"}'"""),
    "json nested too deeply": ("json", "(repeat('[', 3000) || repeat(']', 3000))::json"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_row_that_cannot_be_read(db: Database, app: Connection, what: str) -> None:
    type_, value = UNREADABLE[what]
    app.execute(f"ALTER TABLE users ADD odd {type_}".encode())
    define(app)
    app.execute(f"INSERT INTO users (id, email, odd) VALUES (1, 'a@acme.dev', {value})".encode())
    app.execute("INSERT INTO users (id, email) SELECT g, 'u@acme.dev' FROM generate_series(2, 9) g")
    app.execute("INSERT INTO actions (user_id) SELECT id FROM users")
    tick(db)
    assert statuses(db) == {"1": "failed", **{str(user): "captured" for user in range(2, 10)}}
    assert "row" in last_error(db, 1) and "failed" in why(db, "1")
    (preview,) = db.sql("SELECT problem FROM activation.preview('1', 'first')")
    assert preview[0]


def test_properties_nested_too_deeply(db: Database, app: Connection) -> None:
    app.execute("SELECT activation.set_users('users')")
    app.execute(
        "SELECT activation.define_loop('first', trigger => activation.on_event('met'), users => 'users',"
        " action => activation.email('activation_welcome'))"
    )
    app.execute("INSERT INTO users (id, email) SELECT g, 'u@acme.dev' FROM generate_series(1, 3) g")
    app.execute(
        "SELECT activation.track('1', 'met', jsonb_build_object('a', (repeat('[', 1200) || repeat(']', 1200))::jsonb))"
    )
    app.execute("SELECT activation.track('2', 'met')")
    tick(db)
    assert statuses(db) == {"1": "failed", "2": "captured"} and last_error(db, 1)


def test_large_rows(db: Database, app: Connection) -> None:
    """A claim holds some of them at a time; a column that is too large for a mail is left out, and that is noticed."""
    app.execute("ALTER TABLE users ADD life text, ADD story text")
    define(app, None)
    app.execute(
        "INSERT INTO users (id, email, name, life) SELECT g, 'u@acme.dev', 'Ada', repeat(md5(g::text), 300000) FROM generate_series(1, 3) g"
    )
    app.execute(
        "INSERT INTO users (id, email, story) SELECT g, 'u@acme.dev', repeat('ü', 450000) FROM generate_series(4, 60) g"
    )
    tick(db)
    assert set(statuses(db).values()) == {"captured"} and len(statuses(db)) == 60
    assert "too large for a mail: without life" in why(db, "1") and "too large" not in why(db, "4")
    read = "SELECT octet_length(r) FROM activation.loop_version v, unnest(activation._safe_eval(v.users_function, v.owner, ARRAY(SELECT id::text FROM users))) AS r"
    sizes = [size for (size,) in db.sql(read)]
    assert len(sizes) == 60 and max(sizes) < 1_100_000 and sum(sizes) < 33_000_000


def test_many_large_columns(db: Database, app: Connection) -> None:
    columns = [f"c{number}" for number in range(60)]
    app.execute(("ALTER TABLE users " + ", ".join(f"ADD {column} text" for column in columns)).encode())
    define(app, None)
    app.execute(
        f"INSERT INTO users (id, email, name, {', '.join(columns)}) SELECT 1, 'u@acme.dev', 'Ada', {', '.join(['repeat(chr(960), 45000)'] * 60)}".encode()
    )
    tick(db)
    assert statuses(db) == {"1": "captured"} and "too large for a mail: without c0, c1" in why(db, "1")
    assert db.value("SELECT subject FROM activation.message_log")


def test_a_time_zone_that_is_none(db: Database, app: Connection) -> None:
    app.execute("ALTER TABLE users ADD zone text")
    app.execute("SELECT activation.set_users('users')")
    app.execute(
        "SELECT activation.define_loop('first', trigger => activation.on_insert('users'), action => activation.email('activation_welcome'),"
        " send_window => activation.send_window('Mon,Tue,Wed,Thu,Fri,Sat,Sun', '00:00', '24:00'))"
    )
    # Loops that there are read it from now on.
    app.execute("SELECT activation.set_users('users', timezone => 'zone')")
    zones = ["x" * 3000, "", "Nowhere/At all", "+99:99", "5 years", None, "Europe/Berlin"]
    for user, zone in enumerate(zones):
        app.execute("INSERT INTO users (id, email, zone) VALUES (%s, 'u@acme.dev', %s)", [user, zone])
    tick(db)
    assert set(statuses(db).values()) == {"captured"} and len(statuses(db)) == len(zones)
    assert "is not known" in why(db, "0") and "is not known" in why(db, "2")


def test_a_goal_that_raises_for_one(db: Database, app: Connection) -> None:
    """A nudge is put off for the person on whom the loop's own code raises, said by status and why; others get theirs."""
    app.execute("CREATE TABLE shares (user_id bigint PRIMARY KEY, n int)")
    define(app, "SELECT FROM shares WHERE user_id = $1 AND 1 / n > 5", timeout="5m", otherwise=True)
    app.execute("INSERT INTO users (id, email) SELECT g, 'u@acme.dev' FROM generate_series(1, 9) g")
    app.execute("SELECT activation.set_mode('redirect', redirect_to => 'me@acme.dev')")
    tick(db)
    db.sql("UPDATE activation.enrollment SET deadline = now()")
    tick(db)
    assert set(statuses(db).values()) == {"queued"}
    app.execute("INSERT INTO shares VALUES (1, 0)")
    app.execute("SELECT activation.set_mode('capture')")
    tick(db)
    assert statuses(db) == {"1": "queued", **{str(user): "captured" for user in range(2, 10)}}
    assert "division by zero" in last_error(db, 1) and "division by zero" in why(db, "1")
    assert "1 messages wait because its code raised" in loop_status(db)[1]
    app.execute("UPDATE shares SET n = 1")
    tick(db, "2 minutes")
    assert statuses(db)["1"] == "captured"


def test_a_view_that_raises_for_everybody(db: Database, app: Connection) -> None:
    """That is the loop's fault and not its people's: their mail waits."""
    app.execute(
        "CREATE ROLE clerk; CREATE FUNCTION no() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''closed''; END'"
    )
    try:
        app.execute(
            "ALTER TABLE users OWNER TO clerk; ALTER TABLE users ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; GRANT ALL ON actions TO clerk"
        )
        define(app, None, owner="clerk")
        app.execute("INSERT INTO users (id, email) SELECT g, 'u@acme.dev' FROM generate_series(1, 3) g")
        app.execute("CREATE POLICY shut ON users USING (no())")
        tick(db)
        assert set(statuses(db).values()) == {"queued"} and "closed" in last_error(db, 1)
        app.execute("DROP POLICY shut ON users; CREATE POLICY open ON users USING (true)")
        tick(db, "2 minutes")
        assert set(statuses(db).values()) == {"captured"}
    finally:
        app.execute("DROP OWNED BY clerk CASCADE; DROP ROLE clerk")


@pytest.mark.parametrize("size", [1001, 3000, 5000, 2_000_000])
def test_long_keys(db: Database, app: Connection, size: int) -> None:
    """A key that no index can hold is set aside with a sentence; public verbs refuse it or answer with one."""
    app.execute(
        "CREATE TABLE people (id text, email text); CREATE INDEX ON people USING hash (id); CREATE INDEX ON people (left(id, 9))"
    )
    app.execute("CREATE TABLE deeds (who text)")
    app.execute("CREATE INDEX ON people (id) WHERE length(id) < 100; CREATE INDEX people_id ON people USING hash (id)")
    app.execute("SET client_min_messages = error")
    app.execute("SELECT activation.set_users('people', key => 'id')")
    define(app, "SELECT FROM deeds WHERE who = $1", table="people")
    long, kept = "k" * size, "k" * 1000
    for key in (long, "1", kept):
        app.execute("INSERT INTO people VALUES (%s, 'u@acme.dev')", [key])
        app.execute("INSERT INTO deeds VALUES (%s)", [key])
    app.execute("DELETE FROM people WHERE id = %s; ", [long])
    app.execute("INSERT INTO people VALUES (%s, 'u@acme.dev')", [long])
    tick(db)
    assert statuses(db) == {"1": "captured", kept: "captured"} and journey(db) == {"1": "completed", kept: "completed"}
    assert "people not enrolled: the key has" in loop_status(db)[1]
    assert f"not enrolled: the key has {size} bytes" in why(db, long)
    for verb in ("enroll(%s, 'first')", "cancel(%s, 'first')", "track(%s, 'met')", "preferences(%s)"):
        with pytest.raises(psycopg.Error, match=f"has {size} bytes") as refused:
            app.execute(f"SELECT activation.{verb}".encode(), [long])
        assert refused.value.sqlstate == "22023"
    assert db.value("SELECT jsonb_array_length(activation.export_user(%s) -> 'failures')", long) == 2
    assert db.value("SELECT activation.erase(%s)", long) is True
    assert db.sql("SELECT FROM activation.capture_failure") == []


def test_a_signal_that_cannot_be_taken(db: Database, app: Connection) -> None:
    """Whatever it is: here a trigger that somebody put on our table."""
    define(app)
    db.sql(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF new.user_id = '7' THEN RAISE 'not seven'; END IF; RETURN new; END $$;"
        "CREATE TRIGGER no BEFORE INSERT OR UPDATE ON activation.enrollment FOR EACH ROW EXECUTE FUNCTION no()"
    )
    sign_up(app, *range(1, 20))
    with db.connect() as session, session.transaction(force_rollback=True):
        # The others are taken in the same round, and none is left for the next.
        taken = "SELECT cardinality(ids) FROM activation._take_signals(activation._all_buckets(), 100)"
        assert session.execute(taken).fetchone() == (18,)
        assert session.execute("SELECT count(*) FROM activation.signal").fetchone() == (0,)
    tick(db)
    assert set(statuses(db)) == {str(user) for user in range(1, 20) if user != 7}
    assert "not enrolled: not seven" in why(db, "7")


def test_an_answer_that_cannot_be_written_down(db: Database, app: Connection) -> None:
    """A decision that raises for one is put off for them alone, and told."""
    define(app)
    app.execute("INSERT INTO users (id, email) SELECT g, 'u@acme.dev' FROM generate_series(1, 19) g")
    tick(db)
    db.sql(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF new.user_id = '7' THEN RAISE 'not seven'; END IF; RETURN new; END $$;"
        "CREATE TRIGGER no BEFORE INSERT ON activation.message FOR EACH ROW EXECUTE FUNCTION no()"
    )
    app.execute("INSERT INTO actions SELECT id FROM users")
    tick(db)
    assert set(statuses(db)) == {str(user) for user in range(1, 20) if user != 7}
    assert "not seven" in why(db, "7") and "1 people cannot be evaluated: not seven" in loop_status(db)[1]
    db.sql("DROP TRIGGER no ON activation.message")
    tick(db, "2 minutes")
    assert "7" in statuses(db)


def test_a_claim_that_raises_for_one(db: Database, app: Connection) -> None:
    """A message that cannot be written is found among many and has failed."""
    define(app, None)
    db.sql(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF new.user_id = '7' AND new.state = 'captured' THEN RAISE 'not seven'; END IF; RETURN new; END $$;"
        "CREATE TRIGGER no BEFORE UPDATE ON activation.message FOR EACH ROW EXECUTE FUNCTION no()"
    )
    app.execute("INSERT INTO users (id, email) SELECT g, 'u@acme.dev' FROM generate_series(1, 300) g")
    tick(db)
    assert statuses(db) == {str(user): "failed" if user == 7 else "captured" for user in range(1, 301)}
    assert "not seven" in last_error(db, 7)


def test_an_answer_of_the_provider_that_cannot_be_stored(db: Database, live: Connection, sandbox: Sandbox) -> None:
    db.sql(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF new.resend_id IS NOT NULL THEN RAISE 'no ids'; END IF; RETURN new; END $$;"
        "CREATE TRIGGER no BEFORE UPDATE ON activation.message FOR EACH ROW EXECUTE FUNCTION no()"
    )
    sign_up(live, 1)
    tick(db)
    assert statuses(db) == {"1": "sent"} and len(sandbox.emails) == 1


def test_an_answer_that_cannot_be_recorded(db: Database, live: Connection) -> None:
    """Not even in short: status says so for as long as nothing better was heard."""
    db.sql(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no attempts'; END $$;"
        "CREATE TRIGGER no BEFORE INSERT ON activation.attempt FOR EACH ROW EXECUTE FUNCTION no()"
    )
    detector, deliverer = Worker(db, kind="detect"), Worker(db, kind="deliver")
    try:
        sign_up(live, 1)
        wait_until(lambda: "an answer cannot be written down: no attempts" in note(db))
        db.sql("DROP TRIGGER no ON activation.attempt")
        sign_up(live, 2)
        wait_until(lambda: statuses(db).get("2") == "sent")
        wait_until(lambda: "cannot be written down" not in note(db))
        assert detector.error is None and deliverer.error is None
    finally:
        db.sql("SELECT activation.stop()")
        assert detector.ended(10) and deliverer.ended(10)


def test_a_deletion_that_cannot_be_taken(db: Database, app: Connection) -> None:
    """It is told of each loop of that users table, whatever triggers it."""
    define(app)
    app.execute(
        "SELECT activation.define_loop('acts', trigger => activation.on_insert('actions', user_key => 'user_id'), users => 'users',"
        " steps => ARRAY[activation.step('a', delay => '1 day', action => activation.email('activation_welcome'))])"
    )
    sign_up(app, 7, 8)
    tick(db)
    db.sql(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF new.user_id = '7' THEN RAISE 'not seven'; END IF; RETURN new; END $$;"
        "CREATE TRIGGER no BEFORE UPDATE ON activation.enrollment FOR EACH ROW EXECUTE FUNCTION no()"
    )
    app.execute("DELETE FROM users")
    tick(db)
    told = "SELECT l.name, c.user_id, c.error, c.code FROM activation.capture_failure c JOIN activation.loop l USING (loop_id) ORDER BY 1"
    assert db.sql(told) == [(loop, "7", "not seven", "deletion_unclear") for loop in ("acts", "first")]
    assert db.sql("SELECT FROM activation.signal") == []


CODES = "08006 22012 25006 2D000 40001 42501 53200 54001 55P03 57014 58030 ACT02 P0001 XX000 23505"


@pytest.mark.parametrize("code", CODES.split())
def test_whose_error_it_is(db: Database, code: str) -> None:
    """Python and SQL say the same of it."""
    from activation.engine.protocol import Failed

    assert Failed("", code).of_a_person is db.value("SELECT activation._is_about_one_person(%s)", code)


@pytest.mark.parametrize("text", ["\ud800 half", "a\x00b", "x" * 3_000_000])
def test_odd_texts_are_stored(text: str) -> None:
    from activation.engine.protocol import storable

    stored = storable(text)
    assert stored and len(stored) <= 1000 and "\x00" not in stored and stored.encode()


def test_housekeeping_that_raises(db: Database, live: Connection) -> None:
    """It ends neither the run nor the other tasks; status says so, and one bad person does not stop the others."""
    db.sql(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF old.user_id = '1' THEN RAISE 'not one'; END IF; RETURN old; END $$;"
        "CREATE TRIGGER no BEFORE DELETE ON activation.enrollment FOR EACH ROW EXECUTE FUNCTION no();"
        "CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'never'; END $$;"
        "CREATE TRIGGER never BEFORE DELETE ON activation.event FOR EACH ROW EXECUTE FUNCTION never()"
    )
    sign_up(live, 1, 2)
    tick(db)
    db.sql("INSERT INTO activation.erasure SELECT id::text, now() FROM users")
    db.sql("INSERT INTO activation.event (at, user_id, event, properties) VALUES ('2000-01-01', '9', 'met', '{}')")
    db.sql("INSERT INTO activation.capture_failure VALUES ('2000-01-01', 1, '9', 'old')")
    worker = Worker(db, kind="detect")
    try:
        wait_until(lambda: "user 1 cannot be forgotten: not one" in note(db), 30)
        wait_until(lambda: "never" in note(db))
        assert db.sql("SELECT user_id FROM activation.erasure") == [("1",)]
        sign_up(live, 3)
        wait_until(lambda: "3" in journey(db))
        assert worker.error is None
    finally:
        db.sql("SELECT activation.stop()")
        assert worker.ended(10)


def test_odd_events_are_applied(db: Database, live: Connection) -> None:
    """An odd time in it, or an address that nothing holds, keeps it from nothing; those after it are applied."""
    sign_up(live, 1)
    tick(db)
    message = db.value("SELECT message_id FROM activation.message")
    odd = {"type": "email.bounced", "created_at": "2030-01-01", "data": {"created_at": "\u2603", "to": ["a@acme.dev"],
           "tags": {"activation_message": str(message)}}}  # fmt: skip
    fine = {
        "type": "email.bounced",
        "data": {"to": ["b" * 5000 + "@acme.dev"], "tags": {"activation_message": str(message)}},
    }
    gone = {"type": "suppression.removed", "data": {"email": "c" * 5000 + "@acme.dev"}}
    db.sql("UPDATE activation.message SET sent_at = NULL")
    for number, event in enumerate((odd, fine, gone)):
        db.sql("SELECT activation._keep_event(%s, %s::jsonb, NULL, activation._now())", f"e{number}", json.dumps(event))
    assert db.sql("SELECT webhook_id, applied FROM activation.webhook_event ORDER BY 1") == [
        ("e0", True),
        ("e1", True),
        ("e2", True),
    ]
    assert statuses(db) == {"1": "bounced"}


def test_an_error_that_nobody_expected(db: Database, live: Connection) -> None:
    """Workers tell it, wait a moment and go on, within the same run."""
    detector, deliverer = Worker(db, kind="detect"), Worker(db, kind="deliver")
    try:
        sign_up(live, 1)
        wait_until(lambda: statuses(db) == {"1": "sent"})
        runs = db.sql("SELECT kind, started_at FROM activation.worker ORDER BY 1")
        db.sql(
            "ALTER FUNCTION activation._deliver_due() RENAME TO _mislaid; ALTER FUNCTION activation._detect_due() RENAME TO _lost"
        )
        wait_until(lambda: "raised, and goes on: function activation._detect_due" in note(db))
        wait_until(lambda: "raised, and goes on: function activation._deliver_due" in note(db))
        db.sql(
            "ALTER FUNCTION activation._mislaid() RENAME TO _deliver_due; ALTER FUNCTION activation._lost() RENAME TO _detect_due"
        )
        sign_up(live, 2)
        wait_until(lambda: statuses(db) == {"1": "sent", "2": "sent"})
        wait_until(lambda: "raised" not in note(db))
        assert detector.error is None and deliverer.error is None
        assert db.value("SELECT count(*) FROM pg_stat_activity a JOIN activation.worker w ON w.pid = a.pid") == len(
            runs
        )
    finally:
        db.sql("SELECT activation.stop()")
        assert detector.ended(10) and deliverer.ended(10)
