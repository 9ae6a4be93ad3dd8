"""What history costs: `make bench-history`. Three questions, on one throwaway server with fsync on:

- a claim with 100,000 messages queued and 1,000,000 finished ones, against the same with none finished;
- the last claims of a drain of 100,000 while a REPEATABLE READ transaction is held open, against the first;
- the size of our tables after 1,000,000 messages, 100,000 at a time with a retention of one hour, against that after
  the first 100,000.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from statistics import median

from harness import Cluster, Connection, Database

#: Messages a claim takes: what one deliverer takes at once.
CLAIM = 800

APP = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text, name text);
    SELECT activation.configure(sender => 'Acme <hello@acme.dev>', max_per_hour => 100000000, retention => '1 hour');
    SELECT activation.define_loop('welcome', trigger => activation.on_insert('users'),
                                  action => activation.email('activation_welcome'));
"""
SIGN_UP = "INSERT INTO users SELECT g, 'u' || g || '@acme.dev', 'U' || g FROM generate_series(%s::bigint, %s::bigint) g"
QUEUE = """
    INSERT INTO activation.enrollment (loop_id, version, user_id, state, enrolled_at, created_at, newest_template_id)
    SELECT 1, 1, u.id::text, 'completed', now(), now(), 0 FROM users u WHERE u.id BETWEEN %s AND %s;
"""
MESSAGES = """
    INSERT INTO activation.message (message_id, enrollment_id, loop_id, version, user_id, step, branch, state,
                                    created_at, next_attempt_at, attempts, recipient, subject, sent_at, resend_id,
                                    request_id)
    SELECT gen_random_uuid(), e.enrollment_id, 1, 1, e.user_id, 1, 'action', {state},
           now(), now() - interval '1 minute', {sent}, 'u@acme.dev', 'Welcome', {sent_at}, {sent_at}::text,
           CASE WHEN {sent_at} IS NOT NULL THEN gen_random_uuid() END
      FROM activation.enrollment e WHERE e.user_id::bigint BETWEEN {low} AND {high}
"""
SIZE = """
    SELECT sum(pg_total_relation_size(c.oid))
      FROM pg_class c
     WHERE c.relnamespace = 'activation'::regnamespace AND c.relkind = 'r' AND c.relname <> 'enrollment'
"""
CLAIM_SQL = """
    SELECT loop_id, next_attempt_at::text, message_id::text FROM activation._claim_messages(%s, %s, %s, %s)
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def queued(db: Database, finished: int, waiting: int) -> None:
    """People with a message each: the first so many sent, the others queued."""
    db.sql(APP)
    db.sql("ALTER TABLE users DISABLE TRIGGER ALL")
    total = finished + waiting
    db.sql(SIGN_UP, 1, total)
    db.sql(QUEUE % (1, total))
    if finished:
        db.sql(MESSAGES.format(state="'sent'", sent=1, sent_at="now()", low=1, high=finished))
    db.sql(MESSAGES.format(state="'queued'", sent=0, sent_at="NULL::timestamptz", low=finished + 1, high=total))
    for table in ("users", "activation.enrollment", "activation.message"):
        db.sql(f"VACUUM ANALYZE {table}")


def claim(session: Connection, marks: dict[int, tuple[str, str]], keep: bool) -> float:
    """Milliseconds that one claim takes; its messages are sent, or left as they were."""
    columns = [list(marks), [at for at, _ in marks.values()], [id_ for _, id_ in marks.values()]]
    start = time.perf_counter()
    rows = session.execute(CLAIM_SQL, [CLAIM, *columns]).fetchall()
    spent = 1000 * (time.perf_counter() - start)
    assert len(rows) == CLAIM, len(rows)
    if keep:
        loop_id, at, _ = rows[-1]
        marks[loop_id] = (at, max(id_ for _, when, id_ in rows if when == at))
        session.execute(
            "UPDATE activation.message SET state = 'sent', sent_at = now(), request_id = message_id"
            " WHERE message_id = ANY (%s::uuid[])",
            [[id_ for _, _, id_ in rows]],
        )
        session.commit()
    else:
        session.rollback()
    return spent


def claims(server: Cluster, finished: int, waiting: int) -> float:
    db = server.create_database()
    queued(db, finished, waiting)
    with db.connect(autocommit=False) as session:
        times = [claim(session, {}, keep=False) for _ in range(21)][1:]
    db.drop()
    return median(times)


def held(server: Cluster, waiting: int) -> tuple[float, float]:
    """The first ten and the last ten claims of a drain under an old snapshot (ms)."""
    db = server.create_database()
    queued(db, 0, waiting)
    with db.connect(autocommit=False) as old, db.connect(autocommit=False) as session:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM activation.message")
        marks: dict[int, tuple[str, str]] = {}
        times = [claim(session, marks, keep=True) for _ in range(waiting // CLAIM)]
    db.drop()
    return median(times[1:11]), median(times[-10:])


def sizes(server: Cluster, rounds: int, people: int) -> list[tuple[int, int]]:
    """Bytes of our tables without enrollments, and of those, after each round of people through the engine."""
    db = server.create_database()
    db.sql(APP)
    found = []
    for number in range(rounds):
        db.sql("SELECT set_config('activation.now', (now() + %s * interval '2 hours')::text, false)", number)
        # What was sent two hours before goes.
        db.sql("CALL activation.tick()")
        vacuum(db)
        db.sql(SIGN_UP, number * people + 1, (number + 1) * people)
        db.sql("CALL activation.tick()")
        vacuum(db)
        found.append((int(db.value(SIZE)), int(db.value("SELECT pg_total_relation_size('activation.enrollment')"))))
        say(f"{(number + 1) * people:,} messages: {found[-1][0]:,} bytes, enrollments {found[-1][1]:,}")
    db.drop()
    return found


def vacuum(db: Database) -> None:
    """What autovacuum does by and by: pages of an index that one run empties are used again after the next, when other
    transactions have come and gone."""
    ours = "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'activation'::regnamespace AND relkind = 'r'"
    for (name,) in 2 * db.sql(ours):
        db.sql("SELECT pg_current_xact_id()")
        db.sql(f"VACUUM {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    options = parser.parse_args()
    scale = 10 if options.quick else 1
    finished, waiting = 1_000_000 // scale, 100_000 // scale
    with Cluster(fsync=True, settings={"shared_buffers": "256MB"}) as server:
        say("Claims …")
        empty, full = claims(server, 0, waiting), claims(server, finished, waiting)
        say("A held snapshot …")
        first, last = held(server, waiting)
        say("Sizes …")
        grown = sizes(server, 10, waiting)
    print("# History\n")
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}. `make bench-history`\n"
    )
    print("| what | target | measured |\n|---|---|---|")
    print(f"| claim of {CLAIM}, {waiting:,} queued, none finished, ms | | {empty:.1f} |")
    print(f"| the same with {finished:,} finished ÷ with none | ≤ 1.5 | {full / empty:.2f} |")
    print(f"| drain of {waiting:,} under a held snapshot, first claims, ms | | {first:.1f} |")
    print(f"| the last claims ÷ the first | ≤ 2 | {last / first:.2f} |")
    print(f"| tables after {waiting:,} messages, MB | | {grown[0][0] / 1e6:.1f} |")
    print(f"| tables after {10 * waiting:,} messages ÷ after {waiting:,} | ≤ 1 | {grown[-1][0] / grown[0][0]:.2f} |")
    print(f"| bytes of an enrollment, with its indexes | | {grown[-1][1] / (10 * waiting):.0f} |")


if __name__ == "__main__":
    main()
