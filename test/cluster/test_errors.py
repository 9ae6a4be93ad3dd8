"""Resend's error table, row by row, through the engine: what becomes of the mail, its key, its tries and the provider.

The rows are those of Resend's error reference, with the names that its SDKs and older copies of the reference add.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import tick
from mail import go_live, received, sign_up, status, statuses

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


@pytest.fixture
def live(db: Database, sandbox: Sandbox) -> Iterator[Connection]:
    connection = db.connect()
    go_live(connection, sandbox)
    sign_up(connection, 1)
    yield connection
    connection.close()


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
