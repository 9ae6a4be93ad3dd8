"""Loops in Alembic's migrations, online and offline, and what a column that a loop reads does when it changes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import api as autogenerate
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations

from activation import alembic as extension
from activation.loops import Loop, Template, email, on_insert, on_schedule, query, retry, send_window, step
from harness import Database
from loops import journey, loop_status, messages, tick
from mail import Worker
from project import Project

APP = """
    CREATE TABLE users (id integer PRIMARY KEY, email text, name text, plan text);
    CREATE TABLE projects (id integer PRIMARY KEY, owner_id integer REFERENCES users, kind text);
    CREATE INDEX ON projects (owner_id);
"""
REAL = query("SELECT 1 FROM projects WHERE owner_id = $1 AND kind = 'real'", timeout="3 days")
LOOP = Loop(
    "first", trigger=on_insert("users", filter="NEW.plan = 'free'"), condition=REAL, action=email("activation_welcome")
)
ANY = Loop(
    "first",
    trigger=on_insert("users"),
    condition=query("SELECT 1 FROM projects WHERE owner_id = $1"),
    action=LOOP.action,
)
ODD = "100% of {{ user.name }}:\t:p1 \\n 'quoted' ; -- $$"


@pytest.fixture
def engine(db: Database) -> Iterator[sa.Engine]:
    made = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: db.connect(autocommit=False), poolclass=sa.NullPool
    )
    db.sql(APP)
    yield made
    made.dispose()


@contextmanager
def migration(engine: sa.Engine) -> Iterator[Any]:
    """A migration's op, in its transaction."""
    with engine.begin() as connection:
        yield Operations(MigrationContext.configure(connection))


@contextmanager
def script(db: Database) -> Iterator[Any]:
    """The same offline: what it wrote is run by psql."""
    written = io.StringIO()
    options = {"as_sql": True, "output_buffer": written}
    yield Operations(MigrationContext.configure(dialect_name="postgresql", opts=options))
    db.psql(f"BEGIN;\n{written.getvalue()}\nCOMMIT;")


@pytest.fixture(params=["online", "offline"])
def migrate(request: pytest.FixtureRequest, engine: sa.Engine, db: Database) -> Any:
    """A migration, either way."""
    return (lambda: migration(engine)) if request.param == "online" else (lambda: script(db))


def version(db: Database, name: str = "first") -> tuple[int, str]:
    ((number, state),) = db.sql("SELECT version, state FROM activation.loop WHERE name = %s", name)
    return number, state


def test_operations(db: Database, migrate: Any) -> None:
    with migrate() as op:
        op.set_template("odd", ODD.replace("\t", " "), body_text=ODD)
        op.set_template(Template("plain", "a", "<p>b</p>"))
        op.define_loop(LOOP)
        op.define_loop("second", trigger=on_insert("users"), action=email("odd", subject=ODD.replace("\t", " ")))
    assert db.sql("SELECT name, body_text, html FROM activation.template ORDER BY 1") == [
        ("odd", ODD, None),
        ("plain", None, "<p>b</p>"),
    ]
    assert db.value("SELECT activation.export_loop('second') #>> '{steps,0,action,subject}'") == ODD.replace("\t", " ")
    document = db.value("SELECT activation.export_loop('first')")
    db.sql("INSERT INTO users VALUES (1, 'a@acme.dev', 'Ada', 'free')")
    tick(db)
    with migrate() as op:
        op.define_loop(ANY, migrate=True)
        op.archive_loop("second")
    assert version(db) == (2, "active") and version(db, "second") == (1, "archived")
    assert db.value("SELECT version FROM activation.enrollment WHERE state = 'waiting'") == 2
    with migrate() as op:
        op.import_loop("first", document)
        op.migrate_loop("first")
    assert version(db) == (3, "active")
    assert db.value("SELECT activation.export_loop('first')") == document
    assert db.value("SELECT version FROM activation.enrollment WHERE state = 'waiting'") == 3
    with migrate() as op:
        op.define_loop(LOOP)
    assert version(db) == (3, "active"), "the same again is no new version"


def test_a_refused_loop_undoes_the_migration(db: Database, engine: sa.Engine) -> None:
    with pytest.raises(sa.exc.DBAPIError, match='column "nope" does not exist'), migration(engine) as op:
        op.execute("CREATE TABLE more ()")
        op.define_loop(
            "x",
            trigger=on_insert("users"),
            condition=query("SELECT nope FROM users WHERE id = $1"),
            action=email("milestone"),
        )
    assert db.value("SELECT to_regclass('more')") is None
    with pytest.raises(TypeError, match="beside a Loop"), migration(engine) as op:
        op.define_loop(LOOP, topic="x")


CHANGES = {
    "the type of a condition's column": ["ALTER TABLE projects ALTER kind TYPE varchar(99)"],
    "the type of a filter's column": ["ALTER TABLE users ALTER plan TYPE varchar(99)"],
    "the type of the key": [
        "ALTER TABLE users ALTER id TYPE bigint",
        "ALTER TABLE projects ALTER owner_id TYPE bigint",
    ],
    "the type of the referencing column": ["ALTER TABLE projects ALTER owner_id TYPE bigint"],
    "the key becomes text": [
        "ALTER TABLE projects DROP CONSTRAINT projects_owner_id_fkey",
        "ALTER TABLE users ALTER id TYPE text",
        "ALTER TABLE projects ALTER owner_id TYPE text",
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_released_for_another_type(db: Database, migrate: Any, engine: sa.Engine, change: str) -> None:
    with migration(engine) as op:
        op.define_loop(LOOP)
    db.sql("INSERT INTO users VALUES (1, 'a@acme.dev', 'Ada', 'free'), (2, 'b@acme.dev', 'Bob', 'pro')")
    tick(db)
    with (
        pytest.raises(sa.exc.DBAPIError, match="cannot alter type of a column used by a function"),
        migration(engine) as op,
    ):
        for statement in CHANGES[change]:
            op.execute(statement)
    with migrate() as op, op.loops_released("users", "projects"):
        for statement in CHANGES[change]:
            op.execute(statement)
    assert version(db) == (1, "active")
    db.sql("INSERT INTO users VALUES ('3', 'c@acme.dev', 'Cid', 'free'), ('4', 'd@acme.dev', 'Dan', 'pro')")
    db.sql("INSERT INTO projects VALUES (1, '1', 'real'), (2, '3', 'real')")
    tick(db)
    assert journey(db) == {"1": "completed", "3": "completed"}
    assert messages(db) == [("1", "action"), ("3", "action")]


def test_renames_need_nothing(db: Database, engine: sa.Engine) -> None:
    with migration(engine) as op:
        op.define_loop(LOOP)
    with migration(engine) as op:
        op.alter_column("projects", "kind", new_column_name="sort")
        op.alter_column("projects", "owner_id", new_column_name="user_id")
        op.alter_column("users", "plan", new_column_name="tier")
        op.alter_column("users", "id", new_column_name="uid")
        op.alter_column("users", "email", new_column_name="mail")
    db.sql("INSERT INTO users VALUES (1, 'a@acme.dev', 'Ada', 'free')")
    tick(db)
    db.sql("INSERT INTO projects VALUES (1, 1, 'real')")
    tick(db)
    assert journey(db) == {"1": "completed"} and messages(db) == [("1", "action")]


def test_a_drop_is_refused_until_the_loop_is_defined_anew(db: Database, migrate: Any, engine: sa.Engine) -> None:
    with migration(engine) as op:
        op.define_loop(LOOP)
    db.sql("INSERT INTO users VALUES (1, 'a@acme.dev', 'Ada', 'free'), (2, 'b@acme.dev', 'Bob', 'free')")
    tick(db)
    db.sql("INSERT INTO projects VALUES (1, 1, 'real')")
    tick(db)
    with pytest.raises(sa.exc.DBAPIError, match="other objects depend on it"), migration(engine) as op:
        op.drop_column("projects", "kind")
    with (
        pytest.raises(sa.exc.DBAPIError, match=r'loop "first" no longer fits: .*column "kind" does not exist'),
        migration(engine) as op,
        op.loops_released("projects"),
    ):
        op.drop_column("projects", "kind")
    assert version(db) == (1, "active"), "nothing has changed"
    with (
        pytest.raises(sa.exc.DBAPIError, match="in which people are on their way"),
        migration(engine) as op,
        op.loops_released("projects"),
    ):
        op.drop_column("projects", "kind")
        op.define_loop(ANY)
    with migrate() as op, op.loops_released("projects"):
        op.drop_column("projects", "kind")
        op.define_loop(ANY, migrate=True)
    assert version(db) == (2, "active")
    db.sql("INSERT INTO projects VALUES (2, 2)")
    tick(db)
    tick(db, "30 days")
    assert loop_status(db)[0] == "ok"
    assert journey(db) == {"1": "completed", "2": "completed"}
    # Also later, when there is nothing to say.
    with migrate() as op, op.loops_released("users", "projects"):
        op.alter_column("users", "name", type_=sa.String(99))
    assert loop_status(db)[0] == "ok"


def test_who_left_a_version_that_is_gone(db: Database, engine: sa.Engine) -> None:
    """They had not reached the goal, and nobody can see any more whether they do. The loop goes on."""
    with migration(engine) as op:
        op.define_loop(LOOP)
    db.sql("INSERT INTO users VALUES (1, 'a@acme.dev', 'Ada', 'free')")
    tick(db)
    tick(db, "4 days")
    assert journey(db) == {"1": "timed_out"}
    with migration(engine) as op, op.loops_released("projects"):
        op.drop_column("projects", "kind")
        op.define_loop(ANY)
    db.sql("INSERT INTO projects VALUES (1, 1); INSERT INTO users VALUES (2, 'b@acme.dev', 'Bob', 'pro')")
    tick(db)
    tick(db, "1 day")
    assert loop_status(db)[0] == "ok" and journey(db) == {"1": "timed_out", "2": "waiting"}
    assert db.sql("SELECT event FROM activation.why('1') WHERE event = 'activated'") == []


def test_mail_of_an_earlier_version_still_waits(db: Database, engine: sa.Engine) -> None:
    with migration(engine) as op:
        op.define_loop(LOOP)
    db.sql("INSERT INTO users VALUES (1, 'a@acme.dev', 'Ada', 'free'); INSERT INTO projects VALUES (1, 1, 'real')")
    tick(db)
    db.sql("UPDATE activation.message SET state = 'queued', finished_at = NULL, request_id = NULL")
    with (
        pytest.raises(sa.exc.DBAPIError, match='loop "first" no longer fits'),
        migration(engine) as op,
        op.loops_released("projects"),
    ):
        op.drop_column("projects", "kind")
        op.define_loop(ANY)


def test_a_loop_that_was_failing_stops_no_migration(db: Database, engine: sa.Engine) -> None:
    with migration(engine) as op:
        op.define_loop(LOOP)
    db.sql("SET client_min_messages = error; ALTER TABLE projects DROP COLUMN kind CASCADE; SELECT activation.bind()")
    assert version(db) == (1, "failing")
    with migration(engine) as op, op.loops_released("users"):
        op.alter_column("users", "plan", type_=sa.String(99))
    assert version(db) == (1, "failing")


def test_workers_see_either_side(db: Database, engine: sa.Engine) -> None:
    """Workers that are at it meanwhile meet no loop without its functions, and hold up no migration."""
    with migration(engine) as op:
        op.define_loop(LOOP)
    db.sql("INSERT INTO activation.schedule (watching, detectors, deliverers) VALUES (false, 1, 1)")
    workers = [Worker(db, kind="detect"), Worker(db, kind="deliver")]
    try:
        for number in range(1, 11):
            db.sql("INSERT INTO users VALUES (%s, 'a@acme.dev', 'Ada', 'free')", number)
            with migration(engine) as op, op.loops_released("users", "projects"):
                op.alter_column("projects", "kind", type_=sa.String(50 + number))
                op.alter_column("users", "plan", type_=sa.String(50 + number))
                # Long enough for the workers to come to the tables, and wait.
                op.execute("SELECT pg_sleep(0.2)")
            db.sql("INSERT INTO projects VALUES (%s, %s, 'real')", number, number)
    finally:
        db.sql("UPDATE activation.schedule SET stopped_at = clock_timestamp()")
        ended = [worker.ended(90) for worker in workers]
        for worker in workers:
            worker.connection.close()
    assert all(ended) and [worker.error for worker in workers] == [None, None]
    tick(db)
    assert loop_status(db)[0] == "ok" and set(journey(db).values()) == {"completed"} and len(messages(db)) == 10
    assert db.sql("SELECT * FROM activation.strike") == []


def test_released_how(db: Database, engine: sa.Engine) -> None:
    with pytest.raises(ValueError, match="name the tables"), migration(engine) as op:
        op.loops_released()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        op = Operations(MigrationContext.configure(connection))
        with pytest.raises(RuntimeError, match="needs a transaction"), op.loops_released("users"):  # type: ignore[attr-defined]
            pass
    with (
        pytest.raises(sa.exc.DBAPIError, match='"nobody" does not exist'),
        migration(engine) as op,
        op.loops_released("nobody"),
    ):
        pass


def everything() -> list[Loop | Template]:
    """Loops that use every argument."""
    return [
        Template("mine", "It's {{ user.name }}", body_text=ODD),
        LOOP,
        Loop(
            "long",
            trigger=on_insert("projects", user_key="owner_id"),
            steps=[
                step("one", action=email("mine")),
                step("two", "1 hour", REAL, email("mine", {"a": "b"}), on_timeout="exit"),
            ],
            goal=query(
                "SELECT 1 FROM users WHERE id = $1 AND plan = 'pro'",
                every="10 minutes",
                watch={"public.projects": "owner_id"},
            ),
            opinion="because",
            recovery=retry(5, "fixed"),
            reentry="90 days",
            users="users",
            topic="t",
            priority=3,
            over_cap="skip",
            holdout=0.1,
            send_window=send_window("Mon-Fri", "09:00", "17:30"),
        ),
        Loop(
            "weekly",
            trigger=on_schedule("0 9 * * Mon", "SELECT id FROM users"),
            action=email("mine"),
            transactional=True,
        ),
    ]


def proposed(engine: sa.Engine, metadata: sa.MetaData, **options: Any) -> tuple[str, str, Any]:
    """What autogenerate would write into upgrade() and downgrade()."""
    with engine.connect() as connection:
        options = {"include_name": extension.include_name, "include_object": extension.include_object, **options}
        context = MigrationContext.configure(connection, opts=options)
        made = produce_migrations(context, metadata)
        render = autogenerate.AutogenContext(context, metadata)
        render.opts.setdefault("render_as_batch", False)
        imports: set[str] = set()
        texts = [
            render_python_code(part, migration_context=context, imports=sorted(imports))
            for part in (made.upgrade_ops, made.downgrade_ops)
        ]
        return texts[0], texts[1], made.upgrade_ops.as_diffs()


def apply(engine: sa.Engine, code: str) -> None:
    import activation.loops

    with migration(engine) as op:
        body = "\n".join(line.strip() for line in code.splitlines())
        exec(body, {"op": op, "sa": sa, **vars(activation.loops)})


def mirrored(engine: sa.Engine, definitions: list[Any]) -> sa.MetaData:
    """The tables as they are, and these definitions."""
    metadata = sa.MetaData(info={"activation": definitions})
    metadata.reflect(engine)
    return metadata


def test_autogenerate(db: Database, engine: sa.Engine) -> None:
    metadata = mirrored(engine, everything())
    up, down, diffs = proposed(engine, metadata)
    assert [kind for kind, _ in diffs] == ["SetTemplateOp"] + ["DefineLoopOp"] * 3
    apply(engine, up)
    assert proposed(engine, metadata)[2] == []
    # Rendered, it is the same.
    with migration(engine) as op:
        for definition in everything()[1:]:
            op.define_loop(definition)
    assert db.sql("SELECT DISTINCT version FROM activation.loop") == [(1,)]
    apply(engine, down)
    assert db.sql("SELECT DISTINCT state FROM activation.loop") == [("archived",)]
    apply(engine, proposed(engine, metadata)[0])
    assert db.sql("SELECT DISTINCT state FROM activation.loop") == [("active",)]
    assert proposed(engine, metadata)[2] == []


def test_autogenerate_of_a_change(db: Database, engine: sa.Engine) -> None:
    before = [Template("mine", "Old", body_text="old"), LOOP]
    after = [Template("mine", "New", html="<p>new</p>"), ANY]
    apply(engine, proposed(engine, mirrored(engine, before))[0])
    document = db.value("SELECT activation.export_loop('first')")
    up, down, _ = proposed(engine, mirrored(engine, after))
    apply(engine, up)
    assert proposed(engine, mirrored(engine, after))[2] == []
    apply(engine, down)
    assert proposed(engine, mirrored(engine, before))[2] == []
    assert db.value("SELECT activation.export_loop('first')") == document


def test_autogenerate_of_a_loop_on_a_table_to_come(db: Database, engine: sa.Engine) -> None:
    apply(engine, proposed(engine, mirrored(engine, [LOOP]))[0])
    moved = Loop(
        "first", trigger=on_insert("later", user_key="who"), users="users", action=email("milestone", {"count": "1"})
    )
    metadata = mirrored(engine, [moved])
    sa.Table("later", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("who", sa.Integer))
    up, _, _ = proposed(engine, metadata)
    assert up.index("create_table") < up.index("define_loop")
    apply(engine, up)
    assert version(db) == (2, "active")


@pytest.mark.parametrize("helper", ["include_name", "include_object"])
def test_the_extension_is_left_alone(db: Database, engine: sa.Engine, helper: str) -> None:
    with migration(engine) as op:
        op.define_loop(LOOP)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    everything_is = {"include_name": lambda *_: True, "include_object": lambda *_: True}
    assert len(proposed(engine, metadata, include_schemas=True, **everything_is)[2]) > 20, "or the test shows nothing"
    chosen = {**everything_is, helper: getattr(extension, helper)}
    assert proposed(engine, metadata, include_schemas=True, **chosen)[2] == []
    # A table of the app's own in another schema is seen as ever.
    db.sql("CREATE SCHEMA app; CREATE TABLE app.mine (id integer PRIMARY KEY)")
    assert len(proposed(engine, metadata, include_schemas=True, **chosen)[2]) == 1


def test_without_the_extension(cluster: Any) -> None:
    """The migration that installs it can be generated, too."""
    cluster.postgres.sql("CREATE DATABASE bare")
    bare = Database(cluster, "bare")
    bare.sql(APP)
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: bare.connect(autocommit=False), poolclass=sa.NullPool
    )
    assert len(proposed(engine, mirrored(engine, everything()))[2]) == 4
    bare.drop()


def test_the_page(db: Database, tmp_path: Path) -> None:
    """docs/loops-as-code.md as a project: up, down, up again, offline, and a generated revision either way."""
    project = Project(tmp_path)
    project.use(f"postgresql://postgres@/{db.name}?host={db.cluster.socket.replace('/', '%2F')}&port={db.cluster.port}")
    script = project.alembic("upgrade", "head", "--sql")
    project.alembic("upgrade", "head")
    assert version(db, "first_project") == (2, "active")
    assert (
        db.value("SELECT atttypmod - 4 FROM pg_attribute WHERE attrelid = 'users'::regclass AND attname = 'plan'") == 20
    )
    project.alembic("downgrade", "0001")
    assert version(db, "first_project") == (3, "active")
    project.alembic("downgrade", "base")
    assert version(db, "first_project") == (3, "archived")
    assert db.value("SELECT to_regclass('users')") is None
    project.alembic("upgrade", "head")
    assert version(db, "first_project") == (5, "active")
    other = db.cluster.create_database()
    other.psql(script)
    latest = "SELECT activation.export_loop('first_project')"
    assert other.value(latest) == db.value(latest)
    other.psql(project.alembic("downgrade", "head:base", "--sql"))
    assert version(other, "first_project") == (3, "archived")
    other.drop()

    assert project.run("alembic.config", "check").returncode != 0
    project.alembic("revision", "--autogenerate", "--rev-id", "0003", "-m", "generated")
    before = db.value(latest)
    project.alembic("upgrade", "head")
    project.alembic("check")
    assert version(db, "first_project") == (6, "active")
    project.alembic("downgrade", "0002")
    assert db.value(latest) == before
