"""Detection: how long from the commit of k people's actions until all their messages are queued, however many wait; and
a sweep of everybody, against the same question asked by hand."""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median

from common import Effort, Figure, say, worker

from harness import Cluster, Database, wait_until

APP = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text);
    CREATE TABLE user_actions (user_id bigint, action_type text);
    CREATE INDEX ON user_actions (user_id, action_type);
    SELECT activation.define_loop('first_project',
        trigger => activation.on_insert('users'),
        condition => activation.query($$SELECT * FROM user_actions
            WHERE user_id = $1 AND action_type = 'first_project_created'$$, timeout => '30 days'),
        action => activation.email('milestone', personalization => '{"count": "1"}'));
    ALTER TABLE users DISABLE TRIGGER ALL;
"""
#: Every second one of those who wait has done something else.
FILL = """
    INSERT INTO users SELECT g, 'u' || g || '@acme.dev' FROM generate_series(%(low)s, %(high)s) g;
    INSERT INTO user_actions SELECT g, 'seen' FROM generate_series(%(low)s, %(high)s, 2) g;
    INSERT INTO activation.enrollment
           (loop_id, version, user_id, state, enrolled_at, created_at, deadline, newest_template_id)
    SELECT 1, 1, g::text, 'waiting', now(), now(), now() + '30 days', 0 FROM generate_series(%(low)s, %(high)s) g;
"""
ACT = "INSERT INTO user_actions SELECT g, 'first_project_created' FROM generate_series(%s::bigint, %s::bigint) g"
BY_HAND = """
    SELECT count(*) FROM activation.enrollment e
     WHERE e.loop_id = 1 AND e.state = 'waiting'
       AND EXISTS (SELECT FROM user_actions a
                    WHERE a.user_id = e.user_id::bigint AND a.action_type = 'first_project_created')
"""


class Waiting:
    """A database in which more and more people wait."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.people = 0
        self.acted = 0
        db.sql(APP)

    def grow(self, people: int) -> None:
        step = 1_000_000
        for low in range(self.people + 1, people + 1, step):
            high = min(low + step - 1, people)
            for statement in FILL.split(";")[:-1]:
                self.db.sql(statement % {"low": low, "high": high})
        self.people = people
        for table in ("users", "user_actions", "activation.enrollment", "activation.message"):
            self.db.sql(f"VACUUM ANALYZE {table}")

    def act(self, k: int) -> float:
        """Milliseconds from the commit of k people's actions until a detector has taken them all."""
        low, self.acted = self.acted + 1, self.acted + k
        self.db.sql(ACT, low, self.acted)
        start = time.perf_counter()
        wait_until_empty(self.db)
        return (time.perf_counter() - start) * 1000

    def sweep(self) -> float:
        """Milliseconds until everybody was asked again."""
        self.db.sql("SELECT activation._order_sweep(NULL, now())")
        start = time.perf_counter()
        wait_until(lambda: not self.db.value("SELECT EXISTS (SELECT FROM activation.sweep WHERE due_at <= now())"), 600)
        return (time.perf_counter() - start) * 1000

    def by_hand(self) -> float:
        start = time.perf_counter()
        self.db.sql(BY_HAND)
        return (time.perf_counter() - start) * 1000


def wait_until_empty(db: Database) -> None:
    """Until no wake is left: a round deletes them in the transaction that writes the messages."""
    while db.value("SELECT EXISTS (SELECT FROM activation.wake WHERE source_id <> 0)"):
        time.sleep(0.001)


def _import(cluster: Cluster, people: int) -> list[Figure]:
    """Everybody signs up in one statement while a detector runs: how many it enrolls a second, in each tenth of the
    time, and its longest transaction."""
    say(f"{people:,} people sign up in one statement …")
    transactions = """
        SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0) FROM pg_stat_activity
         WHERE application_name LIKE 'activation detector%' AND pid <> pg_backend_pid()
    """
    db = cluster.create_database()
    db.sql(APP.partition("ALTER TABLE users DISABLE")[0])
    longest = 0.0
    taken: list[tuple[float, int]] = []
    with worker(db, "detect"), db.connect() as session:
        wait_until(lambda: db.value("SELECT EXISTS (SELECT FROM activation.schedule WHERE watching)"), 10)
        db.sql("INSERT INTO users SELECT g, 'u' || g || '@acme.dev' FROM generate_series(1, %s) g", people)
        while not taken or taken[-1][1] < people:
            found = session.execute("SELECT coalesce(max(enrollment_id), 0) FROM activation.enrollment").fetchone()
            taken.append((time.perf_counter(), found[0] if found else 0))
            row = session.execute(transactions).fetchone()
            longest = max(longest, float(row[0]) if row else 0)
            time.sleep(0.005)
    db.drop()
    begin, end = taken[0][0], taken[-1][0]
    edges = [max(n for at, n in taken if at <= begin + (end - begin) * tenth / 10) for tenth in range(11)]
    return [
        Figure(
            f"{people:,} sign up in one statement: enrolled a second, in each tenth of the time",
            [(late - early) * 10 / (end - begin) for early, late in pairwise(edges)],
            digits=0,
        ),
        Figure("longest transaction of the detector meanwhile, ms", [longest * 1000], at_most=1000, digits=0),
    ]


def measure(cluster: Cluster, effort: Effort) -> list[Figure]:
    figures: list[Figure] = []
    db = cluster.create_database()
    waiting = Waiting(db)
    smallest: dict[int, float] = {}
    for people in effort.sizes:
        say(f"{people:,} people wait …")
        waiting.grow(people)
        with worker(db, "detect"):
            wait_until(lambda: db.value("SELECT EXISTS (SELECT FROM activation.schedule WHERE watching)"), 10)
            waiting.sweep()
            for k, times in ((1, 21), (100, 21), (min(people // 10, 10_000), 3)):
                found = []
                for _ in range(times):
                    # The last action keeps the detector at its shorter poll.
                    waiting.act(1)
                    found.append(waiting.act(k))
                note = f"{median(found) / smallest[k]:.2f} of the smallest" if k in smallest else ""
                smallest.setdefault(k, median(found))
                figures.append(
                    Figure(
                        f"{people:,} wait, {k:,} act: commit to all messages queued, ms",
                        found,
                        # 15 beyond the poll of 10.
                        at_most=25 if k == 100 else None,
                        digits=0,
                        note=note,
                        chart="detection" if k == 100 else "",
                        label=f"{people:,}",
                    )
                )
            hand = [waiting.by_hand() for _ in range(3)]
            swept = [waiting.sweep() for _ in range(3)]
        figures.append(Figure(f"{people:,} wait: EXISTS by hand over all, ms", hand, digits=0))
        figures.append(
            Figure(
                f"{people:,} wait: a sweep of all ÷ by hand",
                [each / median(hand) for each in swept],
                at_most=2.5,
                note=f"{median(swept):,.0f} ms",
            )
        )
    queued = db.value("SELECT count(*) FROM activation.message")
    assert queued == waiting.acted, (queued, waiting.acted)
    db.drop()
    return figures + _import(cluster, 100_000 if effort.quick else 1_000_000)
