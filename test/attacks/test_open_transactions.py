"""What an author keeps from others by a transaction that she leaves open, and by code that takes its time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from activation.mail import unsubscribe
from harness import Connection, Database, wait_until
from loops import define, journey, loop_status, messages

#: Hers, in a table that she owns together with others of the app.
HERS = "SELECT FROM mal.acts WHERE user_id = $1"


@pytest.fixture
def mallory(db: Database) -> Iterator[Connection]:
    """An author with a loop on the app's own users table, which she owns with others, and one on her own."""
    db.sql("""
        DROP ROLE IF EXISTS mallory; DROP ROLE IF EXISTS app_owner;
        CREATE ROLE app_owner; CREATE ROLE mallory LOGIN IN ROLE app_owner; CREATE SCHEMA mal AUTHORIZATION mallory;
        SELECT activation.grant_role('author', 'mallory');
        CREATE TABLE public.users (id bigint PRIMARY KEY, email text);
        CREATE TABLE public.actions (user_id bigint, what text);
        CREATE INDEX ON public.actions (user_id);
        ALTER TABLE public.users OWNER TO app_owner;
        SELECT activation.configure(public_url => 'https://acme.dev/activation', condition_timeout => '2 seconds');
    """)
    connection = db.connect("mallory")
    connection.execute("SET search_path = mal, public; SET client_min_messages = error")
    connection.execute("""
        CREATE TABLE users (id bigint PRIMARY KEY, email text);
        CREATE TABLE acts (user_id bigint); CREATE INDEX ON acts (user_id);
        CREATE TABLE raises (now boolean); GRANT SELECT ON raises TO PUBLIC;
        CREATE FUNCTION bad(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (SELECT FROM mal.raises) THEN RAISE EXCEPTION 'hers' USING ERRCODE = '42P01'; END IF;
            RETURN true;
        END $$;
    """)
    with db.connect() as owner:
        define(owner, "SELECT FROM public.actions WHERE user_id = $1", "theirs", table="public.users", timeout="1 day")
    yield connection
    connection.close()
    db.sql("SELECT activation.archive_loop(l.name) FROM activation.loop l")
    db.sql("DROP OWNED BY mallory, app_owner CASCADE; DROP ROLE mallory; DROP ROLE app_owner")


@pytest.fixture
def worker(db: Database, mallory: Connection) -> Iterator[Worker]:
    made = Worker(db)
    yield made
    made.stop()


class Worker:
    """One detector that runs all the time."""

    def __init__(self, db: Database) -> None:
        self._db, self._stopping = db, False
        self.ended: list[psycopg.Error] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            try:
                with self._db.connect() as connection:
                    connection.execute("SET client_min_messages = error")
                    connection.execute("CALL activation.detect(1)")
            except psycopg.Error as error:
                self.ended.append(error)

    def stop(self) -> None:
        self._stopping = True
        self._db.sql("SELECT activation.stop()")
        self._thread.join(60)
        assert not self._thread.is_alive() and self.ended == []


def goes_on(db: Database, first: int, rounds: int = 4) -> None:
    """Others sign up and act, one after the other, and are noticed at once."""
    with db.connect() as app:
        app.execute("SET statement_timeout = '2s'")
        for user in range(first, first + rounds):
            app.execute("INSERT INTO public.users VALUES (%s, 'a@example.com')", [user])
            wait_until(lambda user=user: journey(db, "theirs").get(str(user)) == "waiting", 2)
            app.execute("INSERT INTO public.actions VALUES (%s)", [user])
            wait_until(lambda user=user: journey(db, "theirs").get(str(user)) == "completed", 2)


def new_version(mallory: Connection, n: int) -> None:
    mallory.execute(
        "SELECT activation.define_loop('hers', trigger => activation.on_insert('public.users'),"
        " condition => activation.query('SELECT FROM mal.acts WHERE user_id = $1 AND mal.bad(user_id)',"
        " timeout => %s::interval), action => activation.email('activation_welcome'))",
        [f"{n} days"],
    )


VERBS = [
    "SELECT activation.migrate_loop('hers')",
    "SELECT activation.archive_loop('hers')",
    "SELECT activation.pause_loop('hers', cancel => true)",
    "SELECT activation.pause_loop('hers'), activation.resume_loop('hers')",
    "SELECT activation.unbind('mal.users')",
    "SELECT activation.unbind('mal.acts'), activation.bind()",
]


@pytest.mark.parametrize("verb", VERBS)
def test_an_open_transaction_of_hers(db: Database, mallory: Connection, worker: Worker, verb: str) -> None:
    """People of all loops are noticed, let out, forgotten and unsubscribed, those who are in her loop, too."""
    new_version(mallory, 30)
    goes_on(db, 1, 1)
    with db.connect() as app:
        app.execute("INSERT INTO public.users SELECT g, 'a@example.com' FROM generate_series(10, 14) g")
        wait_until(lambda: len(journey(db, "hers")) == 6)
    new_version(mallory, 31)
    db.sql("SELECT activation._order_sweep(NULL, now())")
    with mallory.transaction(force_rollback=True):
        mallory.execute(verb.encode())
        # They act in both loops, and tell of somebody who is in hers again.
        db.sql("INSERT INTO mal.acts SELECT generate_series(10, 14)")
        goes_on(db, 2)
        with db.connect() as app:
            app.execute("SET statement_timeout = '2s'")
            assert app.execute("SELECT activation.cancel('10', 'theirs')").fetchone() == (True,)
            token = unsubscribe.make(
                db.value("SELECT activation._signing_key()"),
                db.value("SELECT enrollment_id FROM activation.journey WHERE user_id = '11' AND loop = 'theirs'"),
            )
            app.execute("SELECT activation.unsubscribe(%s, everything => true)", [token])
            app.execute("SELECT activation.erase('12')")
            app.execute(
                "INSERT INTO activation.signal (source_id, generation, loop_id, user_id)"
                " SELECT 0, 0, loop_id, '13' FROM activation.loop WHERE name = 'hers'"
            )
            app.execute("DELETE FROM public.users WHERE id = 14")
        assert (journey(db, "theirs")["10"], journey(db, "theirs")["11"]) == ("exited", "exited")
        goes_on(db, 20)
        wait_until(lambda: journey(db, "theirs")["14"] == "exited", 2)
    # What was put off for her comes when she is gone.
    goes_on(db, 30, 1)
    wait_until(lambda: journey(db, "hers")["13"] == "completed", 20)
    wait_until(lambda: "12" not in journey(db, "theirs") | journey(db, "hers"), 20)


def test_her_open_definition_while_the_old_version_raises(db: Database, mallory: Connection, worker: Worker) -> None:
    """The strike that her loop deserves waits for nobody."""
    new_version(mallory, 30)
    goes_on(db, 1, 1)
    mallory.execute("INSERT INTO raises VALUES (true)")
    db.sql("INSERT INTO mal.acts VALUES (1)")
    wait_until(lambda: db.sql("SELECT FROM activation.strike"), 5)
    db.sql("UPDATE activation.strike SET retry_at = now()")
    with mallory.transaction(force_rollback=True):
        new_version(mallory, 31)
        db.sql("INSERT INTO mal.acts VALUES (1)")
        goes_on(db, 2, 8)
    mallory.execute("DELETE FROM raises")
    wait_until(lambda: journey(db, "hers")["1"] == "completed", 20)


def test_her_open_definition_keeps_other_authors_for_a_moment(db: Database, mallory: Connection) -> None:
    with mallory.transaction(force_rollback=True):
        new_version(mallory, 30)
        with (
            db.connect() as other,
            pytest.raises(psycopg.errors.LockNotAvailable, match="another transaction defines") as told,
        ):
            other.execute("SET statement_timeout = '8s'")
            define(other, "SELECT FROM public.actions WHERE user_id = $1", "second", table="public.users")
    assert "mallory" in (told.value.diag.message_detail or "")


def test_the_brake_waits_for_no_author(db: Database, mallory: Connection, worker: Worker) -> None:
    """Her loop would be stopped, and she holds it."""
    mallory.execute(
        "SELECT activation.define_loop('hers', trigger => activation.on_insert('mal.users'), priority => 1000,"
        " action => activation.email('activation_welcome'))"
    )
    with db.connect() as app:
        define(app, None, "third", table="public.users")
        app.execute(
            "SELECT activation.configure(sender => 'A <a@acme.dev>', resend_url => 'http://127.0.0.1:9',"
            " api_key => 'env:NONE', max_per_hour => 1)"
        )
        app.execute("SELECT activation.set_mode('live')")
        mallory.execute("INSERT INTO mal.users SELECT g, 'm@example.com' FROM generate_series(1, 3) g")
        app.execute("INSERT INTO public.users VALUES (1, 'a@example.com')")
        wait_until(lambda: len(messages(db, "hers") + messages(db, "third")) == 4)
        app.execute(
            "SELECT activation._count_hourly_sends(ARRAY(SELECT loop_id FROM activation.loop WHERE name = 'hers'),"
            " '{5}')"
        )
        with mallory.transaction(force_rollback=True):
            mallory.execute("SELECT activation.pause_loop('hers')")
            app.execute("SET statement_timeout = '3s'")
            claimed = app.execute(
                "SELECT user_id, loop_id FROM activation._claim_messages(500, '{}', '{}', '{}')"
            ).fetchall()
        assert [user for user, _ in claimed] == ["1"]
    assert loop_status(db, "hers")[0] and messages(db, "third") == [("1", "action")]


SLOW = """
    CREATE TABLE slow (seconds double precision); INSERT INTO slow VALUES (0); GRANT SELECT ON slow TO PUBLIC;
    GRANT USAGE ON SCHEMA mal TO PUBLIC;
    CREATE FUNCTION waits(text) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT seconds FROM mal.slow) > 0 THEN RAISE WARNING 'asked'; END IF;
        PERFORM pg_sleep((SELECT seconds FROM mal.slow)); RETURN true;
    END $$;
    CREATE DOMAIN key AS text CHECK (mal.waits(VALUE));
    CREATE FUNCTION planned(integer) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$BEGIN RETURN mal.waits(''); END$$;
"""


def asked(connection: Connection) -> list[str]:
    """How often her code runs in this session from now on."""
    heard: list[str] = []
    connection.add_notice_handler(lambda notice: heard.append(notice.message_primary or ""))
    return heard


@pytest.mark.parametrize(
    "table",
    [
        "id mal.key PRIMARY KEY, email text",
        "id text PRIMARY KEY, email text, CHECK (mal.planned(1))",
        "id text PRIMARY KEY, email text); CREATE INDEX ON people (id) WHERE (mal.planned(1)",
        "id text PRIMARY KEY, email text); CREATE STATISTICS s ON email, (mal.planned(1)) FROM people; SELECT (1",
        "id text PRIMARY KEY, email text); ALTER TABLE people ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        " CREATE POLICY p ON people USING (mal.planned(1)",
    ],
)
def test_track_runs_nobodys_code(db: Database, mallory: Connection, table: str) -> None:
    """Whose user an event is about is asked only where that runs no code of an author's."""
    mallory.execute(SLOW)
    mallory.execute(f"CREATE TABLE people ({table})".encode())
    mallory.execute("INSERT INTO people VALUES ('9', 'b@example.com')")
    define(mallory, None, "hers", table="people")
    db.sql("INSERT INTO public.users VALUES (1, 'a@example.com')")
    mallory.execute("UPDATE slow SET seconds = 5")
    with db.connect() as app:
        app.execute("SET statement_timeout = '2s'")
        heard = asked(app)
        app.execute("SELECT activation.track('1', 'came'), activation.track('77', 'came')")
        app.execute("SELECT activation.enroll('77', 'hers')")
    assert db.value("SELECT count(*) FROM activation.event") == 2 and heard == []
    mallory.execute("UPDATE slow SET seconds = 0")


def test_track_waits_for_no_table(db: Database, mallory: Connection) -> None:
    """However many of them an author holds."""
    names = [f"users{n}" for n in range(12)]
    for name in names:
        mallory.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY, email text)".encode())
        define(mallory, None, name, table=name)
    with mallory.transaction(force_rollback=True), db.connect() as app:
        mallory.execute(f"LOCK TABLE {', '.join(names)}".encode())
        app.execute("SET statement_timeout = '1s'")
        app.execute("SELECT activation.track('77', 'came')")
    with db.connect() as app, pytest.raises(psycopg.errors.NoData):
        app.execute("SELECT activation.track('77', 'came')")


def test_doctor_runs_nobodys_code(db: Database, mallory: Connection) -> None:
    """Planning a condition would."""
    mallory.execute(SLOW)
    define(mallory, "SELECT FROM users WHERE id = $1 AND planned(1)", "hers")
    mallory.execute("UPDATE slow SET seconds = 5")
    with db.connect() as looks:
        looks.execute("SET statement_timeout = '4s'")
        heard = asked(looks)
        found = looks.execute("SELECT state FROM activation.doctor() WHERE \"check\" = 'conditions'").fetchall()
    assert found == [("ok",)] and heard == []
    mallory.execute("UPDATE slow SET seconds = 0")


def test_a_multitude_of_signals(db: Database, mallory: Connection) -> None:
    """Who signs up behind it is in the next few rounds, wherever the row stands, and in one where it is the newest."""
    define(mallory, None, "hers")
    mallory.execute("INSERT INTO users SELECT g, 'm@example.com' FROM generate_series(1, 60000) g")
    db.sql("INSERT INTO public.users VALUES (1, 'a@example.com')")
    take = "SELECT taken FROM activation._take_signals(activation._all_buckets(), 500)"
    assert db.value(take) <= 600
    assert journey(db, "theirs") == {"1": "waiting"}
    assert db.value("SELECT count(*) FROM activation.signal") >= 59_000


def test_slow_code_at_the_claim(db: Database, mallory: Connection, worker: Worker) -> None:
    """Of however many loops of hers, one holds a claim up, and not twice in a row."""
    mallory.execute(SLOW)
    for n in range(3):
        mallory.execute(f"CREATE TABLE people{n} (id mal.key PRIMARY KEY, email text)".encode())
        mallory.execute(
            "SELECT activation.define_loop(%s, trigger => activation.on_insert(%s::regclass), priority => 1000,"
            " action => activation.email('activation_welcome'))",
            [f"hers{n}", f"people{n}"],
        )
        mallory.execute(f"INSERT INTO people{n} VALUES ('1', 'm@example.com')".encode())
    with db.connect() as app:
        define(app, None, "third", table="public.users")
    db.sql("INSERT INTO public.users VALUES (1, 'a@example.com')")
    wait_until(lambda: db.value("SELECT count(*) FROM activation.message") == 4)
    mallory.execute("UPDATE slow SET seconds = 1.1")
    claim = "SELECT user_id, loop_id FROM activation._claim_messages(500, '{}', '{}', '{}')"
    third = db.value("SELECT loop_id FROM activation.loop WHERE name = 'third'")
    with db.connect() as deliverer:
        assert len(deliverer.execute(claim).fetchall()) == 1
        assert deliverer.execute(claim).fetchall() == [("1", third)]
        db.sql("UPDATE activation.message SET state = 'captured', finished_at = now() WHERE loop_id = %s", third)
        assert len(deliverer.execute(claim).fetchall()) == 1, "they go when nobody else waits"
    mallory.execute("UPDATE slow SET seconds = 0")


def test_slow_code_when_users_are_deleted(db: Database, mallory: Connection) -> None:
    """Of however many tables of hers, one is asked, and then none for a while; nobody's deletion is forgotten."""
    mallory.execute(SLOW)
    for n in range(3):
        mallory.execute(f"CREATE TABLE people{n} (id mal.key PRIMARY KEY, email text)".encode())
        define(mallory, None, f"hers{n}", table=f"people{n}")
        mallory.execute(f"INSERT INTO people{n} VALUES ('1', NULL), ('2', NULL)".encode())
    db.sql("INSERT INTO public.users VALUES (1, 'a@example.com')")
    take = "SELECT taken FROM activation._take_signals(activation._all_buckets(), 500)"
    with db.connect() as detector:
        heard = asked(detector)
        detector.execute(take.encode())
        for n in range(3):
            mallory.execute(f"DELETE FROM people{n} WHERE id = '1'".encode())
        mallory.execute("UPDATE slow SET seconds = 1.1")
        detector.execute(take.encode())
        times = len(heard)
        db.sql("DELETE FROM public.users")
        assert detector.execute(take.encode()).fetchone() == (1,)
        assert len(heard) == times > 0
        assert journey(db, "theirs") == {"1": "exited"}
        assert sorted(state for n in range(3) for state in [journey(db, f"hers{n}")["1"]]) == [
            "exited",
            "waiting",
            "waiting",
        ]
    mallory.execute("UPDATE slow SET seconds = 0")
    with db.connect() as detector:
        detector.execute(take.encode())
    assert {state for n in range(3) for state in [journey(db, f"hers{n}")["1"]]} == {"exited"}


def test_a_round_takes_as_many_signals_as_it_asks_for(db: Database) -> None:
    """Also among many: with fewer, a round would believe that there are no more, and batches would not grow. It reads
    about as many as it takes, and not all that wait."""
    db.sql(
        "INSERT INTO activation.signal (source_id, generation, user_id) SELECT 0, 0, g FROM generate_series(1, 30000) g"
    )
    taken = "SELECT cardinality(activation._next_signals(activation._all_buckets(), %s))"
    read = "SELECT pg_stat_get_xact_tuples_returned('activation.signal'::regclass)"
    for batch in (20, 1000):
        with db.connect() as session, session.transaction(force_rollback=True):
            assert session.execute(taken, [batch]).fetchone() == (batch,)
            ((rows,),) = session.execute(read).fetchall()
            assert batch <= rows <= 3 * batch
