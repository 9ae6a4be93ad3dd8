"""How requests are made, paced and recorded, by deliverers that work at the same time."""

from __future__ import annotations

import json
from collections import Counter

import psycopg
import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database, wait_until
from loops import tick
from mail import Worker, promise, received, sign_up, status, statuses, tick_at

DEFINE = """SELECT activation.define_loop(%s, trigger => activation.on_insert('users'),
    action => activation.email('activation_nudge'), recovery => activation.retry(%s))"""


def keys(sandbox: Sandbox) -> Counter[str | None]:
    return Counter(entry.idempotency_key for entry in sandbox.log)


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


def test_250_people(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute("INSERT INTO users (id, email) SELECT g, 'u' || g || '@acme.dev' FROM generate_series(1, 250) g")
    live.execute("INSERT INTO actions (user_id) SELECT id FROM users")
    tick(db)
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in range(1, 251)}
    assert sum(entry.accepted for entry in sandbox.log) == 250 and max(entry.accepted for entry in sandbox.log) == 100
    assert set(keys(sandbox).values()) == {1}
    assert Counter(statuses(db).values()) == {"sent": 250}


@pytest.mark.parametrize("mode", ["live", "capture"])
def test_many_who_are_gone(db: Database, live: Connection, sandbox: Sandbox, mode: str) -> None:
    """A claim in which nobody is left to mail is not the end of the queue: one tick() does all that is due."""
    live.execute("SELECT activation.configure(api_key => 'env:NOT_THERE')")
    live.execute("INSERT INTO users (id, email) SELECT g, 'u' || g || '@acme.dev' FROM generate_series(1, 601) g")
    live.execute("INSERT INTO actions (user_id) SELECT id FROM users")
    tick(db)
    db.sql(
        "UPDATE activation.message SET next_attempt_at = next_attempt_at + user_id::integer * interval '1 microsecond'"
    )
    live.execute("DELETE FROM users WHERE id <= 600")
    live.execute("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
    if mode == "capture":
        live.execute("SELECT activation.set_mode('capture')")
    tick(db)
    assert Counter(statuses(db).values()) == {"cancelled": 600, "sent" if mode == "live" else "captured": 1}
    assert received(sandbox) == ({"u601@acme.dev": 1} if mode == "live" else {})


def test_many_of_a_loop_that_fails(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Nor is a claim in which all are put back because their loop cannot be asked."""
    live.execute("SELECT activation.configure(api_key => 'env:NOT_THERE')")
    live.execute(DEFINE, ["second", 3])
    live.execute("INSERT INTO users (id, email) SELECT g, 'u' || g || '@acme.dev' FROM generate_series(1, 350) g")
    tick(db)
    live.execute("SELECT activation.pause_loop('second')")
    sign_up(live, 351)
    live.execute("SELECT activation.resume_loop('second')")
    live.execute('DROP FUNCTION activation_compiled."second: users (2.v1)"(text[])')
    live.execute("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
    tick(db)
    assert received(sandbox) == {"u351@acme.dev": 1}
    assert Counter(state for (state,) in db.sql("SELECT status FROM activation.message_log")) == {
        "queued": 351,
        "sent": 1,
    }


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


@pytest.mark.parametrize(
    ("fault", "repeated", "recorded"),
    [("stall", 200, "sent"), ("stall_before", 409, "unanswered")],
)
def test_a_worker_whose_lease_has_passed_on(
    db: Database, live: Connection, sandbox: Sandbox, fault: str, repeated: int, recorded: str
) -> None:
    """It comes back with an answer when another has taken over: it records nothing over that one's, but what it has
    learnt counts, and the mail exists once."""
    sign_up(live, 1)
    tick(db)
    sandbox.fail(fault, times=1)
    promise(db, live, 2)
    worker = Worker(db)
    sandbox.wait_for(lambda s: s.held == 1)
    tick(db, "50 seconds")
    assert len(sandbox.log) == 2
    # The lease is over; the worker does not know.
    tick(db, "70 seconds")
    assert [entry.status for entry in sandbox.log][2:] == [repeated]
    sandbox.release()
    wait_until(lambda: sandbox.log[1].status == 200)
    db.sql("SELECT activation.stop()")
    assert worker.ended(30) and worker.error is None
    worker.connection.close()
    assert statuses(db) == {"1": "sent", "2": "sent"}
    attempts = "SELECT outcome FROM activation.attempt a JOIN activation.message m USING (message_id)"
    assert db.sql(f"{attempts} WHERE user_id = '2' ORDER BY attempt") == [(recorded,), ("sent",)]
    tick(db, "3 minutes")
    assert received(sandbox) == {"u1@acme.dev": 1, "u2@acme.dev": 1}
    assert sorted(keys(sandbox).values()) == [1, 2]


def test_a_cancel_while_recording_is_obeyed_afterwards(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """What was accepted is written down first."""
    promise(db, live)
    sandbox.fail("stall", times=1)
    worker = Worker(db)
    sandbox.wait_for(lambda s: s.held == 1)

    def blocked_since() -> object:
        """When the statement that waits for a row began."""
        rows = db.sql(
            "SELECT query_start, xact_start FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'",
            worker.pid,
        )
        return rows and rows[0]

    with db.connect(autocommit=False) as other:
        other.execute("SELECT FROM activation.request FOR UPDATE")
        sandbox.release()
        first = wait_until(blocked_since)
        db.sql("SELECT pg_cancel_backend(%s)", worker.pid)
        wait_until(lambda: (now := blocked_since()) and now != first)
    assert worker.ended(20)
    assert isinstance(worker.error, psycopg.errors.QueryCanceled)
    worker.connection.close()
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}


def test_the_secret_of_a_stored_key(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A key stored in the database; the provider knows no other."""
    sandbox.configure(api_keys=["re_stored"])
    live.execute("SELECT activation.configure(api_key => 'secret:resend')")
    sign_up(live, 1)
    tick(db)
    assert statuses(db) == {"1": "queued"} and "no secret is stored" in status(db, "provider")[1]
    live.execute("SELECT activation.set_secret('resend', %s)", ["re_stored"])
    tick(db)
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}


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
