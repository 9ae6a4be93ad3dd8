"""The app: accounts, projects and API keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sqlalchemy import select

from . import accounts, api_keys, mail, projects
from .database import Database, connect


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect when the app starts, hang up when it ends."""
    app.state.engine = connect()
    yield
    app.state.engine.dispose()


app = FastAPI(title="Example app", lifespan=lifespan)
app.include_router(accounts.router)
app.include_router(projects.router)
app.include_router(api_keys.router)
app.include_router(mail.router)


@app.get("/")
def health(database: Database) -> dict[str, str]:
    """Whether the app can reach its database."""
    database.execute(select(1))
    return {"status": "ok"}
