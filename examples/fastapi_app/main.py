"""The app: accounts, projects and API keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from sqlalchemy import select

from activation.fastapi import Tracker, TrackingMiddleware, activation_router

from . import accounts, api_keys, projects
from .auth import require_operator
from .database import Database, connect
from .models import FIRST_API_CALL


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
# Resend's webhooks, the pages behind the links in every mail, and a dashboard.
app.include_router(activation_router(lambda: app.state.engine, dashboard=require_operator))
# No table tells that somebody's program has called the API. Beside the request: a call waits for none of it.
tracker = Tracker(lambda: app.state.engine)
app.add_middleware(TrackingMiddleware, tracker=tracker, event=FIRST_API_CALL)


@app.get("/start", include_in_schema=False)
def start() -> FileResponse:
    """The one page that this app has of its own: sign up, log in, create projects, by the API below."""
    return FileResponse(Path(__file__).parent / "start.html")


@app.get("/")
def health(database: Database) -> dict[str, str]:
    """Whether the app can reach its database."""
    database.execute(select(1))
    return {"status": "ok"}
