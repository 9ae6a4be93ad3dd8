"""Endpoints about the account rather than a mail: its webhook's events, and its suppression list."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .messages import ApiError, Request, Response, invalid, json_response
from .state import State

#: The id of the one webhook there is.
WEBHOOK = "4dd369bc-aa82-4ff3-97de-514ae3000ee0"


class Account:
    """One request about it."""

    def __init__(self, state: State, request: Request) -> None:
        self._state = state
        self._request = request

    def routes(self) -> dict[str, Callable[[], Response | None]]:
        """What the request's path answers to, by method; nothing for a path that is none."""
        match self._request.path.strip("/").split("/"):
            case ["webhooks"]:
                return {"GET": self._webhooks}
            case ["webhooks", webhook, "events"]:
                return {"GET": lambda: self._events(webhook)}
            case ["webhooks", webhook, "events", event]:
                return {"GET": lambda: self._event(webhook, event)}
            case ["suppressions"]:
                return {"GET": self._suppressions, "POST": self._suppress}
            case ["suppressions", "batch", "add"]:
                return {"POST": self._suppress_many}
            case ["suppressions", "batch", "remove"]:
                return {"POST": self._unsuppress_many}
            case ["suppressions", which]:
                return {"DELETE": lambda: self._unsuppress(which)}
        return {}

    def _webhooks(self) -> Response:
        settings = self._state.settings
        webhook = {
            "id": WEBHOOK,
            "created_at": "2026-01-01T00:00:00.000Z",
            "status": "enabled",
            "endpoint": settings.webhook_url or "https://sandbox.invalid/",
            "events": None,
        }
        return json_response({"object": "list", "has_more": False, "data": [webhook]})

    def _events(self, webhook: str) -> Response:
        self._check_webhook(webhook)
        if "before" in self._request.query:
            raise invalid("The `before` parameter is not supported for this endpoint.")
        events = self._state.events()
        page, has_more = self._page([event.id for event in events])
        return json_response(
            {"object": "list", "has_more": has_more, "data": [events[place].summary() for place in page]}
        )

    def _event(self, webhook: str, event_id: str) -> Response:
        self._check_webhook(webhook)
        for event in self._state.events():
            if event.id == event_id:
                more = {"object": "webhook_event", "next_attempt_at": None, "payload": event.payload}
                return json_response({**event.summary(), **more})
        raise ApiError(404, "not_found", "Webhook event not found")

    def _check_webhook(self, webhook: str) -> None:
        if webhook != WEBHOOK:
            raise ApiError(404, "not_found", "Webhook not found")

    def _suppressions(self) -> Response:
        with self._state.changed:
            known = list(self._state.suppressions.values())[::-1]
        origin = self._request.query.get("origin")
        known = [one for one in known if origin in (None, one.origin)]
        page, has_more = self._page([one.id for one in known])
        return json_response(
            {"object": "list", "has_more": has_more, "data": [known[place].as_resend() for place in page]}
        )

    def _suppress(self) -> Response:
        (email,) = _emails([self._body().get("email")])
        return json_response({"object": "suppression", "id": self._state.suppress(email).id}, 201)

    def _suppress_many(self) -> Response:
        made = [self._state.suppress(email) for email in _emails(self._body().get("emails"))]
        return json_response({"data": [{"object": "suppression", "id": one.id} for one in made]}, 201)

    def _unsuppress(self, which: str) -> Response:
        if self._state.unsuppress(which) is None:
            raise ApiError(404, "not_found", "Suppression not found")
        return json_response({"object": "suppression", "deleted": True})

    def _unsuppress_many(self) -> Response:
        body = self._body()
        for which in _emails(body.get("emails") or body.get("ids")):
            self._state.unsuppress(which)
        return json_response({"data": []})

    def _body(self) -> dict[str, Any]:
        try:
            body = json.loads(self._request.body)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise ApiError(400, "validation_error", "The request body is not valid JSON.")
        return body

    def _page(self, ids: list[str]) -> tuple[range, bool]:
        """The places of a page in a list that has the newest first, and whether there are more after it."""
        size, after = page_size(self._request.query), self._request.query.get("after")
        start = ids.index(after) + 1 if after in ids else 0 if after is None else len(ids)
        return range(start, min(start + size, len(ids))), start + size < len(ids)


def page_size(query: Mapping[str, str]) -> int:
    """The `limit` of a list."""
    limit = query.get("limit", "20")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:4]) <= 100:
        raise ApiError(422, "validation_error", "`limit` must be a number between 1 and 100.")
    return int(limit)


def _emails(given: object) -> list[str]:
    if not isinstance(given, list) or not 1 <= len(given) <= 100 or not all(isinstance(one, str) for one in given):
        raise invalid("`emails` must be 1 to 100 email addresses.")
    return given
