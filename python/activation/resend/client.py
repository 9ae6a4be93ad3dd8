"""A client of Resend's API over HTTP. What an answer means is in outcome.py."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import MaxRetryError, NewConnectionError

import activation
from activation.errors import DeliveryError, Paused, Refused, Unanswered
from activation.resend.outcome import Accepted, parsed, rate_of, refusal, understand

USER_AGENT = f"activation/{activation.__version__} (PostgreSQL extension)"

#: Seconds to connect, seconds without a byte, and seconds in all for one request.
CONNECT_TIMEOUT = 3.0
READ_TIMEOUT = 25.0
TOTAL_TIMEOUT = 30.0

_MAX_ANSWER = 1_000_000


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
        """How long the answer took (seconds)."""
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
            raise refusal(status, answer, headers)
        return parsed(answer)

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
                _thread.departure.rate = rate_of(response.headers)
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
