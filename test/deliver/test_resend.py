"""What an answer of Resend's means: the whole table of its errors, by name."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from activation.errors import DeliveryError, Erred, Paused, Refused, Terminal, Unanswered, Unknowable
from activation.resend import client as resend
from activation.resend.client import Departure, Resend
from activation.resend.outcome import Accepted, is_content, understand
from activation.sandbox import Sandbox

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
    (429, "rate_limit_exceeded", Paused),
    (429, "daily_quota_exceeded", Paused),
    (429, "monthly_quota_exceeded", Paused),
    (500, "application_error", Erred),
    (500, "internal_server_error", Erred),
    (503, "service_unavailable", Erred),
    # Not in the table: judged by the status.
    (429, "something_new", Paused),
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


@pytest.mark.parametrize("name", [["x"], {"a": 1}, 7, None, True])
def test_a_name_that_is_none(name: object) -> None:
    """Judged by the status, like an answer without a name."""
    error = meaning(422, json.dumps({"name": name, "message": "why"}).encode())
    assert (type(error), error.name, error.text) == (Terminal, None, "why")


def test_what_the_database_cannot_store() -> None:
    error = meaning(500, b'{"name": "a\\u0000b\\ud800", "message": "c\\u0000d\\udfff' + b"e" * 5000 + b'"}')
    assert error.name == "ab?" and error.text.startswith("cd?ee") and len(error.text) <= 1000
    assert type(meaning(200, b'{"id": "a\\u0000"}')) is Unanswered
    assert type(meaning(200, b'{"id": "\\ud800"}')) is Unanswered
    assert type(meaning(200, b'{"id": ""}')) is Unanswered


def outcome_at(url: str, verify: str | None = None) -> object:
    client = Resend(url, "re_secret")
    if verify is not None:
        client._session().verify = verify
    outcome = client.send("/emails", json.dumps(MAIL), "key", 1).outcome
    assert "re_secret" not in repr(outcome) + str(outcome)
    return outcome


MAIL = {"from": "a@acme.dev", "to": ["b@acme.dev"], "subject": "s", "text": "t"}


@pytest.mark.parametrize("url", ["http://[bad", "http://a:99999", "ftp://acme.dev"])
def test_a_url_that_is_none(url: str) -> None:
    """Nothing will be accepted until somebody mends the setting."""
    assert type(outcome_at(url)) is Paused


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("drop_before", Unanswered),
        ("drop_after", Unanswered),
        ("partial", Unanswered),
        ("garbage", Unanswered),
        ("error_after", Erred),
        ("html", Erred),
        ("trickle", Accepted),
    ],
)
def test_faults_of_a_real_connection(fault: str, expected: type) -> None:
    """After each, the same bytes under the same key bring the mail in once."""
    with Sandbox() as sandbox:
        sandbox.fail(fault, ms=1)
        assert type(outcome_at(sandbox.url)) is expected
        assert type(outcome_at(sandbox.url)) is Accepted
        assert len(sandbox.emails) == 1


def test_the_rate_is_known_though_the_answer_breaks_off() -> None:
    """Else the requests after it would leave as if there were none."""
    with Sandbox(rate=7) as sandbox:
        sandbox.fail("partial")
        broken = Resend(sandbox.url, "re_test").send("/emails", json.dumps(MAIL), "key", 1)
        assert isinstance(broken.outcome, Unanswered) and broken.rate == 7


def test_an_answer_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte at a time satisfies every socket's timeout; the total deadline ends it."""
    monkeypatch.setattr(resend, "TOTAL_TIMEOUT", 0.1)
    with Sandbox() as sandbox:
        sandbox.fail("trickle", ms=2)
        outcome = outcome_at(sandbox.url)
        assert isinstance(outcome, Unanswered) and "in time" in outcome.text
        assert len(sandbox.emails) == 1


def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resend, "READ_TIMEOUT", 0.2)
    with Sandbox() as sandbox:
        sandbox.fail("stall")
        outcome = outcome_at(sandbox.url)
        assert isinstance(outcome, Unanswered) and outcome.name == "read_timeout"


def test_no_proxy_and_no_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the server's environment nor the other side decides where a key is sent."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY")
    with Sandbox() as sandbox, Sandbox() as elsewhere:
        sandbox.fail("status", status=307, body="", headers={"location": elsewhere.url + "/emails"})
        assert type(outcome_at(sandbox.url)) is Paused
        assert type(outcome_at(sandbox.url)) is Accepted
        assert elsewhere.log == []


@contextmanager
def raw_server(answer: bytes, *, reset: bool = False) -> Iterator[str]:
    """A server that reads a request, answers with these bytes and closes; reset: with RST in the place of FIN."""

    def serve() -> None:
        connection, _ = listener.accept()
        while b'"subject"' not in connection.recv(65536):
            pass
        connection.sendall(answer)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize(
    ("answer", "reset", "expected"),
    [
        (b"", False, Unanswered),
        (b"", True, Unanswered),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", True, Unanswered),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", False, Unanswered),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", False, Unanswered),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nnope", False, Unanswered),
        (b"\x00\x01\x02 what\r\n\r\n", False, Unanswered),
        (b'HTTP/1.1 200 OK\r\n\xff\xfe: x\r\ncontent-length: 10\r\n\r\n{"id":"a"}', False, Accepted),
        (b'HTTP/1.0 200 OK\r\n\r\n{"id":"a"}', False, Accepted),
        (b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{"id":"a"}', False, Accepted),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n" + b" " * 2_000_000, False, Unanswered),
    ],
    ids=range(11),
)
def test_answers_that_are_not_quite_http(answer: bytes, reset: bool, expected: type) -> None:
    """Perhaps accepted, in every case in which the ids are not there."""
    with raw_server(answer, reset=reset) as url:
        assert type(outcome_at(url)) is expected


def test_nobody_accepts_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full backlog drops the handshake: certainly not accepted."""
    monkeypatch.setattr(resend, "CONNECT_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as waiting:
        for _ in range(8):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        outcome = outcome_at(f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert isinstance(outcome, Refused) and outcome.name == "connect_timeout"


def test_plain_http_behind_https() -> None:
    with Sandbox() as sandbox:
        outcome = outcome_at(sandbox.url.replace("http:", "https:"))
        assert isinstance(outcome, Unanswered | Refused) and sandbox.emails == []


@contextmanager
def tls_server(folder: Path, answer: bytes | None) -> Iterator[tuple[str, str]]:
    """An https server that takes one request and answers with these bytes in the place of TLS; URL and certificate."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve() -> None:
        plain, _ = listener.accept()
        with suppress(OSError):
            connection = context.wrap_socket(plain, server_side=True)
            while b'"subject"' not in connection.recv(65536):
                pass
            raw = socket.socket(fileno=connection.detach())
            if answer is not None:
                raw.sendall(answer)
            raw.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"https://localhost:{listener.getsockname()[1]}", str(certificate)
        thread.join(10)


def test_a_certificate_that_cannot_be_verified(tmp_path: Path) -> None:
    """Certainly not accepted: the request was not sent."""
    with tls_server(tmp_path, None) as (url, _):
        outcome = outcome_at(url)
        assert isinstance(outcome, Refused) and outcome.name == "tls_error"


@pytest.mark.parametrize("answer", [b"this is not a TLS record", None])
def test_tls_that_breaks_after_the_request(tmp_path: Path, answer: bytes | None) -> None:
    """Perhaps accepted: it must be repeated under the same key, never made anew."""
    with tls_server(tmp_path, answer) as (url, certificate):
        assert type(outcome_at(url, certificate)) is Unanswered


def test_when_it_left() -> None:
    """Known while the answer is awaited: after the connection was made, before the answer; None if it never left."""
    email = {"from": "a@acme.dev", "to": ["ada@acme.dev"], "subject": "Hi", "text": "Hi"}
    departure = Departure()
    with Sandbox() as server:
        client = Resend(server.url, "re_test")
        server.fail("stall", times=1)
        with ThreadPoolExecutor(1) as pool:
            begun = time.time()
            sent = pool.submit(client.send, "/emails", json.dumps(email), "key", 1, 0.0, departure)
            server.wait_for(lambda s: s.held == 1)
            # Head and body leave one after the other; the server may have seen both before this thread sees the second.
            left_at = departure.at
            released = time.time()
            server.release()
            tried = sent.result()
    assert left_at is not None and begun <= tried.started_at <= left_at <= released <= tried.finished_at
    assert tried.left_at == departure.at and left_at <= tried.left_at <= tried.finished_at
    assert tried.rtt == tried.finished_at - tried.left_at
    never = Departure()
    tried = client.send("/emails", json.dumps(email), "key", 1, 0.0, never)
    assert isinstance(tried.outcome, Refused) and never.at is None and tried.left_at == tried.finished_at
