# ruff: noqa: E501
"""The command line on a real database: what it shows, what it writes, and with which code it ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
import requests
from alembic import command
from alembic.config import Config
from click.testing import CliRunner, Result

from activation.cli import main
from activation.cli.database import refusal
from activation.cli.demo import LOOP
from harness import Cluster, Database
from loops import APP, define, journey, tick

ROOT = Path(__file__).parents[2]
SGR = re.compile(r"\x1b\[[\d;]*m")
#: What a stranger may call themselves.
EVIL = "[red]x[/red] \x1b[31m\x1b]0;owned\x07 <script>alert(1)</script>"


def run(db: Database, *arguments: str, user: str = "postgres") -> Result:
    """The command, on a database."""
    return CliRunner().invoke(main, list(arguments), env={"DATABASE_URL": db.dsn(user)})


def ran(db: Database, *arguments: str) -> str:
    """What it wrote on its standard output; it ended well."""
    result = run(db, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def read(db: Database, *arguments: str) -> Any:
    """The document that it wrote, which is all that it wrote."""
    return json.loads(ran(db, *arguments, "--json"))


class Terminal:
    """The command on a terminal."""

    def __init__(self, *arguments: str, columns: int = 80, **environment: str) -> None:
        self._master, slave = pty.openpty()
        subprocess.run(["stty", "cols", str(columns), "rows", "50"], stdin=slave, check=True)
        variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "activation.cli", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**variables, "TERM": "xterm-256color", **environment},
        )
        os.close(slave)
        self.text = ""

    def wait_for(self, words: str) -> None:
        """Read until it has said this."""
        end = time.monotonic() + 60
        while words not in self.text:
            assert time.monotonic() < end and self._read(), self.text

    def type(self, text: str) -> None:
        """What a person types."""
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Read to its end; its exit code."""
        while self._read():
            pass
        return self.process.wait(30)

    def close(self) -> None:
        """End it with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        os.close(self._master)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 60)[0]:
            return False
        try:
            found = os.read(self._master, 65536)
        except OSError:
            return False
        self.text += found.decode().replace("\r\n", "\n")
        return bool(found)


@contextlib.contextmanager
def terminal(*arguments: str, columns: int = 80, **environment: str) -> Iterator[Terminal]:
    made = Terminal(*arguments, columns=columns, **environment)
    try:
        yield made
    finally:
        made.close()


def fill(db: Database) -> Database:
    """People with odd names, and a loop with one."""
    db.sql(APP)
    with db.connect() as connection:
        define(connection, name="[red]first", timeout="1 hour", otherwise=True)
    db.sql("INSERT INTO users (id, email, name) VALUES (1, %s, %s), (2, 'ada@acme.dev', 'Ada')", f"{EVIL}@x.dev", EVIL)
    db.sql("INSERT INTO actions (user_id) VALUES (1)")
    return db


@pytest.fixture
def app(db: Database) -> Database:
    """A database to change."""
    return fill(db)


@pytest.fixture(scope="module")
def kept(cluster: Cluster) -> Database:
    """One to look at, where the engine has run."""
    db = fill(cluster.create_database())
    tick(db)
    return db


def test_status(kept: Database) -> None:
    told = kept.sql("SELECT component, state, detail FROM activation.status")
    assert [tuple(row.values()) for row in read(kept, "status")] == told
    lines = ran(kept, "status").splitlines()
    assert lines[0].split() == ["component", "state", "detail"]
    assert [tuple(re.split(r"  +", line)) for line in lines[1:]] == told
    assert "loop [red]first" in lines[-1]


def test_why(kept: Database) -> None:
    told = kept.sql("SELECT at, loop, event, detail FROM activation.why('1')")
    shown = read(kept, "why", "1")
    assert [(row["loop"], row["event"]) for row in shown] == [(loop, event) for _, loop, event, _ in told]
    assert all(row["at"].endswith("+00:00") for row in shown)
    text = ran(kept, "why", "1")
    assert "\x1b" not in text and "\x07" not in text
    assert r"[red]x[/red] \x1b[31m" in text
    assert run(kept, "why", "1", "--loop", "[red]first").stdout == text
    # Nobody by that key, and no such loop.
    assert "there is no user 99" in ran(kept, "why", "99")
    missing = run(kept, "why", "1", "--loop", "second")
    assert missing.exit_code == 1 and not missing.stdout
    assert missing.stderr == 'Error: loop "second" does not exist\nHINT: There are "[red]first".\n'


def test_a_terminal_gets_colours_of_ours_alone(kept: Database) -> None:
    where = {"DATABASE_URL": kept.dsn()}
    with terminal("why", "1", columns=90, **where) as told:
        assert told.end() == 0
    assert SGR.search(told.text) and "\x1b" not in SGR.sub("", told.text) and "\x07" not in told.text
    # Names stay whole, texts wrap.
    lines = SGR.sub("", told.text).splitlines()
    assert max(map(len, lines)) <= 90 and any(line.startswith(" " * 20) for line in lines)
    assert sum("[red]first" in line for line in lines) == len(read(kept, "why", "1"))
    with terminal("why", "1", NO_COLOR="1", **where) as told:
        assert told.end() == 0
    assert told.text == ran(kept, "why", "1")


def test_preview(app: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened: list[str] = []
    monkeypatch.setattr(click, "launch", lambda path: opened.append(path) or 0)
    app.sql(
        "SELECT activation.set_template('own', 'For {{ user.id }}', '<p>{{ user.name }}</p><script>own()</script>')"
    )
    app.sql(
        "SELECT activation.define_loop('odd', trigger => activation.on_insert('users'), action => activation.email('own'))"
    )
    path = Path(ran(app, "preview", "2", "[red]first").strip())
    assert opened == [str(path)] and path.parent == tmp_path and path.stat().st_mode & 0o077 == 0
    page = path.read_text()
    assert page.count("<iframe") == 2 and page.count("default-src 'none'") == 1
    # Whoever wrote it, no script is part of the page, and the frame runs none.
    page = Path(ran(app, "preview", "1", "odd", "--no-open").strip()).read_text()
    assert len(opened) == 1
    assert "<script" not in page and "&lt;script&gt;own()" in page and "alert" in page
    assert re.findall(r'sandbox="([^"]*)"', page) == ["allow-popups allow-popups-to-escape-sandbox"]
    assert "script-src" not in page
    # The text part, and all of it.
    text = ran(app, "preview", "2", "[red]first", "--text")
    assert (
        "Subject: You are off to a great start" in text and "Subject: Ready when you are" in text and "Hi Ada," in text
    )
    (mail,) = read(app, "preview", "2", "odd")
    assert mail["subject"] == "For 2" and mail["problem"] is None and set(mail) == {
        "step", "branch", "purpose", "recipient", "subject", "html", "body_text", "problem",
    }  # fmt: skip


def test_preview_of_what_cannot_be(app: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    unknown = run(app, "preview", "99", "[red]first")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("Error: user 99 does not exist in public.users\nHINT: ")
    app.sql("ALTER TABLE users RENAME name TO called")
    app.sql("SELECT activation.set_template('own', '{{ user.called }}', '<p>x</p>')")
    app.sql(
        "SELECT activation.define_loop('odd', trigger => activation.on_insert('users'), action => activation.email('own'))"
    )
    app.sql("ALTER TABLE users RENAME called TO name")
    broken = run(app, "preview", "2", "odd", "--no-open")
    assert broken.exit_code == 1 and "step step1, action cannot be rendered: " in broken.stderr
    assert "It cannot be rendered: " in Path(broken.stdout.strip()).read_text()
    assert run(app, "preview", "2", "odd", "--json").exit_code == 1


def test_doctor(app: Database) -> None:
    tick(app)
    well = run(app, "doctor")
    assert well.exit_code == 0 and "problem" not in well.stdout
    app.sql("ALTER TABLE users DISABLE TRIGGER activation_insert")
    ill = run(app, "doctor")
    assert ill.exit_code == 1 and re.search(r"^triggers +problem +\S", ill.stdout, re.MULTILINE)
    found = {row["check"]: row for row in json.loads(run(app, "doctor", "--json").stdout)}
    assert found["triggers"]["state"] == "problem" and found["versions"]["cure"] is None
    # What it shows under the table is for psql.
    app.psql(ill.stdout[ill.stdout.index("-- triggers") :])
    assert run(app, "doctor").exit_code == 0


CONFIG = """\
import { defineLoop } from '@skene/sdk';
export default defineLoop({
  type: 'activation',
  opinion: 'It is $loop$, and it\\'s \\u001b[31mred\\u009b',
  steps: [{
    trigger: { type: 'database', table: 'users', event: 'insert' },
    condition: { type: 'query', query: `SELECT * FROM actions WHERE user_id = $1`, timeout: '5m' },
    action: { type: 'email', provider: 'resend', template: 'activation_welcome' },
  }],
});
"""
JOURNEY = """\
product: {name: Acme}
stages:
- id: activation
  milestones:
  - {id: visited, name: Visited, evidence: [{source: code, reason: x, path: index.tsx}]}
  - {id: signed_up, name: Signed up, evidence: [{source: db, reason: x, table: public.users}]}
  - {id: acted, name: Acted, evidence: [{source: db, reason: x, table: actions}]}
"""


def loops(db: Database) -> dict[str, int]:
    return dict(db.sql("SELECT name, version FROM activation.loop WHERE state <> 'archived'"))


def test_report(kept: Database, tmp_path: Path) -> None:
    page = ran(kept, "report")
    assert page.startswith("<!doctype html>") and "first" in page and "<script" not in page
    file = tmp_path / "report.html"
    assert ran(kept, "report", "-o", str(file)) == ""
    assert file.read_text().startswith("<!doctype html>")
    assert read(kept, "report")["html"].startswith("<!doctype html>")
    assert run(kept, "report", "-o", str(tmp_path / "no" / "folder")).exit_code == 1


def test_import(db: Database, tmp_path: Path) -> None:
    db.sql(APP)
    file = tmp_path / "skene.config.ts"
    file.write_text(CONFIG)
    shown = run(db, "import", str(file), "--name", "it's")
    assert shown.exit_code == 1 and loops(db) == {}
    assert 'There is no loop "it\'s" yet.' in shown.stdout and "--yes applies it" in shown.stderr
    assert "\x1b" not in shown.stdout and "\x9b" not in shown.stdout
    assert ran(db, "import", str(file), "--name", "it's", "--yes").endswith('Loop "it\'s" is defined, in version 1.\n')
    assert ran(db, "import", str(file), "--name", "it's").endswith('Loop "it\'s" is that already.\n')
    # What is shown is a statement, and the same.
    db.psql(shown.stdout[: shown.stdout.index("There is no loop")])
    assert loops(db) == {"it's": 1}
    # What changes.
    file.write_text(CONFIG.replace("5m", "7m"))
    changed = run(db, "import", str(file), "--name", "it's")
    assert changed.exit_code == 1 and re.search(
        r"changed +steps\.step1\.condition\.timeout +00:05:00 +00:07:00\n", changed.stdout
    )
    document = json.loads(run(db, "import", str(file), "--name", "it's", "--json").stdout)
    assert list(document) == ["loop", "definition", "defined", "changed", "diff", "version"]
    assert (document["defined"], document["changed"], document["version"]) == (True, True, None)
    assert document["diff"][0] == {
        "change": "changed", "part": "steps.step1.condition.timeout", "before": "00:05:00", "after": "00:07:00",
    }  # fmt: skip
    assert loops(db) == {"it's": 1}
    assert read(db, "import", str(file), "--name", "it's", "--apply")["version"] == 2
    # One that was archived comes back.
    db.sql("SELECT activation.archive_loop('it''s')")
    assert run(db, "import", str(file), "--name", "it's").exit_code == 1
    ran(db, "import", str(file), "--name", "it's", "--yes")
    assert list(loops(db)) == ["it's"]


def test_import_asks_on_a_terminal(db: Database, tmp_path: Path) -> None:
    db.sql(APP)
    file = tmp_path / "skene.config.ts"
    file.write_text(CONFIG)
    for answer, code in (("n", 1), ("y", 0)):
        with terminal("import", str(file), DATABASE_URL=db.dsn()) as asked:
            asked.wait_for('Define loop "skene"? [y/N]')
            assert loops(db) == {}
            asked.type(f"{answer}\n")
            assert asked.end() == code
    assert loops(db) == {"skene": 1}


def test_import_other_files(app: Database, tmp_path: Path) -> None:
    """A loop that was exported, and a journey."""
    definition = app.value("SELECT activation.export_loop('[red]first')")
    (tmp_path / "second.json").write_text(json.dumps(definition), encoding="utf-8-sig")
    ran(app, "import", str(tmp_path / "second.json"), "--yes")
    assert app.value("SELECT activation.export_loop('second')") == definition
    file = tmp_path / "journey.yaml"
    file.write_text(JOURNEY)
    refused = run(app, "import", str(file))
    assert refused.exit_code == 1 and "activation.visited" in refused.stderr and "Leave them out" in refused.stderr
    ran(app, "import", str(file), "--milestones", "activation.signed_up, activation.acted", "--yes")
    assert "journey" in loops(app)


def test_import_refuses(kept: Database, tmp_path: Path) -> None:
    before = loops(kept)
    for name, content, code, said in (
        ("a.ts", b"export default defineLoop({ type: 'freemium', steps: [] });", 1, "freemium"),
        ("a.ts", b"export default defineLoop({ tyype: 'activation' });", 1, "tyype"),
        ("a.json", b'{"steps": [}', 1, "a.json is not JSON: "),
        ("a.json", b"[" * 100_000, 1, "a.json is not JSON: "),
        ("a.json", b'"a text"', 1, "HINT"),
        ("a.json", b"{}", 1, "HINT"),
        ("a.yaml", b"stages: [\xff]", 1, "a.yaml is not UTF-8: byte 9"),
        ("a.ts", b"a\0b", 1, "a.ts holds a NUL character"),
        ("a.toml", b"", 2, "a.toml ends in none of .ts,"),
    ):
        (tmp_path / name).write_bytes(content)
        result = run(kept, "import", str(tmp_path / name), "--yes")
        assert result.exit_code == code, result.output
        assert said in result.stderr and "Traceback" not in result.output and loops(kept) == before


@pytest.mark.parametrize(
    ("statement", "is_older"),
    [
        ("SELECT activation.nope(1)", True),
        # What is missing here is the author's.
        (
            "SELECT activation.define_loop('x', trigger => activation.on_insert('users'),"
            " condition => activation.query('SELECT activation.nope($1)'), action => activation.email('milestone'))",
            False,
        ),
    ],
)
def test_a_function_that_is_not_there(kept: Database, statement: str, is_older: bool) -> None:
    with kept.connect() as connection, pytest.raises(psycopg.errors.UndefinedFunction) as caught:
        connection.execute(statement.encode())
    assert ("older activation" in refusal(caught.value).message) == is_older


def test_letters_that_a_terminal_does_not_have(kept: Database, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(kept.value("SELECT activation.export_loop('[red]first')")))
    result = subprocess.run(
        [sys.executable, "-m", "activation.cli", "import", str(tmp_path / "a.json"), "--name", "José"],
        env={**os.environ, "DATABASE_URL": kept.dsn(), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Jos\\xe9" in result.stdout and "Traceback" not in result.stderr


def test_an_author_may_import(db: Database, tmp_path: Path) -> None:
    """With what grant_role() gives, and no more; a stranger is told whom to ask."""
    db.sql(APP)
    db.sql("DROP ROLE IF EXISTS author; CREATE ROLE author LOGIN")
    db.sql("ALTER TABLE users OWNER TO author; GRANT SELECT ON actions TO author")
    (tmp_path / "skene.config.ts").write_text(CONFIG)
    arguments = ["import", str(tmp_path / "skene.config.ts"), "--yes"]
    try:
        stranger = run(db, *arguments, user="author")
        assert stranger.exit_code == 1 and stranger.stderr.endswith("an author, an operator or a viewer is granted.\n")
        db.sql("SELECT activation.grant_role('author', 'author')")
        assert "in version 1" in run(db, *arguments, user="author").stdout
        assert "is that already" in run(db, *arguments, user="author").stdout
    finally:
        db.sql("DROP OWNED BY author CASCADE")


ACCOUNTS = '"My App\'s"."Account: 100% $$ \\"'
WISHES = '"My App\'s"."Wish:Lists $$ ""x"""'
SCHEMAS = {
    "plain": (
        """CREATE TABLE users (id bigint PRIMARY KEY, email text, name text);
           CREATE TABLE sessions (id bigint PRIMARY KEY, user_id bigint REFERENCES users);
           CREATE TABLE projects (id bigint PRIMARY KEY, owner_id bigint REFERENCES users, parent bigint REFERENCES projects);
           CREATE TABLE user_actions (user_id bigint, action_type text);
           CREATE TABLE countries (id bigint PRIMARY KEY, name text);""",
        "INSERT INTO users VALUES (1, 'ada@acme.dev', 'Ada')",
        "INSERT INTO projects VALUES (1, 1)",
        ("first_project", "public.users", ["public.projects", "public.user_actions", "public.sessions"]),
    ),
    "odd names": (
        f"""CREATE SCHEMA "My App's";
           CREATE TABLE {ACCOUNTS} ("User Id" uuid PRIMARY KEY, "E-Mail :address" int, email_address text, first_name text, "timeZone" text);
           CREATE TABLE {WISHES} ("made by 100%%" uuid REFERENCES {ACCOUNTS});
           CREATE INDEX ON {WISHES} ("made by 100%%");""",
        f"INSERT INTO {ACCOUNTS} VALUES ('7f1b6a1e-0000-4000-8000-000000000001', NULL, 'a@acme.dev')",
        f"INSERT INTO {WISHES} VALUES ('7f1b6a1e-0000-4000-8000-000000000001')",
        ("first_wish_lists_x", ACCOUNTS, [WISHES]),
    ),
    "nothing references it": (
        "CREATE TABLE customers (id text PRIMARY KEY, email text); CREATE TABLE notes (id int PRIMARY KEY, email text[])",
        "INSERT INTO customers VALUES ('c1', 'ada@acme.dev')",
        "SELECT activation.track('c1', 'first_value')",
        ("first_value", "public.customers", []),
    ),
    "a hostile name": (
        """CREATE TABLE users (id bigint PRIMARY KEY, email text);
           CREATE TABLE "x
; DROP TABLE users; --" (user_id bigint REFERENCES users);
           CREATE TABLE entries (id bigint, user_id bigint REFERENCES users, buddy_id bigint REFERENCES users);""",
        "INSERT INTO users VALUES (1, 'ada@acme.dev')",
        "INSERT INTO entries VALUES (1, 1, NULL)",
        ("first_entry", "public.users", ["public.entries", "public.entries"]),
    ),
}  # fmt: skip


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def activates(db: Database, signup: str, act: str, loop: str) -> None:
    """The loop is there, and notices who signs up and acts. No mail can leave."""
    db.sql(signup)
    tick(db)
    assert list(journey(db, loop).values()) == ["waiting"]
    db.sql(act)
    tick(db)
    assert db.sql("SELECT state, activated_at IS NOT NULL FROM activation.journey WHERE loop = %s", loop) == [
        ("completed", True)
    ]
    assert db.sql("SELECT status FROM activation.message_log") == [("captured",)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_init(db: Database, workplace: Path, name: str) -> None:
    schema, signup, act, (loop, users, tables) = SCHEMAS[name]
    db.sql(schema)
    found = read(db, "init")
    assert (found["file"], found["loop"], found["users"]["table"]) == ("activation.sql", loop, users)
    assert [candidate["table"] for candidate in found["candidates"]] == tables
    script = (workplace / "activation.sql").read_text()
    assert "set_mode" not in script
    db.psql(script)
    activates(db, signup, act, loop)
    # So does every choice that stands there as a comment.
    lines = script.splitlines()
    choices = [n for n, line in enumerate(lines) if "condition => " in line]
    assert len(choices) == max(len(tables), 1)
    for choice in choices[1:]:
        changed = [line for n, line in enumerate(lines) if n not in choices or n == choice]
        db.psql(
            "\n".join(
                line.replace("-- condition", "condition") if "condition => " in line else line for line in changed
            )
        )
    assert loops(db) == {loop: len(choices)}


ENV = """\
from alembic import context
from sqlalchemy import create_engine

with create_engine(context.config.get_main_option("sqlalchemy.url")).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""


def alembic_project(db: Database, folder: Path) -> Config:
    """As `alembic init` makes it."""
    (folder / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    config = Config(str(folder / "alembic.ini"))
    with contextlib.redirect_stdout(io.StringIO()):
        command.init(Config(str(folder / "unused.ini")), str(folder / "migrations"))
    (folder / "migrations" / "env.py").write_text(ENV)
    config.set_main_option(
        "sqlalchemy.url",
        f"postgresql+psycopg:///{db.name}?host={db.cluster.socket}&port={db.cluster.port}&user=postgres",
    )
    return config


@pytest.mark.parametrize("name", ["plain", "odd names"])
def test_init_for_alembic(db: Database, workplace: Path, name: str) -> None:
    schema, signup, act, (loop, _, tables) = SCHEMAS[name]
    db.sql(schema)
    config = alembic_project(db, workplace)
    file = Path(read(db, "init")["file"])
    text = file.read_text()
    assert file.parent == workplace / "migrations" / "versions" and "set_mode" not in text
    assert text.count("condition=query(") == max(len(tables), 1)
    command.upgrade(config, "head")
    activates(db, signup, act, loop)
    command.downgrade(config, "base")
    assert loops(db) == {}
    # The next one follows it.
    second = Path(read(db, "init", "--alembic", "migrations")["file"])
    assert second != file and f"Revises: {file.name.partition('_')[0]}\n" in second.read_text()
    command.upgrade(config, "head")
    assert list(loops(db)) == [loop]


def test_init_overwrites_nothing_and_guesses_nothing(db: Database, workplace: Path) -> None:
    nobody = run(db, "init")
    assert nobody.exit_code == 1 and "no table with a primary key" in nobody.stderr and not list(workplace.iterdir())
    db.sql("CREATE TABLE people (id bigint PRIMARY KEY, mail text); CREATE TABLE users (email text)")
    db.sql(
        "CREATE TABLE leads (id bigint PRIMARY KEY, email text); CREATE TABLE pairs (a int, b int, email text, PRIMARY KEY (a, b))"
    )
    (workplace / "activation.sql").write_text("mine")
    refused = run(db, "init")
    assert refused.exit_code == 1 and "activation.sql exists already" in refused.stderr
    assert (workplace / "activation.sql").read_text() == "mine"
    guessed = ran(db, "init", "-o", "guessed.sql")
    assert (
        "Users table   public.people, key id, address mail" in guessed and "others: public.leads (--users)" in guessed
    )
    assert read(db, "init", "--users", "leads", "-o", "told.sql")["users"] == {
        "table": "public.leads",
        "key": "id",
        "email": "email",
    }
    missing = run(db, "init", "--users", "nowhere", "-o", "x.sql")
    assert missing.exit_code == 1 and "nowhere" in missing.stderr
    assert run(db, "init", "--alembic", ".", "-o", "x.sql").exit_code == 2
    assert run(db, "init", "--alembic", ".").exit_code == 1
    # One of two heads would be a guess, too; and a broken revision is no traceback.
    alembic_project(db, workplace)
    for revision in "ab":
        (workplace / "migrations" / "versions" / f"{revision}.py").write_text(
            f"revision = '{revision}'\ndown_revision = None\n"
        )
    heads = run(db, "init")
    assert heads.exit_code == 1 and "Alembic could not write a revision: " in heads.stderr and "heads" in heads.stderr
    (workplace / "migrations" / "versions" / "c.py").write_text("import nowhere")
    assert "nowhere" in run(db, "init").stderr


def test_init_needs_no_extension(cluster: Cluster, workplace: Path) -> None:
    """It is what comes before it."""
    found = run(cluster.postgres, "init")
    assert found.exit_code == 1 and "no table" in found.stderr
    without = run(cluster.postgres, "status")
    assert without.exit_code == 3 and without.stderr == (
        "Error: database postgres has no activation\nHINT: As a superuser there: CREATE EXTENSION activation CASCADE;\n"
    )


def test_which_database(kept: Database, tmp_path: Path) -> None:
    expected = ran(kept, "status")
    address = kept.cluster.address()
    (tmp_path / "services").write_text(
        f"[production]\nhost={address['PGHOST']}\nport={address['PGPORT']}\nuser=postgres\ndbname={kept.name}\n"
    )
    variables = {**address, "PGUSER": "postgres", "PGDATABASE": kept.name}
    url = f"postgresql+psycopg://postgres@/{kept.name}?host={address['PGHOST']}&port={address['PGPORT']}"
    for arguments, environment in (
        ([], variables),
        ([], {"PGSERVICE": "production", "PGSERVICEFILE": str(tmp_path / "services")}),
        ([], {"DATABASE_URL": url}),
        (["--url", url], {"DATABASE_URL": "postgresql://nowhere/"}),
        (["--url", "service=production"], {"PGSERVICEFILE": str(tmp_path / "services")}),
    ):
        result = CliRunner().invoke(main, ["status", *arguments], env=environment)
        assert (result.exit_code, result.stdout) == (0, expected), result.output


def test_page(db: Database, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/cli.md's commands, one after the other, with docs/from-skene.md's files."""
    monkeypatch.setattr("tempfile.tempdir", str(workplace))
    monkeypatch.setenv("DATABASE_URL", db.dsn())
    db.sql(
        """CREATE TABLE users (id bigint PRIMARY KEY, email text, name text, activation_link text);
           CREATE TABLE projects (id bigint PRIMARY KEY, owner_id bigint REFERENCES users);
           CREATE TABLE user_actions (user_id bigint, action_type text);
           CREATE INDEX ON user_actions (user_id);
           INSERT INTO users VALUES (42, 'ada@acme.dev', 'Ada');
           SELECT activation.set_users('users');"""
    )
    page = (ROOT / "docs" / "from-skene.md").read_text()
    (workplace / "skene.config.ts").write_text(page.partition("$config$\n")[2].partition("$config$")[0])
    (workplace / "journey.yaml").write_text(page.partition("$journey$\n")[2].partition("$journey$")[0])
    db.sql(
        "SELECT activation.define_loop('first_project', trigger => activation.on_insert('users'), action => activation.email('milestone'))"
    )
    tick(db)
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 10
    for line in lines:
        program, *arguments = shlex.split(line.replace("$DATABASE_URL", db.dsn()))
        assert program == "activation"
        result = run(db, *arguments)
        # The one of which the page says so.
        asked = line == "activation import skene.config.ts --name first_project"
        assert result.exit_code == int(asked), f"{line}\n{result.output}"
        assert result.stdout
    assert set(loops(db)) == {"first_project", "journey"}
    page = (ROOT / "docs" / "cli.md").read_text()
    assert all(f"`activation {name}" in page for name in main.commands)


def test_demo(tmp_path: Path) -> None:
    """On a terminal it stays; Ctrl-C ends it, and all that it has started."""
    with terminal("demo", columns=200) as demo:
        demo.wait_for("activation status")
        text = SGR.sub("", demo.text)
        assert "ada@demo.test: You are off to a great start" in text and "edgar@demo.test:" not in text
        assert re.search(r"enrolled +in version 1", text) and re.search(r"waiting +condition is now false", text)
        inbox = re.search(r"^inbox +(\S+)", text, re.MULTILINE)
        psql = re.search(r"^psql +psql '(\S+)'", text, re.MULTILINE)
        assert inbox and psql and "ada@demo.test" in requests.get(inbox[1], timeout=10).text
        folder = re.search(r"activation-\w+", psql[1])
        assert folder and Path("/tmp", folder[0]).is_dir()
        with psycopg.connect(psql[1]) as connection:
            connection.execute("INSERT INTO user_actions VALUES (3, 'first_project_created')")
        demo.wait_for("edgar@demo.test: You are off to a great start")
        os.killpg(demo.process.pid, signal.SIGINT)
        assert demo.end() == 0, demo.text
        assert not Path("/tmp", folder[0]).exists() and "Error" not in demo.text


def test_demo_into_a_pipe() -> None:
    """It shows the README's loop, ends by itself, and draws no bar."""
    result = subprocess.run(
        [sys.executable, "-m", "activation.cli", "demo"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout and LOOP in result.stdout
    assert " ".join(LOOP.split()) in " ".join((ROOT / "README.md").read_text().split())


def test_demo_without_postgresql(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo"], env={"ACTIVATION_PG_BIN": str(tmp_path)})
    assert (
        result.exit_code == 3 and "no PostgreSQL could be started" in result.stderr and "Traceback" not in result.output
    )
