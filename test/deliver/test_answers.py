"""Resend's error table, row by row, through the engine: what becomes of the mail, its key, its tries and the provider.

The rows are those of Resend's error reference, with the names that its SDKs and older copies of the reference add.
"""

from __future__ import annotations

import json

import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import tick
from mail import last_error, received, sign_up, status, statuses, tick_at

#: What comes of an error.
#:   fails       refused for good; nothing else is touched
#:   waits       the provider is paused until somebody acts; made anew under a new key
#:   midnight    the provider is paused until 00:00 UTC; made anew under a new key
#:   seconds     the provider is paused for as long as it asks; made anew under a new key
#:   repeated    perhaps accepted: the same bytes under the same key; no try is spent
#:   tried       perhaps accepted: the same bytes under the same key; a try is spent
#:   unknown     cannot be known; never sent again by itself
TABLE = [
    (400, "invalid_idempotency_key", "fails"),
    (400, "validation_error", "fails"),
    (401, "missing_api_key", "waits"),
    (401, "restricted_api_key", "waits"),
    (403, "validation_error", "waits"),
    (403, "invalid_permission", "waits"),
    (403, "restricted_api_key", "waits"),
    (403, "suspended_api_key", "waits"),
    (403, "email_above_quota", "waits"),
    (403, "invalid_api_key", "waits"),
    (403, "security_error", "waits"),
    (404, "not_found", "waits"),
    (405, "method_not_allowed", "waits"),
    (409, "concurrent_idempotent_requests", "repeated"),
    (409, "resource_locked", "repeated"),
    (409, "invalid_idempotent_request", "unknown"),
    (422, "invalid_attachment", "fails"),
    (422, "invalid_parameter", "fails"),
    (422, "missing_required_field", "fails"),
    (422, "missing_required_parameter", "fails"),
    (422, "validation_error", "fails"),
    (422, "invalid_from_address", "fails"),
    (422, "invalid_access", "waits"),
    (422, "invalid_region", "waits"),
    (429, "rate_limit_exceeded", "seconds"),
    (429, "daily_quota_exceeded", "midnight"),
    (429, "monthly_quota_exceeded", "waits"),
    (500, "application_error", "tried"),
    (500, "internal_server_error", "tried"),
    (503, "service_unavailable", "tried"),
    (504, "gateway_timeout", "tried"),
    # Names of tomorrow: judged by their status.
    (400, "something_new", "fails"),
    (403, "something_new", "waits"),
    (422, "something_new", "fails"),
    (429, "something_new", "seconds"),
    (500, "something_new", "tried"),
]


#: Answers that are no objects of Resend's, as proxies and edges give them.
PAGES = [
    (301, "", "waits"),
    (302, "", "waits"),
    (307, "", "waits"),
    (308, "", "waits"),
    (403, "error code: 1010", "waits"),
    (413, "<html>Request Entity Too Large</html>", "fails"),
    (429, "error code: 1015", "seconds"),
    (500, "<html>Internal Server Error</html>", "tried"),
    (502, "<html>Bad Gateway</html>", "tried"),
    (503, '{"name": "service_unav', "tried"),
    (520, "error code: 520", "tried"),
    (200, "<html>Welcome</html>", "repeated"),
    (200, "", "repeated"),
    (204, "", "repeated"),
    (200, '{"id": "49a3999c-0ce1-4ea6-ab68-', "repeated"),
    (200, '{"data": [{"id": "a"}, {"id": "b"}]}', "repeated"),
]


@pytest.mark.parametrize(("http_status", "name", "outcome"), TABLE)
def test_names(db: Database, live: Connection, sandbox: Sandbox, http_status: int, name: str, outcome: str) -> None:
    sandbox.fail("status", status=http_status, name=name, message="said so", headers={"retry-after": "7"})
    check(db, live, sandbox, outcome, http_status, "said so")


@pytest.mark.parametrize(("http_status", "body", "outcome"), PAGES)
def test_pages(db: Database, live: Connection, sandbox: Sandbox, http_status: int, body: str, outcome: str) -> None:
    headers = {"location": "http://127.0.0.1:9/emails"} if 300 <= http_status < 400 else {"retry-after": "7"}
    sandbox.fail("status", status=http_status, body=body, content_type="text/html", headers=headers)
    check(db, live, sandbox, outcome, http_status, "")


def check(db: Database, live: Connection, sandbox: Sandbox, outcome: str, http_status: int, text: str) -> None:
    """One error, then a healthy provider."""
    sign_up(live, 1)
    tick(db)
    assert len(sandbox.log) == 1 and sandbox.emails == []
    found = db.sql("SELECT http_status, error FROM activation.attempt")
    assert len(found) == 1 and found[0][0] == http_status and text in found[0][1]
    (state,) = statuses(db).values()
    errors = db.value("SELECT error_tries FROM activation.request")
    provider, detail = status(db, "provider")
    if outcome == "fails":
        assert (state, provider) == ("failed", "ok")
    elif outcome == "unknown":
        assert (state, provider) == ("unknown", "ok")
    elif outcome in ("repeated", "tried"):
        assert (state, provider, errors) == ("sending", "ok", int(outcome == "tried"))
    else:
        assert (state, provider, errors) == ("queued", "paused", 0)
        assert text in detail and "1 messages wait" in detail
        assert {"waits": "activation.resume()", "midnight": "00:00 UTC", "seconds": "UTC"}[outcome] in detail

    tick(db, "3 seconds")
    assert len(sandbox.log) == 1
    if outcome == "waits":
        tick(db, "2 days")
        assert len(sandbox.log) == 1
        live.execute("SELECT activation.resume()")
    tick(db, "2 days" if outcome in ("waits", "midnight") else "2 minutes")
    tick(db, "3 days")
    keys = [entry.idempotency_key for entry in sandbox.log]
    if outcome in ("fails", "unknown"):
        assert len(keys) == 1 and statuses(db) == {"1": state} and sandbox.emails == []
    else:
        assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}
        assert len(keys) == 2 and len(set(keys)) == (1 if outcome in ("repeated", "tried") else 2)
        assert len({entry.body_sha256 for entry in sandbox.log}) == 1


ODD_ANSWERS = [
    json.dumps({"name": ["validation_error"], "message": {"a": 1}}),
    '{"name": "validation_error", "message": "a\\u0000b\\ud800c"}',
    '{"name": "valid\\u0000ation", "message": null}',
    "[[[" * 10_000,
    "null",
]


@pytest.mark.parametrize("body", ODD_ANSWERS, ids=range(len(ODD_ANSWERS)))
def test_odd_answers(db: Database, live: Connection, sandbox: Sandbox, body: str) -> None:
    """Whatever stands in an error, it is recorded, and the others' mail goes on."""
    sandbox.fail("status", status=422, body=body, content_type="application/json")
    sign_up(live, 1)
    tick(db)
    sign_up(live, 2)
    tick(db)
    assert statuses(db) == {"1": "failed", "2": "sent"} and last_error(db, 1)
    assert received(sandbox) == {"u2@acme.dev": 1}


def test_the_bad_ones_among_many(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A batch refused for its content is halved until the bad ones are alone: 98 of 100 are sent, once each, in a few
    requests."""
    sandbox.configure(rate=100)
    live.execute("INSERT INTO users (id, email) SELECT g, 'u' || g || '@acme.dev' FROM generate_series(1, 100) g")
    live.execute("UPDATE users SET email = 'blocked@example.com' WHERE id IN (7, 70)")
    live.execute("INSERT INTO actions (user_id) SELECT id FROM users")
    tick(db)
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in range(1, 101) if user not in (7, 70)}
    assert {user for user, state in statuses(db).items() if state == "failed"} == {"7", "70"}
    assert db.value("SELECT count(*) FROM activation.message_log WHERE status = 'sent'") == 98
    # Halves of 100, 50, 25, 13, 7, 4 and 2: at most two of each that hold a bad one, and their other halves.
    assert len(sandbox.log) <= 1 + 2 * 2 * 7


def test_no_connection(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Certainly not accepted: back to the queue, made anew, no try spent."""
    sandbox.stop()
    sign_up(live, 1)
    tick(db)
    assert statuses(db) == {"1": "queued"}
    assert db.sql("SELECT outcome, error_name FROM activation.attempt") == [("refused", "connection_failed")]
    live.execute("UPDATE users SET email = 'new@acme.dev' WHERE id = 1")
    sandbox.start()
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent"}
    assert received(sandbox) == {"new@acme.dev": 1}


def test_a_url_that_is_none(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """One try, then a pause that says why, until the URL is mended."""
    live.execute("SELECT activation.configure(resend_url => 'http://[bad')")
    sign_up(live, 1)
    tick(db)
    tick(db, "1 hour")
    state, detail = status(db, "provider")
    assert state == "paused" and "not a usable URL" in detail and "1 messages wait" in detail
    assert db.value("SELECT count(*) FROM activation.attempt") == 1
    live.execute("SELECT activation.configure(resend_url => %s)", [sandbox.url])
    tick(db, "1 hour")
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}


def test_a_day_s_quota(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Nothing goes before 00:00 UTC, and all of it after, with nobody doing anything."""
    db.sql("SET timezone = 'Asia/Tokyo'")
    sandbox.fail("status", status=429, name="daily_quota_exceeded", message="100 a day")
    sign_up(live, 1, 2)
    tick_at(db, "2030-01-01 22:00 UTC")
    tick_at(db, "2030-01-01 23:59:59 UTC")
    assert len(sandbox.log) == 1 and set(statuses(db).values()) == {"queued"}
    db.sql("SET activation.now = '2030-01-01 23:00 UTC'")
    state, detail = status(db, "provider")
    assert state == "paused" and "2030-01-02 00:00 UTC" in detail and "100 a day" in detail
    db.sql("RESET activation.now")
    tick_at(db, "2030-01-02 00:00:01 UTC")
    assert received(sandbox) == {"u1@acme.dev": 1, "u2@acme.dev": 1}
    assert set(statuses(db).values()) == {"sent"}


def test_a_pause_ends_with_new_settings(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """An unverified domain: another sender mends it."""
    sandbox.fail("status", status=403, name="validation_error", message="acme.dev is not verified")
    sign_up(live, 1)
    tick(db)
    tick(db, "2 days")
    assert len(sandbox.log) == 1 and status(db, "provider")[0] == "paused"
    live.execute("SELECT activation.configure(sender => 'Acme <hello@acme.example>')")
    tick(db, "2 days")
    assert [email.sender for email in sandbox.emails] == ["Acme <hello@acme.example>"]
    assert statuses(db) == {"1": "sent"} and status(db, "provider")[0] == "ok"
