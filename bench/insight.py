# ruff: noqa: E501
"""The numbers: what each view takes over a million enrollments in three loops, and suggest() over an app's history."""

from __future__ import annotations

import time

from common import Effort, Figure, say

from decoys import app
from harness import Cluster

FILL = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text);
    CREATE TABLE actions (user_id bigint);
    SELECT activation.define_loop('loop ' || n, trigger => activation.on_insert('users'), holdout => n / 10.0,
        goal => activation.query($$SELECT FROM actions WHERE user_id = $1$$),
        steps => ARRAY[activation.step('welcome', action => activation.email('activation_welcome')),
            activation.step('nudge', delay => '3 days', action => activation.email('activation_nudge'))])
      FROM generate_series(0, 2) n;
    INSERT INTO activation.enrollment (loop_id, version, user_id, state, step, enrolled_at, created_at, activated_at,
                                       decided_at, starts_at, holdout, newest_template_id)
    SELECT 1 + g % 3, 1, g::text, CASE WHEN g % 10 < 8 THEN 'completed' ELSE 'waiting' END, 1 + g % 2, e.at, e.at,
           CASE WHEN g % 10 < 4 THEN e.at + random() * interval '20 days' END,
           CASE WHEN g % 10 < 8 THEN e.at + '3 days' END,
           CASE WHEN g % 10 >= 8 THEN now() + '1 day' END, g % 3 > 0 AND random() < (g % 3) / 10.0, 0
      FROM generate_series(1, {people}) g,
           LATERAL (SELECT now() - interval '1 hour' - (random() + g * 0) * interval '300 days') e(at);
    INSERT INTO activation.message (message_id, enrollment_id, loop_id, version, user_id, step, branch, state, created_at,
                                    next_attempt_at, request_id, sent_at)
    SELECT gen_random_uuid(), e.enrollment_id, e.loop_id, 1, e.user_id, 1, 'action', 'sent', e.enrolled_at, e.enrolled_at,
           gen_random_uuid(), e.enrolled_at FROM activation.enrollment e WHERE NOT e.holdout;
    VACUUM ANALYZE activation.enrollment;
    VACUUM ANALYZE activation.message
"""
REHEARSED = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text, created_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE projects (owner_id bigint REFERENCES users, created_at timestamptz NOT NULL DEFAULT now());
    CREATE INDEX ON projects (owner_id);
    SELECT activation.define_loop('first', trigger => activation.on_insert('users'),
        condition => activation.query('SELECT FROM projects WHERE owner_id = $1', timeout => '2 days'),
        action => activation.email('milestone'), otherwise => activation.email('activation_nudge'));
    ALTER TABLE users DISABLE TRIGGER ALL;
    ALTER TABLE projects DISABLE TRIGGER ALL;
    INSERT INTO users SELECT g, 'u' || g || '@acme.dev', now() - interval '3 days' - random() * interval '300 days'
      FROM generate_series(1, {people}) g;
    INSERT INTO projects SELECT id, created_at + random() * interval '4 days' FROM users WHERE id % 3 > 0;
    VACUUM ANALYZE users;
    VACUUM ANALYZE projects
"""
QUESTIONS = (
    "funnel",
    "cohort",
    "time_to_activate",
    "lift",
    "mail_numbers",
    "power('loop 1')",
)


def measure(cluster: Cluster, effort: Effort) -> list[Figure]:
    people = 100_000 if effort.quick else 1_000_000
    say(f"Numbers over {people:,} enrollments …")
    db = cluster.create_database()
    for statement in FILL.format(people=people).split(";"):
        db.sql(statement)
    figures = []
    for question in QUESTIONS:
        took = []
        for _ in range(3):
            start = time.perf_counter()
            assert db.sql(f"SELECT * FROM activation.{question}")
            took.append(time.perf_counter() - start)
        figures.append(Figure(f"{question} over {people:,} enrollments, s", took, at_most=2))
    db.drop()
    return [*figures, *_suggest(cluster, effort)]


def _suggest(cluster: Cluster, effort: Effort) -> list[Figure]:
    """One true action among forty decoys: how long it takes to find, and that it comes first."""
    people = 20_000 if effort.quick else 200_000
    say(f"suggest() over {people:,} users …")
    db = cluster.create_database()
    app(db, 0.5, planted=True, decoys=40, people=people, more=0)
    rows = db.value(
        "SELECT sum(reltuples)::bigint FROM pg_class WHERE relname ~ '^(decoy|session|project)' AND relkind = 'r'"
    )
    took = []
    for _ in range(3):
        start = time.perf_counter()
        found = db.sql("SELECT table_name FROM activation.suggest()")
        took.append(time.perf_counter() - start)
        assert found[0] == ("public.projects",), found
    db.drop()
    return [
        Figure(f"suggest over {people:,} users and {rows:,} rows in 43 tables, s", took, at_most=30, digits=1),
        *_simulate(cluster, effort),
    ]


def _simulate(cluster: Cluster, effort: Effort) -> list[Figure]:
    """A nudge after two days, rehearsed over everybody's history."""
    people = 100_000 if effort.quick else 1_000_000
    say(f"simulate() over {people:,} users …")
    db = cluster.create_database()
    for statement in REHEARSED.format(people=people).split(";"):
        db.sql(statement)
    took = []
    for _ in range(3):
        start = time.perf_counter()
        found = dict(
            db.sql(
                "SELECT branch, people FROM activation.simulate('first', since => now() - interval '400 days') WHERE part = 'mail'"
            )
        )
        took.append(time.perf_counter() - start)
        assert sum(found.values()) == people, found
    db.drop()
    return [Figure(f"simulate over {people:,} users, s", took, at_most=10, digits=1)]
