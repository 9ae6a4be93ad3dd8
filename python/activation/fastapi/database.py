"""One statement on the app's own connections, whichever of the usual kinds they are."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool

#: Seconds. A connection is there at once or not at all; waiting for one would hold up the app.
CONNECT_TIMEOUT = 2.0
STATEMENT_TIMEOUT = 10.0

Rows = Sequence[Sequence[Any]]


class Unavailable(Exception):
    """The database cannot be reached, has no connection to spare, does not answer in time, or lacks the extension or
    the rights that the app needs."""


class Refused(Exception):
    """The server refused the statement. code: its SQLSTATE."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class Database:
    """The app's database.

    connections: a psycopg AsyncConnectionPool, an asyncpg Pool, an Engine or AsyncEngine of SQLAlchemy, or a function
    without arguments that returns one of these, now or awaited: most apps make theirs when they start.
    """

    def __init__(self, connections: Any) -> None:
        self._connections = connections

    async def rows(self, sql: str, *values: object, timeout: float = STATEMENT_TIMEOUT) -> Rows:
        """Run it in a transaction of its own, which is committed, and return its rows. values: for $1, $2 …; texts,
        numbers, booleans. timeout: in seconds, from the moment that there is a connection.

        Raises Unavailable, Refused, and TypeError for connections of another kind.
        """
        connections = await self._resolve()
        run = _RUNNERS.get(_kind(connections))
        if run is None:
            raise TypeError(
                f"activation cannot use a {type(connections).__module__}.{type(connections).__qualname__}: give it a"
                " psycopg AsyncConnectionPool, an asyncpg Pool, an Engine or AsyncEngine of SQLAlchemy, or a function"
                " that returns one"
            )
        try:
            rows: Rows = await run(connections, sql, values, timeout)
            return rows
        except Exception as error:
            raise _translated(error) from error

    async def _resolve(self) -> Any:
        connections = self._connections
        if callable(connections) and _kind(connections) is None:
            connections = connections()
            if inspect.isawaitable(connections):
                connections = await connections
        if connections is None:
            raise Unavailable("the app has no connections to its database yet")
        return connections


def _kind(connections: object) -> str | None:
    for base in type(connections).__mro__:
        name = f"{base.__module__.partition('.')[0]}.{base.__name__}"
        if name in _RUNNERS:
            return name
    return None


async def _psycopg(pool: Any, sql: str, values: Sequence[object], timeout: float) -> Rows:
    from psycopg import AsyncRawCursor
    from psycopg.rows import tuple_row

    async with (
        pool.connection(timeout=CONNECT_TIMEOUT) as connection,
        asyncio.timeout(timeout),
        connection.transaction(),
    ):
        # $1 as the server writes it; and rows of one shape, whatever the app's connections return.
        cursor = AsyncRawCursor(connection, row_factory=tuple_row)
        await cursor.execute(sql, values)
        return await cursor.fetchall() if cursor.description else []


async def _asyncpg(pool: Any, sql: str, values: Sequence[object], timeout: float) -> Rows:
    async with pool.acquire(timeout=CONNECT_TIMEOUT) as connection, connection.transaction():
        return [tuple(row) for row in await connection.fetch(sql, *values, timeout=timeout)]


def _statement(sql: str, values: Sequence[object]) -> tuple[Any, dict[str, object]]:
    from sqlalchemy import text

    return text(re.sub(r"\$(\d+)", r":p\1", sql)), {f"p{n}": value for n, value in enumerate(values, 1)}


async def _async_engine(engine: Any, sql: str, values: Sequence[object], timeout: float) -> Rows:
    statement, named = _statement(sql, values)
    async with asyncio.timeout(CONNECT_TIMEOUT):
        connection = await engine.connect()
    try:
        async with asyncio.timeout(timeout):
            result = await connection.execute(statement, named)
            rows = [tuple(row) for row in result.fetchall()] if result.returns_rows else []
            await connection.commit()
        return rows
    finally:
        await connection.close()


async def _engine(engine: Any, sql: str, values: Sequence[object], timeout: float) -> Rows:
    statement, named = _statement(sql, values)

    def run() -> Rows:
        with engine.begin() as connection:
            result = connection.execute(statement, named)
            return [tuple(row) for row in result.fetchall()] if result.returns_rows else []

    # The thread ends by itself: it cannot be stopped from here.
    async with asyncio.timeout(CONNECT_TIMEOUT + timeout):
        return await run_in_threadpool(run)


_RUNNERS: dict[str | None, Callable[[Any, str, Sequence[object], float], Any]] = {
    "psycopg_pool.AsyncConnectionPool": _psycopg,
    "asyncpg.Pool": _asyncpg,
    "sqlalchemy.AsyncEngine": _async_engine,
    "sqlalchemy.Engine": _engine,
}

# Connection exceptions, too few resources, the server goes down, starts, or was told to cancel.
_PASSING = ("08", "53", "57")


# No right, no schema, no function, no table: an app is often there before what it needs, and it will come.
_MISSING = ("42501", "3F000", "42883", "42P01")
_CURE = "the extension must be in this database, and the app's role needs the rights of docs/fastapi.md"


def _translated(error: Exception) -> Exception:
    """What went wrong, as one of ours. A library's error without an SQLSTATE comes from its side of the connection."""
    if isinstance(error, (TimeoutError, OSError)):
        return Unavailable(str(error) or "no answer in time")
    library = type(error).__module__.partition(".")[0]
    if library not in ("psycopg", "psycopg_pool", "asyncpg", "sqlalchemy"):
        return error
    original = getattr(error, "orig", None) or error
    code = getattr(original, "sqlstate", None) or ""
    if not code and isinstance(original, TypeError | ValueError):
        return error
    if not code or code.startswith(_PASSING):
        return Unavailable(str(original))
    if code in _MISSING:
        return Unavailable(f"{original}; {_CURE}")
    return Refused(str(original), code)
