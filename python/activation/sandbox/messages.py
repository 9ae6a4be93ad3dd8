"""A request, a response, and Resend's errors as exceptions that become a response."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, read completely. Header names are in lower case."""

    at: float
    """When it arrived (Unix time)."""
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    hung_up: Callable[[], bool]
    """Whether the client has closed the connection by now."""


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response, complete but for the headers every response has."""

    status: int
    body: bytes
    content_type: str = "application/json; charset=utf-8"
    headers: dict[str, str] = field(default_factory=dict)


def json_response(value: object, status: int = 200) -> Response:
    """A response with `value` as its JSON body."""
    return Response(status, json.dumps(value).encode())


def text_response(text: str, status: int) -> Response:
    """A plain text response, as the network edge in front of the API gives it."""
    return Response(status, text.encode(), "text/plain; charset=UTF-8")


# The name and the words that go with a status when a fault names neither.
DEFAULT_ERRORS = {
    400: ("validation_error", "We found an error with one or more fields in the request."),
    401: ("missing_api_key", "Missing API Key"),
    403: ("validation_error", "You are not allowed to do this."),
    404: ("not_found", "The requested endpoint does not exist"),
    405: ("method_not_allowed", "This endpoint does not support the specified HTTP method."),
    409: ("resource_locked", "The resource is locked. Try the request again later."),
    422: ("validation_error", "We found an error with one or more fields in the request."),
    429: ("rate_limit_exceeded", "Too many requests. You can only make a limited number of requests per second."),
    500: ("application_error", "An unexpected error occurred."),
    503: ("service_unavailable", "The service is temporarily unavailable."),
}


class ApiError(Exception):
    """A refused request: `{statusCode, message, name}`, as Resend answers it."""

    def __init__(self, status: int, name: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.name = name
        self.message = message
        self.headers = headers or {}

    def response(self) -> Response:
        """The error as a response."""
        body = json.dumps({"statusCode": self.status, "message": self.message, "name": self.name}).encode()
        return Response(self.status, body, headers=self.headers)


def invalid(message: str) -> ApiError:
    """A 422 validation_error."""
    return ApiError(422, "validation_error", message)


def missing(field_name: str) -> ApiError:
    """A 422 missing_required_field."""
    return ApiError(422, "missing_required_field", f"Missing {field_name} field.")
