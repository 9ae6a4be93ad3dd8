"""Resend's API: from a request to the answer it gets. Knows nothing of sockets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import validation
from .account import Account, page_size
from .faults import REFUSING, Fault
from .messages import ApiError, Request, Response, json_response, text_response
from .records import Email, LogEntry
from .state import Slot, State


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send (None: nothing, close the connection), the fault to send it with, and where to log it."""

    response: Response | None
    fault: Fault | None
    entry: LogEntry


class Api:
    """The endpoints, over the sandbox's state."""

    def __init__(self, state: State) -> None:
        self._state = state

    def answer(self, request: Request) -> Answer:
        """Handle one request, up to the point where its answer would be written."""
        entry = LogEntry(
            request.at,
            request.method,
            request.path,
            request.headers.get("idempotency-key"),
            hashlib.sha256(request.body).hexdigest(),
        )
        self._state.begin(entry)
        return _Handling(self._state, request, entry).answer()


class _Handling:
    """One request on its way through the API."""

    def __init__(self, state: State, request: Request, entry: LogEntry) -> None:
        self._state = state
        self._request = request
        self._entry = entry
        self._fault: Fault | None = None
        settings = state.settings
        latency = (settings.latency_ms + random.uniform(0, settings.jitter_ms)) / 1000
        self._way_there = latency * settings.way_there
        self._way_back = latency - self._way_there
        self._delayed = False

    def answer(self) -> Answer:
        # Order matters: the edge comes before the API, and only a request that reaches the API uses up a fault.
        rate_headers: dict[str, str] = {}
        response: Response | None
        try:
            if not _is_good_agent(self._request.headers.get("user-agent", "")):
                return Answer(text_response("error code: 1010", 403), None, self._entry)
            route = self._route()
            self._check_api_key()
            self._travel()
            rate_headers = self._state.count_against_rate()
            response = route()
        except ApiError as error:
            response = error.response()
        self._delay()
        if response is not None and rate_headers:
            response = dataclasses.replace(response, headers={**rate_headers, **response.headers})
        return Answer(response, self._fault, self._entry)

    def _route(self) -> Callable[[], Response | None]:
        method, path = self._request.method, self._request.path
        if path == "/emails":
            routes: dict[str, Callable[[], Response | None]] = {"POST": self._send, "GET": self._list}
        elif path == "/emails/batch":
            routes = {"POST": self._send}
        elif path.startswith("/emails/") and path.count("/") == 2:
            routes = {"GET": self._retrieve}
        else:
            routes = Account(self._state, self._request).routes()
        if not routes:
            raise ApiError(404, "not_found", "The requested endpoint does not exist")
        if method not in routes:
            message = "This endpoint does not support the specified HTTP method."
            raise ApiError(405, "method_not_allowed", message, {"allow": ", ".join(routes)})
        return routes[method]

    def _check_api_key(self) -> None:
        scheme, _, key = self._request.headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise ApiError(401, "missing_api_key", "Missing API Key")
        settings = self._state.settings
        if key in settings.suspended_keys:
            raise ApiError(403, "suspended_api_key", "This API key is suspended")
        if settings.api_keys is not None and key not in settings.api_keys:
            raise ApiError(403, "invalid_api_key", "API key is invalid")

    def _send(self) -> Response | None:
        fault = self._fault = self._state.take_fault(self._entry)
        if fault is None or fault.kind not in REFUSING:
            response = self._send_once()
            return fault.response() if fault and fault.kind in ("error_after", "garbage") and response else response
        if fault.kind == "drop_before":
            return None
        return fault.response()

    def _send_once(self) -> Response | None:
        """Send, or answer as before if the idempotency key was used before."""
        key = self._entry.idempotency_key
        slot: Slot | None = None
        if key is not None:
            if not 1 <= len(key) <= 256:
                message = "The idempotency key must be between 1-256 characters."
                raise ApiError(400, "invalid_idempotency_key", message)
            slot = (key, self._entry.method, self._entry.path)
            earlier = self._state.reserve(slot, self._entry.body_sha256)
            if earlier is not None:
                self._entry.replayed = True
                return earlier
        stalls = self._fault is not None and self._fault.kind == "stall_before"
        if stalls and not self._state.hold(self._request.hung_up):
            if slot is not None:
                self._state.forget(slot)
            return None
        self._delay()
        try:
            emails, response = self._accept()
        except ApiError as error:
            emails, response = [], error.response()
        self._state.settle(slot, response, emails, self._entry)
        return response

    def _accept(self) -> tuple[list[Email], Response]:
        """Validate the body; the emails in it and the response that acknowledges them."""
        try:
            body = json.loads(self._request.body)
        except (ValueError, RecursionError):
            raise ApiError(400, "validation_error", "The request body is not valid JSON.") from None
        if self._entry.path == "/emails":
            fields = validation.check_email(body)
            validation.check_attachments(fields)
            email = self._email(0, fields)
            return [email], json_response({"id": email.id})
        return self._accept_batch(validation.check_batch(body))

    def _accept_batch(self, batch: list[object]) -> tuple[list[Email], Response]:
        mode = self._request.headers.get("x-batch-validation", "strict")
        if mode not in ("strict", "permissive"):
            raise ApiError(422, "validation_error", "`x-batch-validation` must be `strict` or `permissive`.")
        emails: list[Email] = []
        errors: list[dict[str, Any]] = []
        for index, item in enumerate(batch):
            try:
                fields = validation.check_email(item)
            except ApiError as error:
                if mode == "strict":
                    raise
                errors.append({"index": index, "message": error.message})
                continue
            # Resend takes a batch with attachments and sends it without them.
            fields.pop("attachments", None)
            emails.append(self._email(index, fields))
        answer: dict[str, Any] = {"data": [{"id": email.id} for email in emails]}
        if mode == "permissive":
            answer["errors"] = errors
        return emails, json_response(answer)

    def _email(self, index: int, fields: dict[str, Any]) -> Email:
        entry = self._entry
        email = Email(str(uuid.uuid4()), entry.at, entry.path, index, entry.idempotency_key, fields)
        if self._state.suppressions and self._state.is_suppressed(email.to):
            email = dataclasses.replace(email, suppressed=True)
        return email

    def _retrieve(self) -> Response:
        email = self._state.find(self._request.path.rpartition("/")[2])
        if email is None:
            raise ApiError(404, "not_found", "Email not found")
        return json_response(email.as_resend())

    def _list(self) -> Response:
        query = self._request.query
        limit = page_size(query)
        after, before = query.get("after"), query.get("before")
        if after is not None and before is not None:
            raise ApiError(422, "validation_error", "`after` and `before` can't be combined.")
        # A page "after" an email goes down the list, to older ones: the list has the newest first.
        if before is None:
            emails, has_more = self._state.newest(limit, after)
        else:
            emails, has_more = self._state.newer(limit, before)
        return json_response({"object": "list", "has_more": has_more, "data": [email.as_resend() for email in emails]})

    def _travel(self) -> None:
        """The part of the latency before the request counts against the rate."""
        if self._way_there > 0:
            time.sleep(self._way_there)

    def _delay(self) -> None:
        """The rest of the latency, once a request: while the key is in flight, if there is one."""
        if self._delayed:
            return
        self._delayed = True
        wait = self._way_back
        if self._fault is not None and self._fault.kind == "latency":
            wait += self._fault.ms / 1000
        if wait > 0:
            time.sleep(wait)


def _is_good_agent(agent: str) -> bool:
    """Resend's edge wants a User-Agent, and bans the one urllib sends by itself."""
    return bool(agent.strip()) and not agent.startswith("Python-urllib")
