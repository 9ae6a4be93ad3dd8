"""What an answer of Resend's means: the whole table of its errors, by name."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from activation.errors import DeliveryError, Erred, Paused, Refused, Terminal, Unanswered, Unknowable
from activation.resend import Resend, is_content, understand

TABLE: list[tuple[int, str, type[DeliveryError]]] = [
    (400, "invalid_idempotency_key", Terminal),
    (400, "validation_error", Terminal),
    (401, "missing_api_key", Paused),
    (401, "restricted_api_key", Paused),
    (403, "validation_error", Paused),
    (403, "invalid_permission", Paused),
    (403, "restricted_api_key", Paused),
    (403, "suspended_api_key", Paused),
    (403, "email_above_quota", Paused),
    (403, "invalid_api_key", Paused),
    (404, "not_found", Paused),
    (405, "method_not_allowed", Paused),
    (409, "concurrent_idempotent_requests", Unanswered),
    (409, "resource_locked", Unanswered),
    (409, "invalid_idempotent_request", Unknowable),
    (422, "invalid_attachment", Terminal),
    (422, "invalid_parameter", Terminal),
    (422, "missing_required_field", Terminal),
    (422, "missing_required_parameter", Terminal),
    (422, "validation_error", Terminal),
    (422, "invalid_from_address", Terminal),
    (422, "invalid_access", Paused),
    (422, "invalid_region", Paused),
    (429, "rate_limit_exceeded", Refused),
    (429, "daily_quota_exceeded", Paused),
    (429, "monthly_quota_exceeded", Paused),
    (500, "application_error", Erred),
    (500, "internal_server_error", Erred),
    (503, "service_unavailable", Erred),
    # Not in the table: judged by the status.
    (429, "something_new", Refused),
    (422, "something_new", Terminal),
    (502, "something_new", Erred),
]


def meaning(status: int, body: bytes, headers: dict[str, str] | None = None) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        understand(status, body, headers or {}, 1)
    return caught.value


@pytest.mark.parametrize(("status", "name", "expected"), TABLE)
def test_errors(status: int, name: str, expected: type[DeliveryError]) -> None:
    error = meaning(status, json.dumps({"statusCode": status, "name": name, "message": "why"}).encode())
    assert type(error) is expected
    assert (error.status, error.name, error.text) == (status, name, "why")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (403, b"error code: 1010\n", Paused),
        (502, b"<html><h1>502 Bad Gateway</h1></html>", Erred),
        (500, b"", Erred),
        (200, b"OK", Unanswered),
        (200, b'{"id": "a', Unanswered),
        (200, b'{"id": 7}', Unanswered),
        (200, b'{"data": [{"id": "a"}, {"id": "b"}]}', Unanswered),
        (301, b"", Paused),
        (200, b"[" * 100_000, Unanswered),
    ],
)
def test_bodies_that_are_no_error_objects(status: int, body: bytes, expected: type[DeliveryError]) -> None:
    assert type(meaning(status, body)) is expected


def test_accepted() -> None:
    assert understand(200, b'{"id": "a", "new": 1}', {}, 1).ids == ["a"]
    assert understand(200, b'{"data": [{"id": "a"}, {"id": "b"}]}', {}, 2).ids == ["a", "b"]


def test_retry_after() -> None:
    body = b'{"name": "rate_limit_exceeded", "message": ""}'
    assert meaning(429, body, {"retry-after": "7"}).retry_after == 7
    assert meaning(429, body).retry_after == 1
    assert meaning(429, body, {"retry-after": "soon"}).retry_after == 1
    assert meaning(429, body, {"retry-after": "nan"}).retry_after == 1
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    found = meaning(429, body, {"retry-after": date}).retry_after
    assert found is not None and 20 < found <= 30
    assert meaning(429, body, {"retry-after": "999999"}).retry_after == 3600


def test_what_splits_a_batch() -> None:
    assert is_content(Terminal("", status=422, name="validation_error"))
    assert not is_content(Paused("", status=403, name="validation_error"))
    assert not is_content(Erred("", status=500))


def test_nothing_listens() -> None:
    """Certainly not accepted; the text does not hold the key."""
    attempt = Resend("http://127.0.0.1:9", "re_secret").send("/emails", "{}", "key", 1)
    assert isinstance(attempt.outcome, Refused)
    assert "re_secret" not in str(attempt.outcome)


def test_a_host_that_does_not_exist() -> None:
    attempt = Resend("http://nowhere.invalid", "re_secret").send("/emails", "{}", "key", 1)
    assert isinstance(attempt.outcome, Refused)
