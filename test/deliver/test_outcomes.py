"""What cannot be known: tries that may have been accepted, answers that come late, and a person's verdict."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import tick
from mail import last_error, received, sign_up, status, statuses


def keys(sandbox: Sandbox) -> set[str | None]:
    return {entry.idempotency_key for entry in sandbox.log}


def message(db: Database) -> UUID:
    found = db.value("SELECT message_id FROM activation.message")
    assert isinstance(found, UUID)
    return found


def record_late(db: Database, outcome: str, ids: str = "{}", name: str | None = None) -> object:
    """As a worker would that has lost the lease of the only request."""
    return db.value(
        "SELECT activation._record_try(request_id, gen_random_uuid(), %s, %s::text[], 200, %s, 'late', NULL,"
        " now(), now())"
        " FROM activation.request",
        outcome,
        ids,
        name,
    )


NO_IDS = ['{"id": "a\\u0000"}', '{"id": null}', '{"data": []}', "", '{"id": "\\ud800"}']


@pytest.mark.parametrize(
    "fault",
    [{"kind": kind} for kind in ("drop_after", "partial", "garbage", "error_after")]
    + [{"kind": "garbage", "body": body} for body in NO_IDS],
    ids=lambda fault: f"{fault['kind']} {fault.get('body', '')!a}",
)
@pytest.mark.parametrize("people", [1, 3])
def test_accepted_without_a_clear_answer(
    db: Database, live: Connection, sandbox: Sandbox, fault: dict[str, str], people: int
) -> None:
    """Alone or in a batch, also with an id that is none: repeated with the same key and bytes, and accepted once."""
    sandbox.fail(**fault)
    sign_up(live, *range(1, people + 1))
    tick(db)
    assert set(statuses(db).values()) == {"sending"}
    tick(db, "5 minutes")
    assert set(statuses(db).values()) == {"sent"}
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in range(1, people + 1)}
    assert len({(entry.idempotency_key, entry.body_sha256) for entry in sandbox.log}) == 1 and len(sandbox.log) == 2
    assert db.value("SELECT count(*) FROM activation.attempt WHERE message_id IS NOT NULL") == 2 * people


@pytest.mark.parametrize("fault", ["drop_before", "html"])
def test_not_accepted_without_a_clear_answer(db: Database, live: Connection, sandbox: Sandbox, fault: str) -> None:
    sandbox.fail(fault, times=1)
    sign_up(live, 1)
    tick(db)
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent"}
    assert received(sandbox) == {"u1@acme.dev": 1}
    assert len({entry.idempotency_key for entry in sandbox.log}) == 1


@pytest.mark.parametrize(
    "then",
    [
        {"kind": "status", "status": 429, "name": "rate_limit_exceeded"},
        {"kind": "status", "status": 429, "name": "daily_quota_exceeded"},
        {"kind": "status", "status": 403, "name": "invalid_api_key"},
        {"kind": "html", "status": 404},
        {"kind": "html", "status": 400},
        {"kind": "status", "status": 503},
    ],
    ids=lambda fault: f"{fault['status']} {fault.get('name', '')}",
)
@pytest.mark.parametrize("first", ["drop_after", "error_after", "garbage"])
def test_refused_after_it_may_have_been_accepted(
    db: Database, live: Connection, sandbox: Sandbox, first: str, then: dict[str, object]
) -> None:
    """The first try was accepted and not answered; what the second one is told says nothing about that."""
    sandbox.fail(first)
    options = dict(then)
    sandbox.fail(str(options.pop("kind")), **options)
    sign_up(live, 1)
    tick(db)
    tick(db, "2 minutes")
    assert len(sandbox.log) == 2 and statuses(db) == {"1": "sending"}
    live.execute("SELECT activation.resume()")
    tick(db, "10 minutes")
    assert statuses(db) == {"1": "sent"}
    assert received(sandbox) == {"u1@acme.dev": 1} and len(keys(sandbox)) == 1


def test_no_connection_after_it_may_have_been_accepted(db: Database, live: Connection, sandbox: Sandbox) -> None:
    sandbox.fail("drop_after")
    sign_up(live, 1)
    tick(db)
    sandbox.stop()
    tick(db, "2 minutes")
    sandbox.start()
    assert statuses(db) == {"1": "sending"} and "connection_failed" in last_error(db, 1)
    tick(db, "10 minutes")
    assert statuses(db) == {"1": "sent"}
    assert received(sandbox) == {"u1@acme.dev": 1} and len(keys(sandbox)) == 1


def test_a_name_is_an_answer_about_the_key(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """An accepted request would be told again: a refusal of its content says that it was not."""
    sandbox.fail("drop_before")
    sandbox.fail("status", status=422, name="validation_error")
    sign_up(live, 1)
    tick(db)
    tick(db, "2 minutes")
    assert statuses(db) == {"1": "failed"}


def test_an_acceptance_that_is_learnt_late(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """It counts, whoever holds the request now; nothing is sent again."""
    sandbox.fail("drop_after")
    sign_up(live, 1)
    tick(db)
    assert record_late(db, "sent", "{id-1}") is False
    assert statuses(db) == {"1": "sent"}
    tick(db, "5 minutes")
    assert len(sandbox.log) == 1
    assert db.sql("SELECT attempt, outcome FROM activation.attempt ORDER BY attempt") == [
        (1, "unanswered"),
        (2, "sent"),
    ]


def test_a_refusal_that_is_learnt_late(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """It is an attempt and changes nothing: the lease has passed to another."""
    sandbox.fail("drop_after")
    sign_up(live, 1)
    tick(db)
    assert record_late(db, "terminal", name="validation_error") is False
    assert statuses(db) == {"1": "sending"}
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}
    outcomes = [outcome for (outcome,) in db.sql("SELECT outcome FROM activation.attempt ORDER BY attempt")]
    assert outcomes == ["unanswered", "terminal", "sent"]


def unknown(db: Database, live: Connection, sandbox: Sandbox) -> UUID:
    """A message that was accepted, and of which nobody here knows."""
    sandbox.fail("drop_after")
    sign_up(live, 1)
    tick(db)
    tick(db, "24 hours")
    assert statuses(db) == {"1": "unknown"}
    assert status(db, "queue")[0] == "failing" and "1 unknown" in status(db, "queue")[1]
    return message(db)


def test_unknown_after_23_hours(db: Database, live: Connection, sandbox: Sandbox) -> None:
    sandbox.fail("drop_after", times=None)
    sign_up(live, 1)
    tick(db)
    tick(db, "24 hours")
    assert statuses(db) == {"1": "unknown"}
    tick(db, "48 hours")
    assert len(sandbox.log) == 1


def test_unknown_also_while_the_provider_is_paused(db: Database, live: Connection, sandbox: Sandbox) -> None:
    sandbox.fail("drop_after")
    sign_up(live, 1)
    tick(db)
    db.sql("UPDATE activation.provider SET paused_until = 'infinity', pause_reason = 'test'")
    tick(db, "24 hours")
    assert statuses(db) == {"1": "unknown"}


def test_it_was_sent(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute("SELECT activation.resolve(%s, 'sent')", [unknown(db, live, sandbox)])
    assert statuses(db) == {"1": "sent"} and status(db, "queue")[0] == "ok"
    tick(db, "25 hours")
    assert len(sandbox.log) == 1
    assert ("attempt", "number 1: resolved, postgres said sent") in db.sql(
        "SELECT event, detail FROM activation.why('1')"
    )


def test_it_is_sent_again(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Made anew, under a new key: the user may have it twice, as the person decided."""
    live.execute("SELECT activation.resolve(%s, 'resend')", [unknown(db, live, sandbox)])
    assert statuses(db) == {"1": "queued"}
    tick(db, "25 hours")
    assert statuses(db) == {"1": "sent"}
    assert received(sandbox) == {"u1@acme.dev": 2} and len(keys(sandbox)) == 2


def test_an_answer_after_the_verdict(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """It was to be sent again; now it is known to be there."""
    live.execute("SELECT activation.resolve(%s, 'resend')", [unknown(db, live, sandbox)])
    record_late(db, "sent", "{id-1}")
    tick(db, "25 hours")
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ("message_id, 'sent'", "55000", "is not unknown"),
        ("message_id, 'delivered'", "22023", "'delivered'"),
        ("message_id, NULL", "22023", "NULL"),
        ("gen_random_uuid(), 'sent'", "42704", "does not exist"),
        ("NULL, 'sent'", "42704", "does not exist"),
    ],
)
def test_verdicts_that_are_refused(db: Database, live: Connection, arguments: str, code: str, named: str) -> None:
    live.execute("SELECT activation.set_mode('capture')")
    sign_up(live, 1)
    tick(db)
    before = db.sql("SELECT * FROM activation.message"), db.sql("SELECT * FROM activation.attempt")
    with pytest.raises(psycopg.Error, match=named) as caught:
        db.sql(f"SELECT activation.resolve({arguments}) FROM activation.message")
    assert caught.value.sqlstate == code and caught.value.diag.message_hint
    assert (db.sql("SELECT * FROM activation.message"), db.sql("SELECT * FROM activation.attempt")) == before
