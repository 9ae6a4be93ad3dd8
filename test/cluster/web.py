"""What tests of the FastAPI router have in common: an app's role, its pools, uvicorn, signed webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from harness import Database, wait_until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

#: What docs/fastapi.md grants to the app's role.
GRANTS = """
    GRANT USAGE ON SCHEMA activation TO {role};
    GRANT EXECUTE ON FUNCTION activation.receive_webhook, activation.unsubscribe, activation.resubscribe,
      activation.preferences, activation.track_all, activation.overview, activation.why TO {role};
"""


@contextmanager
def app_role(db: Database) -> Iterator[str]:
    """A role that may do what the router needs, and nothing else of ours."""
    role = f"web_{uuid.uuid4().hex[:8]}"
    db.sql(f"CREATE ROLE {role} LOGIN;" + GRANTS.format(role=role))
    yield role
    db.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def address(db: Database, role: str = "postgres", driver: str = "postgresql") -> str:
    """The database as SQLAlchemy names it."""
    return f"{driver}://{role}@/{db.name}?host={db.cluster.socket}&port={db.cluster.port}"


@asynccontextmanager
async def _psycopg(db: Database, role: str) -> AsyncIterator[Any]:
    from psycopg.rows import dict_row
    from psycopg_pool import AsyncConnectionPool

    # As many apps have it.
    pool: Any = AsyncConnectionPool(db.dsn(role), open=False, max_size=4, kwargs={"row_factory": dict_row})
    await pool.open()
    yield pool
    await pool.close()


@asynccontextmanager
async def _asyncpg(db: Database, role: str) -> AsyncIterator[Any]:
    import asyncpg

    async def prepare(connection: Any) -> None:
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    pool = await asyncpg.create_pool(
        host=db.cluster.socket, port=db.cluster.port, user=role, database=db.name, min_size=1, max_size=4, init=prepare
    )
    yield pool
    await pool.close()


@asynccontextmanager
async def _async_engine(db: Database, role: str) -> AsyncIterator[Any]:
    engine = create_async_engine(address(db, role, "postgresql+asyncpg"))
    yield engine
    await engine.dispose()


@asynccontextmanager
async def _async_engine_psycopg(db: Database, role: str) -> AsyncIterator[Any]:
    engine = create_async_engine(address(db, role, "postgresql+psycopg"))
    yield engine
    await engine.dispose()


@asynccontextmanager
async def _engine(db: Database, role: str) -> AsyncIterator[Any]:
    engine = create_engine(address(db, role, "postgresql+psycopg"))
    yield engine
    engine.dispose()


#: An app's connections, by what they are called.
POOLS: dict[str, Callable[[Database, str], Any]] = {
    "psycopg": _psycopg,
    "asyncpg": _asyncpg,
    "async engine": _async_engine,
    "async engine of psycopg": _async_engine_psycopg,
    "engine": _engine,
}


def lifespan(pool: Callable[[Database, str], Any], db: Database, role: str) -> Callable[[FastAPI], Any]:
    """Opens the app's connections as it starts, and closes them as it ends."""

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        async with pool(db, role) as app.state.pool:
            yield

    return live


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The app under uvicorn on a free port; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), 30, "the app to start")
        assert server.started
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def signed(body: str, webhook_id: str | None = None, at: int | None = None, secret: str = SECRET) -> dict[str, str]:
    """The headers of a webhook as Resend sends it."""
    webhook_id, stamp = webhook_id or f"msg_{uuid.uuid4().hex}", str(at or int(time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.digest(key, f"{webhook_id}.{stamp}.{body}".encode(), hashlib.sha256)
    return {
        "svix-id": webhook_id,
        "svix-timestamp": stamp,
        "svix-signature": "v1," + base64.b64encode(mac).decode(),
    }
