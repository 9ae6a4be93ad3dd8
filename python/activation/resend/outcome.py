"""What Resend's answers mean: the ids of an accepted request, or the error that decides what happens next. Pure.

Sources: Resend's API reference, its error list, and the IETF draft on ratelimit headers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from activation.errors import DeliveryError, Erred, Paused, Terminal, Unanswered, Unknowable

_ID = re.compile(r"[\x21-\x7e]{1,200}")

_SAME_KEY_SOON = {"concurrent_idempotent_requests", "resource_locked"}
_SERVER = {"application_error", "internal_server_error", "service_unavailable", "gateway_timeout"}
_CONTENT = {
    "validation_error",
    "invalid_attachment",
    "invalid_parameter",
    "missing_required_field",
    "missing_required_parameter",
    "invalid_from_address",
    "invalid_idempotency_key",
}
_ACCOUNT = {
    "missing_api_key",
    "invalid_api_key",
    "restricted_api_key",
    "suspended_api_key",
    "invalid_permission",
    "email_above_quota",
    "security_error",
    "invalid_access",
    "invalid_region",
    "not_found",
    "method_not_allowed",
}


@dataclass(frozen=True)
class Accepted:
    """Resend took the request: one id an email, in the order of the request."""

    ids: list[str]


def understand(status: int, body: bytes, headers: Mapping[str, str], emails: int) -> Accepted:
    """The ids of an accepted request. Raises the DeliveryError an answer means, by its error name if it has one."""
    if 200 <= status < 300:
        return _accepted(status, body, emails)
    raise refusal(status, body, headers)


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> DeliveryError:
    """What an answer means that accepts nothing."""
    answer = parsed(body)
    error = answer if isinstance(answer, dict) else {}
    name = _clean(error["name"], 100) if isinstance(error.get("name"), str) else None
    text = _clean(str(error["message"]), 1000) if error.get("message") else _excerpt(body, status)
    wait = _retry_after(headers)
    if name == "rate_limit_exceeded":
        return Paused(text, status=status, name=name, retry_after=wait if wait is not None else 1.0)
    if name == "daily_quota_exceeded":
        return Paused(text, status=status, name=name, until_midnight=True)
    if name == "monthly_quota_exceeded":
        return Paused(text, status=status, name=name)
    if name in _SAME_KEY_SOON:
        return Unanswered(text, status=status, name=name, retry_after=wait if wait is not None else 1.0)
    if name == "invalid_idempotent_request":
        return Unknowable(text, status=status, name=name)
    if name in _SERVER or status >= 500:
        return Erred(text, status=status, name=name, retry_after=wait)
    if name in _ACCOUNT or status in (401, 403, 404, 405) or 300 <= status < 400:
        # A 403 validation_error is about the account (an unverified domain), not about one mail.
        return Paused(text, status=status, name=name)
    if status == 429:
        return Paused(text, status=status, name=name, retry_after=wait if wait is not None else 1.0)
    if status == 408:
        return Unanswered(text, status=status, name=name)
    return Terminal(text, status=status, name=name)


def _accepted(status: int, body: bytes, emails: int) -> Accepted:
    answer = parsed(body)
    entries: Any = None
    if isinstance(answer, dict):
        entries = answer.get("data") if "data" in answer else [answer]
    if isinstance(entries, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("id"), str) and _ID.fullmatch(entry["id"]) for entry in entries
    ):
        if len(entries) == emails:
            return Accepted([entry["id"] for entry in entries])
        raise Unanswered(
            f"answered with {len(entries)} ids for {emails} emails", status=status, name="unexpected_answer"
        )
    raise Unanswered("answered with something that is not a list of ids", status=status, name="unexpected_answer")


def is_content(error: DeliveryError) -> bool:
    """Whether a refusal blames what the request holds, so that a batch is worth splitting."""
    return isinstance(error, Terminal) and (
        error.name in _CONTENT or error.name is None or error.status in (400, 413, 422)
    )


def parsed(body: bytes) -> Any:
    """The JSON of an answer; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _clean(text: str, length: int) -> str:
    """As much of a server's text as the database can store: JSON may hold NULs and halves of characters."""
    return text[:length].encode("utf-8", "replace").decode().replace("\x00", "")


def _excerpt(body: bytes, status: int) -> str:
    text = " ".join(_clean(body[:500].decode("utf-8", "replace"), 500).split())
    return text[:200] or f"HTTP status {status} without a body"


def rate_of(headers: Mapping[str, str]) -> float | None:
    """The rate that an answer names, in requests a second."""
    text = headers.get("ratelimit-limit")
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and 0 < value < 100_000 else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from a retry-after header, given as seconds or as a date; at most an hour."""
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), 3600.0)
