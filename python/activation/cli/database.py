"""The database that a command asks, and what it answers when it refuses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .address import parameters
from .output import note, plain

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[dict[str, Any]]

F = TypeVar("F", bound=Callable[..., Any])

#: Seconds to wait for a server that does not answer.
PATIENCE = "10"


class Unreachable(click.ClickException):
    """No database, or none with activation."""

    exit_code = 3


class Refused(click.ClickException):
    """What the server, or the command itself, refuses."""

    exit_code = 1


def url_option(function: F) -> F:
    """Adds --url."""
    return click.option(
        "--url",
        envvar="DATABASE_URL",
        show_envvar=True,
        metavar="URL",
        help="The database: postgresql://…, or libpq's host=… dbname=…; a password is better kept out of the command.",
    )(function)


@contextmanager
def connected(url: str | None, extension: bool = True) -> Iterator[Connection]:
    """A connection; every statement is a transaction of its own. What the server refuses ends the command.

    extension: the database must have activation.
    """
    import psycopg
    from psycopg.conninfo import make_conninfo
    from psycopg.rows import dict_row

    given_by = "--url"
    if url and url == os.environ.get("DATABASE_URL"):
        given_by = "DATABASE_URL"
    given = parameters(url, given_by) if url else {}
    given.setdefault("fallback_application_name", "activation")
    given["client_encoding"] = "UTF8"
    if "PGCONNECT_TIMEOUT" not in os.environ:
        given.setdefault("connect_timeout", PATIENCE)
    try:
        connection = psycopg.connect(make_conninfo("", **given), autocommit=True, row_factory=dict_row)
    except (psycopg.Error, OSError) as error:
        raise Unreachable(_no_connection(error, url)) from None
    with connection:
        connection.add_notice_handler(lambda diagnostic: note(told(diagnostic)))
        try:
            if extension:
                _check_extension(connection)
            yield connection
        except psycopg.Error as error:
            raise refusal(error) from None


def rows(connection: Connection, query: str, *values: object) -> list[dict[str, Any]]:
    """Run one statement and return its rows. %s stands for a value."""
    return connection.execute(query.encode(), values or None).fetchall()


def value(connection: Connection, query: str, *values: object) -> Any:
    """The only value of the only row."""
    (row,) = rows(connection, query, *values)
    (found,) = row.values()
    return found


def refusal(error: psycopg.Error) -> click.ClickException:
    """The server's error for people: what, why, what to do."""
    import psycopg

    diagnostic = error.diag
    if diagnostic.message_primary is None:
        lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return (Unreachable if lost else Refused)(plain(error, lines=True).strip())
    # It went away meanwhile: shut down, crashed, or terminated the process.
    kind = Unreachable if (diagnostic.sqlstate or "")[:3] in ("57P", "080") else Refused
    lines = [told(diagnostic).partition(": ")[2]]
    # With a place in the command's own statement, where an error about an author's SQL has none.
    if diagnostic.sqlstate == "42883" and diagnostic.statement_position:
        lines = [
            plain(diagnostic.message_primary),
            "HINT: The database has an older activation than this command: ALTER EXTENSION activation UPDATE;",
        ]
    elif diagnostic.sqlstate == "42501" and not diagnostic.message_hint:
        lines.append("HINT: docs/operations.md, Roles, says what an author, an operator or a viewer is granted.")
    return kind("\n".join(lines))


def told(diagnostic: psycopg.errors.Diagnostic) -> str:
    """A message of the server with its DETAIL and HINT."""
    parts: Mapping[str, str | None] = {
        diagnostic.severity_nonlocalized or "ERROR": diagnostic.message_primary,
        "DETAIL": diagnostic.message_detail,
        "HINT": diagnostic.message_hint,
    }
    return "\n".join(f"{name}: {plain(text, lines=True)}" for name, text in parts.items() if text)


def _no_connection(error: Exception, url: str | None) -> str:
    hint = "" if url else "\nHINT: Name the database by --url, DATABASE_URL, or libpq's PGHOST, PGDATABASE, PGSERVICE …"
    return f"there is no connection to the database\n{plain(str(error).strip(), lines=True)}{hint}"


def _check_extension(connection: Connection) -> None:
    if not rows(connection, "SELECT FROM pg_catalog.pg_extension WHERE extname = 'activation'"):
        name = plain(connection.info.dbname)
        raise Unreachable(
            f"database {name} has no activation\nHINT: As a superuser there: CREATE EXTENSION activation CASCADE;"
        )
