"""What tests of the FastAPI router share: an app with a loop, its role, its pools, uvicorn, signed webhooks."""

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
from dataclasses import dataclass
from typing import Annotated, Any

import requests
import uvicorn
from fastapi import FastAPI, Header, HTTPException
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from activation.fastapi import activation_router
from activation.sandbox import Sandbox
from harness import Database, wait_until
from loops import tick

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@contextmanager
def app_role(db: Database) -> Iterator[str]:
    """A role that may do what the router needs, and nothing else of ours."""
    role = f"web_{uuid.uuid4().hex[:8]}"
    db.sql(f"CREATE ROLE {role} LOGIN; SELECT activation.grant_role('app', '{role}')")
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


SET_UP = """
    CREATE TABLE users (id text PRIMARY KEY, email text, name text);
    CREATE TABLE actions (user_id text);
    CREATE INDEX ON actions (user_id);
"""
LOOP = """
    SELECT activation.define_loop('first', trigger => activation.on_insert('users'), topic => 'onboarding',
        condition => activation.query('SELECT FROM actions WHERE user_id = $1', timeout => '1 hour'),
        action => activation.email('activation_welcome'), otherwise => activation.email('activation_nudge'))
"""


def operator(x_token: Annotated[str | None, Header()] = None) -> None:
    if x_token != "right":
        raise HTTPException(401, "Log in")


@dataclass
class Site:
    """The app, as it is reached."""

    url: str
    db: Database
    sandbox: Sandbox
    app: FastAPI

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **more)

    def post(self, path: str, **more: Any) -> requests.Response:
        return requests.post(self.url + path, timeout=30, **more)

    def sign_up(self, *users: str) -> None:
        for user in users:
            self.db.sql("INSERT INTO users VALUES (%s, %s, %s)", user, f"{user}@acme.dev", f"Name of {user}")

    def nudge(self, user: str) -> str:
        """Sign somebody up and let them get a mail; its token."""
        self.sign_up(user)
        tick(self.db)
        tick(self.db, "2 hours")
        (email,) = (email for email in self.sandbox.emails if email.to == [f"{user}@acme.dev"])
        return str(email.as_json()["headers"]["List-Unsubscribe"].strip("<>").partition("token=")[2])


def prepare(db: Database, sandbox: Sandbox) -> None:
    db.sql(SET_UP)
    db.sql("SELECT activation.set_secret('hook', %s)", SECRET)
    db.sql(
        "SELECT activation.configure(sender => 'a@acme.dev', api_key => 'env:RESEND_API_KEY', resend_url => %s,"
        " public_url => 'https://acme.dev/activation', webhook_secret => 'secret:hook')",
        sandbox.url,
    )
    db.sql("SELECT activation.set_mode('live')")
    db.sql(LOOP)


def make_app(db: Database, role: str, kind: str = "psycopg") -> FastAPI:
    app = FastAPI(title="Acme", lifespan=lifespan(POOLS[kind], db, role))
    app.include_router(activation_router(lambda: app.state.pool, dashboard=operator))
    return app
