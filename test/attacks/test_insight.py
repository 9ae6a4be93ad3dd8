# ruff: noqa: E501
"""What the owner of tables may try on whoever asks suggest(), simulate() or milestone() about them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from harness import Cluster, Connection, Database, wait_until
from standby import standby_of

#: Says who runs it, and takes what it can get.
EVIL = """
    CREATE FUNCTION evil() RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        IF current_user <> 'mallory' THEN
            RAISE WARNING 'runs as %', current_user;
            IF current_setting('is_superuser') = 'on' THEN
                ALTER ROLE mallory SUPERUSER;
            END IF;
        END IF;
        RETURN true;
    END
    $$;
    CREATE FUNCTION evil_number(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS $$
    BEGIN PERFORM mal.evil(); RETURN $1; END $$;
"""
#: Somebody to ask about: a superuser's users, and what they did in a table of mallory's.
USERS = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text, created_at timestamptz NOT NULL DEFAULT now());
    INSERT INTO users SELECT g, 'u@acme.dev', now() - interval '20 days' - g * interval '1 hour' FROM generate_series(1, 300) g;
    CREATE TABLE sessions (user_id bigint REFERENCES users, created_at timestamptz NOT NULL DEFAULT now());
    INSERT INTO sessions SELECT id, created_at + interval '9 days' FROM users WHERE id % 5 = 0;
    GRANT SELECT, REFERENCES ON users TO mallory;
"""
PROJECTS = """
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE TABLE projects (owner_id bigint REFERENCES public.users, mood mood, made_by varchar, created_at timestamptz NOT NULL DEFAULT now());
    INSERT INTO projects SELECT id, CASE WHEN id % 3 = 0 THEN 'good'::mood ELSE 'bad' END, 'me', created_at + interval '1 hour' FROM public.users WHERE id % 2 = 0;
    INSERT INTO projects SELECT id, CASE WHEN id % 3 = 0 THEN 'good'::mood ELSE 'bad' END, 'me', created_at + interval '9 days' FROM public.users WHERE id % 4 = 0;
"""
CAST = """
    CREATE FUNCTION evil_cast(mood) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
    BEGIN PERFORM mal.evil(); RETURN 'x'; END $$;
    CREATE CAST (mood AS text) WITH FUNCTION evil_cast(mood) AS IMPLICIT;
"""
INDEX = "CREATE INDEX ON projects ((evil_number(1)))"
STATISTICS = "CREATE STATISTICS guess ON (evil_number(1)), owner_id FROM projects"
CHILD = "CREATE TABLE child (CHECK (evil_number(1) = 1)) INHERITS (projects)"
CHILD_S_INDEX = "CREATE TABLE child () INHERITS (projects); CREATE INDEX ON child ((evil_number(1)))"
PREDICATE = "CREATE INDEX ON projects (owner_id) WHERE evil_number(1) = 1"
PARTITION_KEY = """
    CREATE TABLE parted (user_id bigint REFERENCES public.users, created_at timestamptz NOT NULL DEFAULT now()) PARTITION BY HASH ((user_id + evil_number(1)));
    CREATE TABLE part PARTITION OF parted FOR VALUES WITH (MODULUS 1, REMAINDER 0);
"""
COLLATION = """
    CREATE COLLATION odd (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    ALTER TABLE projects ADD kind text COLLATE odd;
    UPDATE projects SET kind = CASE WHEN mood = 'good' THEN 'A' ELSE 'a' END;
"""
KEY = """
    CREATE DOMAIN key AS bigint CHECK (VALUE > 0);
    CREATE TABLE keyed (user_id key REFERENCES public.users, created_at timestamptz NOT NULL DEFAULT now());
    CREATE FUNCTION evil_key(key) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
    BEGIN PERFORM mal.evil(); RETURN 'x'; END $$;
    CREATE CAST (key AS text) WITH FUNCTION evil_key(key) AS IMPLICIT;
    INSERT INTO keyed SELECT id, created_at + interval '1 hour' FROM public.users WHERE id % 2 = 0;
"""
VIEW = "CREATE VIEW looks AS SELECT p.*, evil() FROM projects p WHERE evil()"
OPERATOR = """
    CREATE FUNCTION same(bigint, numeric) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN RETURN mal.evil(); END $$;
    CREATE OPERATOR mal.= (LEFTARG = bigint, RIGHTARG = numeric, FUNCTION = same);
"""
FUNCTION = """
    CREATE FUNCTION mal.length(varchar) RETURNS integer LANGUAGE plpgsql AS $$
    BEGIN PERFORM mal.evil(); RETURN 1; END $$;
"""
CHECKED = """
    CREATE DOMAIN checked AS integer CHECK (mal.evil());
    ALTER TABLE projects ADD tags checked[];
"""
ROW = """
    CREATE FUNCTION evil_row(projects) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
    BEGIN PERFORM mal.evil(); RETURN 'x'; END $$;
    CREATE CAST (projects AS text) WITH FUNCTION evil_row(projects) AS ASSIGNMENT;
"""
JSON = """
    CREATE FUNCTION evil_json(mood) RETURNS json IMMUTABLE LANGUAGE plpgsql AS $$
    BEGIN PERFORM mal.evil(); RETURN '1'; END $$;
    CREATE CAST (mood AS json) WITH FUNCTION evil_json(mood);
"""
COLUMN = """
    CREATE FUNCTION busy(projects) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN RETURN mal.evil(); END $$;
"""
POLICY = """
    CREATE POLICY looks ON projects USING (mal.evil());
    ALTER TABLE projects ENABLE ROW LEVEL SECURITY;
    GRANT USAGE ON SCHEMA mal TO PUBLIC;
    GRANT SELECT ON projects TO PUBLIC;
"""
#: Her own policy of built-in functions alone.
BUILT_IN_POLICY = """
    CREATE POLICY looks ON projects USING (pg_catalog.query_to_xml('SELECT mal.evil()', true, false, '') IS NOT NULL);
    ALTER TABLE projects ENABLE ROW LEVEL SECURITY;
    GRANT USAGE ON SCHEMA mal TO PUBLIC;
    GRANT SELECT ON projects TO PUBLIC;
    GRANT EXECUTE ON FUNCTION mal.evil TO PUBLIC;
"""

#: An analyst, and what she may read of the app's.
ANALYST = """
    DROP ROLE IF EXISTS analyst; CREATE ROLE analyst;
    SELECT activation.grant_role('analyst', 'analyst');
    GRANT SELECT ON users, sessions TO analyst;
"""


@pytest.fixture
def mallory(db: Database) -> Iterator[Connection]:
    """An ordinary role with a schema of her own, and tables that reference the users."""
    db.sql("DROP ROLE IF EXISTS mallory; CREATE ROLE mallory LOGIN; CREATE SCHEMA mal AUTHORIZATION mallory")
    db.sql(USERS)
    connection = db.connect("mallory")
    connection.execute("SET search_path = mal")
    connection.execute(EVIL)
    connection.execute(PROJECTS)
    yield connection
    connection.close()
    harmed = is_superuser(db)
    db.sql("DROP OWNED BY mallory CASCADE")
    db.sql("DROP ROLE mallory")
    assert not harmed


def is_superuser(db: Database) -> bool:
    return bool(db.value("SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'"))


def heard(db: Database, question: str, role: str = "postgres") -> list[str]:
    """What the server says while somebody asks, refusals among it."""
    said: list[str] = []
    with db.connect() as session:
        session.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
        session.execute(f"SET ROLE {role}".encode())
        try:
            session.execute(question.encode())
        except psycopg.Error as error:
            diagnosis = error.diag
            said.append(
                f"{diagnosis.sqlstate} {diagnosis.message_primary} {diagnosis.message_detail} {diagnosis.message_hint}"
            )
    assert not [line for line in said if "runs as" in line]
    return said


def condition(query: str, kind: str, names: str = "public") -> str:
    asked = f"activation.query($q${query}$q$, timeout => '2 days')"
    if kind == "milestone":
        return f"SELECT * FROM activation.milestone({asked}, names => '{names}')"
    if kind == "retained":
        return f"SELECT * FROM activation.suggest(retained => {asked}, names => '{names}')"
    return f"""SELECT * FROM activation.simulate(definition => jsonb_build_object('trigger', activation.on_insert('users'), 'condition', {asked},
        'action', activation.email('milestone')), names => '{names}')"""


@pytest.mark.parametrize(
    ("trap", "left_out"),
    [
        (CAST, None),
        (INDEX, "function mal.evil_number(integer) of mallory"),
        (STATISTICS, "function mal.evil_number(integer) of mallory"),
        (PREDICATE, "mal.projects: function mal.evil_number(integer) of mallory"),
        (PARTITION_KEY, "mal.parted: function mal.evil_number(integer) of mallory"),
        (COLLATION, None),
        (KEY, None),
        (CHILD, "function mal.evil_number(integer) of mallory"),
        (CHILD_S_INDEX, "function mal.evil_number(integer) of mallory"),
    ],
    ids=["cast", "index", "statistics", "predicate", "partition key", "collation", "key", "child", "child's index"],
)
def test_suggest(db: Database, mallory: Connection, trap: str, left_out: str | None) -> None:
    """Kinds of rows are read by their types' own output; a table that would run code is left out."""
    mallory.execute(trap.encode())
    said = heard(db, "SELECT * FROM activation.suggest()")
    assert not is_superuser(db)
    assert not left_out or any(left_out in line for line in said), said


def test_nobody_s_names_are_hidden(db: Database, mallory: Connection) -> None:
    """Quoted, folded, cut and escaped names are what the server takes them for."""
    long = "x" * 63
    mallory.execute(
        f'CREATE VIEW "Looks" AS SELECT *, evil() FROM projects WHERE evil(); CREATE VIEW {long} AS TABLE "Looks"; CREATE VIEW "Ä" AS TABLE "Looks"'.encode()
    )
    for name, says in (
        ('"Looks"', "Looks"),
        (f"{long}yz", "Looks"),
        ("Ä", "Looks"),
        ('U&"L\\006Foks"', "Unicode escapes"),
    ):
        (said,) = heard(db, condition(f"SELECT 1 FROM mal.{name} WHERE owner_id = $1", "milestone"))
        assert says in said and said[:5] in ("42501", "0A000"), said
    mallory.execute("CREATE COLLATION odd (provider = icu, locale = 'und')")
    (said,) = heard(db, condition("SELECT 1 FROM users WHERE id = $1 AND email COLLATE mal.odd = 'x'", "milestone"))
    assert "collation mal.odd" in said, said


def test_on_a_real_standby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where other roles' tables can be held no better than by reading them."""
    with Cluster() as primary:
        primary.sql("CREATE ROLE mallory; CREATE SCHEMA mal AUTHORIZATION mallory")
        primary.sql(USERS)
        primary.sql("SET ROLE mallory; SET search_path = mal;" + EVIL + PROJECTS + "RESET ROLE; RESET search_path")
        with standby_of(primary, tmp_path / "data", monkeypatch) as standby:
            question = condition("SELECT 1 FROM mal.projects WHERE owner_id = $1", "milestone")
            assert len(standby.sql(question)) == 300
            standby.sql("SELECT * FROM activation.suggest()")
            primary.sql("SET ROLE mallory; SET search_path = mal;" + VIEW)
            wait_until(lambda: standby.value("SELECT to_regclass('mal.looks') IS NOT NULL"))
            (said,) = heard(standby, question.replace("projects", "looks"))
            assert "view mal.looks of mallory" in said


def test_suggest_key(db: Database, mallory: Connection) -> None:
    """A key of a type with a cast of its own."""
    mallory.execute(CAST.encode())
    mallory.execute("""
        CREATE FUNCTION a_mood(integer) RETURNS mood LANGUAGE sql IMMUTABLE AS $$ SELECT CASE $1 % 2 WHEN 0 THEN 'good' ELSE 'bad' END::mal.mood $$;
        CREATE TABLE people (mood mood PRIMARY KEY, created_at timestamptz NOT NULL DEFAULT now());
        INSERT INTO people VALUES ('good', now() - interval '30 days');
        CREATE TABLE did (mood mood REFERENCES people, created_at timestamptz NOT NULL DEFAULT now());
        CREATE TABLE between_them (mood mood PRIMARY KEY REFERENCES people, created_at timestamptz NOT NULL DEFAULT now());
        CREATE TABLE far (mood mood REFERENCES between_them, created_at timestamptz NOT NULL DEFAULT now())
    """)
    said = heard(db, "SELECT * FROM activation.suggest(users => 'mal.people')")
    assert any("only 1 users" in line for line in said), said
    assert any("mal.far: " in line and "mood" in line for line in said), said


@pytest.mark.parametrize("kind", ["simulate", "milestone", "retained"])
@pytest.mark.parametrize(
    ("trap", "query", "names", "object_name"),
    [
        (CAST, "SELECT 1 FROM mal.projects WHERE owner_id = $1 AND mood::text = 'good'", "public", "mal.mood"),
        (CAST, "SELECT 1 FROM mal.projects WHERE owner_id = $1 AND mood = 'good'", "public", "mal.mood"),
        (VIEW, "SELECT 1 FROM mal.looks WHERE owner_id = $1", "public", "view mal.looks"),
        (OPERATOR, "SELECT 1 FROM projects WHERE owner_id = $1 AND owner_id = 2.0", "public, mal", "operator mal.=(bigint,numeric)"),
        (FUNCTION, "SELECT 1 FROM projects WHERE owner_id = $1 AND length(made_by) > 0", "public, mal", "function mal.length(character varying)"),
        (COLUMN, "SELECT 1 FROM mal.projects p WHERE owner_id = $1 AND p.busy", "public, mal", "function mal.busy(mal.projects)"),
        (INDEX, "SELECT 1 FROM mal.projects WHERE owner_id = $1", "public", "function mal.evil_number(integer)"),
        (STATISTICS, "SELECT 1 FROM mal.projects WHERE owner_id = $1", "public", "function mal.evil_number(integer)"),
        (CHILD, "SELECT 1 FROM mal.projects WHERE owner_id = $1", "public", "function mal.evil_number(integer)"),
        (CHECKED, "SELECT 1 FROM mal.projects WHERE owner_id = $1 AND tags <> '{1}'", "public", "mal.checked"),
        (ROW, "SELECT 1 FROM mal.projects p WHERE owner_id = $1 AND p::text <> ''", "public", "cast from mal.projects to text"),
        (JSON, "SELECT 1 FROM mal.projects p WHERE owner_id = $1 AND to_jsonb(p) IS NOT NULL", "public", "cast from mal.mood to json"),
    ],
    ids=["cast", "implicit cast", "view", "operator", "function", "column", "index", "statistics", "child", "literal", "row", "json"],
)  # fmt: skip
def test_condition(
    db: Database, mallory: Connection, kind: str, trap: str, query: str, names: str, object_name: str
) -> None:
    """Somebody's own text over tables of mallory's is refused before it is parsed, and says what it would run."""
    mallory.execute(trap.encode())
    said = heard(db, condition(query, kind, names))[-1]
    assert not is_superuser(db)
    assert said.startswith("42501") and object_name in said and "SET ROLE mallory" in said, said


def test_a_view_of_the_caller_s_over_hers(db: Database, mallory: Connection) -> None:
    """What a view binds is looked into, through views on views."""
    mallory.execute(CAST.encode())
    db.sql(
        "CREATE VIEW one AS SELECT owner_id, mood::text AS mood FROM mal.projects; CREATE VIEW two AS SELECT * FROM one"
    )
    (said,) = heard(db, condition("SELECT 1 FROM two WHERE owner_id = $1", "simulate"))
    assert "mal.evil_cast" in said or "mal.mood" in said, said


def test_filter(db: Database, mallory: Connection) -> None:
    """A trigger's filter, and the trigger's table."""
    document = """jsonb_build_object('trigger', activation.on_insert('mal.projects', user_key => 'owner_id'{}), 'users', 'public.users', 'action', activation.email('milestone'))"""
    assert heard(db, f"SELECT * FROM activation.simulate(definition => {document.format('')})") == []
    mallory.execute(CAST.encode())
    filtered = document.format(", filter => 'NEW.mood::text = ''good'''")
    (said,) = heard(db, f"SELECT * FROM activation.simulate(definition => {filtered})")
    assert "mal.mood" in said, said
    mallory.execute("DROP CAST (mood AS text)")
    mallory.execute(INDEX.encode())
    (said,) = heard(db, f"SELECT * FROM activation.simulate(definition => {document.format('')})")
    assert "mal.evil_number" in said, said


@pytest.mark.parametrize("policy", [POLICY, BUILT_IN_POLICY], ids=["hers", "built in"])
def test_row_security(db: Database, mallory: Connection, policy: str) -> None:
    """A policy runs with the rights of whoever reads; a superuser is exempt, an analyst is not."""
    mallory.execute(policy.encode())
    db.sql(ANALYST)
    try:
        said = heard(db, "SELECT * FROM activation.suggest()", "analyst")
        assert any("mal.projects: " in line and "of mallory would run" in line for line in said), said
        (refused,) = heard(db, condition("SELECT 1 FROM mal.projects WHERE owner_id = $1", "milestone"), "analyst")
        assert refused.startswith("42501") and "policy looks on table mal.projects" in refused, refused
        assert heard(db, condition("SELECT 1 FROM mal.projects WHERE owner_id = $1", "milestone")) == []
    finally:
        db.sql("DROP OWNED BY analyst; DROP ROLE analyst")


def test_what_is_refused_may_be_asked_as_its_owner(db: Database, mallory: Connection) -> None:
    """And what would run nothing of hers may be asked by anybody."""
    assert heard(db, condition("SELECT 1 FROM mal.projects WHERE owner_id = $1 AND made_by = 'me'", "simulate")) == []
    mallory.execute(CAST.encode())
    db.sql(
        "GRANT USAGE ON SCHEMA activation TO mallory; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA activation TO mallory"
    )
    query = condition("SELECT 1 FROM mal.projects WHERE owner_id = $1 AND mood::text = 'x'", "milestone")
    with db.connect() as session:
        session.execute("SET ROLE mallory")
        assert len(session.execute(query.encode()).fetchall()) == 300


def test_a_table_swapped_in_between(db: Database, mallory: Connection) -> None:
    """What was looked at is held until it is read: nothing can be made of it in between."""
    with db.connect() as session:
        session.execute("BEGIN READ ONLY")
        session.execute(condition("SELECT 1 FROM mal.projects WHERE owner_id = $1", "milestone").encode())
        mallory.execute("SET lock_timeout = '50ms'")
        for change in (
            "ALTER TABLE projects ALTER made_by TYPE mood USING 'good'",
            "DROP TABLE projects",
            "ALTER TABLE projects RENAME TO others",
            INDEX,
            STATISTICS,
            CHILD,
        ):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                mallory.execute(change.encode())
        mallory.execute("INSERT INTO projects (owner_id) VALUES (1)")
        session.execute("ROLLBACK")


def test_an_old_snapshot(db: Database, mallory: Connection) -> None:
    """It would be looked at as it was, and run as it is."""
    with db.connect() as session:
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        session.execute("SELECT 1")
        mallory.execute(INDEX.encode())
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="repeatable read"):
            session.execute("SELECT * FROM activation.suggest()")
    assert not is_superuser(db)


def test_nobody_sees_a_loop_of_others(db: Database, mallory: Connection) -> None:
    """A loop's definition is shown to those who may act as its owner."""
    db.sql(ANALYST)
    db.sql(
        "SELECT activation.define_loop('ours', trigger => activation.on_insert('users'), condition => activation.query('SELECT 1 FROM users WHERE id = $1 AND email = ''secret'''), action => activation.email('milestone'))"
    )
    try:
        assert (
            db.value("SELECT count(*) FROM activation.loop_definition WHERE loop = 'ours' AND owner = 'postgres'") == 1
        )
        with db.connect() as session:
            session.execute("SET ROLE analyst")
            assert session.execute("SELECT count(definition) FROM activation.loop_definition").fetchone() == (0,)
            with pytest.raises(psycopg.errors.UndefinedObject, match='loop "ours" does not exist'):
                session.execute("SELECT * FROM activation.simulate('ours')")
    finally:
        db.sql("DROP OWNED BY analyst; DROP ROLE analyst")
