"""One request to Resend's API, and what its answer means. The only place that knows error names and HTTP.

Sources: Resend's API reference, its error list, and the IETF draft on ratelimit headers.
"""

from __future__ import annotations

import json
import math
import re
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import MaxRetryError, NewConnectionError

import activation
from activation.errors import DeliveryError, Erred, Paused, Refused, Terminal, Unanswered, Unknowable

USER_AGENT = f"activation/{activation.__version__} (PostgreSQL extension)"

#: Seconds to connect, seconds without a byte, and seconds in all for one request.
CONNECT_TIMEOUT = 3.0
READ_TIMEOUT = 25.0
TOTAL_TIMEOUT = 30.0

_MAX_ANSWER = 1_000_000
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


@dataclass(frozen=True)
class Try:
    """One try: what came of it, the rate the server named (requests a second), and when it began, left and ended
    (seconds since the epoch). Between the first two a connection may have been made."""

    outcome: Accepted | DeliveryError
    rate: float | None
    started_at: float
    left_at: float
    finished_at: float

    @property
    def rtt(self) -> float:
        return self.finished_at - self.left_at


@dataclass
class Departure:
    """When a request left (seconds since the epoch): told to another thread while the answer is awaited. And the rate
    that the answer names, which holds even where the rest of it never comes."""

    at: float | None = None
    rate: float | None = None


_thread = threading.local()


class _Departing:
    """A connection that writes down when it has sent what it was given."""

    def send(self, data: Any) -> None:
        super().send(data)  # type: ignore[misc]
        _thread.departure.at = time.time()


class _HTTPConnection(_Departing, HTTPConnection):
    pass


class _HTTPSConnection(_Departing, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        super().init_poolmanager(*arguments, **more)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}


class Resend:
    """A client for one base URL and key. Used from several threads, each with a connection of its own."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._local = threading.local()

    def _session(self) -> requests.Session:
        session = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            # No proxies, netrc or certificates from whatever environment the server was started in.
            session.trust_env = False
            session.mount("http://", _Adapter())
            session.mount("https://", _Adapter())
            session.headers.update(
                {
                    "Authorization": f"Bearer {self._api_key}",
                    "User-Agent": USER_AGENT,
                    "Content-Type": "application/json",
                    "Accept": "application/json",
                }
            )
            self._local.session = session
        return session

    def send(
        self,
        endpoint: str,
        body: str,
        key: str,
        emails: int,
        not_before: float = 0.0,
        departure: Departure | None = None,
    ) -> Try:
        """POSTs a stored body. endpoint: /emails or /emails/batch. key: the idempotency key. emails: how many it holds.
        not_before: when it may leave (seconds since the epoch). departure: is told when it left.

        Never raises for anything the network or the provider does: that is the outcome.
        """
        time.sleep(max(0.0, not_before - time.time()))
        left = _thread.departure = departure or Departure()
        started = time.time()
        outcome: Accepted | DeliveryError
        try:
            status, answer, headers = self._exchange("POST", endpoint, body.encode(), {"Idempotency-Key": key})
            outcome = understand(status, answer, headers, emails)
        except DeliveryError as error:
            outcome = error
        ended = time.time()
        return Try(outcome, left.rate, started, left.at or ended, ended)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Any other request, and the JSON of its answer. Raises the DeliveryError that its failure means."""
        _thread.departure = Departure()
        data = None if body is None else json.dumps(body).encode()
        status, answer, headers = self._exchange(method, path, data, {})
        if not 200 <= status < 300:
            raise _refusal(status, answer, headers)
        return _json(answer)

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes, Mapping[str, str]]:
        deadline = time.monotonic() + TOTAL_TIMEOUT
        try:
            with self._session().request(
                method,
                self._base_url + path,
                data=body,
                headers=headers,
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                allow_redirects=False,
                stream=True,
            ) as response:
                _thread.departure.rate = _number(response.headers.get("ratelimit-limit"))
                return response.status_code, _read(response, deadline), response.headers
        except requests.RequestException as error:
            raise _network(error) from None


def _read(response: requests.Response, deadline: float) -> bytes:
    """The body. A socket's timeout only bounds the silence between bytes, so an answer that trickled in past the
    deadline is none; a thread that it keeps for longer is given up by the deliverer."""
    parts: list[bytes] = []
    size = 0
    for part in response.iter_content(65536 if response.headers.get("content-length") else 1024):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise Unanswered("the answer did not end in time", status=response.status_code)
        if size > _MAX_ANSWER:
            raise Unanswered("the answer is too long", status=response.status_code)
    return b"".join(parts)


def _network(error: requests.RequestException) -> DeliveryError:
    # The exception's own text may quote the request; only its kind is told.
    if isinstance(error, requests.ConnectTimeout):
        return Refused("no connection: timed out", name="connect_timeout")
    cause = error.args[0] if error.args else None
    reason = cause.reason if isinstance(cause, MaxRetryError) else cause
    if isinstance(error, requests.exceptions.SSLError):
        # Only a certificate is certainly judged before anything is sent; other TLS errors also end an open connection.
        found = (reason, *getattr(reason, "args", ()))
        if any(isinstance(part, ssl.SSLCertVerificationError) for part in found):
            return Refused("no connection: the server's certificate cannot be verified", name="tls_error")
        return Unanswered("TLS failed before an answer came", name="tls_error")
    if isinstance(error, requests.ConnectionError):
        if isinstance(reason, NewConnectionError):
            return Refused("no connection: host unknown or connection refused", name="connection_failed")
        return Unanswered("the connection broke before an answer came", name="connection_lost")
    if isinstance(error, requests.Timeout):
        return Unanswered("no answer in time", name="read_timeout")
    if isinstance(
        error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema | requests.exceptions.MissingSchema
    ):
        return Paused("resend_url is not a usable URL", name="invalid_url")
    return Unanswered(f"the answer could not be read: {type(error).__name__}", name="broken_answer")


def understand(status: int, body: bytes, headers: Mapping[str, str], emails: int) -> Accepted:
    """The ids of an accepted request. Raises the DeliveryError an answer means, by its error name if it has one."""
    if 200 <= status < 300:
        return _accepted(status, body, emails)
    raise _refusal(status, body, headers)


def _refusal(status: int, body: bytes, headers: Mapping[str, str]) -> DeliveryError:
    answer = _json(body)
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
    answer = _json(body)
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


def _json(body: bytes) -> Any:
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


def _number(text: str | None) -> float | None:
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
