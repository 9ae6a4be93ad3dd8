"""The pages over a million enrollments, and what the middleware adds to a request."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import requests
from common import Effort, Figure, say
from fastapi import FastAPI
from insight import FILL

from activation.fastapi import Tracker, TrackingMiddleware, activation_router
from harness import Cluster
from web import POOLS, app_role, lifespan, serving


def measure(cluster: Cluster, effort: Effort) -> list[Figure]:
    people = 100_000 if effort.quick else 1_000_000
    say(f"The dashboard over {people:,} enrollments …")
    db = cluster.create_database()
    for statement in FILL.format(people=people).split(";"):
        db.sql(statement)
    with app_role(db) as role:
        app = FastAPI(lifespan=lifespan(POOLS["psycopg"], db, role))
        app.include_router(activation_router(lambda: app.state.pool, dashboard=lambda: None))
        with serving(app) as url:

            def dashboard() -> float:
                start = time.perf_counter()
                requests.get(f"{url}/activation/", timeout=120).raise_for_status()
                return time.perf_counter() - start

            first = dashboard()
            shown = [dashboard() * 1000 for _ in range(20)]
    reports = []
    for _ in range(5):
        start = time.perf_counter()
        assert db.value("SELECT activation.report()")
        reports.append(time.perf_counter() - start)
    db.drop()
    return [
        Figure(f"the first dashboard over {people:,} enrollments, which counts them, s", [first]),
        Figure(f"dashboard over {people:,} enrollments, ms", shown, at_most=300, digits=0),
        Figure(f"report() over {people:,} enrollments, s", reports, at_most=1),
        Figure("what the middleware adds to a request, µs", _middleware(effort), at_most=50, digits=1),
    ]


def _middleware(effort: Effort) -> list[float]:
    """The app is called as a server does, without one: by turns with the middleware and without."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def nothing(*_: Any) -> None:
        pass

    async def told(*_: Any, **__: Any) -> list[Any]:
        return []

    async def run() -> list[float]:
        tracker = Tracker(lambda: None)
        tracker._tell = told  # type: ignore[method-assign]
        with_it = TrackingMiddleware(app, tracker=tracker, event="called")

        async def calls(called: Any, users: int) -> float:
            start = time.perf_counter()
            for n in range(10_000):
                await called({"type": "http", "path": "/api", "state": {"user_id": n % users}}, nothing, nothing)
            return (time.perf_counter() - start) / 10_000 * 1e6

        found = []
        for users in (100, 10_000):
            for _ in range(effort.pairs):
                found.append(await calls(with_it, users) - await calls(app, users))
        return found

    return asyncio.run(run())
