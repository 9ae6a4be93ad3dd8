"""Mail, from a promise to Resend: each scenario ends with a count on both sides, ours and the sandbox's."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from typing import Any

import psycopg
import pytest

from activation.sandbox import Sandbox
from harness import Cluster, Connection, Database, wait_until
from loops import loop_status, tick
from mail import Worker, go_live, last_error, promise, received, sign_up, status, statuses


def test_one_and_many(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """One mail goes alone, many go a hundred a request, each under a key and with the message's id in a tag."""
    sign_up(live, 1)
    tick(db)
    sign_up(live, *range(2, 152))
    tick(db)
    assert set(statuses(db).values()) == {"sent"} and len(statuses(db)) == 151
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in range(1, 152)}
    assert sorted((entry.path, entry.accepted) for entry in sandbox.log) == [
        ("/emails", 1),
        ("/emails/batch", 50),
        ("/emails/batch", 100),
    ]
    assert len({entry.idempotency_key for entry in sandbox.log}) == 3
    tags = {email.tags["activation_message"] for email in sandbox.emails}
    assert tags == {str(row[0]) for row in db.sql("SELECT message_id FROM activation.message_log")}
    assert db.value("SELECT count(DISTINCT resend_id) FROM activation.message_log") == 151


def test_capture_is_final(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute("SELECT activation.set_mode('capture')")
    sign_up(live, 1)
    tick(db)
    live.execute("SELECT activation.set_mode('live')")
    tick(db)
    assert statuses(db) == {"1": "captured"}
    assert sandbox.log == []


def test_redirect(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute("SELECT activation.set_mode('redirect', redirect_to => 'dev@acme.dev')")
    sign_up(live, 1, 2)
    tick(db)
    assert received(sandbox) == {"dev@acme.dev": 2}


def test_addresses(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """No address, or what is none: that message fails with the reason, and nothing else stops."""
    sign_up(live, 1, 2, 3)
    live.execute("UPDATE users SET email = NULL WHERE id = 1")
    live.execute("UPDATE users SET email = 'not an address' WHERE id = 2")
    tick(db)
    assert statuses(db) == {"1": "failed", "2": "failed", "3": "sent"}
    assert "no email address" in last_error(db, 1)
    assert "not an email address" in last_error(db, 2)
    assert received(sandbox) == {"u3@acme.dev": 1}


def test_sender_and_reply_to(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Names go out quoted where they need it, and readable."""
    live.execute(
        "SELECT activation.configure(sender => 'Acme, Inc. (EU) <hello@acme.dev>',"
        " reply_to => 'Zoë: Übel <z@acme.dev>')"
    )
    live.execute(
        "SELECT activation.define_loop('second', trigger => activation.on_insert('users'),"
        " action => activation.email('milestone', sender => '株式会社 <kk@acme.dev>',"
        ' reply_to => \'"Ada \\"the\\" L" <ada@acme.dev>\'))'
    )
    sign_up(live, 1)
    tick(db)
    assert sorted((email.sender, *email.reply_to) for email in sandbox.emails) == [
        ('"Acme, Inc. (EU)" <hello@acme.dev>', '"Zoë: Übel" <z@acme.dev>'),
        ("株式会社 <kk@acme.dev>", '"Ada \\"the\\" L" <ada@acme.dev>'),
    ]


def test_what_a_name_may_hold(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Line breaks, white space and marks in a name neither stop its mail nor reach the subject; nor does an address of
    another kind reach a link."""
    live.execute(
        "SELECT activation.set_template('greets', 'Hi {{ user.name }}!',"
        ' html => $$<a href="{{ user.plan }}">go</a>$$)'
    )
    live.execute(
        "SELECT activation.define_loop('second', trigger => activation.on_insert('users'),"
        " action => activation.email('greets'))"
    )
    names = {1: "Ada\r\nBcc: x@y.de", 2: "a\u2028b\u2029c\x85d\te\xa0\xa0f", 3: "\u202eadA\u2069\x01", 4: "Ada"}
    for user, name in names.items():
        plan = "https://acme.dev/" if user == 4 else "java\tscript:alert(1)"
        live.execute(
            "INSERT INTO users (id, email, name, plan) VALUES (%s, %s, %s, %s)", [user, f"u{user}@acme.dev", name, plan]
        )
    tick(db)
    found = {int(email.to[0][1]): (email.subject, email.html, email.text) for email in sandbox.emails}
    assert found == {
        1: ("Hi Ada Bcc: x@y.de!", "<a>go</a>", "go"),
        2: ("Hi a b c d e f!", "<a>go</a>", "go"),
        3: ("Hi adA!", "<a>go</a>", "go"),
        4: ("Hi Ada!", '<a href="https://acme.dev/">go</a>', "go (https://acme.dev/)"),
    }


def test_rows_that_python_cannot_hold(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A number is written as the database writes it, however long. What is nested too deeply fails that one mail."""
    live.execute("ALTER TABLE users ADD COLUMN amount numeric, ADD COLUMN data jsonb")
    live.execute("SELECT activation.set_template('sums', 'You have {{ user.amount }}', body_text => 'Hello')")
    live.execute(
        "SELECT activation.define_loop('second', trigger => activation.on_insert('users'),"
        " action => activation.email('sums'))"
    )
    sign_up(live, 1, 2, 3, acts=False)
    live.execute("UPDATE users SET amount = 12.50 WHERE id = 1")
    live.execute("UPDATE users SET amount = repeat('9', 5001)::numeric WHERE id = 2")
    live.execute("UPDATE users SET amount = 1, data = (repeat('[', 3000) || repeat(']', 3000))::jsonb WHERE id = 3")
    tick(db)
    found = {email.to[0]: email.subject for email in sandbox.emails}
    assert found == {"u1@acme.dev": "You have 12.50", "u2@acme.dev": "You have " + "9" * 5001}
    assert statuses(db) == {"1": "sent", "2": "sent", "3": "failed"}
    assert last_error(db, 3) == "the user's row cannot be read: a value in it is nested too deeply"


def test_a_template_without_end(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """It fails its mails with the reason, and the others go."""
    live.execute("ALTER TABLE users ADD COLUMN n bigint")
    for name, body in (
        ("sums", "{% assign r = (1..user.n) %}{{ r | sum }}"),
        ("turns", "{% for i in (1..20000) %}{% endfor %}" * 1_000),
    ):
        live.execute("SELECT activation.set_template(%s, 'Hi', body_text => %s)", [name, body])
        live.execute(
            "SELECT activation.define_loop(%s, trigger => activation.on_insert('users'),"
            " action => activation.email(%s))",
            [name, name],
        )
    live.execute("INSERT INTO users (id, email, n) VALUES (1, 'u1@acme.dev', 999999999999)")
    live.execute("INSERT INTO actions VALUES (1)")
    tick(db)
    assert dict(db.sql("SELECT loop, last_error FROM activation.message_log")) == {
        "first": None,
        "sums": "text: a range of more than 20,000 items",
        "turns": "text: rendering takes longer than 2 seconds",
    }
    assert received(sandbox) == {"u1@acme.dev": 1}


def test_template_that_fails(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A column that the template needs is dropped after the loop was defined."""
    live.execute("SELECT activation.set_template('greeting', 'Hello {{ user.name }}', body_text => 'Hello')")
    live.execute(
        "SELECT activation.define_loop('second', trigger => activation.on_insert('users'),"
        " action => activation.email('greeting'))"
    )
    live.execute("ALTER TABLE users RENAME name TO full_name")
    sign_up(live, 1)
    tick(db)
    assert dict(db.sql("SELECT loop, status FROM activation.message_log")) == {"first": "sent", "second": "failed"}
    assert "user.name" in db.value("SELECT last_error FROM activation.message_log WHERE loop = 'second'")
    assert received(sandbox) == {"u1@acme.dev": 1}


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
    assert last_error(db, 3) == "the user no longer exists"
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


def test_key(db: Database, live: Connection, sandbox: Sandbox, tmp_path: Any) -> None:
    """Without a readable key nothing is sent, status says so, and mail goes when the key is there."""
    key = tmp_path / "key"
    live.execute("SELECT activation.configure(api_key => %s)", [f"file:{key}"])
    sign_up(live, 1)
    tick(db)
    assert statuses(db) == {"1": "queued"}
    state, detail = status(db, "provider")
    assert state == "paused" and str(key) in detail and "1 messages wait" in detail
    key.write_text("re_from_a_file\n")
    tmp_path.chmod(0o755)
    tick(db)
    assert statuses(db) == {"1": "sent"}
    assert received(sandbox) == {"u1@acme.dev": 1}


def test_500_until_the_tries_are_spent(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """The first try and three retries, each wait longer than the one before; then failed."""
    sandbox.fail("status", status=500, name="application_error", message="oops", times=None)
    sign_up(live, 1)
    later = 0.0
    for attempt in range(1, 5):
        tick(db, f"{later} seconds")
        assert db.value("SELECT attempts FROM activation.message_log") == attempt
        later += 100 * 2**attempt
    tick(db, "1 day")
    assert statuses(db) == {"1": "failed"}
    waits = [
        seconds
        for (seconds,) in db.sql(
            "SELECT extract(epoch FROM retry_at - finished_at)::float FROM activation.attempt"
            " WHERE retry_at IS NOT NULL ORDER BY attempt"
        )
    ]
    assert db.value("SELECT count(*) FROM activation.attempt WHERE outcome = 'erred' AND http_status = 500") == 4
    assert len({entry.idempotency_key for entry in sandbox.log}) == 1
    assert len({entry.body_sha256 for entry in sandbox.log}) == 1
    assert len(waits) == 3
    assert received(sandbox) == {}


@pytest.mark.parametrize("fault", ["drop_after", "partial", "garbage", "error_after"])
def test_accepted_without_a_clear_answer(db: Database, live: Connection, sandbox: Sandbox, fault: str) -> None:
    """Repeated with the same key and bytes; the sandbox holds each mail once."""
    sandbox.fail(fault, times=1)
    sign_up(live, 1, 2, 3)
    tick(db)
    assert set(statuses(db).values()) == {"sending"}
    tick(db, "5 minutes")
    assert set(statuses(db).values()) == {"sent"}
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in (1, 2, 3)}
    assert len({(entry.idempotency_key, entry.body_sha256) for entry in sandbox.log}) == 1 and len(sandbox.log) == 2
    assert db.value("SELECT count(*) FROM activation.attempt WHERE message_id IS NOT NULL") == 6


@pytest.mark.parametrize("fault", ["drop_before", "html"])
def test_not_accepted_without_a_clear_answer(db: Database, live: Connection, sandbox: Sandbox, fault: str) -> None:
    sandbox.fail(fault, times=1)
    sign_up(live, 1)
    tick(db)
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent"}
    assert received(sandbox) == {"u1@acme.dev": 1}
    assert len({entry.idempotency_key for entry in sandbox.log}) == 1


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


def test_rate_limit_spends_no_try(db: Database, live: Connection, sandbox: Sandbox) -> None:
    headers = {"retry-after": "1"}
    sandbox.fail("status", status=429, name="rate_limit_exceeded", message="slow down", headers=headers, times=6)
    sign_up(live, 1)
    for minutes in range(7):
        tick(db, f"{minutes} minutes")
    assert statuses(db) == {"1": "sent"}
    assert db.value("SELECT count(*) FROM activation.attempt WHERE outcome = 'refused'") == 6
    assert received(sandbox) == {"u1@acme.dev": 1}


def test_the_rate_is_learnt(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A provider that allows five requests a second gets no more than that, and no 429 comes back."""
    sandbox.configure(rate=5)
    for user in range(1, 13):
        # Different retries keep them in requests of their own.
        live.execute(
            "SELECT activation.define_loop(%s, trigger => activation.on_insert('users'),"
            " action => activation.email('activation_welcome'), recovery => activation.retry(%s))",
            [f"loop {user}", user],
        )
    sign_up(live, 1)
    tick(db)
    assert len(sandbox.emails) == 13
    assert {entry.status for entry in sandbox.log} == {200}
    seconds = Counter(int(entry.at) for entry in sandbox.log)
    assert max(seconds.values()) <= 5
    assert "5 requests a second" in status(db, "provider")[1]


def test_another_key_ends_a_pause(db: Database, live: Connection, sandbox: Sandbox, tmp_path: Any) -> None:
    tmp_path.chmod(0o755)
    key = tmp_path / "key"
    key.write_text("re_bad")
    sandbox.configure(api_keys=["re_good"])
    live.execute("SELECT activation.configure(api_key => %s)", [f"file:{key}"])
    sign_up(live, 1)
    tick(db)
    assert statuses(db) == {"1": "queued"} and status(db, "provider")[0] == "paused"
    key.write_text("re_good")
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent"} and status(db, "provider")[0] == "ok"


def test_a_bad_email_in_a_batch(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A batch refused for its content is halved until the bad one is alone; only that one fails."""
    sign_up(live, 1, 2, 3)
    live.execute("UPDATE users SET email = 'blocked@example.com' WHERE id = 2")
    tick(db)
    assert statuses(db) == {"1": "sent", "2": "failed", "3": "sent"}
    assert received(sandbox) == {"u1@acme.dev": 1, "u3@acme.dev": 1}


def test_a_lost_lease_records_nothing(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Who comes back after the lease has passed to another does not record over it."""
    sandbox.fail("drop_after", times=1)
    sign_up(live, 1)
    tick(db)
    request = db.value("SELECT request_id FROM activation.request")
    recorded = db.value(
        "SELECT activation._record_try(%s, gen_random_uuid(), 'terminal', '{}', 422, 'validation_error', 'no', NULL,"
        " now(), now())",
        request,
    )
    assert recorded is False
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent"}


def test_unknown_after_23_hours(db: Database, live: Connection, sandbox: Sandbox) -> None:
    sandbox.fail("drop_after", times=None)
    sign_up(live, 1)
    tick(db)
    tick(db, "24 hours")
    assert statuses(db) == {"1": "unknown"}
    tick(db, "48 hours")
    assert len(sandbox.log) == 1


def holds(db: Database, pid: int) -> tuple[object, object, list[str]]:
    """A session's snapshot, transaction id, and locks on our tables."""
    ((xmin, xid),) = db.sql("SELECT backend_xmin, backend_xid FROM pg_stat_activity WHERE pid = %s", pid)
    locks = db.sql("SELECT relation::regclass::text FROM pg_locks WHERE pid = %s AND relation IS NOT NULL", pid)
    return xmin, xid, [name for (name,) in locks if name.startswith("activation.")]


def test_nothing_is_held_while_a_request_is_on_its_way(db: Database, live: Connection, sandbox: Sandbox) -> None:
    promise(db, live)
    sandbox.fail("stall", times=1)
    worker = Worker(db)
    sandbox.wait_for(lambda s: s.held == 1)
    # Its polls hold a snapshot for a moment; the request on its way holds nothing, so every look soon finds nothing.
    for _ in range(20):
        wait_until(lambda: holds(db, worker.pid) == (None, None, []), 5)
    live.execute("SELECT activation.stop()")
    sandbox.release()
    assert worker.ended(20)
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}


@pytest.mark.parametrize("function", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_worker_can_be_stopped(db: Database, live: Connection, sandbox: Sandbox, function: str) -> None:
    """While the provider stalls; the request is then repeated, and the sandbox holds the mail once."""
    promise(db, live)
    sandbox.fail("stall", times=1)
    worker = Worker(db)
    sandbox.wait_for(lambda s: s.held == 1)
    db.sql(f"SELECT {function}(%s)", worker.pid)
    # It takes tens of milliseconds; the request would be given up after 25 s.
    assert worker.ended(5)
    assert isinstance(worker.error, psycopg.errors.QueryCanceled | psycopg.OperationalError)
    sandbox.release()
    worker.connection.close()
    wait_until(lambda: not db.sql("SELECT FROM pg_stat_activity WHERE pid = %s", worker.pid))
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}
    assert len({(entry.idempotency_key, entry.body_sha256) for entry in sandbox.log}) == 1 and len(sandbox.log) == 2


def crash(cluster: Cluster, sandbox: Sandbox, kill: Any) -> None:
    db = cluster.create_database()
    app = db.connect()
    go_live(app, sandbox)
    promise(db, app)
    app.close()
    sandbox.fail("stall", times=1)
    worker = Worker(db)
    sandbox.wait_for(lambda s: s.held == 1 and len(s.emails) == 1)
    db.close()
    kill(cluster, worker)
    assert worker.ended(20)
    sandbox.release()
    wait_until(lambda: _answers(cluster), 60)
    assert statuses(db) == {"1": "sending"}
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}
    assert len({(entry.idempotency_key, entry.body_sha256) for entry in sandbox.log}) == 1 and len(sandbox.log) == 2


def _answers(cluster: Cluster) -> bool:
    try:
        cluster.close()
        return bool(cluster.value("SELECT true"))
    except psycopg.OperationalError:
        return False


def test_kill_of_the_backend(sandbox: Sandbox) -> None:
    with Cluster(fsync=True, environment={"RESEND_API_KEY": "re_test"}) as cluster:
        crash(cluster, sandbox, lambda _, worker: os.kill(worker.pid, signal.SIGKILL))


def test_kill_of_the_postmaster(sandbox: Sandbox) -> None:
    def kill(cluster: Cluster, _: Worker) -> None:
        cluster.kill9()
        cluster.start()

    with Cluster(fsync=True, environment={"RESEND_API_KEY": "re_test"}) as cluster:
        crash(cluster, sandbox, kill)


def test_fast_shutdown(sandbox: Sandbox) -> None:
    def stop(cluster: Cluster, worker: Worker) -> None:
        cluster.stop("fast")
        assert worker.ended(5)
        cluster.start()

    with Cluster(environment={"RESEND_API_KEY": "re_test"}) as cluster:
        crash(cluster, sandbox, stop)


def test_a_restored_copy_mails_no_one(sandbox: Sandbox) -> None:
    """A dump with a message in the queue and a request on its way, restored on another server."""
    with Cluster(environment={"RESEND_API_KEY": "re_test"}) as here:
        db = here.create_database()
        app = db.connect()
        go_live(app, sandbox)
        sandbox.fail("drop_after", times=1)
        sign_up(app, 1)
        tick(db)
        promise_two = "SELECT activation.configure(api_key => 'env:NOT_THERE')"
        app.execute(promise_two)
        sign_up(app, 2)
        sign_up(app, 3, acts=False)
        tick(db)
        app.execute("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
        assert statuses(db) == {"1": "sending", "2": "queued"}
        app.close()
        dump = db.run("pg_dump")
        with Cluster(environment={"RESEND_API_KEY": "re_test"}, own_identity=True) as there:
            copy = Database(there, "copy")
            there.postgres.sql("CREATE DATABASE copy")
            copy.psql(dump)
            before = len(sandbox.log)
            copy_app = copy.connect()
            copy_app.execute("INSERT INTO actions (user_id) VALUES (3)")
            sign_up(copy_app, 4)
            tick(copy, "10 minutes")
            assert len(sandbox.log) == before
            assert copy.sql("SELECT component, state FROM activation.status LIMIT 1") == [("mode", "disarmed")]
            assert statuses(copy) == {"1": "sending", "2": "queued", "3": "queued", "4": "queued"}
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="4 messages wait"):
                copy_app.execute("SELECT activation.set_mode('live')")
            copy_app.execute("SELECT activation.set_mode('live', backlog => 'cancel')")
            tick(copy, "10 minutes")
            assert statuses(copy) == {"1": "unknown", "2": "cancelled", "3": "cancelled", "4": "cancelled"}
            assert len(sandbox.log) == before
            copy_app.close()
            copy.close()
        tick(db, "10 minutes")
        assert statuses(db) == {"1": "sent", "2": "sent"}
        assert received(sandbox) == {"u1@acme.dev": 1, "u2@acme.dev": 1}


def test_one_loop_that_fails_at_the_claim(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A loop whose compiled functions are gone keeps its own messages back, and no others."""
    live.execute(
        "SELECT activation.define_loop('second', trigger => activation.on_insert('users'),"
        " action => activation.email('milestone'))"
    )
    live.execute("SELECT activation.configure(api_key => 'env:NOT_THERE')")
    sign_up(live, 1)
    tick(db)
    live.execute('DROP FUNCTION activation_compiled."second: users (2.v1)"(text[])')
    live.execute("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
    tick(db)
    assert dict(db.sql("SELECT loop, status FROM activation.message_log")) == {"first": "sent", "second": "queued"}
    assert loop_status(db, "second")[0] == "failing"
    live.execute("SELECT activation.bind()")
    tick(db, "5 minutes")
    assert received(sandbox) == {"u1@acme.dev": 2}


def test_why_tells_each_attempt(db: Database, live: Connection, sandbox: Sandbox) -> None:
    sandbox.fail("status", status=503, name="service_unavailable", message="later", times=1)
    sign_up(live, 1)
    tick(db)
    tick(db, "5 minutes")
    told = db.sql("SELECT event, detail FROM activation.why('1', 'first')")
    assert [event for event, _ in told] == [
        "enrolled",
        "activated",
        "evaluated",
        "message promised",
        "message rendered",
        "attempt",
        "attempt",
        "sent",
    ] or Counter(event for event, _ in told) == Counter(
        ["enrolled", "evaluated", "activated", "message promised", "message rendered", "attempt", "attempt", "sent"]
    )
    attempts = [detail for event, detail in told if event == "attempt"]
    assert "erred" in attempts[0] and "service_unavailable" in attempts[0] and "sent" in attempts[1]


def test_the_stored_body_is_what_was_sent(db: Database, live: Connection, sandbox: Sandbox) -> None:
    sign_up(live, 1)
    tick(db)
    body = json.loads(db.value("SELECT body FROM activation.request"))
    (email,) = sandbox.emails
    assert body["subject"] == email.subject and body["html"] == email.html and body["to"] == ["u1@acme.dev"]
