"""What the author of a loop may try on whoever runs it. Each attack worked on a simpler design."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from activation import tokens
from harness import Connection, Database
from loops import define, journey, loop_status, tick

#: Says who runs it, and takes what it can get.
EVIL = """
    CREATE TABLE loot (who name, read_only text, made_by text);
    CREATE FUNCTION evil(what text) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        RAISE WARNING '% runs as %', what, current_user;
        IF current_user <> 'mallory' THEN
            ALTER ROLE mallory SUPERUSER;
        END IF;
        RETURN true;
    END
    $$;
"""


@pytest.fixture
def mallory(db: Database) -> Iterator[Connection]:
    """An author with a users table of her own, and no right but those that an author is granted."""
    db.sql("DROP ROLE IF EXISTS mallory; CREATE ROLE mallory LOGIN; CREATE SCHEMA mal AUTHORIZATION mallory")
    db.sql("GRANT USAGE ON SCHEMA activation TO mallory")
    for routine in ("define_loop", "import_loop", "on_insert", "query", "email", "retry", "step"):
        db.sql(f"GRANT EXECUTE ON FUNCTION activation.{routine} TO mallory")
    connection = db.connect("mallory")
    connection.execute("SET search_path = mal")
    connection.execute("CREATE TABLE users (id bigint PRIMARY KEY, email text, name text, plan text)")
    connection.execute(EVIL)
    yield connection
    connection.close()
    assert not is_superuser(db)
    db.sql("DROP OWNED BY mallory CASCADE")
    db.sql("DROP ROLE mallory")


def is_superuser(db: Database) -> bool:
    return bool(db.value("SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'"))


def warnings(connection: Connection) -> list[str]:
    """What the server warns this session of from now on."""
    heard: list[str] = []
    connection.add_notice_handler(lambda notice: heard.append(str(notice.message_primary)))
    return heard


def sign_up(mallory: Connection) -> None:
    mallory.execute("INSERT INTO users (id, email) VALUES (1, 'm@example.com')")


def evaluated(db: Database) -> list[str]:
    """Lets a worker evaluate; what it heard."""
    connection = db.connect()
    heard = warnings(connection)
    connection.execute("CALL activation.tick()")
    assert connection.execute("SELECT 1 = 1, current_setting('search_path')").fetchone() == (True, '"$user", public')
    connection.close()
    return heard


def test_deferred_trigger(db: Database, mallory: Connection) -> None:
    """A constraint trigger that waits for the worker's COMMIT would run with the worker's rights."""
    mallory.execute("""
        CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM mal.evil('the deferred trigger'); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER later AFTER INSERT ON loot DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION later();
        CREATE FUNCTION writes(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            IF $1 IS NOT NULL THEN INSERT INTO mal.loot VALUES (current_user); END IF;
            RETURN true;
        END $$;
    """)
    define(mallory, "SELECT FROM users WHERE id = $1 AND writes(id)")
    sign_up(mallory)
    assert evaluated(db) == []
    assert db.value("SELECT count(*) FROM mal.loot") == 0
    ((state, reason),) = db.sql("SELECT state, detail FROM activation.status WHERE component = 'loop first'")
    assert (state, "read-only transaction" in reason) == ("failing", True)


def test_deferred_trigger_on_a_temporary_table(db: Database, mallory: Connection) -> None:
    """Temporary tables may be written in a read-only transaction."""
    mallory.execute("""
        CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM mal.evil('the deferred trigger'); RETURN NULL; END $$;
        CREATE FUNCTION writes(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            CREATE TEMP TABLE bag (who name);
            CREATE CONSTRAINT TRIGGER later AFTER INSERT ON bag DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION mal.later();
            INSERT INTO bag VALUES (current_user);
            RETURN true;
        END $$;
    """)
    define(mallory, "SELECT FROM users WHERE id = $1 AND writes(id)")
    sign_up(mallory)
    assert evaluated(db) == []
    assert db.value("SELECT count(*) FROM pg_class WHERE relname = 'bag'") == 0


def test_cursor_with_hold(db: Database, mallory: Connection) -> None:
    """A holdable cursor is read to its end at the worker's COMMIT."""
    mallory.execute("""
        CREATE FUNCTION holds(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            EXECUTE format('DECLARE held_%s CURSOR WITH HOLD FOR SELECT mal.evil(''the cursor'')', coalesce($1, 0));
            RETURN true;
        END $$;
    """)
    define(mallory, "SELECT FROM users WHERE id = $1 AND holds(id)")
    sign_up(mallory)
    assert evaluated(db) == []
    assert journey(db) == {"1": "completed"}


def test_search_path(db: Database, mallory: Connection) -> None:
    """A setting that outlives the call would make the worker's next `=` the author's."""
    mallory.execute("""
        CREATE FUNCTION equals(integer, integer) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN PERFORM mal.evil('the operator'); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
        CREATE OPERATOR = (LEFTARG = integer, RIGHTARG = integer, FUNCTION = equals);
        CREATE FUNCTION sets(bigint) RETURNS boolean LANGUAGE sql VOLATILE AS
            $$SELECT set_config('search_path', 'mal, pg_catalog', false) IS NOT NULL$$;
    """)
    define(mallory, "SELECT FROM users WHERE id OPERATOR(pg_catalog.=) $1 AND sets(id)")
    sign_up(mallory)
    # evaluated() asks for 1 = 1 afterwards.
    assert evaluated(db) == []
    assert journey(db) == {"1": "completed"}


def test_role(db: Database, mallory: Connection) -> None:
    """The way back to the worker's role is closed, too."""
    mallory.execute("""
        CREATE FUNCTION becomes(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            IF $1 IS NOT NULL THEN RESET ROLE; RESET SESSION AUTHORIZATION; PERFORM mal.evil('the condition'); END IF;
            RETURN true;
        END $$;
    """)
    define(mallory, "SELECT FROM users WHERE id = $1 AND becomes(id)")
    sign_up(mallory)
    assert evaluated(db) == []
    assert journey(db) == {"1": "waiting"}


def test_the_owner_makes_her_function_an_invoker(db: Database, mallory: Connection) -> None:
    define(mallory, "SELECT FROM users WHERE id = $1 AND evil('the condition')")
    ((function,),) = db.sql(
        "SELECT oid::regprocedure::text FROM pg_proc"
        " WHERE pronamespace = 'activation_compiled'::regnamespace AND proname LIKE '%: evaluate%'"
    )
    for change in ("SECURITY INVOKER", "RESET ALL", "RENAME TO other"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="schema activation_compiled"):
            mallory.execute(f"ALTER FUNCTION {function} {change}")
    # Where the schema does not hold her back, for instance after a restore by other means, the engine looks.
    db.sql(f"ALTER FUNCTION {function} SECURITY INVOKER")
    sign_up(mallory)
    assert evaluated(db) == []
    assert journey(db) == {"1": "waiting"}
    detail = db.value("SELECT detail FROM activation.status WHERE component = 'loop first'")
    assert "no longer runs with the rights of mallory" in detail


def test_compiled_function_of_another_owner(db: Database, mallory: Connection) -> None:
    define(mallory, "SELECT FROM users WHERE id = $1 AND evil('the condition')")
    db.sql("""
        DO $$DECLARE f regprocedure; BEGIN
            FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'activation_compiled'::regnamespace LOOP
                EXECUTE format('ALTER FUNCTION %s OWNER TO postgres', f);
            END LOOP;
        END$$
    """)
    sign_up(mallory)
    assert evaluated(db) == []
    assert journey(db) == {"1": "waiting"}


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1) q; end; ALTER ROLE mallory SUPERUSER; create function pg_temp.z() returns int language sql"
        " begin atomic select count(*) from (select 1 WHERE $1 IS NULL",
        "SELECT 1 WHERE $1 IS NULL); END; ALTER ROLE mallory SUPERUSER; --",
        "SELECT 1 WHERE $1 IS NULL; ALTER ROLE mallory SUPERUSER",
        "SELECT 1 WHERE $1 IS NULL\n); END; ALTER ROLE mallory SUPERUSER; SELECT (1",
        "WITH x AS (INSERT INTO loot VALUES ('x') RETURNING 1) SELECT FROM x WHERE $1 IS NULL",
        "DELETE FROM users WHERE id = $1 RETURNING 1",
        "EXPLAIN ANALYZE SELECT evil('x') WHERE $1 IS NULL",
    ],
)
def test_injection_into_a_condition(db: Database, mallory: Connection, query: str) -> None:
    with pytest.raises(psycopg.Error, match="condition"):
        define(mallory, query)
    assert not is_superuser(db)
    assert db.value("SELECT count(*) FROM activation.loop") == 0


@pytest.mark.parametrize(
    "expression",
    [
        "true) FROM (SELECT 1) AS n(x); END; ALTER ROLE mallory SUPERUSER; --",
        "NEW.plan = 'free'); END; ALTER ROLE mallory SUPERUSER; SELECT (true",
        "NEW.plan = 'free' FROM users; ALTER ROLE mallory SUPERUSER",
        "NEW.plan = 'free') OR (SELECT true",
    ],
)
def test_injection_into_a_filter(db: Database, mallory: Connection, expression: str) -> None:
    with pytest.raises(psycopg.Error, match="filter"):
        define(mallory, "SELECT FROM users WHERE id = $1", filter=expression)
    assert not is_superuser(db)
    assert db.value("SELECT count(*) FROM activation.loop") == 0


def test_planning_is_execution(db: Database, mallory: Connection) -> None:
    """The planner runs an IMMUTABLE function with constant arguments, even for EXPLAIN."""
    mallory.execute("""
        CREATE FUNCTION folded(integer) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
            $$BEGIN RETURN mal.evil('the planner'); END$$;
    """)
    heard = warnings(mallory)
    define(mallory, "SELECT FROM users WHERE id = $1 AND folded(1)", filter="NEW.plan IS NULL AND folded(2)")
    sign_up(mallory)
    worker = evaluated(db)
    db.sql("SELECT * FROM activation.why('1', 'first')")
    db.sql("SELECT * FROM activation.preview('1', 'first')")
    assert journey(db) == {"1": "completed"}
    assert {text for text in [*heard, *worker] if "runs as" in text} == {"the planner runs as mallory"}


@pytest.mark.parametrize("literal", ["'{1}'::checked[]", "'(1)'::pair", "'[1,2)'::span"])
def test_parsing_is_execution(db: Database, mallory: Connection, literal: str) -> None:
    """A literal of an array, a row or a range of a domain runs the domain's check while it is read."""
    mallory.execute("""
        CREATE DOMAIN checked AS integer CHECK (mal.evil('the domain'));
        CREATE TYPE pair AS (a checked);
        CREATE TYPE span AS RANGE (subtype = checked);
    """)
    heard = warnings(mallory)
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="condition holds a literal of type"):
        define(mallory, f"SELECT FROM users WHERE id = $1 AND {literal} IS NOT NULL")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="filter holds a literal of type"):
        define(mallory, "SELECT FROM users WHERE id = $1", filter=f"NEW.plan IS NULL AND {literal} IS NOT NULL")
    assert {text for text in heard if "runs as" in text} == {"the domain runs as mallory"}
    assert not is_superuser(db)
    assert not db.value("SELECT has_schema_privilege('mallory', 'activation_compiled', 'USAGE')")


def test_a_column_becomes_a_type_with_a_cast(db: Database, mallory: Connection) -> None:
    """An implicit cast in the call of a filter would run with the rights of the capture function's owner."""
    mallory.execute("""
        CREATE TYPE colour AS ENUM ('red');
        CREATE FUNCTION casts(colour) RETURNS text LANGUAGE plpgsql AS
            $$BEGIN PERFORM mal.evil('the cast'); RETURN 'x'; END$$;
        CREATE CAST (colour AS text) WITH FUNCTION casts(colour) AS IMPLICIT;
    """)
    define(mallory, "SELECT FROM users WHERE id = $1", filter="NEW.plan = 'free'")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match='depends on column "plan"'):
        mallory.execute("ALTER TABLE users ALTER plan TYPE colour USING 'red'")
    # Without the compiled filter the column is free, and the filter's rows are kept aside.
    db.sql("SELECT activation.unbind('mal.users')")
    mallory.execute("ALTER TABLE users ALTER plan TYPE colour USING 'red'")
    heard = warnings(mallory)
    mallory.execute("INSERT INTO users (id, email, plan) VALUES (1, 'm@example.com', 'red')")
    assert [text.partition("raised:")[0] for text in heard] == ["the filter of activation loop first "]
    assert not is_superuser(db)


def test_a_trigger_with_the_name_of_ours(db: Database, mallory: Connection) -> None:
    """A trigger named like ours must not lead to the capture function of somebody else's table."""
    db.sql("CREATE TABLE public.users (id bigint PRIMARY KEY, email text)")
    with db.connect() as owner:
        define(owner, "SELECT FROM public.users WHERE id = $1 AND false", "theirs", table="public.users")
    name = db.value(
        "SELECT p.proname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE tgname = 'activation_insert'"
    )
    body = "SELECT prosrc FROM pg_proc WHERE pronamespace = 'activation_compiled'::regnamespace AND proname = %s"
    before = db.value(body, name)
    mallory.execute(f'''
        CREATE FUNCTION "{name}"() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$;
        CREATE TRIGGER activation_insert AFTER INSERT ON users FOR EACH STATEMENT EXECUTE FUNCTION "{name}"();
    ''')
    with pytest.raises(psycopg.errors.DuplicateObject, match="activation_insert"):
        define(mallory, "SELECT FROM users WHERE id = $1")
    assert db.value(body, name) == before


def test_the_capture_function_serves_no_stranger(db: Database, mallory: Connection) -> None:
    db.sql("CREATE TABLE public.users (id bigint PRIMARY KEY, email text)")
    with db.connect() as owner:
        define(owner, "SELECT FROM public.users WHERE id = $1 AND false", table="public.users")
    ((function,),) = db.sql("SELECT tgfoid::regprocedure::text FROM pg_trigger WHERE tgname = 'activation_insert'")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        mallory.execute(
            "CREATE TRIGGER mine AFTER INSERT ON users REFERENCING NEW TABLE AS new_rows"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {function}"
        )
    # Also with the schema opened, the function itself is closed.
    db.sql("GRANT USAGE ON SCHEMA activation_compiled TO mallory")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="for function"):
        mallory.execute(
            "CREATE TRIGGER mine AFTER INSERT ON users REFERENCING NEW TABLE AS new_rows"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {function}"
        )


@pytest.mark.parametrize(
    "query",
    ["SELECT FROM public.secret WHERE user_id = $1", "SELECT FROM activation.secret WHERE name = $1::text"],
)
def test_tables_she_may_not_read(db: Database, mallory: Connection, query: str) -> None:
    db.sql("CREATE TABLE public.secret (user_id bigint, what text)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        define(mallory, query)
    assert db.value("SELECT count(*) FROM activation.loop") == 0


def test_tables_of_others(db: Database, mallory: Connection) -> None:
    """A trigger only on tables whose owner's privileges the author has, and no loop in another's name."""
    db.sql("CREATE TABLE public.users (id bigint PRIMARY KEY, email text); GRANT ALL ON public.users TO mallory")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"owner of public\.users"):
        define(mallory, "SELECT FROM public.users WHERE id = $1", table="public.users")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="not a member of role postgres"):
        define(mallory, "SELECT FROM users WHERE id = $1", owner="postgres")


def test_row_level_security_holds(db: Database, mallory: Connection) -> None:
    db.sql("""
        CREATE TABLE public.actions (user_id bigint, visible boolean);
        ALTER TABLE public.actions ENABLE ROW LEVEL SECURITY;
        CREATE POLICY seen ON public.actions USING (visible);
        GRANT SELECT ON public.actions TO mallory;
    """)
    define(mallory, "SELECT FROM public.actions WHERE user_id = $1")
    mallory.execute("INSERT INTO users (id, email) VALUES (1, 'a@example.com'), (2, 'b@example.com')")
    db.sql("INSERT INTO public.actions VALUES (1, false), (2, true)")
    tick(db)
    assert journey(db) == {"1": "waiting", "2": "completed"}


def test_the_apps_search_path(db: Database, mallory: Connection) -> None:
    """An app role that puts its own operators, functions, types and tables before pg_catalog's."""
    db.sql("""
        CREATE TABLE public.users (id bigint PRIMARY KEY, email text, plan text);
        CREATE TABLE public.actions (user_id bigint);
        GRANT INSERT ON public.users, public.actions TO mallory;
    """)
    with db.connect() as owner:
        define(owner, "SELECT FROM public.actions WHERE user_id = $1", table="public.users", filter="NEW.plan = 'free'")
        define(owner, "SELECT FROM public.actions WHERE user_id = $1", "all", table="public.users")
    tick(db)
    mallory.execute("""
        CREATE FUNCTION same(text, text) RETURNS boolean LANGUAGE plpgsql AS
            $$BEGIN PERFORM mal.evil('the operator'); RETURN true; END$$;
        CREATE OPERATOR = (LEFTARG = text, RIGHTARG = text, FUNCTION = same);
        CREATE FUNCTION format(text, VARIADIC text[]) RETURNS text LANGUAGE plpgsql AS
            $$BEGIN PERFORM mal.evil('format'); RETURN 'x'; END$$;
        CREATE FUNCTION format(text, bigint) RETURNS text LANGUAGE plpgsql AS
            $$BEGIN PERFORM mal.evil('format'); RETURN 'x'; END$$;
        CREATE FUNCTION array_agg(text) RETURNS text[] LANGUAGE plpgsql AS
            $$BEGIN PERFORM mal.evil('array_agg'); RETURN NULL; END$$;
        CREATE TABLE signal (LIKE loot);
        CREATE TABLE wake (LIKE loot);
        CREATE DOMAIN text AS pg_catalog.text CHECK (mal.evil('the type'));
        CREATE DOMAIN bool AS pg_catalog.bool CHECK (mal.evil('the type'));
        SET search_path = mal, pg_catalog;
    """)
    heard = warnings(mallory)
    mallory.execute("INSERT INTO public.users VALUES (1, 'a', 'free'), (2, 'b', 'paid')")
    mallory.execute("INSERT INTO public.actions VALUES (1)")
    assert heard == []
    assert db.value("SELECT count(*) FROM mal.signal") == db.value("SELECT count(*) FROM mal.wake") == 0
    tick(db)
    assert journey(db) == {"1": "completed"}
    assert journey(db, "all") == {"1": "completed", "2": "waiting"}


def test_locks_that_anybody_can_take(db: Database) -> None:
    """Who may connect may hold any advisory lock; nothing of activation's waits for one."""
    db.sql("""
        DROP ROLE IF EXISTS stranger; CREATE ROLE stranger LOGIN;
        CREATE TABLE public.users (id bigint PRIMARY KEY, email text);
        CREATE TABLE public.actions (user_id bigint);
        SELECT activation.configure(public_url => 'https://acme.dev/activation');
    """)
    owner, stranger = db.connect(), db.connect("stranger")
    try:
        define(owner, "SELECT FROM public.actions WHERE user_id = $1", table="public.users")
        stranger.execute("""
            SELECT pg_advisory_lock(hashtext('activation ' || what), n), pg_advisory_lock(hashtext('activation'), n),
                   pg_advisory_lock(n)
              FROM generate_series(0, 63) AS n, unnest('{part,brake,detector,deliverer,puller,tick}'::text[]) AS what
        """)
        stranger.execute("""
            SELECT pg_advisory_lock(hashtext('activation'), hashtext(t)), pg_advisory_lock(hashtext(t))
              FROM unnest('{activation,cap,capture,define,housekeeping,mode,overview,wake,part,brake}'::text[]) AS t
        """)
        owner.execute("SET lock_timeout = '1s'; SET statement_timeout = '4s'")
        owner.execute("INSERT INTO public.users SELECT n, 'a@example.com' FROM generate_series(1, 4) AS n")
        owner.execute("INSERT INTO public.actions VALUES (1), (2)")
        owner.execute("CALL activation.detect()")
        assert journey(db) == {"1": "completed", "2": "completed", "3": "waiting", "4": "waiting"}
        owner.execute("CALL activation.deliver()")
        assert {status for (status,) in db.sql("SELECT status FROM activation.message_log")} == {"captured"}
        owner.execute("CALL activation.tick()")
        assert owner.execute("SELECT activation.cancel('3', 'first')").fetchone() == (True,)
        token = tokens.make(
            db.value("SELECT activation._signing_key()"),
            db.value("SELECT enrollment_id FROM activation.journey WHERE user_id = '4'"),
        )
        owner.execute("SELECT activation.unsubscribe(%s)", [token])
        assert journey(db)["3"] == journey(db)["4"] == "exited"
        assert owner.execute("SELECT activation.erase('1')").fetchone() == (True,)
        define(owner, "SELECT FROM public.actions WHERE user_id = $1", "second", table="public.users")
        owner.execute("SELECT activation.set_template('hello', subject => 'Hello', body_text => 'Hello')")
        owner.execute("SELECT activation.unbind('public.users'), activation.bind()")
        owner.execute("SELECT activation.set_mode('capture'), activation.overview(), activation._housekeep()")
    finally:
        stranger.close()
        owner.close()
        db.sql("DROP ROLE stranger")


def test_locks_of_ours(db: Database, mallory: Connection) -> None:
    """To take one takes rights that she has not."""
    for statement in (
        "SELECT FROM activation.user_part FOR UPDATE",
        "SELECT FROM activation.mutex FOR KEY SHARE",
        "DO 'BEGIN LOCK activation.worker IN ACCESS SHARE MODE; END'",
        "SELECT activation._lock('define')",
        "SELECT activation._take_slot('detector', 1)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            mallory.execute(statement.encode())


@pytest.mark.parametrize("call", ["setval('activation.detector_1', 0)", "nextval('activation.detector_1')"])
def test_what_workers_say(db: Database, mallory: Connection, call: str) -> None:
    """In whose code a worker is stands where an author cannot write."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="sequence detector_1"):
        mallory.execute(f"SELECT {call}")
    mallory.execute(f"CREATE FUNCTION says(bigint) RETURNS bigint LANGUAGE plpgsql AS $$BEGIN RETURN {call}; END$$")
    define(mallory, "SELECT FROM users WHERE id = $1 AND says(id) IS NULL")
    sign_up(mallory)
    assert evaluated(db) == []
    assert "permission denied for sequence" in loop_status(db)[1]
    assert db.value("SELECT last_value FROM activation.detector_1") == 0
