"""Who is left to be mailed when a message is claimed; a claim that finds nobody is not the end of the queue."""

from __future__ import annotations

from collections import Counter

import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import loop_status, tick
from mail import last_error, received, sign_up, statuses


def test_user_deleted(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute("SELECT activation.configure(api_key => 'env:NOT_THERE')")
    sign_up(live, 1, 2, 3)
    tick(db)
    live.execute("DELETE FROM users WHERE id = 1")
    # One that no trigger sees is found out when the mail is about to go.
    live.execute(
        "SET session_replication_role = replica; DELETE FROM users WHERE id = 3; RESET session_replication_role"
    )
    live.execute("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
    tick(db)
    assert statuses(db) == {"1": "cancelled", "2": "sent", "3": "cancelled"}
    assert last_error(db, 1) == "the user was deleted"
    assert last_error(db, 3) == "the user was deleted"
    assert received(sandbox) == {"u2@acme.dev": 1}


def test_no_nudge_for_who_has_acted(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """The deadline has passed and the nudge is queued; then the user acts, before it is claimed."""
    live.execute("SELECT activation.configure(api_key => 'env:NOT_THERE')")
    sign_up(live, 1, 2, acts=False)
    tick(db, "2 hours")
    assert statuses(db) == {"1": "queued", "2": "queued"}
    live.execute("INSERT INTO actions (user_id) VALUES (1)")
    live.execute("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
    tick(db, "2 hours")
    assert statuses(db) == {"1": "cancelled", "2": "sent"}
    assert [email.subject for email in sandbox.emails] == ["Ready when you are"]
    assert received(sandbox) == {"u2@acme.dev": 1}
    assert db.value("SELECT activated_at IS NOT NULL FROM activation.journey WHERE user_id = '1'")


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
    """A loop whose compiled functions are gone keeps its own messages back, and no others, however many come first."""
    live.execute("SELECT activation.configure(api_key => 'env:NOT_THERE')")
    live.execute(
        "SELECT activation.define_loop('second', trigger => activation.on_insert('users'),"
        " action => activation.email('activation_nudge'))"
    )
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
    assert loop_status(db, "second")[0] == "failing"
    live.execute("SELECT activation.bind()")
    tick(db, "5 minutes")
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in range(1, 351)} | {"u351@acme.dev": 2}
