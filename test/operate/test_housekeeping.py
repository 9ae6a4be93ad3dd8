"""What is older than `retention` goes, little by little; what is still needed stays."""

from __future__ import annotations

from threading import Thread
from typing import Any

from activation.sandbox import Sandbox
from harness import Cluster, Connection, Database, wait_until
from loops import tick
from mail import sign_up, statuses

SIZES = """
    SELECT (SELECT count(*) FROM activation.message), (SELECT count(*) FROM activation.attempt),
           (SELECT count(*) FROM activation.request), (SELECT count(*) FROM activation.enrollment)
"""


def rows(db: Database) -> tuple[Any, ...]:
    """Messages, attempts, requests, enrollments."""
    ((*found,),) = db.sql(SIZES)
    return tuple(found)


def test_what_is_sent_is_kept_for_as_long_as_was_said(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute("SELECT activation.configure(retention => '2 days')")
    live.execute(
        "WITH u AS (INSERT INTO users (email) SELECT 'u' || g || '@acme.dev' FROM generate_series(1, 2500) g"
        " RETURNING id) INSERT INTO actions (user_id) SELECT id FROM u"
    )
    live.execute("SELECT activation.configure(max_per_hour => 100000)")
    tick(db)
    assert rows(db) == (2500, 2500, 25, 2500)
    tick(db, "47 hours")
    assert rows(db) == (2500, 2500, 25, 2500)
    tick(db, "49 hours")
    assert rows(db) == (0, 0, 0, 2500)
    # Who is through the loop is not taken for new.
    tick(db, "50 hours")
    assert len(sandbox.emails) == 2500


def test_other_ends(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Captured, cancelled and failed messages go, too; those that wait and those that are unknown stay."""
    live.execute("SELECT activation.configure(retention => '1 hour')")
    sandbox.fail("drop_after")
    sign_up(live, 1)
    tick(db)
    tick(db, "24 hours")
    assert statuses(db) == {"1": "unknown"}
    sandbox.fail("status", status=422, name="validation_error")
    sign_up(live, 2)
    tick(db)
    live.execute("SELECT activation.configure(api_key => 'env:NOT_THERE')")
    sign_up(live, 3)
    tick(db)
    live.execute("DELETE FROM users WHERE id = 3")
    live.execute("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
    live.execute("SELECT activation.set_mode('capture')")
    sign_up(live, 4)
    tick(db)
    live.execute("SELECT activation.pause_loop('first')")
    live.execute("SELECT activation.set_mode('live')")
    assert statuses(db) == {"1": "unknown", "2": "failed", "3": "cancelled", "4": "captured"}
    live.execute("SELECT activation.resume_loop('first'); SELECT activation.configure(api_key => 'env:NOT_THERE')")
    sign_up(live, 5)
    tick(db)
    tick(db, "26 hours")
    assert statuses(db) == {"1": "unknown", "5": "queued"}
    orphans = "SELECT FROM activation.attempt a WHERE message_id NOT IN (SELECT message_id FROM activation.message)"
    assert db.sql(orphans) == []


def test_a_batch_of_which_one_is_to_be_sent_again(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """The first request goes; what went back to the queue from it stays."""
    live.execute("SELECT activation.configure(retention => '1 hour')")
    sign_up(live, 1, 2)
    sandbox.fail("status", status=422, name="validation_error")
    for _ in range(2):
        sandbox.fail("status", status=429, name="rate_limit_exceeded", headers={"retry-after": "3600"})
    tick(db)
    assert set(statuses(db).values()) == {"queued"}
    db.sql("UPDATE activation.message SET next_attempt_at = 'infinity'")
    tick(db, "3 hours")
    messages, attempts, requests, _ = rows(db)
    assert (messages, attempts >= 2, requests) == (2, True, 0)


def test_what_the_brake_counts(db: Database, live: Connection) -> None:
    """Five minutes become hours, hours go after four weeks; the sum of what stays is the same."""
    db.sql(
        "INSERT INTO activation.hourly_sends (loop_id, at, emails)"
        " SELECT 1, date_bin('5 minutes', now() - g * interval '5 minutes', 'epoch'), 1 FROM generate_series(0, 600) g"
    )
    db.sql("INSERT INTO activation.hourly_sends (loop_id, at, emails) VALUES (1, now() - interval '29 days', 7)")
    tick(db)
    assert db.value("SELECT sum(emails) FROM activation.hourly_sends") == 601
    assert db.value("SELECT count(*) FROM activation.hourly_sends WHERE at < now() - interval '4 hours'") <= 48
    assert db.value("SELECT count(*) FROM activation.hourly_sends WHERE at > now() - interval '2 hours'") == 24


def test_runs_of_the_jobs(cron_cluster: Cluster) -> None:
    """Ours that are older than a week go; others' stay."""
    cron_cluster.sql(
        "INSERT INTO cron.job_run_details (jobid, runid, database, command, start_time) VALUES"
        " (901, 900001, 'test', 'CALL activation.detect(slot => 1)', now() - interval '8 days'),"
        " (901, 900002, 'test', 'CALL activation.detect(slot => 1)', now() - interval '6 days'),"
        " (902, 900003, 'test', 'CALL app.detect()', now() - interval '8 days'),"
        " (903, 900004, 'other', 'CALL activation.detect(slot => 1)', now() - interval '8 days')"
    )
    cron_cluster.sql("SELECT activation._prune_job_runs()")
    runs = cron_cluster.sql("SELECT runid FROM cron.job_run_details WHERE runid > 900000 ORDER BY runid")
    assert runs == [(900002,), (900003,), (900004,)]


def test_a_detector_does_it(db: Database, live: Connection) -> None:
    live.execute("SELECT activation.set_mode('capture'); SELECT activation.configure(retention => '1 hour')")
    sign_up(live, 1)
    tick(db)
    db.sql("UPDATE activation.message SET finished_at = now() - interval '2 hours'")
    detector = Thread(target=run_detector, args=[db])
    detector.start()
    wait_until(lambda: rows(db)[0] == 0, 30)
    db.sql("SELECT activation.stop()")
    detector.join(20)
    assert not detector.is_alive()


def run_detector(db: Database) -> None:
    """Runs until the messages are gone; a run that begins shortly before the minute is a short one."""
    with db.connect() as worker:
        while rows(db)[0] > 0:
            worker.execute("CALL activation.detect()")
