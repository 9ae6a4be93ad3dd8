"""`activation demo`: from a signup to an email, on a PostgreSQL that is thrown away afterwards.

It needs no checkout: only this package, and a PostgreSQL on the machine that has the extension.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from .database import Refused, Unreachable, refusal, rows
from .output import plain, print_table, progress, say

if TYPE_CHECKING:
    from ..sandbox import Sandbox
    from ..throwaway import Server
    from .database import Connection

DATABASE = "app"
TABLES = """\
CREATE TABLE users (id bigint PRIMARY KEY, email text NOT NULL, name text, activation_link text);
CREATE TABLE projects (id bigint PRIMARY KEY, owner_id bigint NOT NULL REFERENCES users, title text);
CREATE TABLE user_actions (user_id bigint NOT NULL REFERENCES users, action_type text NOT NULL);
CREATE INDEX ON projects (owner_id);
CREATE INDEX ON user_actions (user_id, action_type);
"""
#: The first loop of the README.
LOOP = """\
SELECT activation.define_loop('first_project',
  trigger   => activation.on_insert('users'),
  condition => activation.query($$SELECT * FROM user_actions WHERE user_id = $1 AND action_type = 'first_project_created'$$, timeout => '5m'),
  action    => activation.email('activation_welcome',
                 personalization => '{"name": "{{user.name}}", "activationLink": "{{user.activation_link}}"}'),
  recovery  => activation.retry(3, 'exponential'));
"""  # noqa: E501
#: Who signs up, and the project that they create, if any.
PEOPLE = [
    (1, "Ada", "Analytical Engine"),
    (2, "Grace", "A Compiler"),
    (3, "Edgar", None),
]
SIGN_UP = "INSERT INTO users VALUES (%s, %s, %s, 'https://acme.dev/start')"
CREATE = "INSERT INTO projects VALUES (%s, %s, %s)"
ACT = "INSERT INTO user_actions VALUES (%s, 'first_project_created')"


@click.command()
@click.option(
    "--stay/--no-stay", default=None, help="Stay until Ctrl-C, or end when all is shown.  [default: stay on a terminal]"
)
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="The inbox's port.  [default: a free one]")
def demo(stay: bool | None, port: int) -> None:
    """Show the whole of it: a throwaway PostgreSQL, a loop, people who sign up, and their mail.

    PostgreSQL with the extension must be on this machine (ACTIVATION_PG_BIN or pg_config says where). Nothing is left
    behind, no other PostgreSQL is touched, and no mail leaves.
    """
    # So that the server is stopped, whoever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        server, sandbox, connection = _set_up(stack, port)
        _story(connection, sandbox)
        if stay if stay is not None else sys.stdout.isatty():
            _stay(server, sandbox, connection)


def _set_up(stack: ExitStack, port: int) -> tuple[Server, Sandbox, Connection]:
    """All that the story takes, with a bar meanwhile. stack: what stops it."""
    import psycopg
    from psycopg.rows import dict_row

    from ..sandbox import Sandbox

    try:
        from ..throwaway import Server as Throwaway
    except ImportError as error:
        raise Refused(f"{error}\nHINT: pip install 'activation[cli,testing]'") from None
    with progress("Starting PostgreSQL", 5) as done:
        try:
            server = Throwaway()
            server.start()
        except (RuntimeError, OSError) as error:
            raise Unreachable(f"no PostgreSQL could be started\n{plain(error, lines=True)}") from None
        stack.callback(server.stop)
        done("Making the database")
        with _refused():
            server.create(DATABASE)
            connection = stack.enter_context(
                psycopg.connect(server.url(DATABASE), autocommit=True, row_factory=dict_row)
            )
        done("Installing the extension")
        try:
            connection.execute("CREATE EXTENSION activation CASCADE")
        except psycopg.Error as error:
            raise Unreachable(f"{refusal(error).message}\nHINT: `make install` puts it into PostgreSQL.") from None
        done("Starting the sandbox")
        try:
            sandbox = stack.enter_context(Sandbox(port=port))
        except OSError as error:
            raise Refused(f"the inbox cannot listen on port {port}: {error.strerror}") from None
        done("Going live")
        with _refused():
            connection.execute(TABLES.encode())
            connection.execute("SELECT activation.set_secret('demo', 're_demo')")
            connection.execute(
                "SELECT activation.configure(sender => 'Acme <hello@acme.dev>', api_key => 'secret:demo',"
                " resend_url => %s, public_url => 'https://acme.dev/activation')",
                [sandbox.url],
            )
            connection.execute(LOOP.encode())
            connection.execute("SELECT activation.set_mode('live')")
        done("Ready")
    return server, sandbox, connection


def _story(connection: Connection, sandbox: Sandbox) -> None:
    say("Who creates a first project within five minutes of signing up gets a welcome:\n", style="bold")
    say(LOOP)
    say("Three people sign up, and two of them create a project:\n", style="bold")
    with _refused():
        for user, name, project in PEOPLE:
            _run(connection, SIGN_UP, user, f"{name.lower()}@demo.test", name)
            if project is not None:
                _run(connection, CREATE, user, user, project)
                _run(connection, ACT, user)
        connection.execute("CALL activation.tick()")
        say("\nTheir mail:\n", style="bold")
        _show_mail(sandbox, 0)
        for user, name, project in (PEOPLE[0], PEOPLE[2]):
            what = "did" if project is not None else "has not yet"
            say(f"\n{name} {what}: SELECT * FROM activation.why('{user}')\n", style="bold")
            found = rows(connection, "SELECT at, event, detail FROM activation.why(%s)", str(user))
            print_table(["at", "event", "detail"], found)


def _stay(server: Server, sandbox: Sandbox, connection: Connection) -> None:
    """Work as pg_cron would have it, until Ctrl-C."""
    import psycopg

    url = shlex.quote(server.url(DATABASE))
    say("\nAll of it stays until Ctrl-C. Let more people sign up:\n", style="bold")
    say(f"inbox       {sandbox.url}/")
    say(f"psql        psql {url}")
    say(f"activation  DATABASE_URL={url} activation status\n")
    stopped = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    shown = len(sandbox.emails)
    try:
        while not stopped.wait(0.5):
            connection.execute("CALL activation.tick()")
            shown = _show_mail(sandbox, shown)
    except psycopg.Error as error:
        # A terminal's Ctrl-C reaches PostgreSQL, too, and may do so first.
        if not stopped.wait(1):
            raise refusal(error) from None


def _run(connection: Connection, statement: str, *values: object) -> None:
    """Run it, and show it as psql would take it."""
    import psycopg

    shown = psycopg.ClientCursor(connection).mogrify(statement.encode(), values)
    say(f"{shown};")
    connection.execute(statement.encode(), values)


def _show_mail(sandbox: Sandbox, shown: int) -> int:
    """A line for each mail after the first so many; how many there are."""
    emails = sandbox.emails
    for email in emails[shown:]:
        say(f"{plain(', '.join(email.to))}: {plain(email.subject)}")
    return len(emails)


@contextmanager
def _refused() -> Iterator[None]:
    """What the server refuses ends the command."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise refusal(error) from None
