"""Each fault: what the client sees, and what the sandbox has accepted."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from activation.sandbox import KINDS, Sandbox

MAIL = {"from": "hello@acme.dev", "to": "ada@lovelace.dev", "subject": "Hi", "text": "Hello"}
HEADERS = {"Authorization": "Bearer re_123", "User-Agent": "test", "Idempotency-Key": "k"}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as server:
        yield server


def send(sandbox: Sandbox, path: str = "/emails") -> requests.Response:
    body: Any = MAIL if path == "/emails" else [MAIL]
    return requests.post(sandbox.url + path, json=body, headers=HEADERS, timeout=10)


def connect(sandbox: Sandbox) -> socket.socket:
    """A connection on which a send has been written."""
    host, port = sandbox.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    body = json.dumps(MAIL)
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    connection.sendall(f"POST /emails HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def retried(sandbox: Sandbox) -> bool:
    """Repeat the request: whether the answer is that of an earlier one. Either way it was sent once."""
    assert send(sandbox).json() == {"id": sandbox.emails[0].id}
    assert len(sandbox.emails) == 1
    return sandbox.log[-1].replayed


def test_status(sandbox: Sandbox) -> None:
    sandbox.fail("status", times=2)
    sandbox.fail("status", status=429, name="monthly_quota_exceeded", message="Full", headers={"retry-after": "9"})
    sandbox.fail("status", status=403, body="error code: 1010", content_type="text/plain")
    for _ in range(2):
        answer = send(sandbox)
        assert (answer.status_code, answer.json()["name"]) == (500, "application_error")
    answer = send(sandbox)
    assert answer.json() == {"statusCode": 429, "message": "Full", "name": "monthly_quota_exceeded"}
    assert answer.headers["retry-after"] == "9"
    answer = send(sandbox)
    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (403, "error code: 1010", "text/plain")
    assert [entry.fault for entry in sandbox.log] == ["status"] * 4 and sandbox.emails == []
    assert not retried(sandbox)


def test_html(sandbox: Sandbox) -> None:
    sandbox.fail("html")
    answer = send(sandbox)
    assert answer.status_code == 502 and answer.headers["content-type"].startswith("text/html")
    assert "<h1>" in answer.text and sandbox.emails == []


@pytest.mark.parametrize(("kind", "accepted"), [("drop_before", False), ("drop_after", True)])
def test_drop(sandbox: Sandbox, kind: str, accepted: bool) -> None:
    sandbox.fail(kind)
    with connect(sandbox) as connection:
        assert read_all(connection) == b""
    [entry] = sandbox.log
    assert (entry.fault, entry.status, entry.accepted) == (kind, None, int(accepted))
    assert len(sandbox.emails) == int(accepted)
    assert retried(sandbox) == accepted


def test_error_after(sandbox: Sandbox) -> None:
    sandbox.fail("error_after", status=503)
    answer = send(sandbox)
    assert (answer.status_code, answer.json()["name"]) == (503, "service_unavailable")
    assert sandbox.log[0].accepted == 1
    assert retried(sandbox)


def test_garbage(sandbox: Sandbox) -> None:
    sandbox.fail("garbage")
    answer = send(sandbox)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/json")
    with pytest.raises(requests.JSONDecodeError):
        answer.json()
    assert retried(sandbox)


def test_partial(sandbox: Sandbox) -> None:
    sandbox.fail("partial")
    with connect(sandbox) as connection:
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"Content-Length: 46" in head and len(body) == 23
    assert retried(sandbox)


def test_stall(sandbox: Sandbox) -> None:
    sandbox.fail("stall")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(send, sandbox)
        sandbox.wait_for(lambda s: s.held == 1)
        assert len(sandbox.emails) == 1 and sandbox.log[0].answered_at is None
        assert retried(sandbox), "accepted: a repeated request need not wait"
        assert not answer.done()
        sandbox.release()
        assert answer.result().json() == {"id": sandbox.emails[0].id}
    assert (sandbox.held, sandbox.log[0].status) == (0, 200)


def test_stall_ends_when_the_client_hangs_up(sandbox: Sandbox) -> None:
    sandbox.fail("stall")
    with connect(sandbox):
        sandbox.wait_for(lambda s: s.held == 1)
    sandbox.wait_for(lambda s: s.held == 0)
    sandbox.wait_for(lambda s: s.log[0].answered_at is not None)
    assert sandbox.log[0].status is None
    assert retried(sandbox)


def test_stall_before_accepts_nothing_when_the_client_hangs_up(sandbox: Sandbox) -> None:
    sandbox.fail("stall_before")
    with connect(sandbox):
        sandbox.wait_for(lambda s: s.held == 1)
    sandbox.wait_for(lambda s: s.log[0].answered_at is not None)
    assert sandbox.emails == [] and sandbox.held == 0
    assert not retried(sandbox)


def test_clearing_faults_releases_what_is_held(sandbox: Sandbox) -> None:
    sandbox.fail("stall", times=None)
    with ThreadPoolExecutor() as pool:
        keys = [{**HEADERS, "Idempotency-Key": key} for key in "ab"]
        answers = [pool.submit(requests.post, sandbox.url + "/emails", json=MAIL, headers=key) for key in keys]
        sandbox.wait_for(lambda s: s.held == 2)
        sandbox.clear_faults()
        assert [answer.result().status_code for answer in answers] == [200, 200]
    assert send(sandbox).status_code == 200 and sandbox.log[-1].fault is None


def test_stopping_ends_what_is_held(sandbox: Sandbox) -> None:
    sandbox.fail("stall")
    with connect(sandbox) as connection:
        sandbox.wait_for(lambda s: s.held == 1)
        sandbox.stop()
        assert read_all(connection) == b""
    sandbox.wait_for(lambda s: s.held == 0)


def test_trickle(sandbox: Sandbox) -> None:
    sandbox.fail("trickle", ms=1)
    with connect(sandbox) as connection:
        pieces = [connection.recv(65536)]
        while not b"".join(pieces).endswith(b"}"):
            pieces.append(connection.recv(65536))
    whole = b"".join(pieces)
    assert len(pieces) > len(whole) / 4, "it comes in small pieces"
    assert json.loads(whole.partition(b"\r\n\r\n")[2]) == {"id": sandbox.emails[0].id}


def test_latency(sandbox: Sandbox) -> None:
    sandbox.fail("latency", ms=120)
    send(sandbox)
    sandbox.configure(latency_ms=60, jitter_ms=30)
    send(sandbox)
    once, always = ((entry.answered_at or 0) - entry.at for entry in sandbox.log)
    assert once >= 0.12 and always >= 0.06


def test_endpoint_and_order(sandbox: Sandbox) -> None:
    sandbox.fail("status", status=503, endpoint="/emails/batch", times=None)
    sandbox.fail("status", status=500)
    assert [send(sandbox, path).status_code for path in ("/emails/batch", "/emails", "/emails", "/emails/batch")] == [
        503,
        500,
        200,
        503,
    ]
    assert requests.get(sandbox.url + "/emails", headers=HEADERS, timeout=10).status_code == 200


def test_a_fault_waits_for_a_request_that_gets_through(sandbox: Sandbox) -> None:
    sandbox.fail("drop_before")
    refused = requests.post(sandbox.url + "/emails", json=MAIL, headers={"User-Agent": "test"}, timeout=10)
    assert refused.status_code == 401
    with pytest.raises(requests.ConnectionError):
        send(sandbox)


def test_bad_faults(sandbox: Sandbox) -> None:
    for kind in KINDS:
        sandbox.fail(kind)
    sandbox.clear_faults()
    bad: list[tuple[str, dict[str, Any]]] = [
        ("no_such_kind", {}),
        ("status", {"times": 0}),
        ("status", {"endpoint": "/emails/"}),
        ("status", {"status": 99}),
        ("status", {"headers": {"a": "b\r\nc: d"}}),
        ("status", {"name": 7}),
        ("latency", {"ms": -1}),
    ]
    for kind, options in bad:
        with pytest.raises(ValueError, match=next(iter(options), "no_such_kind")):
            sandbox.fail(kind, **options)
    assert send(sandbox).status_code == 200
