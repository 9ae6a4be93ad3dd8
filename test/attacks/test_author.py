"""What the author of a loop may try on whoever runs it. Each attack worked on a simpler design."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from activation.mail import unsubscribe
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
    # Nobody read it.
    assert [text for text in heard if "runs as" in text] == []
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


# Who is calling.


def plants(mallory: Connection, name: str, owner: str = "postgres") -> None:
    """A function of hers that defines a loop in somebody else's name, and says how that went."""
    mallory.execute(f"""
        CREATE FUNCTION plants(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS $f$
        BEGIN
            PERFORM activation.define_loop('{name}', trigger => activation.on_insert('mal.users'),
                condition => activation.query('SELECT FROM mal.users WHERE id = $1 AND mal.evil(''the planted loop'')'),
                action => activation.email('milestone'), owner => '{owner}', names => 'mal');
            RAISE WARNING 'planted';
            RETURN $1;
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE WARNING 'refused: %', SQLERRM;
            RETURN $1;
        END $f$;
    """)


def test_an_index_that_a_superuser_analyzes(db: Database, mallory: Connection) -> None:
    """ANALYZE, also autovacuum's, evaluates her index in a superuser's session: she is the caller all the same."""
    plants(mallory, "planted")
    sign_up(mallory)
    mallory.execute("CREATE INDEX ON users (plants(id))")
    with db.connect() as superuser:
        heard = warnings(superuser)
        superuser.execute("ANALYZE mal.users")
    assert {text.partition(":")[0] for text in heard} == {"refused"}
    assert "mallory is not a member of role postgres" in heard[0]
    assert db.value("SELECT count(*) FROM activation.loop") == 0


def test_a_definers_function_that_a_superuser_calls(db: Database, mallory: Connection) -> None:
    plants(mallory, "planted")
    mallory.execute("ALTER FUNCTION plants VOLATILE SECURITY DEFINER; GRANT USAGE ON SCHEMA mal TO PUBLIC")
    with db.connect() as superuser:
        heard = warnings(superuser)
        superuser.execute("SELECT mal.plants(1)")
    assert [text.partition(":")[0] for text in heard] == ["refused"]


def test_nobody_says_who_calls(db: Database, mallory: Connection) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="call"):
        mallory.execute(
            "INSERT INTO activation.call (caller, verb, arguments)"
            " VALUES ('postgres', 'pause_loop', '{\"name\": \"x\"}')"
        )
    # Nor goes around EXECUTE.
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for verb archive_loop"):
        mallory.execute("INSERT INTO activation.call (verb, arguments) VALUES ('archive_loop', '{\"name\": \"x\"}')")
    for verb in ("_define", "no verb"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for verb"):
            mallory.execute("INSERT INTO activation.call (verb, arguments) VALUES (%s, '{}')", [verb])


def test_a_superuser_in_anothers_role_is_that_role(db: Database, mallory: Connection) -> None:
    with db.connect() as superuser:
        superuser.execute("SET ROLE mallory; SET search_path = mal")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="mallory is not a member of role postgres"):
            define(superuser, "SELECT FROM users WHERE id = $1", owner="postgres")
        define(superuser, "SELECT FROM users WHERE id = $1")
    assert db.value("SELECT owner::regrole::text FROM activation.loop_version") == "mallory"


def test_a_type_is_replaced_before_bind(db: Database, mallory: Connection) -> None:
    """bind() parses the old text anew: the literal's type, replaced meanwhile, has a check by then."""
    plants(mallory, "planted")
    mallory.execute("CREATE TABLE bag (user_id bigint, list text)")
    define(mallory, "SELECT FROM bag WHERE user_id = $1 AND list = '{1}'")
    db.sql("SELECT activation.unbind('mal.bag')")
    mallory.execute("""
        CREATE DOMAIN checked AS integer CHECK (mal.plants(value) = value AND mal.evil('the domain'));
        ALTER TABLE bag DROP list;
        ALTER TABLE bag ADD list checked[];
    """)
    with db.connect() as superuser:
        heard = warnings(superuser)
        superuser.execute("SELECT activation.bind()")
    assert len(heard) == 1
    assert "holds a literal of type mal.checked[]" in heard[0]
    assert db.value("SELECT count(*) FROM activation.loop") == 1
    assert not is_superuser(db)


LITERALS = """
    CREATE DOMAIN checked AS integer CHECK (mal.evil('the domain'));
    CREATE TYPE pair AS (a checked);
    CREATE TABLE bag (user_id bigint, list checked[], p pair, number integer, word text);
    CREATE FUNCTION takes(checked[]) RETURNS boolean LANGUAGE sql AS 'SELECT true';
"""


@pytest.mark.parametrize(
    "expression",
    [
        "list = '{1}'",
        "takes('{1}')",
        "p = '(1)'",
        "mal.pair '(1)' = p",
        "pair'(1)' = p",
        "'{1}'::checked[] = list",
        "CAST('{1}' AS checked[]) = list",
        "E'{1}'::checked[] = list",
        "U&'{1}'::checked[] = list",
        "U&'{!0031}' UESCAPE '!' = list",
        "$$(1)$$ = p",
        "coalesce(p, '(1)') = p",
        "list = ANY (ARRAY[list, '{1}'])",
        "(SELECT '{1}' UNION SELECT list) IS NOT NULL",
        "CASE WHEN true THEN '(1)' ELSE p END = p",
        "word <> 'x' --\r AND list = '{1}'\n",
        "list /* /* */ '*/ = '{1}'",
        "row('(1)')::mal.nested IS NOT NULL AND p = '(1)'",
        "p IN ('(1)')",
        "p BETWEEN '(1)' AND '(2)'",
        "nullif(p, '(1)') IS NULL",
        "list[1:1] = '{1}'",
    ],
)
def test_no_literal_is_read(db: Database, mallory: Connection, expression: str) -> None:
    """Nothing of hers runs while a text is parsed, however a string comes to its type."""
    mallory.execute(LITERALS)
    heard = warnings(mallory)
    with pytest.raises(psycopg.Error, match="condition"):
        define(mallory, f"SELECT FROM bag WHERE user_id = $1 AND {expression}")
    with pytest.raises(psycopg.Error, match=r"condition|query"):
        define(mallory, f"SELECT FROM bag WHERE {expression} AND user_id = $1")
    assert [text for text in heard if "runs as" in text] == []


def test_the_hidden_schema_of_a_path(db: Database, mallory: Connection) -> None:
    """What she may not use by its schema she does not reach by her path, either."""
    db.sql("CREATE SCHEMA hidden; CREATE FUNCTION hidden.tells() RETURNS boolean LANGUAGE sql AS 'SELECT true'")
    mallory.execute(
        "CREATE FUNCTION tells() RETURNS boolean LANGUAGE sql AS 'SELECT true'; SET search_path = hidden, mal"
    )
    define(mallory, "SELECT FROM users WHERE id = $1 AND tells()")
    assert "hidden" not in db.value(
        "SELECT pg_get_functiondef(oid) FROM pg_proc"
        " WHERE pronamespace = 'activation_compiled'::regnamespace AND proname LIKE '%: condition%'"
    )


# Owners.


def test_a_renamed_owner_keeps_its_loops(db: Database, mallory: Connection) -> None:
    define(mallory, "SELECT FROM users WHERE id = $1")
    db.sql("ALTER ROLE mallory RENAME TO marjory; CREATE ROLE mallory LOGIN")
    try:
        sign_up(mallory)
        assert evaluated(db) == []
        assert journey(db) == {"1": "completed"}
        # Who took the name has nothing of it.
        db.sql(
            "GRANT USAGE ON SCHEMA activation TO mallory;"
            "GRANT EXECUTE ON FUNCTION activation.import_loop, activation.export_loop TO mallory"
        )
        with db.connect("mallory") as other:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match='loop "first" belongs to marjory'):
                other.execute("SELECT activation.export_loop('first')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match='loop "first" belongs to marjory'):
                other.execute(
                    "SELECT activation.import_loop('first', %s::jsonb)",
                    [db.value("SELECT activation.export_loop('first')::text")],
                )
    finally:
        db.sql("DROP OWNED BY mallory CASCADE; DROP ROLE mallory; ALTER ROLE marjory RENAME TO mallory")
    assert db.value("SELECT owner_name FROM activation.loop_version") in ("mallory", "marjory")


REDEFINES = """
    SELECT activation.define_loop('first', trigger => activation.on_insert('mal.users'),
                                  action => activation.email('milestone'))
"""


def test_a_dropped_owners_loops_are_superusers(db: Database, mallory: Connection) -> None:
    db.sql(
        "CREATE ROLE gone; GRANT gone TO mallory; GRANT USAGE, CREATE ON SCHEMA mal TO gone;"
        "ALTER TABLE mal.users OWNER TO gone"
    )
    db.sql("GRANT EXECUTE ON FUNCTION activation.export_loop TO mallory")
    define(mallory, "SELECT FROM users WHERE id = $1", owner="gone")
    db.sql(
        "ALTER TABLE mal.users OWNER TO mallory; DROP OWNED BY gone; DROP ROLE gone;"
        "CREATE ROLE gone; GRANT gone TO mallory"
    )
    try:
        for call in (
            "SELECT activation.export_loop('first')",
            REDEFINES,
        ):
            with pytest.raises(
                psycopg.errors.InsufficientPrivilege, match='loop "first" belongs to a role that is gone'
            ):
                mallory.execute(call)
        db.sql(REDEFINES)
    finally:
        db.sql("DROP ROLE gone")


def test_a_loop_is_shown_to_its_members_and_to_viewers(db: Database, mallory: Connection) -> None:
    db.sql("CREATE TABLE public.users (id bigint PRIMARY KEY, email text)")
    with db.connect() as owner:
        define(owner, "SELECT FROM public.users WHERE id = $1 AND false", "theirs", table="public.users")
    db.sql("GRANT EXECUTE ON FUNCTION activation.export_loop TO mallory")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match='loop "theirs" belongs to postgres'):
        mallory.execute("SELECT activation.export_loop('theirs')")
    assert mallory.execute("SELECT definition FROM activation.loop_definition").fetchall() == [(None,)]
    db.sql("GRANT SELECT ON activation.journey TO mallory")
    with mallory.transaction():
        mallory.execute("SET TRANSACTION READ ONLY")
        assert mallory.execute("SELECT activation.export_loop('theirs') ->> 'type'").fetchone() == ("activation",)
    db.sql("REVOKE SELECT ON activation.journey FROM mallory")


# What a rollback does not give back.

PREPARES = """
    CREATE FUNCTION prepares(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        IF $1 IS NOT NULL THEN
            EXECUTE 'DEALLOCATE ALL';
            EXECUTE 'PREPARE pay AS SELECT mal.evil(''the statement'')';
        END IF;
        RETURN true;
    END $$;
"""


def test_a_clients_statement_is_replaced(db: Database, mallory: Connection) -> None:
    """PREPARE and DEALLOCATE are not undone: whoever executes it next would run hers. Such a session ends."""
    mallory.execute(PREPARES)
    define(mallory, "SELECT FROM users WHERE id = $1 AND prepares(id)")
    sign_up(mallory)
    client = db.connect()
    heard = warnings(client)
    client.execute("PREPARE pay AS SELECT 'paid'")
    with pytest.raises(psycopg.OperationalError):
        client.execute("CALL activation.tick()")
        client.execute("EXECUTE pay")
    assert [text for text in heard if "runs as" in text] == []
    assert not is_superuser(db)
    ((state, detail),) = db.sql("SELECT state, detail FROM activation.status WHERE component = 'loop first'")
    assert state == "failing"
    assert "took away prepared statement pay" in detail


def test_a_statement_is_left_behind(db: Database, mallory: Connection) -> None:
    mallory.execute(PREPARES)
    define(mallory, "SELECT FROM users WHERE id = $1 AND prepares(id)")
    sign_up(mallory)
    with db.connect() as client:
        client.execute("CALL activation.tick()")
        assert client.execute("SELECT name FROM pg_prepared_statements").fetchall() == []
    ((state, detail),) = db.sql("SELECT state, detail FROM activation.status WHERE component = 'loop first'")
    assert (state, "it prepared statement pay" in detail) == ("failing", True)


@pytest.mark.parametrize("code", ["ACT00", "ACT02", "ACT04", "ACT05"])
def test_states_that_only_we_say(db: Database, mallory: Connection, code: str) -> None:
    """ACT05 ends the session that meets it: here a worker's, and that of whoever calls detect() in psql."""
    mallory.execute(f"""
        CREATE FUNCTION forges(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            IF $1 IS NOT NULL THEN RAISE EXCEPTION 'bye' USING ERRCODE = '{code}'; END IF;
            RETURN true;
        END $$
    """)
    define(mallory, "SELECT FROM users WHERE id = $1 AND forges(id)")
    sign_up(mallory)
    with db.connect() as client:
        client.execute("PREPARE pay AS SELECT 'paid'")
        client.execute("CALL activation.tick()")
        assert client.execute("EXECUTE pay").fetchone() == ("paid",)
    assert db.value("SELECT last_error FROM activation.strike") == (
        f"its condition raised: the loop's own code raised SQLSTATE {code}"
    )


@pytest.mark.parametrize("look", ["SELECT * FROM activation.why('1', 'first')", "SELECT * FROM activation.doctor()"])
def test_whoever_looks_keeps_their_statements(db: Database, mallory: Connection, look: str) -> None:
    mallory.execute("CREATE FUNCTION prepares(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false'")
    define(mallory, "SELECT FROM users WHERE id = $1 AND prepares(id)")
    sign_up(mallory)
    tick(db)
    mallory.execute(PREPARES.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    with db.connect() as client:
        heard = warnings(client)
        client.execute(look)
        assert client.execute("SELECT name FROM pg_prepared_statements").fetchall() == []
        assert [text for text in heard if "runs as" in text] == []


def test_session_locks(db: Database, mallory: Connection) -> None:
    """Advisory locks of a session outlive the transaction that took them."""
    mallory.execute("""
        CREATE FUNCTION locks(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_lock(4711), pg_advisory_lock_shared(-1, 2), pg_advisory_lock(4711);
            RETURN true;
        END $$;
    """)
    define(mallory, "SELECT FROM users WHERE id = $1 AND locks(id)")
    sign_up(mallory)
    with db.connect() as client:
        client.execute("SELECT pg_advisory_lock(1)")
        client.execute("CALL activation.tick()")
        assert client.execute("SELECT objid FROM pg_locks WHERE locktype = 'advisory'").fetchall() == [(1,)]
        assert client.execute("SELECT pg_advisory_unlock(1)").fetchone() == (True,)


def test_a_filter_takes_the_apps_statements(db: Database, mallory: Connection) -> None:
    """The app's prepared INSERT goes on, and the loop is failing."""
    mallory.execute("""
        CREATE FUNCTION clears(plan text) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            IF plan IS NOT NULL THEN EXECUTE 'DEALLOCATE ALL'; PERFORM pg_advisory_lock(1); END IF;
            RETURN true;
        END $$;
    """)
    define(mallory, "SELECT FROM users WHERE id = $1 AND false", filter="clears(NEW.plan)")
    define(mallory, "SELECT FROM users WHERE id = $1", "good")
    db.sql("CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA mal TO app, PUBLIC; GRANT INSERT ON mal.users TO app")
    try:
        with db.connect("app") as app:
            app.prepare_threshold = 0
            app.execute("PREPARE mine(bigint) AS INSERT INTO mal.users VALUES ($1, 'a@example.com', NULL, 'x')")
            for user in (1, 2, 3):
                app.execute("INSERT INTO mal.users VALUES (%s, 'a@example.com', NULL, 'free')", [user])
            app.execute("EXECUTE mine(4)")
            assert app.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)
        assert evaluated(db) == []
        assert journey(db, "good") == dict.fromkeys("1234", "completed")
        ((state, detail),) = db.sql("SELECT state, detail FROM activation.status WHERE component = 'loop first'")
        assert (state, "changed what the session holds" in detail) == ("failing", True)
    finally:
        db.sql("DROP OWNED BY app; DROP ROLE app")


@pytest.mark.parametrize(
    "trigger",
    [
        "activation.on_insert('users', filter => 'NEW.plan IS NULL')",
        "activation.on_update('users', columns => '{plan}')",
    ],
)
def test_a_domain_that_a_filter_takes(db: Database, mallory: Connection, trigger: str) -> None:
    """A filter is tried with NULLs of its columns' types when it is compiled; a domain's check runs with her rights."""
    db.sql("SELECT activation.grant_role('author', 'mallory')")
    mallory.execute("""
        CREATE FUNCTION looks(text) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            IF current_user <> 'mallory' THEN RAISE EXCEPTION 'I am %', current_user USING ERRCODE = '42501'; END IF;
            RETURN true;
        END $$;
        CREATE DOMAIN checked AS text CHECK (looks(value));
        ALTER TABLE users ALTER plan TYPE checked;
    """)
    for command in ("define", "bind"):
        if command == "bind":
            mallory.execute("SELECT activation.unbind('users')")
            mallory.execute("SELECT activation.bind(true)")
        else:
            mallory.execute(
                f"SELECT activation.define_loop('first', trigger => {trigger}, action => activation.email('milestone'))"
            )


@pytest.mark.parametrize(
    "code",
    [
        "pg_try_advisory_lock(4712)",
        "pg_advisory_unlock_all() IS NULL",
        "query_to_xml('SELECT mal.clears()', true, true, '') IS NOT NULL",
    ],
)
def test_what_a_filter_takes_of_the_servers_own(db: Database, mallory: Connection, code: str) -> None:
    """PostgreSQL's own functions take locks, give them back, and run queries."""
    mallory.execute(
        "CREATE FUNCTION clears() RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'DEALLOCATE ALL'; RETURN 1; END $$"
    )
    define(mallory, "SELECT FROM users WHERE id = $1", filter=f"NEW.id IS NOT NULL AND ({code}) IS NOT NULL")
    db.sql("CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA mal TO app, PUBLIC; GRANT INSERT ON mal.users TO app")
    held = "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    try:
        with db.connect("app") as app:
            app.execute("SELECT pg_advisory_lock(1)")
            app.execute("PREPARE mine AS SELECT 1")
            app.execute("INSERT INTO mal.users VALUES (1, 'a@example.com')")
            app.execute("EXECUTE mine")
            assert (4712,) not in app.execute(held).fetchall()
        evaluated(db)
        assert db.value("SELECT state FROM activation.status WHERE component = 'loop first'") == "failing"
    finally:
        db.sql("DROP OWNED BY app; DROP ROLE app")


# If the black box fails altogether.


def test_the_engines_role_names_nobody_to_be_ended(db: Database) -> None:
    """_end_overdue() ends the session that a slot names, so whose a slot is its owner alone writes."""
    with db.connect() as engine:
        engine.execute("SET SESSION AUTHORIZATION activation_engine")
        assert engine.execute("SELECT activation._take_slot('deliverer', 3)").fetchone() == (True,)
        for statement in (
            "INSERT INTO activation.worker (kind, slot, pid) VALUES ('deliverer', 4, 1)",
            "UPDATE activation.worker SET pid = 1",
            "UPDATE activation.worker SET backend_start = now()",
            "DELETE FROM activation.worker",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="worker"):
                engine.execute(statement)  # type: ignore[arg-type]
        engine.execute("SELECT activation._leave_slot('deliverer', 3)")
    assert db.value("SELECT pid FROM activation.worker WHERE kind = 'deliverer' AND slot = 3") is None


def test_what_a_total_escape_wins(db: Database, mallory: Connection) -> None:
    """With a box that neither undoes nor forbids, what she leaves behind runs with the engine's rights at most."""
    mallory.execute("""
        CREATE TABLE ran (who name, what text);
        GRANT INSERT ON ran TO PUBLIC;
        GRANT USAGE ON SCHEMA mal TO PUBLIC;
        CREATE FUNCTION escapes(how text) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            BEGIN
                RESET SESSION AUTHORIZATION; RESET ROLE; ALTER ROLE mallory SUPERUSER;
            EXCEPTION WHEN others THEN NULL; END;
            RAISE WARNING '% runs as %', how, current_user;
            RETURN true;
        END $$;
        CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN PERFORM mal.escapes('the trigger'); RETURN NULL; END$$;
        CREATE CONSTRAINT TRIGGER later AFTER INSERT ON loot DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION later();
        CREATE FUNCTION leaves(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            IF $1 IS NOT NULL THEN
                INSERT INTO mal.loot VALUES (current_user);
                EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT mal.escapes(''the cursor'')';
                PERFORM set_config('search_path', 'mal, pg_catalog', false);
            END IF;
            RETURN true;
        END $$;
    """)
    define(mallory, "SELECT FROM users WHERE id = $1 AND leaves(id)")
    sign_up(mallory)
    body = db.value("SELECT pg_get_functiondef('activation._safe_eval'::regproc)")
    naive = body.replace("PERFORM set_config('transaction_read_only', 'on', true);", "").replace(
        "RAISE EXCEPTION USING ERRCODE = 'ACT00';", ""
    )
    assert naive.count("ACT00") == body.count("ACT00") - 1
    db.sql(naive)
    client = db.connect()
    heard = warnings(client)
    client.execute("CALL activation.tick()")
    assert client.execute("SELECT session_user, current_user").fetchone() == ("postgres", "postgres")
    client.close()
    assert {text for text in heard if "runs as" in text} <= {"the trigger runs as activation_engine"}
    assert heard
    assert not is_superuser(db)
    mine = db.sql(
        "SELECT c.oid::regclass::text FROM pg_class c"
        " WHERE c.relnamespace = 'activation'::regnamespace AND c.relkind = 'r'"
        " AND has_table_privilege('activation_engine', c.oid, 'INSERT') AND c.relname IN"
        " ('loop', 'loop_version', 'step', 'source', 'watch', 'users_table', 'setting', 'secret', 'identity',"
        " 'template')"
    )
    assert mine == []


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
        token = unsubscribe.make(
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
        "SELECT FROM activation.user_bucket FOR UPDATE",
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


# What a fresh attacker found.


def test_a_column_that_is_a_function(db: Database, mallory: Connection) -> None:
    """n.id is a call of id(record) once the column is gone, and ALTER VIEW renames columns of tables, too."""
    mallory.execute("""
        CREATE FUNCTION id(record) RETURNS text LANGUAGE plpgsql AS $$BEGIN PERFORM mal.evil('the key'); RETURN '5'; END$$;
        CREATE FUNCTION plan(record) RETURNS text LANGUAGE plpgsql AS $$BEGIN PERFORM mal.evil('the filter'); RETURN 'free'; END$$;
        CREATE FUNCTION email(record) RETURNS text LANGUAGE plpgsql AS $$BEGIN PERFORM mal.evil('the address'); RETURN 'x'; END$$;
    """)  # noqa: E501
    define(mallory, "SELECT FROM users WHERE id = $1", filter="NEW.plan = 'free'")
    define(mallory, "SELECT FROM users WHERE id = $1", "all")
    sign_up(mallory)
    heard = warnings(mallory)
    # As if nobody had followed the renaming.
    db.sql("ALTER EVENT TRIGGER activation_follow_table DISABLE")
    mallory.execute(
        "ALTER VIEW users RENAME id TO id2; ALTER VIEW users RENAME plan TO plan2; ALTER VIEW users RENAME email TO e2"
    )
    for statement in ("INSERT INTO users VALUES (4, 'b@example.com', 'B', 'free')", "DELETE FROM users WHERE id2 = 1"):
        with pytest.raises(psycopg.errors.UndefinedColumn):
            mallory.execute(statement)
    assert [text for text in heard if "runs as" in text] == []
    db.sql("ALTER EVENT TRIGGER activation_follow_table ENABLE")


def test_a_renaming_by_alter_view_is_followed(db: Database, mallory: Connection) -> None:
    define(mallory, "SELECT FROM users WHERE id = $1", filter="NEW.plan = 'free'")
    mallory.execute("ALTER VIEW users RENAME id TO uid; ALTER VIEW users RENAME plan TO tariff")
    mallory.execute("INSERT INTO users VALUES (1, 'm@example.com', 'M', 'free')")
    assert evaluated(db) == []
    assert journey(db) == {"1": "completed"}


def test_a_statement_that_is_prepared_again(db: Database, mallory: Connection) -> None:
    """Its strings are read while it is: by somebody who has no right."""
    mallory.execute("""
        GRANT USAGE ON SCHEMA mal TO PUBLIC;
        CREATE FUNCTION checks(t text) RETURNS boolean LANGUAGE plpgsql AS
            $$BEGIN RAISE WARNING 'the domain runs as %', current_user; RETURN true; END$$;
        CREATE DOMAIN checked AS text CHECK (checks(value));
        CREATE FUNCTION clears(plan text) RETURNS boolean LANGUAGE plpgsql AS
            $$BEGIN IF plan IS NOT NULL THEN EXECUTE 'DEALLOCATE ALL'; END IF; RETURN true; END$$;
    """)
    define(mallory, "SELECT FROM users WHERE id = $1", filter="clears(NEW.plan)")
    mallory.execute("PREPARE mine AS SELECT '{foo}'::mal.checked[]")
    heard = warnings(mallory)
    mallory.execute("INSERT INTO users VALUES (2, 'x@example.com', NULL, 'x')")
    assert {text for text in heard if "runs as" in text} <= {"the domain runs as activation_nobody"}
    assert db.sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'activation_nobody'") == [(False,)]


def test_a_deleted_users_table_that_never_answers(db: Database, mallory: Connection) -> None:
    """Whether somebody is still gone is asked in the author's rights: one that looks like a collision stops nobody."""
    db.sql("CREATE TABLE public.users (id bigint PRIMARY KEY, email text)")
    with db.connect() as owner:
        define(owner, "SELECT FROM public.users WHERE id = $1", "theirs", table="public.users")
    mallory.execute("""
        CREATE FUNCTION answers(text) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            IF session_user <> 'mallory' THEN RAISE EXCEPTION 'mine' USING ERRCODE = '40001'; END IF;
            RETURN true;
        END $$;
        CREATE DOMAIN odd AS text CHECK (mal.answers(value));
        CREATE TABLE people (id odd PRIMARY KEY, email text);
    """)
    define(mallory, None, "hers", table="people")
    mallory.execute(
        "INSERT INTO people VALUES ('1', 'a@example.com'), ('2', 'b@example.com'); DELETE FROM people WHERE id = '1'"
    )
    db.sql("INSERT INTO public.users VALUES (1, 'a@example.com')")
    with db.connect() as worker:
        worker.execute("SET statement_timeout = '4s'")
        with contextlib.suppress(psycopg.errors.QueryCanceled):
            worker.execute("CALL activation.detect(1)")
    assert journey(db, "theirs") == {"1": "completed"}


def test_an_open_migration_of_hers(db: Database, mallory: Connection) -> None:
    """Her own ALTER TABLE, left open, holds up no migration of others."""
    db.sql("CREATE TABLE public.users (id bigint PRIMARY KEY, email text)")
    with db.connect() as owner:
        define(owner, "SELECT FROM public.users WHERE id = $1", "theirs", table="public.users")
    define(mallory, "SELECT FROM users WHERE id = $1")
    with mallory.transaction():
        mallory.execute("ALTER TABLE users ADD more integer")
        with db.connect() as owner:
            owner.execute("SET lock_timeout = '3s'; SET statement_timeout = '5s'")
            owner.execute("ALTER TABLE public.users ADD more integer")
            owner.execute("SELECT activation._set_watching(true)")


def test_track_asks_nobodys_leave(db: Database, mallory: Connection) -> None:
    """An author who holds her table locked, or whose key type does harm, stops no event of the app's."""
    db.sql(
        "CREATE TABLE public.users (id bigint PRIMARY KEY, email text);"
        "INSERT INTO public.users VALUES (1, 'a@example.com')"
    )
    with db.connect() as owner:
        define(owner, "SELECT FROM public.users WHERE id = $1", "theirs", table="public.users")
    mallory.execute("""
        CREATE FUNCTION harms(text) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN IF session_user <> 'mallory' THEN EXECUTE 'DEALLOCATE ALL'; END IF; RETURN true; END $$;
        CREATE DOMAIN odd AS text CHECK (mal.harms(value));
        CREATE TABLE people (id odd PRIMARY KEY, email text);
        INSERT INTO people VALUES ('1', 'b@example.com');
    """)
    define(mallory, None, "hers", table="people")
    define(mallory, None, "locked")
    with mallory.transaction(), db.connect() as app:
        mallory.execute("LOCK TABLE users")
        app.execute("SET statement_timeout = '8s'")
        with app.transaction():
            app.execute("SELECT activation.track('1', 'came')")
    assert db.value("SELECT count(*) FROM activation.event") == 1


#: Reads on in whatever cursors there are.
FETCHES = """
    CREATE FUNCTION fetches(plan text) RETURNS boolean LANGUAGE plpgsql AS $$
    DECLARE
        secret text;
        c refcursor;
        name text;
    BEGIN
        FOREACH name IN ARRAY ARRAY(SELECT x.name FROM pg_cursors x WHERE x.name <> '' AND x.name !~ 'unnamed') LOOP
            c := name;
            FETCH c INTO secret;
            RAISE WARNING 'read %', secret;
            CLOSE c;
        END LOOP;
        RETURN plan IS DISTINCT FROM 'no';
    END $$
"""


@pytest.mark.parametrize("hold", ["", "WITH HOLD"])
def test_a_filter_reads_the_apps_cursors(db: Database, mallory: Connection, hold: str) -> None:
    """A detector asks it instead, by the row as it is."""
    mallory.execute(FETCHES)
    define(mallory, "SELECT FROM users WHERE id = $1", filter="fetches(NEW.plan)")
    with db.connect() as app:
        heard = warnings(app)
        with app.transaction():
            app.execute(f"DECLARE pay CURSOR {hold} FOR SELECT 'secret ' || n FROM generate_series(1, 3) n")
            app.execute("INSERT INTO mal.users VALUES (1, 'a@x.de', NULL, ''), (2, 'b@x.de', NULL, 'no')")
            assert app.execute("FETCH pay").fetchone() == ("secret 1",)
        app.execute("INSERT INTO mal.users VALUES (3, 'c@example.com')")
        assert heard == []
    assert evaluated(db) == []
    assert journey(db) == {"1": "completed", "3": "completed"}


@pytest.mark.parametrize("look", ["preview('1', 'first')", "erase('1')"])
def test_whoever_looks_has_no_cursors(db: Database, mallory: Connection, look: str) -> None:
    mallory.execute(FETCHES)
    mallory.execute("CREATE VIEW seen AS SELECT id, email, fetches(plan) AS f FROM users")
    db.sql("SELECT activation.grant_role('author', 'mallory')")
    define(mallory, "SELECT FROM users WHERE id = $1 AND fetches(plan)")
    sign_up(mallory)
    tick(db)
    with db.connect() as client, client.transaction():
        heard = warnings(client)
        client.execute("DECLARE pay CURSOR FOR SELECT 'secret'")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState), client.transaction():
            client.execute(f"SELECT * FROM activation.{look}".encode())
        client.execute("SELECT * FROM activation.why('1')")
        client.execute("SELECT activation.track('1', 'event')")
        assert client.execute("FETCH pay").fetchone() == ("secret",)
        assert heard == []


def test_a_worker_has_no_cursors(db: Database) -> None:
    with db.connect() as client:
        client.execute("DECLARE pay CURSOR WITH HOLD FOR SELECT 'secret'")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            client.execute("CALL activation.tick()")
        client.execute("CLOSE ALL")
        client.execute("CALL activation.tick()")
