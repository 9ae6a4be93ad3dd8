"""More faults, each ending with a count on both sides: backoff, mixed outcomes, odd answers and values, and the key."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import tick
from mail import last_error, received, sign_up, status, statuses, tick_at

START = datetime.fromisoformat("2030-01-01 12:00:00+00:00")


def define_with(connection: Connection, recovery: str) -> None:
    """The loop `first` again, with another recovery."""
    connection.execute(
        "SELECT activation.define_loop('first', trigger => activation.on_insert('users'),"
        f" action => activation.email('activation_welcome'), recovery => {recovery})"
    )


def waits_until_done(db: Database) -> list[float]:
    """Tick at the very moment each try is due; the waits between them, in seconds."""
    at, waits = START, []
    while True:
        tick_at(db, at.isoformat())
        due = db.sql(
            "SELECT next_attempt_at FROM activation.request WHERE state = 'open' AND next_attempt_at < 'infinity'"
        )
        if not due:
            return waits
        waits.append((due[0][0] - at).total_seconds())
        # Not before it is due.
        tries = db.value("SELECT max(attempts) FROM activation.message_log")
        tick_at(db, (due[0][0] - timedelta(milliseconds=1)).isoformat())
        assert db.value("SELECT max(attempts) FROM activation.message_log") == tries
        at = due[0][0]


@pytest.mark.parametrize(
    ("recovery", "bases"),
    [
        ("activation.retry()", [30, 60, 120]),
        ("activation.retry(0)", []),
        ("activation.retry(2, 'fixed', initial => '10 seconds')", [10, 10]),
        ("activation.retry(5, initial => '1 minute', max => '3 minutes')", [60, 120, 180, 180, 180]),
    ],
)
def test_the_waits_between_tries(
    db: Database, live: Connection, sandbox: Sandbox, recovery: str, bases: list[float]
) -> None:
    """As the loop says, a fifth more or less; then the message has failed, and nothing was accepted."""
    define_with(live, recovery)
    sandbox.fail("status", status=500, message="oops", times=None)
    sign_up(live, 1, 2, 3)
    waits = waits_until_done(db)
    assert len(waits) == len(bases)
    for wait, base in zip(waits, bases, strict=True):
        assert base * 0.8 <= wait <= base * 1.2
    if bases == [30, 60, 120]:
        assert waits[0] < waits[1] < waits[2]
    assert statuses(db) == {"1": "failed", "2": "failed", "3": "failed"}
    assert "oops" in last_error(db, 1)
    tries = len(bases) + 1
    assert len(sandbox.log) == tries and len({(entry.idempotency_key, entry.body_sha256) for entry in sandbox.log}) == 1
    assert db.sql("SELECT outcome, http_status, count(*) FROM activation.attempt GROUP BY 1, 2") == [
        ("erred", 500, 3 * tries)
    ]
    tick_at(db, (START + timedelta(days=3)).isoformat())
    assert len(sandbox.log) == tries and received(sandbox) == {}


def test_waits_differ(db: Database) -> None:
    """So that many who failed together do not come back together."""
    waits = db.sql(
        "SELECT extract(epoch FROM activation._backoff(activation.retry(), 1))::float FROM generate_series(1, 200)"
    )
    found = {wait for (wait,) in waits}
    assert len(found) > 100 and 24 <= min(found) < 27 and 33 < max(found) <= 36


def test_tries_spent_after_one_without_an_answer(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """One try may have been accepted (this one was): not failed, never sent again, and shown as unknown in the end."""
    define_with(live, "activation.retry(1)")
    sandbox.fail("drop_after")
    sandbox.fail("status", status=503, times=None)
    sign_up(live, 1)
    assert len(waits_until_done(db)) == 2
    assert statuses(db) == {"1": "sending"} and len(sandbox.log) == 3
    tick_at(db, (START + timedelta(hours=22)).isoformat())
    assert statuses(db) == {"1": "sending"} and len(sandbox.log) == 3
    tick_at(db, (START + timedelta(hours=24)).isoformat())
    assert statuses(db) == {"1": "unknown"} and len(sandbox.log) == 3
    assert received(sandbox) == {"u1@acme.dev": 1}
    assert status(db, "queue")[0] == "failing" and "1 unknown" in status(db, "queue")[1]


def test_no_answer_spends_no_try(db: Database, live: Connection, sandbox: Sandbox) -> None:
    define_with(live, "activation.retry(0)")
    sandbox.fail("drop_before", times=6)
    sign_up(live, 1)
    assert len(waits_until_done(db)) == 6
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}


def test_the_bad_ones_among_many(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A batch of 100 with two that the provider refuses: 98 are sent, once each, in a few requests."""
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


@pytest.mark.parametrize("body", ['{"id": "a\\u0000"}', '{"id": null}', '{"data": []}', "", '{"id": "\\ud800"}'])
def test_accepted_with_an_id_that_is_none(db: Database, live: Connection, sandbox: Sandbox, body: str) -> None:
    """As good as no answer: repeated under the same key."""
    sandbox.fail("garbage", body=body)
    sign_up(live, 1)
    tick(db)
    assert statuses(db) == {"1": "sending"}
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}
    assert len({(entry.idempotency_key, entry.body_sha256) for entry in sandbox.log}) == 1 and len(sandbox.log) == 2


def test_a_value_that_a_template_cannot_take(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """One user's own text raises in a filter: theirs fails with the reason, the others get their mail."""
    live.execute("SELECT activation.set_template('milestone', 'Round {{ user.plan | ceil }}', body_text => 'Hello')")
    live.execute(
        "SELECT activation.define_loop('first', trigger => activation.on_insert('users'),"
        " action => activation.email('milestone'))"
    )
    live.execute("INSERT INTO users (id, email, plan) VALUES (1, 'u1@acme.dev', '1e400'), (2, 'u2@acme.dev', '1.5')")
    tick(db)
    assert statuses(db) == {"1": "failed", "2": "sent"} and "subject: " in last_error(db, 1)
    assert [(email.to, email.subject) for email in sandbox.emails] == [(["u2@acme.dev"], "Round 2")]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "  ",
        "a",
        "@",
        "a@",
        "@b",
        "a@b@c",
        "a b@c.de",
        "a@b.de, c@d.de",
        "<a@b.de>",
        "a@b.de\nBcc: c@d.de",
        "a\t@b.de",
    ],
)
def test_malformed_addresses(db: Database, live: Connection, sandbox: Sandbox, address: str) -> None:
    sign_up(live, 2)
    live.execute("INSERT INTO users (id, email) VALUES (1, %s)", [address])
    live.execute("INSERT INTO actions (user_id) VALUES (1)")
    tick(db)
    assert statuses(db) == {"1": "failed", "2": "sent"}
    assert "email address" in last_error(db, 1)
    assert received(sandbox) == {"u2@acme.dev": 1}


@pytest.mark.parametrize("content", ["", "re_one\nre_two", "re_with_\u00fc", "\x00"])
def test_a_key_file_that_holds_no_key(
    db: Database, live: Connection, sandbox: Sandbox, tmp_path: Path, content: str
) -> None:
    """Mail waits, nothing of the file is shown, and it goes when the file is right."""
    tmp_path.chmod(0o755)
    key = tmp_path / "key"
    key.write_text(content, encoding="utf-8")
    live.execute("SELECT activation.configure(api_key => %s)", [f"file:{key}"])
    sign_up(live, 1)
    tick(db)
    state, detail = status(db, "provider")
    assert state == "paused" and str(key) in detail and "re_" not in detail
    assert statuses(db) == {"1": "queued"} and sandbox.log == []
    key.write_text("re_right")
    tick(db)
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}


def test_the_key_is_nowhere_to_be_seen(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """After every kind of failure: not in our tables, not in a dump, not in the server's log."""
    secret = "re_5ecret_0f_0urs"
    live.execute("SELECT activation.set_secret('resend', %s)", [secret])
    live.execute("SELECT activation.configure(api_key => 'secret:resend')")
    for fault in ("drop_after", "garbage", "html", "partial"):
        sandbox.fail(fault)
    sandbox.fail("status", status=401, name="restricted_api_key", message="no")
    sign_up(live, 1)
    for minutes in (0, 10, 20, 30, 40):
        tick(db, f"{minutes} minutes")
    sandbox.stop()
    live.execute("SELECT activation.resume()")
    tick(db, "50 minutes")
    outcomes = {name for (name,) in db.sql("SELECT outcome FROM activation.attempt")}
    assert {"unanswered", "erred", "refused"} <= outcomes
    assert secret not in db.run("pg_dump")
    assert secret not in db.cluster.log
    tables = db.sql("SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'activation'::regnamespace"
                    " AND relkind IN ('r', 'v') AND relname <> 'secret'")  # fmt: skip
    assert len(tables) > 15
    for (table,) in tables:
        assert not re.search(secret, str(db.sql(f"SELECT * FROM {table}")))
    assert secret not in str(db.sql("SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid()"))
