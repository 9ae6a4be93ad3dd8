"""The brake: a loop that would send more than max_per_hour stops before it does."""

from __future__ import annotations

from collections import Counter

from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import define, loop_status, tick
from mail import Worker, promise, sign_up, statuses


def many(db: Database, app: Connection, count: int) -> None:
    """People who have acted, and whose messages nobody has claimed."""
    app.execute("SELECT activation.configure(api_key => 'env:NOT_THERE')")
    app.execute(
        "WITH u AS (INSERT INTO users (email) SELECT 'u' || g || '@acme.dev' FROM generate_series(1, %s) g"
        " RETURNING id) INSERT INTO actions (user_id) SELECT id FROM u",
        [count],
    )
    tick(db)
    app.execute("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")


def counts(db: Database) -> dict[str, int]:
    return Counter(statuses(db).values())


def test_it_stops_before_it_sends_more(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute("SELECT activation.configure(max_per_hour => 150)")
    many(db, live, 400)
    tick(db)
    assert counts(db) == {"sent": 150, "queued": 250} and len(sandbox.emails) == 150
    state, detail = loop_status(db)
    assert state == "stopped"
    assert "150 emails within an hour, and the limit is 150" in detail and "250 messages wait" in detail
    assert "resume_loop" in detail
    # Nothing but a person starts it again, and then it may send as many once more.
    tick(db, "1 day")
    assert len(sandbox.emails) == 150
    live.execute("SELECT activation.resume_loop('first')")
    tick(db)
    assert len(sandbox.emails) == 300 and loop_status(db)[0] == "stopped"
    live.execute("SELECT activation.configure(max_per_hour => 1000); SELECT activation.resume_loop('first')")
    tick(db)
    assert counts(db) == {"sent": 400} and len(sandbox.emails) == 400 and loop_status(db)[0] == "ok"


def test_what_was_sent_an_hour_ago_counts_no_more(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute("SELECT activation.configure(max_per_hour => 3)")
    for hours in range(3):
        users = range(3 * hours + 1, 3 * hours + 4)
        sign_up(live, *users)
        tick(db, f"{2 * hours} hours")
    assert counts(db) == {"sent": 9} and loop_status(db)[0] == "ok"


def test_another_loop_goes_on(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """And people of the stopped one are still evaluated: who acts gets no nudge later."""
    define(live, None, "other")
    live.execute("SELECT activation.configure(max_per_hour => 2)")
    sign_up(live, 1, 2)
    tick(db)
    sign_up(live, 3)
    sign_up(live, 4, acts=False)
    tick(db)
    assert loop_status(db)[0] == loop_status(db, "other")[0] == "stopped"
    live.execute("SELECT activation.resume_loop('other')")
    tick(db)
    assert loop_status(db)[0] == "stopped" and loop_status(db, "other")[0] == "ok"
    live.execute("INSERT INTO actions (user_id) VALUES (4)")
    tick(db, "2 hours")
    assert db.sql("SELECT user_id, branch, status FROM activation.message_log WHERE loop = 'first' ORDER BY 1") == [
        ("1", "action", "sent"),
        ("2", "action", "sent"),
        ("3", "action", "queued"),
        ("4", "action", "queued"),
    ]


def test_several_deliverers_count_together(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute("SELECT activation.configure(max_per_hour => 700)")
    db.sql("INSERT INTO activation.provider (answers) VALUES (1)")
    many(db, live, 2000)
    workers = [Worker(db, slot) for slot in (1, 2, 3)]
    sandbox.wait_for(lambda s: len(s.emails) >= 700, 20)
    db.sql("SELECT activation.stop()")
    assert all(worker.ended(30) for worker in workers)
    for worker in workers:
        assert worker.error is None
        worker.connection.close()
    assert len(sandbox.emails) == 700 and loop_status(db)[0] == "stopped"


def test_what_came_back_to_the_queue_was_not_sent(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Tries that failed do not bring the brake nearer."""
    live.execute("SELECT activation.configure(max_per_hour => 3)")
    promise(db, live, 1, 2, 3)
    sandbox.stop()
    for minutes in range(5):
        tick(db, f"{10 * minutes} minutes")
    sandbox.start()
    tick(db, "1 hour")
    assert counts(db) == {"sent": 3}


def test_the_default_grows_with_the_usual_hour(db: Database, live: Connection) -> None:
    """Ten times the mean of the hours of the last four weeks in which it sent any, at least 1,000."""
    limit = "SELECT activation._hourly_limit(1, now())"
    assert db.value(limit) == 1000
    db.sql(
        "INSERT INTO activation.hourly_sends (loop_id, at, emails) VALUES (1, now() - interval '30 hours', 400),"
        " (1, now() - interval '50 hours', 200), (1, now() - interval '40 days', 100000),"
        " (1, now() - interval '5 minutes', 90000), (2, now() - interval '30 hours', 90000)"
    )
    assert db.value(limit) == 3000
    live.execute("SELECT activation.configure(max_per_hour => 50)")
    assert db.value(limit) == 50


def test_capture_needs_no_brake(db: Database, live: Connection) -> None:
    live.execute("SELECT activation.configure(max_per_hour => 2); SELECT activation.set_mode('capture')")
    sign_up(live, *range(1, 6))
    tick(db)
    assert counts(db) == {"captured": 5} and loop_status(db)[0] == "ok"


def test_a_claim_that_hangs(db: Database, live: Connection) -> None:
    """Near its limit a loop's mail is claimed by one deliverer at a time. Meanwhile others send other loops' mail,
    and it can be paused."""
    promise(db, live, 1)
    with db.connect(autocommit=False) as hung:
        assert hung.execute("SELECT loop_id FROM activation._claim_messages(100, '{}', '{}', '{}')").fetchall() == [
            (1,)
        ]
        define(live, "SELECT FROM users WHERE id = $1", "second")
        sign_up(live, 2, acts=False)
        live.execute("SET lock_timeout = '2s'")
        live.execute("CALL activation.tick()")
        assert statuses(db) == {"1": "queued", "2": "sent"}
        live.execute("SELECT activation.pause_loop('first'), activation.resume_loop('first')")
    tick(db)
    assert counts(db) == {"sent": 2}
