# ruff: noqa: E501
"""An app's history in which one early action makes people stay, or none, among others that only look as if."""

from __future__ import annotations

from harness import Database

PEOPLE = 3_000

#: Users of the last hundred days. activity: how much somebody does at all, by chance; planted: whether they do the one
#: thing that makes them stay.
USERS = """
    SELECT setseed({seed});
    CREATE TABLE users (id bigint PRIMARY KEY, email text, created_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE trait AS SELECT g AS id, random() AS activity, random() < 0.4 AS planted FROM generate_series(1, {people}) g;
    INSERT INTO users SELECT id, 'u' || id || '@acme.dev', now() - interval '15 days' - random() * interval '100 days' FROM trait;
    CREATE TABLE sessions (id bigserial PRIMARY KEY, user_id bigint REFERENCES users, created_at timestamptz NOT NULL DEFAULT now());
    INSERT INTO sessions (user_id, created_at)
    SELECT id, created_at + interval '7 days' + random() * interval '6 days' FROM users JOIN trait USING (id)
     WHERE random() < {stays};
"""
#: Actions of the first days that have nothing to do with staying; some are made by the signup, rare, or everybody's.
DECOY = """
    CREATE TABLE decoy_{n} (id bigserial PRIMARY KEY, user_id bigint REFERENCES users, created_at timestamptz NOT NULL DEFAULT now());
    INSERT INTO decoy_{n} (user_id, created_at) SELECT id, created_at + {after} FROM users JOIN trait USING (id), generate_series(1, 1 + (random() * {more})::integer)
     WHERE {who};
"""
KINDS = [
    ("random() * interval '5 days'", "random() < 0.3"),
    ("random() * interval '2 days'", "activity > 0.5"),
    # Goes with the planted one, and less with staying.
    ("random() * interval '3 days'", "random() < CASE WHEN planted THEN 0.5 ELSE 0.2 END"),
    ("interval '1 second'", "true"),
    ("random() * interval '5 days'", "random() < 0.02"),
    ("random() * interval '1 hour' + interval '1 minute'", "random() < 0.99"),
]
PLANTED = """
    CREATE TABLE projects (id bigserial PRIMARY KEY, owner_id bigint REFERENCES users, kind text, created_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE tasks (id bigserial PRIMARY KEY, project_id bigint REFERENCES projects, made_on date, created_at timestamptz NOT NULL DEFAULT now());
    INSERT INTO projects (owner_id, kind, created_at) SELECT id, (ARRAY['blog', 'shop', 'wiki'])[1 + (random() * 2)::integer],
           created_at + interval '1 minute' + random() * interval '2 days' FROM users JOIN trait USING (id) WHERE planted;
"""


def app(db: Database, seed: float, planted: bool, decoys: int = 8, people: int = PEOPLE, more: int = 3) -> None:
    """more: how many times somebody does the same thing again, at most."""
    stays = "CASE WHEN planted THEN 0.45 ELSE 0.2 END" if planted else "0.3"
    text = USERS.format(seed=seed, people=people, stays=stays) + PLANTED
    for n in range(decoys):
        after, who = KINDS[n % len(KINDS)]
        text += DECOY.format(n=n, after=after, who=who, more=more)
    db.sql(text)
    db.sql("ANALYZE")
