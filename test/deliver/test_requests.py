"""What a request looks like: how many mails it holds, its key, its bytes, and who shares it."""

from __future__ import annotations

import json
from collections import Counter

from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import tick
from mail import received, sign_up, statuses

DEFINE = """SELECT activation.define_loop(%s, trigger => activation.on_insert('users'),
    action => activation.email('activation_nudge'), recovery => activation.retry(%s))"""


def keys(sandbox: Sandbox) -> Counter[str | None]:
    return Counter(entry.idempotency_key for entry in sandbox.log)


def test_one_and_many(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """One mail goes alone, many go a hundred a request, each under a key and with the message's id in a tag."""
    sign_up(live, 1)
    tick(db)
    sign_up(live, *range(2, 252))
    tick(db)
    assert set(statuses(db).values()) == {"sent"} and len(statuses(db)) == 251
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in range(1, 252)}
    assert sorted((entry.path, entry.accepted) for entry in sandbox.log) == [
        ("/emails", 1),
        ("/emails/batch", 50),
        ("/emails/batch", 100),
        ("/emails/batch", 100),
    ]
    assert len(keys(sandbox)) == 4 and set(keys(sandbox).values()) == {1}
    tags = {email.tags["activation_message"] for email in sandbox.emails}
    assert tags == {str(row[0]) for row in db.sql("SELECT message_id FROM activation.message_log")}
    assert db.value("SELECT count(DISTINCT resend_id) FROM activation.message_log") == 251


def test_what_a_request_looks_like(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """The key is the request's id; each mail has one recipient, our sender, and is found by its tag."""
    live.execute("SELECT activation.configure(reply_to => 'help@acme.dev')")
    sign_up(live, 1, 2)
    tick(db)
    ((request, members),) = db.sql("SELECT request_id::text, members::text[] FROM activation.request")
    assert keys(sandbox) == {request: 1}
    assert [email.tags["activation_message"] for email in sandbox.emails] == members
    for email in sandbox.emails:
        assert (email.sender, email.reply_to) == ("Acme <hello@acme.dev>", ["help@acme.dev"])
        assert len(email.to) == 1 and email.html and email.text
        recipient, resend_id = db.sql(
            "SELECT recipient, resend_id FROM activation.message_log WHERE message_id = %s::uuid",
            email.tags["activation_message"],
        )[0]
        assert (recipient, resend_id) == (email.to[0], email.id)


def test_the_stored_body_is_what_was_sent(db: Database, live: Connection, sandbox: Sandbox) -> None:
    sign_up(live, 1)
    tick(db)
    body = json.loads(db.value("SELECT body FROM activation.request"))
    (email,) = sandbox.emails
    assert body["subject"] == email.subject and body["html"] == email.html and body["to"] == ["u1@acme.dev"]


def test_what_is_recovered_alike_goes_together(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute(DEFINE, ["second", 1])
    live.execute(DEFINE, ["third", 3])
    sign_up(live, 1, 2, 3)
    tick(db)
    assert received(sandbox) == {f"u{user}@acme.dev": 3 for user in (1, 2, 3)}
    # Three retries are what `first` has by default, too.
    assert sorted(entry.accepted for entry in sandbox.log) == [3, 6]
    mixed = db.sql(
        "SELECT r.request_id, array_agg(DISTINCT v.definition #>> '{recovery,retries}') FROM activation.request r"
        " JOIN activation.message m USING (request_id) JOIN activation.loop_version v USING (loop_id, version)"
        " GROUP BY 1 ORDER BY 2"
    )
    assert [retries for _, retries in mixed] == [["1"], ["3"]]


def test_bytes_are_kept(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A repeated request is the stored one, whatever has changed meanwhile: to the user it was already sent."""
    sandbox.fail("drop_after")
    sign_up(live, 1, 2)
    tick(db)
    live.execute("UPDATE users SET email = 'new@acme.dev', name = 'New' WHERE id = 1")
    live.execute("DELETE FROM users WHERE id = 2")
    live.execute("SELECT activation.configure(sender => 'Other <other@acme.dev>')")
    live.execute("SELECT activation.pause_loop('first')")
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent", "2": "sent"}
    assert received(sandbox) == {"u1@acme.dev": 1, "u2@acme.dev": 1}
    assert len({(entry.idempotency_key, entry.body_sha256) for entry in sandbox.log}) == 1 and len(sandbox.log) == 2
    body = json.loads(db.value("SELECT body FROM activation.request"))
    assert sorted(email["to"] for email in body) == [["u1@acme.dev"], ["u2@acme.dev"]]
