"""The address of a database, as people have it in DATABASE_URL, for libpq. No error repeats any of it: it may hold a
password."""

from __future__ import annotations

import re
from urllib.parse import unquote

import click

_HINT = (
    "It is postgresql://user@host:5432/database (postgresql+psycopg://… will do), or libpq's host=… dbname=…\n"
    "In a name or password @ is written %40, and : is %3A. The address is not repeated here: it may hold a password."
)
#: What other libraries than libpq read in a URL, and what has no meaning here.
_FOREIGN = ("schema", "pgbouncer", "connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size")


def parameters(url: str, given_by: str) -> dict[str, str]:
    """libpq's parameters. given_by: what to call the setting in an error. Raises click.UsageError."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    credentials: dict[str, str] = {}
    match = re.match(r"(\w+)(\+\w+)?://", url)
    if match is None:
        rest = url
        # Without any = libpq would take it for the name of a database.
        if "=" not in url:
            raise click.UsageError(f"{given_by} is no address of a database.\n{_HINT}")
    else:
        if match[1] not in ("postgresql", "postgres"):
            raise click.UsageError(f"{given_by} is the address of another kind of database.\n{_HINT}")
        # Libraries differ in where they let a password with a stray @ end; a part of it would become a host's name.
        before, _, rest = url[match.end() :].rpartition("@")
        if "@" in before:
            raise click.UsageError(f"{given_by} has an @ too many.\n{_HINT}")
        user, colon, password = before.partition(":")
        if user:
            credentials["user"] = unquote(user)
        if colon:
            credentials["password"] = unquote(password)
        place, _, options = rest.partition("?")
        given = [option for option in options.split("&") if option and option.partition("=")[0] not in _FOREIGN]
        if match[2] == "+asyncpg":
            given = [re.sub(r"^ssl=", "sslmode=", option) for option in given]
        rest = f"postgresql://{place}?{'&'.join(given)}"
    try:
        found = {name: str(value) for name, value in conninfo_to_dict(rest).items() if value is not None}
    except ProgrammingError:
        raise click.UsageError(f"{given_by} is no address that libpq can read.\n{_HINT}") from None
    # Without a host, what stands here is the password.
    if not re.fullmatch(r"[\d,]*", found.get("port", "")):
        raise click.UsageError(f"{given_by} has a port that is no number.\n{_HINT}")
    return {**found, **credentials}
