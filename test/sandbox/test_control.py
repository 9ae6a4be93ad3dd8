"""The sandbox from another process: its endpoints under /_sandbox/, and the console script."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from activation.sandbox import Sandbox

MAIL = {"from": "hello@acme.dev", "to": "ada@lovelace.dev", "subject": "Hi", "text": "Hello"}
HEADERS = {"Authorization": "Bearer re_123", "User-Agent": "test"}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as server:
        yield server


def call(sandbox: Sandbox, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    answer = requests.request(method, sandbox.url + path, json=body, timeout=10)
    return answer.status_code, answer.json()


def test_emails_and_log(sandbox: Sandbox) -> None:
    for to in ("ada@lovelace.dev", "grace@hopper.dev", "Ada <ADA@lovelace.dev>"):
        requests.post(sandbox.url + "/emails", json={**MAIL, "to": to}, headers=HEADERS, timeout=10)
    _, found = call(sandbox, "GET", "/_sandbox/emails?to=ada@")
    assert [email["to"] for email in found["emails"]] == ["Ada <ADA@lovelace.dev>", "ada@lovelace.dev"]
    assert found["emails"][0]["id"] == sandbox.emails[2].id
    _, found = call(sandbox, "GET", "/_sandbox/emails?limit=2")
    assert len(found["emails"]) == 2 and found["has_more"]
    _, log = call(sandbox, "GET", "/_sandbox/log?limit=2")
    assert [entry["accepted"] for entry in log["log"]] == [1, 1] and log["held"] == 0
    assert call(sandbox, "POST", "/_sandbox/clear") == (200, {})
    assert (sandbox.emails, sandbox.log) == ([], [])


def test_faults_and_settings(sandbox: Sandbox) -> None:
    faults = [{"kind": "status", "status": 503, "times": 2}, {"kind": "html", "times": None}]
    status, queued = call(sandbox, "POST", "/_sandbox/faults", faults)
    assert status == 200 and [fault["kind"] for fault in queued["faults"]] == ["status", "html"]
    assert requests.post(sandbox.url + "/emails", json=MAIL, headers=HEADERS, timeout=10).status_code == 503
    assert call(sandbox, "GET", "/_sandbox/faults")[1]["faults"][0]["times"] == 1
    assert call(sandbox, "DELETE", "/_sandbox/faults") == (200, {"faults": []})
    assert call(sandbox, "POST", "/_sandbox/settings", {"rate": 5, "latency_ms": 1.5})[1]["rate"] == 5
    assert (sandbox.settings.rate, sandbox.settings.latency_ms) == (5, 1.5)
    assert call(sandbox, "GET", "/_sandbox/settings")[1] == sandbox.settings.as_json()
    assert requests.post(sandbox.url + "/emails", json=MAIL, headers=HEADERS, timeout=10).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/_sandbox/faults", [{"kind": "html"}, {"kind": "nothing"}], 422, "nothing"),
        ("POST", "/_sandbox/faults", {"kind": "html", "color": "red"}, 422, "color"),
        ("POST", "/_sandbox/faults", 7, 422, "kind"),
        ("POST", "/_sandbox/settings", {"rate": "10"}, 422, "rate"),
        ("POST", "/_sandbox/settings", [], 422, "object"),
        ("GET", "/_sandbox/emails?limit=0", None, 422, "limit"),
        ("DELETE", "/_sandbox/log", None, 405, "GET"),
        ("GET", "/_sandbox/nothing", None, 404, "/_sandbox/log"),
    ],
)
def test_refused(sandbox: Sandbox, method: str, path: str, body: Any, status: int, words: str) -> None:
    code, answer = call(sandbox, method, path, body)
    assert code == status and words in answer["message"]
    assert call(sandbox, "GET", "/_sandbox/faults")[1] == {"faults": []}
    assert sandbox.log == [], "none of this is in the log"


@contextlib.contextmanager
def start(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The console script; it does not outlive the test."""
    with subprocess.Popen(
        [sys.executable, "-m", "activation.cli", "sandbox", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_console_script(how: signal.Signals) -> None:
    with Sandbox() as other:
        port = other.url.rpartition(":")[2]
    with start("--port", port, "--rate", "3", "--latency", "1", "--jitter", "2") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert [line.split()[-1] for line in lines] == [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/"]
        answer = requests.post(f"http://127.0.0.1:{port}/emails", json=MAIL, headers=HEADERS, timeout=10)
        assert (answer.status_code, answer.headers["ratelimit-limit"]) == (200, "3")
        process.send_signal(how)
        assert process.wait(10) == 0


def test_console_script_with_its_port_taken(sandbox: Sandbox) -> None:
    port = sandbox.url.rpartition(":")[2]
    with start("--port", port) as process:
        _, error = process.communicate(timeout=10)
    assert process.returncode == 1
    assert error == f"Error: port {port} of 127.0.0.1 is taken; choose another one with --port\n"
