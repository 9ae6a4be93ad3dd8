"""Journeys: a million people on their way through a loop of five steps, and how fast ten thousand of them get on, how
long `why` takes, and how fast a schedule enrolls everybody whom its query returns."""

from __future__ import annotations

import time

from common import Effort, Figure, say, worker

from harness import Cluster, Database, wait_until

STEPS = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text);
    CREATE TABLE actions (user_id bigint, action_type text);
    CREATE INDEX ON actions (user_id, action_type);
    SELECT activation.define_loop('course', trigger => activation.on_insert('users'),
        goal => activation.query($$SELECT FROM actions WHERE user_id = $1 AND action_type = 'bought'$$),
        steps => ARRAY[
            activation.step('welcome', action => activation.email('activation_welcome')),
            activation.step('second', delay => '1 day', action => activation.email('milestone')),
            activation.step('third', delay => '1 day',
                condition => activation.query($$SELECT FROM actions WHERE user_id = $1 AND action_type = 'seen'$$,
                                              timeout => '3 days'),
                action => activation.email('milestone'), otherwise => activation.email('activation_nudge')),
            activation.step('fourth', delay => '1 day', action => activation.email('milestone')),
            activation.step('fifth', delay => '1 day', action => activation.email('milestone'))]);
    ALTER TABLE users DISABLE TRIGGER ALL;
"""
#: Each is at one of the five steps, begins it later, and has got the mails of those before.
FILL = """
    INSERT INTO users SELECT g, 'u' || g || '@acme.dev' FROM generate_series(%(low)s, %(high)s) g;
    INSERT INTO activation.enrollment
           (loop_id, version, user_id, state, step, enrolled_at, created_at, starts_at, deadline, newest_template_id,
            history)
    SELECT 1, 1, g::text, 'waiting', 1 + g %% 5, now() - '5 days'::interval, now() - '5 days'::interval,
           now() + '1 day', CASE WHEN g %% 5 = 2 THEN now() + '4 days'::interval END, 0,
           (SELECT jsonb_agg(jsonb_build_array(n, 'action', now() - '1 day'::interval))
              FROM generate_series(1, g %% 5) n)
      FROM generate_series(%(low)s, %(high)s) g;
    INSERT INTO activation.message
           (message_id, enrollment_id, loop_id, version, user_id, step, branch, state, created_at, next_attempt_at,
            request_id, recipient, subject, sent_at, finished_at)
    SELECT gen_random_uuid(), e.enrollment_id, 1, 1, e.user_id, n, 'action', 'sent', d.day, d.day,
           gen_random_uuid(), 'u@acme.dev', 'Hello', d.day, d.day
      FROM activation.enrollment e, generate_series(1, e.step - 1) n, (SELECT now() - '1 day'::interval) d(day)
     WHERE e.enrollment_id BETWEEN %(low)s AND %(high)s;
"""
SCHEDULE = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text);
    INSERT INTO users SELECT g, 'u' || g || '@acme.dev' FROM generate_series(1, {people}) g;
    ANALYZE users;
    SELECT activation.define_loop('win_back', trigger => activation.on_schedule('0 0 1 1 *', 'SELECT id FROM users'),
        users => 'users',
        steps => ARRAY[activation.step('later', delay => '1 day', action => activation.email('milestone'))]);
"""
TRANSACTION = """
    SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float FROM pg_stat_activity
     WHERE application_name LIKE 'activation%' AND pid <> pg_backend_pid()
"""


def _in_flight(db: Database, people: int) -> None:
    db.sql(STEPS)
    for low in range(1, people + 1, 100_000):
        for statement in FILL.split(";")[:-1]:
            db.sql(statement % {"low": low, "high": min(low + 99_999, people)})
    for table in ("users", "activation.enrollment", "activation.message"):
        db.sql(f"VACUUM ANALYZE {table}")


def _advance(db: Database, number: int, due: int) -> float:
    """Milliseconds until so many people, of all steps, who are due from one moment on have all been moved on."""
    low = number * due
    db.sql(
        "UPDATE activation.enrollment SET starts_at = now() - interval '1 second'"
        " WHERE enrollment_id > %s AND enrollment_id <= %s",
        low,
        low + due,
    )
    start = time.perf_counter()
    moved = """
        SELECT NOT EXISTS (SELECT FROM activation.enrollment e WHERE e.loop_id = 1 AND e.state = 'waiting'
                              AND coalesce(e.starts_at, e.deadline) <= now())
    """
    wait_until(lambda: db.value(moved), 60)
    return (time.perf_counter() - start) * 1000


def _why(db: Database, user: int) -> float:
    start = time.perf_counter()
    assert db.sql("SELECT * FROM activation.why(%s::text)", user)
    return (time.perf_counter() - start) * 1000


def _scheduled(cluster: Cluster, people: int) -> list[Figure]:
    say(f"A schedule that returns {people:,} users …")
    db = cluster.create_database()
    db.sql(SCHEDULE.format(people=people))
    longest = 0.0
    with worker(db, "detect"), db.connect() as session:
        wait_until(lambda: db.value("SELECT EXISTS (SELECT FROM activation.schedule WHERE watching)"), 10)
        db.sql("UPDATE activation.backfill SET due_at = now()")
        start = time.perf_counter()
        while db.value("SELECT coalesce(max(enrollment_id), 0) FROM activation.enrollment") < people:
            row = session.execute(TRANSACTION).fetchone()
            longest = max(longest, row[0] if row else 0.0)
            time.sleep(0.01)
        took = time.perf_counter() - start
    db.drop()
    return [
        Figure(f"a schedule returns {people:,} users: enrolled a second", [people / took], at_least=50_000, digits=0),
        Figure("longest transaction of the detector meanwhile, ms", [longest * 1000], at_most=1000, digits=0),
    ]


def measure(cluster: Cluster, effort: Effort) -> list[Figure]:
    people, due = (100_000, 1_000) if effort.quick else (1_000_000, 10_000)
    say(f"{people:,} people on their way through five steps …")
    db = cluster.create_database()
    _in_flight(db, people)
    with worker(db, "detect"):
        wait_until(lambda: db.value("SELECT EXISTS (SELECT FROM activation.schedule WHERE watching)"), 10)
        advanced = [_advance(db, number, due) for number in range(3 if effort.quick else 7)]
        asked = [_why(db, people // 2 + number) for number in range(50)]
    db.drop()
    return [
        Figure(f"{people:,} on their way, {due:,} due: until all have moved on, ms", advanced, at_most=1000, digits=0),
        Figure(f"why, {people:,} on their way, ms", asked, at_most=50),
        *_scheduled(cluster, people),
    ]
