"""Telling what users do, off the path of the request: kept for a moment, then told in batches."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .database import Database, Refused, Unavailable

_log = logging.getLogger("activation")

#: Events told in one statement.
_BATCH = 500
#: Seconds between tries while the database cannot be reached: doubled each time, up to the second one.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class Track(Protocol):
    """What `Depends(tracker)` gives an endpoint."""

    def __call__(
        self, user_id: object, event: str, properties: Mapping[str, Any] | None = None, once: bool = False
    ) -> None: ...


class Tracker:
    """Tells the database what users do, by activation.track_all(), without holding up who says so.

        tracker = Tracker(lambda: app.state.pool)
        app.add_middleware(TrackingMiddleware, tracker=tracker, event="first_api_call")

        @app.post("/exports")
        async def export(user: CurrentUser, track: Annotated[Track, Depends(tracker)]):
            track(user.id, "exported", {"format": "csv"})

    An event is told within `interval` seconds. While the database cannot be reached it is kept and tried again; when
    more than `capacity` wait, or when the app ends before the database is back, some are lost, which is logged and
    counted in `lost`. An event that activation refuses, as of a user who does not exist, is logged and counted in
    `refused`. It is told after the app's own transaction or without it: what must hold together with a row belongs into
    a table.

    database: as activation_router's. Its role needs EXECUTE on activation.track_all.
    """

    def __init__(self, database: Any, *, interval: float = 1.0, capacity: int = 10_000) -> None:
        self._database = Database(database)
        self._interval = interval
        self._capacity = capacity
        self._waiting: deque[str] = deque()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due: asyncio.Handle | None = None
        #: One at a time takes from the front of what waits.
        self._telling = asyncio.Lock()
        #: How many events were told, lost because there was no database for too long, and refused by activation.
        self.told = self.lost = self.refused = 0

    async def __call__(self) -> Track:
        # For who is told from a thread later: an endpoint that is not async.
        self._loop = asyncio.get_running_loop()
        return self.track

    def track(
        self, user_id: object, event: str, properties: Mapping[str, Any] | None = None, once: bool = False
    ) -> None:
        """Tell it soon. Never waits and never raises because of the database; may be called from a thread, too.

        user_id: the user's key, as it stands in the users table. properties: what templates read as
        enrollment.context.properties. once: not again for a user who has this event already.
        """
        if len(self._waiting) >= self._capacity:
            self._lose(1, f"{self._capacity} wait already")
            return
        item = {"user_id": str(user_id), "event": event, "properties": dict(properties or {}), "once": once}
        # Now, as it is now; and so that one that cannot be written spoils no batch.
        if (text := _written(item)) is None:
            self._lose(1, f"the properties of {event!r} cannot be kept as JSON")
            return
        self._waiting.append(text)
        if self._due is None and self._task is None:
            self._wake()

    @property
    def waiting(self) -> int:
        """How many events wait to be told."""
        return len(self._waiting)

    async def flush(self) -> None:
        """Tell now what waits. Raises activation.fastapi.Unavailable, and then it goes on waiting."""
        async with self._telling:
            while self._waiting:
                batch = [self._waiting[n] for n in range(min(_BATCH, len(self._waiting)))]
                try:
                    refused = await self._tell(batch)
                except Refused as error:
                    # Not the fault of one event.
                    _log.error("activation refuses to be told of events: %s", error)
                    self.refused += len(batch)
                else:
                    for user_id, event, problem in refused:
                        _log.warning("activation refuses event %r of user %r: %s", event, user_id, problem)
                    self.refused += len(refused)
                    self.told += len(batch) - len(refused)
                # Only now: what was taken out before it was told would be lost when this is cancelled.
                for _ in batch:
                    self._waiting.popleft()

    async def close(self, timeout: float = 5.0) -> None:
        """Tell what waits, for so many seconds; what is left then is lost, and logged. The app calls it as it ends;
        TrackingMiddleware does it by itself."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(timeout):
                await self.flush()
        if self._waiting:
            self._lose(len(self._waiting), "the app ends")
            self._waiting.clear()

    async def _tell(self, batch: list[str]) -> Any:
        sql = "SELECT user_id, event, problem FROM activation.track_all(CAST($1 AS text)::jsonb)"
        return await self._database.rows(sql, f"[{','.join(batch)}]")

    def _lose(self, number: int, why: str) -> None:
        # The first one, and then each time that it has become ten times as many: a log is not to be flooded, either.
        before = self.lost
        self.lost += number
        if before == 0 or len(str(before)) < len(str(self.lost)):
            _log.error("activation lost events, %d so far: %s", self.lost, why)

    def _wake(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
            self._due = self._loop.call_later(self._interval, self._start)
        except RuntimeError:
            # A thread, as of an endpoint that is not async. Before the first event of the loop itself there is none
            # to go to; then it waits for that, or for close().
            # The handle is not kept: it may have run before it could be.
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self._due = None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._ended)

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while self._waiting:
            try:
                await self.flush()
            except Unavailable as error:
                _log.warning("activation keeps %d events: %s", len(self._waiting), error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._task is task:
            self._task = None
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            _log.error("activation could not tell of events", exc_info=error)
            # Whatever it was, it is not to happen for ever.
            self._lose(len(self._waiting), "see the error before")
            self._waiting.clear()
        elif self._waiting:
            # Whoever came between the last look and now has seen a task that was no longer looking.
            self._wake()


def _written(item: dict[str, Any]) -> str | None:
    """As PostgreSQL reads it; None for what it cannot keep: infinite numbers, halves of letters, the letter
    zero, keys that are no texts."""
    try:
        text = json.dumps(item, default=str, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        return None
    return None if "\\u0000" in text else text


def _of_state(connection: HTTPConnection) -> object | None:
    return getattr(connection.state, "user_id", None)


class TrackingMiddleware:
    """Tells one event for each user who calls the app, once: `first_api_call`, for a loop that waits for it.

        app.add_middleware(TrackingMiddleware, tracker=tracker, event="first_api_call", paths=("/api/",))

    What counts is an answer below 400 to a user who is known. user: a function of the request that says who it was, or
    None; by default `request.state.user_id`, which the app's own dependency for the current user sets. It is asked when
    the answer begins, so that this has happened. paths: how the paths begin that count; by default all. Of whom it has
    been told already is remembered for `remembered` users in each process, and by the database in any case.

    It tells what waits before the app ends, if the server speaks ASGI's lifespan, as uvicorn does.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tracker: Tracker,
        event: str,
        user: Callable[[HTTPConnection], object | None] = _of_state,
        paths: tuple[str, ...] = ("/",),
        remembered: int = 100_000,
    ) -> None:
        self.app = app
        self._tracker, self._event, self._user, self._paths = tracker, event, user, paths
        self._remembered = remembered
        self._known: OrderedDict[object, None] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._paths):

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start" and message["status"] < 400:
                    self._notice(scope)
                await send(message)

            await self.app(scope, receive, watched)
        elif scope["type"] == "lifespan":

            async def last_words() -> Message:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    # While the app's connections are still there.
                    await self._tracker.close()
                return message

            await self.app(scope, last_words, send)
        else:
            await self.app(scope, receive, send)

    def _notice(self, scope: Scope) -> None:
        try:
            user_id = self._user(HTTPConnection(scope))
            if user_id is None:
                return
            key = str(user_id)
            if key in self._known:
                self._known.move_to_end(key)
                return
            self._known[key] = None
            if len(self._known) > self._remembered:
                self._known.popitem(last=False)
            self._tracker.track(key, self._event, once=True)
        except Exception:
            # The app's answer is worth more than our event.
            _log.exception("activation could not tell who called")
