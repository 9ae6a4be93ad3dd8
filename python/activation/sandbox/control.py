"""The sandbox's own endpoints under /_sandbox/: what a test in another process sets and asks."""

from __future__ import annotations

import json
from collections.abc import Callable

from .faults import Fault
from .messages import ApiError, Request, Response, json_response
from .state import State

DEFAULT_LIMIT = 100


class Control:
    """JSON over HTTP; no key is asked for, and nothing here is logged or counted against the rate."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._routes: dict[tuple[str, str], Callable[[Request], object]] = {
            ("GET", "/_sandbox/emails"): self._emails,
            ("GET", "/_sandbox/log"): self._log,
            ("GET", "/_sandbox/faults"): self._faults,
            ("POST", "/_sandbox/faults"): self._add_faults,
            ("DELETE", "/_sandbox/faults"): self._clear_faults,
            ("GET", "/_sandbox/settings"): self._settings,
            ("POST", "/_sandbox/settings"): self._change_settings,
            ("POST", "/_sandbox/events"): self._happen,
            ("POST", "/_sandbox/release"): self._release,
            ("POST", "/_sandbox/clear"): self._clear,
        }

    def response(self, request: Request) -> Response:
        """Answer one request."""
        try:
            route = self._routes.get((request.method, request.path))
            if route is not None:
                return json_response(route(request))
            methods = [method for method, path in self._routes if path == request.path]
            if methods:
                raise ApiError(405, "method_not_allowed", "Use " + " or ".join(methods), {"allow": ", ".join(methods)})
            raise ApiError(404, "not_found", "Known paths: " + ", ".join(sorted({path for _, path in self._routes})))
        except ApiError as error:
            return error.response()
        except ValueError as error:
            return ApiError(422, "validation_error", str(error)).response()

    def _emails(self, request: Request) -> object:
        emails, has_more = self._state.newest(_limit(request), to=request.query.get("to"))
        return {"emails": [email.as_json() for email in emails], "has_more": has_more}

    def _log(self, request: Request) -> object:
        limit = _limit(request)
        with self._state.changed:
            return {"log": [entry.as_json() for entry in self._state.log[-limit:]], "held": self._state.held}

    def _faults(self, request: Request) -> object:
        with self._state.changed:
            return {"faults": self._state.faults.as_json()}

    def _add_faults(self, request: Request) -> object:
        body = _json(request)
        # All are read before the first is queued, so that a bad one changes nothing.
        faults = [Fault.from_json(item) for item in (body if isinstance(body, list) else [body])]
        with self._state.changed:
            for fault in faults:
                self._state.faults.add(fault)
            return {"faults": self._state.faults.as_json()}

    def _clear_faults(self, request: Request) -> object:
        self._state.clear_faults()
        return {"faults": []}

    def _settings(self, request: Request) -> object:
        return self._state.settings.as_json()

    def _change_settings(self, request: Request) -> object:
        body = _json(request)
        if not isinstance(body, dict):
            raise ValueError("the settings must be a JSON object")
        with self._state.changed:
            self._state.settings.change(**body)
            return self._state.settings.as_json()

    def _happen(self, request: Request) -> object:
        body = _json(request)
        if (
            not isinstance(body, dict)
            or not isinstance(body.get("type"), str)
            or not isinstance(body.get("data"), dict)
        ):
            raise ValueError("an event is an object with a type and data")
        return {"id": self._state.happen(body).id}

    def _release(self, request: Request) -> object:
        self._state.release()
        return {}

    def _clear(self, request: Request) -> object:
        self._state.clear()
        return {}


def _json(request: Request) -> object:
    try:
        return json.loads(request.body)
    except ValueError as error:
        raise ValueError(f"the body is not JSON: {error}") from None


def _limit(request: Request) -> int:
    """How many to return: the newest so many."""
    text = request.query.get("limit", str(DEFAULT_LIMIT))
    if not text.isascii() or not text.isdigit() or int(text[:9]) < 1:
        raise ValueError("'limit' must be a positive number")
    return int(text[:9])
