"""The router: Resend's webhooks, the pages that mails lead to, and the dashboard."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Depends, Query, Request, params
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from activation import pages
from activation.pages.overview import age

from .database import Database, Refused, Unavailable

#: What activation takes of a webhook, in bytes; a larger body is not read to its end.
LARGEST_WEBHOOK = 1_000_000
#: Forms hold a token and a few topics.
LARGEST_FORM = 100_000

_PROBLEM = "application/problem+json"
_TITLES = {
    400: "The webhook cannot be read",
    401: "The webhook is not signed as it should be",
    403: "The dashboard is closed",
    404: "Not found",
    405: "Method not allowed",
    413: "The body is too large",
    503: "Not just now",
}

# The paths that there are two routes for.
_BOTH = {"GET", "POST"}

# Waiting for a while is what mail programs and Resend do.
_RETRY = {"Retry-After": "5"}

_log = logging.getLogger("activation")


class _Problem(Exception):
    """Ends a request with this status."""

    def __init__(self, status: int, detail: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.detail, self.headers = status, detail, headers

    def response(self, page: bool, title: str) -> Response:
        """page: for a person; else a document as RFC 9457 has it."""
        said = _TITLES.get(self.status, "Refused")
        if page:
            text = self.detail or "Please try again in a few minutes."
            body = pages.message(title, said, text)
            return HTMLResponse(body, self.status, headers={**pages.HEADERS, **(self.headers or {})})
        document = {"type": "about:blank", "title": said, "status": self.status}
        if self.detail:
            document["detail"] = self.detail
        return JSONResponse(document, self.status, media_type=_PROBLEM, headers=self.headers)


class _Route(APIRoute):
    """Answers errors in the form that the caller can read: people get a page, programs a problem document."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            page = self.response_class is _Page
            try:
                return await handle(request)
            except _Problem as problem:
                return problem.response(page, request.url.hostname or "")
            except Unavailable as error:
                _log.warning("activation cannot use the database: %s", error)
                return _Problem(503, headers=_RETRY).response(page, request.url.hostname or "")

        return handled

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        allowed = _BOTH if self.path.endswith(("/unsubscribe", "/preferences")) else self.methods or set()
        problem = _Problem(405, headers={"Allow": ", ".join(sorted(allowed))})
        await problem.response(False, "")(scope, receive, send)


class _Page(HTMLResponse):
    def __init__(self, content: Any = None, status_code: int = 200, headers: Any = None, **more: Any) -> None:
        super().__init__(content, status_code, {**pages.HEADERS, **(headers or {})}, **more)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI."""
    schema = {
        "type": "object",
        "required": ["type", "title", "status"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
        },
    }
    return {status: {"description": _TITLES[status], "content": {_PROBLEM: {"schema": schema}}} for status in statuses}


async def _body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _Problem(413, f"More than {limit} bytes.")
    return bytes(body)


_TOKEN = Query(description="As it stands in the mail's link.")


def activation_router(
    database: Any,
    *,
    dashboard: Callable[..., Any] | params.Depends | None = None,
    prefix: str = "/activation",
    title: str | None = None,
    tags: Sequence[str] = ("activation",),
) -> APIRouter:
    """A router to mount: `app.include_router(activation_router(lambda: app.state.pool))`.

    database: the app's own connections: a psycopg AsyncConnectionPool, an asyncpg Pool, an Engine or AsyncEngine of
        SQLAlchemy, or a function that returns one. Its role needs EXECUTE on receive_webhook, unsubscribe, resubscribe
        and preferences; for the dashboard on overview and why, too.
    dashboard: who may see it: a dependency of the app's, which raises for anybody else. Without one it is closed.
    prefix: where it stands; `activation.configure(public_url => …)` names the same place, as people reach it.
    title: what people know the app as; by default the app's title, if it has one.

    Long because each of its routes is a function inside of it, which shares these arguments.
    """
    db = Database(database)
    # mypy knows tags as a list that may hold enumerations.
    router = APIRouter(prefix=prefix, tags=list(tags), route_class=_Route, default_response_class=_Page)

    def name(request: Request) -> str:
        # What FastAPI calls an app that has no name is nobody that people know.
        return title or str(request.app.title).removesuffix("FastAPI") or "us"

    @router.post(
        "/webhooks",
        status_code=204,
        response_class=Response,
        summary="Take a webhook of Resend's",
        responses=_problems(400, 401, 413, 503),
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
        },
    )
    async def webhooks(request: Request) -> Response:
        """The body as it came: its signature is checked in the database, which has the secret."""
        body = await _body(request, LARGEST_WEBHOOK)
        # A header that came twice is handed over as both, and refused if it matters.
        headers = {
            key: values[0] if len(values) == 1 else values
            for key in set(request.headers)
            # The rest is none of its business: cookies would end in logs.
            if key.startswith(("svix-", "webhook-")) and (values := request.headers.getlist(key))
        }
        try:
            text = body.decode()
            if "\0" in text:
                raise ValueError
        except ValueError:
            raise _Problem(400, "The body is not UTF-8.") from None
        try:
            await db.rows(
                "SELECT activation.receive_webhook($1, CAST($2 AS text)::jsonb)::text", text, json.dumps(headers)
            )
        except Refused as error:
            if not error.code.startswith("HT"):
                raise
            status = int(error.code[2:])
            if status == 503:
                _log.error("activation takes no webhooks: %s", error)
                raise _Problem(503, headers=_RETRY) from None
            raise _Problem(status, str(error).partition("\n")[0]) from None
        return Response(status_code=204)

    @router.get("/unsubscribe", summary="The page behind a mail's unsubscribe link")
    async def page(request: Request, token: Annotated[str, _TOKEN] = "") -> _Page:
        """Changes nothing, since mail scanners follow links; the page has buttons that do."""
        return _Page(pages.unsubscribe(name(request), token))

    @router.post("/unsubscribe", summary="Unsubscribe with one click (RFC 8058)")
    async def unsubscribe(request: Request, token: Annotated[str, _TOKEN] = "", everything: bool = False) -> _Page:
        """A mail program's one click, and the page's buttons. The answer is the same for a token that is none."""
        await _body(request, LARGEST_FORM)
        if _is_text(token):
            await db.rows("SELECT activation.unsubscribe($1, $2)::text", token, everything)
        return _Page(pages.unsubscribed(name(request), token))

    async def preferences_page(request: Request, token: str, saved: bool) -> _Page:
        topics = (
            await db.rows("SELECT topic, name, description, subscribed FROM activation.preferences(token => $1)", token)
            if _is_text(token)
            else []
        )
        return _Page(pages.preferences(name(request), token, topics, saved))

    @router.get("/preferences", summary="The page where somebody chooses which mail they want")
    async def preferences(request: Request, token: Annotated[str, _TOKEN] = "") -> _Page:
        """Changes nothing."""
        return await preferences_page(request, token, False)

    @router.post("/preferences", summary="Save what somebody chose")
    async def choose(request: Request, token: Annotated[str, _TOKEN] = "") -> _Page:
        """The page's form: `topic`, once for each topic that is wanted; the empty one is everything else."""
        form = parse_qs((await _body(request, LARGEST_FORM)).decode("latin-1"), keep_blank_values=True)
        if _is_text(token):
            await db.rows(_CHOOSE, token, json.dumps([topic for topic in form.get("topic", []) if _is_text(topic)]))
        return await preferences_page(request, token, True)

    guard = [] if dashboard is None else [dashboard if isinstance(dashboard, params.Depends) else Depends(dashboard)]
    counting: set[asyncio.Task[None]] = set()

    def is_open() -> None:
        if dashboard is None:
            raise _Problem(
                403, "It opens with activation_router(…, dashboard=…), a dependency that lets in whom it is for."
            )

    async def count_again() -> None:
        try:
            await db.rows("SELECT FROM activation.overview(max_age => '0')", timeout=600)
        except (Unavailable, Refused) as error:
            _log.warning("activation could not count people and mails again: %s", error)

    # Not as a parameter of the endpoint: what the app's dependency asks for belongs to the app's own documentation.
    @router.get("/", summary="The dashboard", dependencies=[Depends(is_open), *guard], responses=_problems(403))
    async def show(request: Request) -> _Page:
        """How the loops do, what waits, and what went wrong. Numbers that take long are counted beside the request."""
        ((text,),) = await db.rows("SELECT activation.overview(max_age => '30 days')::text", timeout=60)
        overview = json.loads(text)
        took = float(overview["numbers_took"])
        stale = age(overview) > max(60, 100 * took)
        if stale and not counting:
            task = asyncio.create_task(count_again())
            counting.add(task)
            task.add_done_callback(counting.discard)
        return _Page(pages.dashboard(overview, "people/", int(took) + 3 if stale else None))

    @router.get(
        "/people",
        summary="Find a user's timeline",
        dependencies=[Depends(is_open), *guard],
        responses=_problems(403),
        status_code=303,
        response_class=Response,
    )
    async def find(user_id: str) -> Response:
        """The dashboard's form: leads to the user's own address."""
        return Response(status_code=303, headers={"Location": f"people/{quote(user_id, safe='')}"})

    @router.get(
        "/people/{user_id:path}",
        summary="One user's timeline",
        dependencies=[Depends(is_open), *guard],
        responses=_problems(403, 404),
    )
    async def person(user_id: str) -> _Page:
        """Why somebody did or did not get a mail."""
        events = await db.rows(_WHY, user_id) if _is_text(user_id) else []
        # In none of the loops, since there is no such user.
        if all(code == "no_user" for *_, code in events):
            raise _Problem(404, "Nothing is known of this user.")
        return _Page(pages.person(user_id, [event[:-1] for event in events]))

    return router


# The empty topic is everything: who takes that away wants none of the others, either.
_CHOOSE = """
    SELECT CASE WHEN CAST($2 AS text)::jsonb ? p.topic THEN activation.resubscribe($1, p.topic)
                ELSE activation.unsubscribe($1, topic => p.topic) END::text
      FROM activation.preferences(token => $1) p
     WHERE p.subscribed <> (CAST($2 AS text)::jsonb ? p.topic)
"""

_WHY = """
    SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), coalesce(loop, ''), event, detail, code
      FROM activation.why($1)
"""


def _is_text(value: str) -> bool:
    """Whether PostgreSQL could have written it."""
    return "\0" not in value
