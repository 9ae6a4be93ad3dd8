"""Each of Resend's rules, request by request."""

from __future__ import annotations

import datetime
import hashlib
import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from activation.sandbox import Sandbox

MAIL: dict[str, Any] = {"from": "hello@acme.dev", "to": "ada@lovelace.dev", "subject": "Hi", "text": "Hello"}
HEADERS = {"Authorization": "Bearer re_123", "User-Agent": "test"}
TEMPLATED: dict[str, Any] = {"to": "ada@lovelace.dev", "template": {"id": "welcome"}}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as server:
        yield server


def post(sandbox: Sandbox, body: Any, path: str = "/emails", **headers: str) -> requests.Response:
    data = body if isinstance(body, (bytes, str)) else json.dumps(body)
    sent = {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return requests.post(sandbox.url + path, data=data, headers=sent, timeout=10)


def outcome(response: requests.Response) -> tuple[int, str]:
    """Status and error name; every error repeats its status in the body."""
    body = response.json()
    assert body["statusCode"] == response.status_code and body["message"]
    return response.status_code, body["name"]


def tags(count: int, name: str = "n", value: str = "v") -> list[dict[str, str]]:
    return [{"name": name, "value": value}] * count


def days(count: float) -> str:
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=count)).isoformat()


@pytest.mark.parametrize(
    "email",
    [
        MAIL,
        {**MAIL, "from": "Ada Lovelace <ada@lovelace.dev>"},
        {**MAIL, "to": [f"Name {n} <u{n}@acme.dev>" for n in range(50)]},
        {**MAIL, "cc": "a@acme.dev", "bcc": ["b@acme.dev"], "reply_to": "r@example.com", "html": None},
        {**MAIL, "text": ""},
        {**MAIL, "tags": tags(75, "n" * 256, "A-Z_0")},
        {**MAIL, "headers": {"X-Entity-Ref-ID": "1"}, "topic_id": "t"},
        {**MAIL, "scheduled_at": "in 1 min"},
        {**MAIL, "scheduled_at": days(29)},
        {**MAIL, "attachments": [{"path": "https://acme.dev/a.pdf"}, {"content": "YQ==", "filename": "a"}]},
        {**MAIL, "unknown_field": {"is": "let through"}},
        TEMPLATED,
        {**TEMPLATED, "template": {"id": "welcome", "variables": {"NAME": "Ada", "COUNT": 2**53 - 1}}},
    ],
)
def test_accepted(sandbox: Sandbox, email: dict[str, Any]) -> None:
    response = post(sandbox, email)
    assert response.status_code == 200
    [accepted] = sandbox.emails
    assert response.json() == {"id": accepted.id}
    assert accepted.fields == {name: value for name, value in email.items() if value is not None}


MISSING, INVALID = (422, "missing_required_field"), (422, "validation_error")


@pytest.mark.parametrize(
    ("email", "expected", "words"),
    [
        ({**MAIL, "from": None}, MISSING, "`from`"),
        ({**MAIL, "to": None}, MISSING, "`to`"),
        ({**MAIL, "subject": None}, MISSING, "`subject`"),
        ({**MAIL, "text": None}, MISSING, "`html` or `text`"),
        ({**TEMPLATED, "to": None}, MISSING, "`to`"),
        ({**MAIL, "from": ["a@acme.dev"]}, INVALID, "`from`"),
        ({**MAIL, "from": "Acme"}, INVALID, "`from`"),
        ({**MAIL, "to": "Ada <ada@lovelace.dev"}, INVALID, "`to`"),
        ({**MAIL, "to": "ada@localhost"}, INVALID, "`to`"),
        ({**MAIL, "to": "ada@lovelace.dev, b@acme.dev"}, INVALID, "`to`"),
        ({**MAIL, "to": "a\r\nBcc: x <ada@lovelace.dev>"}, INVALID, "`to`"),
        ({**MAIL, "to": []}, INVALID, "between 1 and 50"),
        ({**MAIL, "to": ["u@acme.dev"] * 51}, INVALID, "between 1 and 50"),
        ({**MAIL, "to": 7}, INVALID, "`to`"),
        ({**MAIL, "to": "ada@example.com"}, INVALID, "`example.com`"),
        ({**MAIL, "to": ["a@acme.dev", "Ada <ada@TEST.com>"]}, INVALID, "`test.com`"),
        ({**MAIL, "bcc": "ada@example.com"}, INVALID, "`bcc`"),
        ({**MAIL, "reply_to": "nobody"}, INVALID, "`reply_to`"),
        ({**MAIL, "subject": 1}, INVALID, "`subject`"),
        ({**MAIL, "html": ["x"]}, INVALID, "`html`"),
        ({**MAIL, "headers": {"X-Count": 1}}, INVALID, "`headers`"),
        ({**MAIL, "headers": {"X-A": "a\r\nBcc: b@acme.dev"}}, INVALID, "`headers`"),
        ({**MAIL, "headers": {"X A": "a"}}, INVALID, "`headers`"),
        ({**MAIL, "tags": {"name": "n"}}, INVALID, "`tags`"),
        ({**MAIL, "tags": tags(76)}, INVALID, "at most 75"),
        ({**MAIL, "tags": [{"name": "n"}]}, MISSING, "`tags.value`"),
        ({**MAIL, "tags": tags(1, value="with space")}, INVALID, "ASCII"),
        ({**MAIL, "tags": tags(1, name="é")}, INVALID, "ASCII"),
        ({**MAIL, "tags": tags(1, name="n" * 257)}, INVALID, "256"),
        ({**MAIL, "tags": tags(1, value="")}, INVALID, "ASCII"),
        ({**MAIL, "scheduled_at": days(31)}, INVALID, "30 days"),
        ({**MAIL, "scheduled_at": 5}, INVALID, "`scheduled_at`"),
        ({**MAIL, "attachments": [{"filename": "a"}]}, (422, "invalid_attachment"), "`content`"),
        ({**TEMPLATED, "text": "x"}, INVALID, "`template`"),
        ({**TEMPLATED, "react": {}}, INVALID, "`template`"),
        ({**TEMPLATED, "template": {"variables": {}}}, INVALID, "`id`"),
        ({**TEMPLATED, "template": {"id": "w", "variables": {"a-b": "x"}}}, INVALID, "`a-b`"),
        ({**TEMPLATED, "template": {"id": "w", "variables": {"EMAIL": "x"}}}, INVALID, "reserved"),
        ({**TEMPLATED, "template": {"id": "w", "variables": {"N": "x" * 2001}}}, INVALID, "2000"),
        ({**TEMPLATED, "template": {"id": "w", "variables": {"N": True}}}, INVALID, "number"),
        ([MAIL], INVALID, "object"),
        (b'{"from":', (400, "validation_error"), "JSON"),
        (b"[" * 100_000, (400, "validation_error"), "JSON"),
        (b"\xff", (400, "validation_error"), "JSON"),
    ],
)
def test_refused(sandbox: Sandbox, email: Any, expected: tuple[int, str], words: str) -> None:
    response = post(sandbox, email)
    assert outcome(response) == expected
    assert words in response.json()["message"]
    assert sandbox.emails == []


def test_attachments_over_40_mb(sandbox: Sandbox) -> None:
    half = {"content": "A" * (20 * 1024 * 1024), "filename": "a"}
    assert post(sandbox, {**MAIL, "attachments": [half, half]}).status_code == 200
    assert outcome(post(sandbox, {**MAIL, "attachments": [half, half, {"content": "A"}]})) == (
        422,
        "invalid_attachment",
    )


@pytest.mark.parametrize(
    ("batch", "mode", "expected"),
    [
        ({"emails": [MAIL]}, "strict", INVALID),
        ([], "strict", INVALID),
        ([MAIL] * 101, "strict", INVALID),
        ([MAIL] * 101, "permissive", INVALID),
        ([MAIL, "mail"], "strict", INVALID),
        ([MAIL, {**MAIL, "to": "ada@example.com"}, MAIL], "strict", INVALID),
        ([MAIL, {**MAIL, "subject": None}], "strict", MISSING),
        ([MAIL], "lenient", INVALID),
    ],
)
def test_refused_batch(sandbox: Sandbox, batch: Any, mode: str, expected: tuple[int, str]) -> None:
    assert outcome(post(sandbox, batch, "/emails/batch", x_batch_validation=mode)) == expected
    assert sandbox.emails == []


def test_permissive_batch(sandbox: Sandbox) -> None:
    bad = {**MAIL, "to": "ada@example.com"}
    answer = post(sandbox, [bad, MAIL, "mail"], "/emails/batch", x_batch_validation="permissive").json()
    assert answer["data"] == [{"id": sandbox.emails[0].id}]
    assert [error["index"] for error in answer["errors"]] == [0, 2]
    assert "example.com" in answer["errors"][0]["message"]
    assert "errors" not in post(sandbox, [MAIL], "/emails/batch").json(), "strict answers without errors"


def test_batch_drops_attachments_without_a_word(sandbox: Sandbox) -> None:
    assert post(sandbox, [{**MAIL, "attachments": [{"content": "YQ=="}]}], "/emails/batch").status_code == 200
    assert "attachments" not in sandbox.emails[0].fields


@pytest.mark.parametrize("agent", [None, "", "Python-urllib/3.11"])
def test_edge_refuses_the_user_agent(sandbox: Sandbox, agent: str | None) -> None:
    connection = http.client.HTTPConnection(sandbox.url.removeprefix("http://"))
    headers = {"Authorization": "Bearer re_123"} | ({} if agent is None else {"User-Agent": agent})
    connection.request("POST", "/emails", json.dumps(MAIL), headers)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (403, b"error code: 1010")
    assert str(answer.getheader("content-type")).startswith("text/plain")
    connection.close()
    assert [entry.status for entry in sandbox.log] == [403] and sandbox.emails == []


def test_api_keys(sandbox: Sandbox) -> None:
    for authorization in ("", "Bearer ", "Basic re_123"):
        assert outcome(post(sandbox, MAIL, Authorization=authorization)) == (401, "missing_api_key")
    sandbox.configure(api_keys=["re_123"], suspended_keys=["re_old"])
    assert outcome(post(sandbox, MAIL, Authorization="Bearer re_1")) == (403, "invalid_api_key")
    assert outcome(post(sandbox, MAIL, Authorization="Bearer re_old")) == (403, "suspended_api_key")
    assert sandbox.emails == []
    assert post(sandbox, MAIL).status_code == 200


def test_paths_and_methods(sandbox: Sandbox) -> None:
    def call(method: str, path: str) -> tuple[int, str]:
        return outcome(requests.request(method, sandbox.url + path, headers=HEADERS, timeout=10))

    assert call("POST", "/email") == (404, "not_found")
    assert call("GET", "/emails/no-such-id") == (404, "not_found")
    assert call("GET", "/emails/a/b") == (404, "not_found")
    assert call("PUT", "/emails") == (405, "method_not_allowed")
    assert call("DELETE", "/emails/batch") == (405, "method_not_allowed")
    refused = requests.put(sandbox.url + "/emails", headers=HEADERS, timeout=10)
    assert refused.headers["allow"] == "POST, GET"
    assert call("GET", "/emails?limit=101") == INVALID
    assert call("GET", "/emails?after=a&before=b") == INVALID


def test_unreadable_requests_end_the_connection(sandbox: Sandbox) -> None:
    host = sandbox.url.removeprefix("http://")
    for headers, status in (({"Content-Length": "x"}, 400), ({"Content-Length": "9" * 11}, 413)):
        connection = http.client.HTTPConnection(host)
        connection.request("POST", "/emails", headers={**HEADERS, **headers})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("connection")) == (status, "close")
        connection.close()
    assert sandbox.log == []


def test_idempotency_key_length(sandbox: Sandbox) -> None:
    for key in ("", "k" * 257):
        assert outcome(post(sandbox, MAIL, Idempotency_Key=key)) == (400, "invalid_idempotency_key")
    assert sandbox.emails == []
    assert post(sandbox, MAIL, Idempotency_Key="k" * 256).status_code == 200


def test_replay(sandbox: Sandbox) -> None:
    first = post(sandbox, [MAIL, MAIL], "/emails/batch", Idempotency_Key="k")
    again = post(sandbox, [MAIL, MAIL], "/emails/batch", Idempotency_Key="k")
    assert first.content == again.content and len(sandbox.emails) == 2
    changed = post(sandbox, [MAIL], "/emails/batch", Idempotency_Key="k")
    assert outcome(changed) == (409, "invalid_idempotent_request")
    assert [(entry.status, entry.replayed, entry.accepted) for entry in sandbox.log] == [
        (200, False, 2),
        (200, True, 0),
        (409, False, 0),
    ]


def test_key_is_forgotten_after_24_hours(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr("activation.sandbox.state.time", SimpleNamespace(time=lambda: now))
    first = post(sandbox, MAIL, Idempotency_Key="k").json()
    now += 24 * 60 * 60 - 1
    assert post(sandbox, MAIL, Idempotency_Key="k").json() == first
    now += 1
    assert post(sandbox, MAIL, Idempotency_Key="k").json() != first
    assert len(sandbox.emails) == 2


def test_errors_are_not_kept_under_the_key_unless_asked(sandbox: Sandbox) -> None:
    bad = {**MAIL, "to": "ada@example.com"}
    assert outcome(post(sandbox, bad, Idempotency_Key="k")) == INVALID
    assert post(sandbox, MAIL, Idempotency_Key="k").status_code == 200
    sandbox.configure(store_errors=True)
    assert outcome(post(sandbox, bad, Idempotency_Key="k2")) == INVALID
    assert outcome(post(sandbox, MAIL, Idempotency_Key="k2")) == (409, "invalid_idempotent_request")
    assert outcome(post(sandbox, bad, Idempotency_Key="k2")) == INVALID
    assert sandbox.log[-1].replayed and len(sandbox.emails) == 1


def test_key_in_flight(sandbox: Sandbox) -> None:
    sandbox.fail("stall_before")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(post, sandbox, MAIL, Idempotency_Key="k")
        sandbox.wait_for(lambda s: s.held == 1)
        assert outcome(post(sandbox, MAIL, Idempotency_Key="k")) == (409, "concurrent_idempotent_requests")
        assert sandbox.emails == []
        sandbox.release()
        assert first.result().status_code == 200
    assert post(sandbox, MAIL, Idempotency_Key="k").json() == first.result().json()
    assert len(sandbox.emails) == 1


def test_many_clients_with_one_key_send_once(sandbox: Sandbox) -> None:
    sandbox.configure(latency_ms=20, jitter_ms=5)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(sandbox, MAIL, Idempotency_Key="k").status_code, range(40)))
    # How many come while the first is being handled is the machine's business; see test_key_in_flight.
    assert 200 in answers and set(answers) <= {200, 409}
    assert len(sandbox.emails) == 1


def test_rate_limit(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [name for name in post(sandbox, MAIL).headers if name.lower().startswith("ratelimit")]
    now = 1_800_000_000.9
    monkeypatch.setattr("activation.sandbox.state.time", SimpleNamespace(time=lambda: now))
    sandbox.configure(rate=2)

    def limits(response: requests.Response) -> tuple[int, str, str, str | None]:
        headers = response.headers
        assert (headers["ratelimit-reset"], headers["ratelimit-policy"]) == ("1", "2;w=1")
        return (
            response.status_code,
            headers["ratelimit-limit"],
            headers["ratelimit-remaining"],
            headers.get("retry-after"),
        )

    assert limits(post(sandbox, [MAIL] * 100, "/emails/batch")) == (200, "2", "1", None)
    assert limits(post(sandbox, {})) == (422, "2", "0", None)
    third = post(sandbox, MAIL)
    assert outcome(third) == (429, "rate_limit_exceeded")
    assert limits(third) == (429, "2", "0", "1")
    now += 0.1
    assert limits(post(sandbox, MAIL)) == (200, "2", "1", None)


def test_log_entry(sandbox: Sandbox) -> None:
    body = json.dumps(MAIL)
    post(sandbox, body, Idempotency_Key="k")
    [entry] = sandbox.log
    [email] = sandbox.emails
    assert (entry.method, entry.path, entry.idempotency_key, entry.status) == ("POST", "/emails", "k", 200)
    assert entry.body_sha256 == hashlib.sha256(body.encode()).hexdigest()
    assert entry.answered_at is not None and entry.at == email.received_at <= entry.answered_at
    assert email.idempotency_key == "k" and entry.fault is None


def test_test_addresses_and_schedules_show_in_last_event(sandbox: Sandbox) -> None:
    for to in ("bounced@resend.dev", "Ada <complained+label1@resend.dev>", "suppressed@resend.dev", "bounced@acme.dev"):
        post(sandbox, {**MAIL, "to": to})
    post(sandbox, {**MAIL, "scheduled_at": "in 1 min"})
    listed = requests.get(sandbox.url + "/emails", headers=HEADERS, timeout=10).json()["data"]
    assert [email["last_event"] for email in reversed(listed)] == [
        "bounced",
        "complained",
        "suppressed",
        "delivered",
        "scheduled",
    ]


def test_stop_and_start_keep_port_and_mail(sandbox: Sandbox) -> None:
    url, session = sandbox.url, requests.Session()
    assert session.post(url + "/emails", json=MAIL, headers=HEADERS).status_code == 200
    sandbox.stop()
    with pytest.raises(requests.ConnectionError):
        session.post(url + "/emails", json=MAIL, headers=HEADERS)
    sandbox.start()
    assert session.post(url + "/emails", json=MAIL, headers=HEADERS).status_code == 200
    assert sandbox.url == url and len(sandbox.emails) == 2
    sandbox.clear()
    assert (sandbox.emails, sandbox.log) == ([], [])
    session.close()


def test_wait_for_says_what_there_was(sandbox: Sandbox) -> None:
    post(sandbox, MAIL)
    assert sandbox.wait_for(lambda s: len(s.emails)) == 1
    with pytest.raises(TimeoutError, match="1 emails from 1 requests"):
        sandbox.wait_for(lambda s: len(s.emails) == 2, timeout=0.01)


def test_bad_settings(sandbox: Sandbox) -> None:
    for changes in ({"rate": 0}, {"latency_ms": -1}, {"api_keys": "re_1"}, {"no_such": 1}, {"store_errors": 1}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            sandbox.configure(jitter_ms=5, **changes)
    assert sandbox.settings.jitter_ms == 0, "a refused change changes nothing"
