# ruff: noqa: E501
"""suggest(): finds what was planted, and nothing in noise."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from decoys import app
from harness import Cluster, Database


def suggest(db: Database, arguments: str = "") -> list[dict[str, Any]]:
    with db.connect() as session:
        session.execute("SET default_transaction_read_only = on")
        session.execute("SET client_min_messages = warning")
        cursor = session.execute(f"SELECT * FROM activation.suggest({arguments})".encode())
        assert cursor.description
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


@pytest.mark.parametrize("seed", [0.1, 0.2, 0.3])
def test_what_was_planted(db: Database, seed: float) -> None:
    app(db, seed, planted=True)
    first, *others = suggest(db, "within => '7 days'")
    assert (first["table_name"], first["value"], first["at_least"], first["holds_later"]) == (
        "public.projects",
        None,
        1,
        True,
    )
    assert first["first_days"].days in (3, 7) and first["rank"] == 1
    assert not {row["table_name"] for row in others} & {"public.decoy_3", "public.decoy_4", "public.decoy_5"}, (
        "made at signup, rare, everybody's"
    )
    # As counted by hand.
    ((did, stayed, other, other_stayed),) = db.sql(f"""
        SELECT count(*) FILTER (WHERE p), count(*) FILTER (WHERE p AND s), count(*) FILTER (WHERE NOT p), count(*) FILTER (WHERE NOT p AND s)
          FROM (SELECT EXISTS (SELECT FROM projects x WHERE x.owner_id = u.id AND x.created_at < u.created_at + interval '{first["first_days"].days} days') AS p,
                       EXISTS (SELECT FROM sessions x WHERE x.user_id = u.id) AS s FROM users u) c
    """)
    assert (first["did"], first["n"] - first["did"]) == (did, other)
    assert (float(first["rate_with"]), float(first["rate_without"])) == (
        round(stayed / did, 4),
        round(other_stayed / other, 4),
    )
    assert (
        first["summary"].startswith("people who create a project in their first ")
        and "a marker, not proof of cause" in first["summary"]
    )
    times = (stayed / did) / (other_stayed / other)
    assert (
        f"stay {times:.1f} times as often: {stayed / did * 100:.0f} % against {other_stayed / other * 100:.0f} %"
        in first["summary"]
    )


@pytest.mark.parametrize("seed", [0.4, 0.5, 0.6])
def test_noise(db: Database, seed: float) -> None:
    app(db, seed, planted=False)
    assert suggest(db) == []
    notices: list[Any] = []
    with db.connect() as session:
        session.add_notice_handler(lambda notice: notices.append((notice.message_primary, notice.message_detail)))
        session.execute("SELECT * FROM activation.suggest()")
    assert notices[-1][0] == "nothing goes with staying beyond chance" and "variants of" in str(notices[-1][1])


def test_the_loop_runs(db: Database) -> None:
    """Each suggestion is a loop that can be defined as it is; over two tables, and for a value, too."""
    db.sql("SELECT activation.set_template('x', 'x', body_text => 'x')")
    app(db, 0.7, planted=True, decoys=2)
    db.sql("""
        INSERT INTO tasks (project_id, created_at) SELECT p.id, p.created_at + interval '1 hour' FROM projects p, generate_series(1, 3) WHERE random() < 0.8;
        CREATE TABLE logs (user_id bigint REFERENCES users, what text, created_at timestamptz DEFAULT now());
        INSERT INTO logs SELECT id, 'seen', created_at + interval '1 hour' FROM users, generate_series(1, 1 + (random() * 4 + 0 * id)::integer);
        INSERT INTO logs SELECT id, 'it''s $$ mine', created_at + interval '2 hours' FROM users JOIN trait USING (id) WHERE planted;
        ANALYZE
    """)
    found = suggest(db)
    assert {row["table_name"] for row in found} >= {"public.projects", "public.tasks"}
    assert {row["value"] for row in found} >= {None, "it's $$ mine"}
    assert not [row for row in found if row["table_name"] == "public.projects" and row["value"]], (
        "no kind tells more than any"
    )
    for row in found:
        db.sql(row["loop"])
    assert db.value("SELECT count(*) FROM activation.loop") == len(found)
    assert db.value("SELECT bool_and(holdout = 0.5) FROM activation.loop_version")


def test_another_kind_of_staying(db: Database) -> None:
    app(db, 0.8, planted=True, decoys=2)
    db.sql(
        "CREATE TABLE paid AS SELECT id AS member FROM trait WHERE random() < CASE WHEN activity > 0.5 THEN 0.5 ELSE 0.1 END"
    )
    first, *_ = suggest(
        db, "retained => activation.query($$SELECT 1 FROM paid WHERE member = $1$$), within => '3 days'"
    )
    assert first["table_name"] == "public.decoy_1"


def test_odd_names_and_keys(db: Database) -> None:
    """Text keys, quoted names, another schema, partitions and enums."""
    db.sql("""
        SELECT setseed(0.9);
        CREATE SCHEMA "My App";
        CREATE TYPE "My App".mood AS ENUM ('good', 'bad');
        CREATE TABLE "My App"."User" ("Id" text PRIMARY KEY, email text, "createdAt" timestamp NOT NULL DEFAULT now());
        CREATE TABLE "My App"."ApiKey" (id uuid DEFAULT gen_random_uuid(), "userId" text REFERENCES "My App"."User", mood "My App".mood, "createdAt" timestamptz NOT NULL DEFAULT now())
            PARTITION BY RANGE ("createdAt");
        CREATE TABLE "My App".keys_old PARTITION OF "My App"."ApiKey" DEFAULT;
        CREATE TABLE "My App".visit ("userId" text REFERENCES "My App"."User", at timestamptz);
        INSERT INTO "My App"."User" SELECT 'u ' || g, 'u@acme.dev', now() - interval '15 days' - random() * interval '60 days' FROM generate_series(1, 2000) g;
        INSERT INTO "My App"."ApiKey" ("userId", mood, "createdAt") SELECT "Id", 'good', "createdAt" + interval '1 hour' FROM "My App"."User" WHERE substr("Id", 3)::integer % 3 = 0;
        INSERT INTO "My App".visit SELECT "Id", "createdAt" + interval '9 days' FROM "My App"."User"
         WHERE random() < CASE WHEN substr("Id", 3)::integer % 3 = 0 THEN 0.6 ELSE 0.2 END;
    """)
    (first,) = suggest(db, """users => '"My App"."User"'""")
    assert first["table_name"] == '"My App"."ApiKey"' and first["summary"].startswith(
        "people who create an api key in their first day stay"
    )
    db.sql(first["loop"])


def refused(db: Database, arguments: str, error: type[psycopg.Error], message: str, hint: str) -> None:
    with pytest.raises(error, match=message) as caught:
        suggest(db, arguments)
    assert hint in str(caught.value.diag.message_hint)


def test_refusals(db: Database) -> None:
    """Each says what is missing and what to do."""
    state = psycopg.errors.ObjectNotInPrerequisiteState
    refused(db, "", psycopg.errors.UndefinedTable, "there is no table of users to go by", "suggest(users =>")
    db.sql("CREATE TABLE users (id bigint PRIMARY KEY)")
    for within in ("0 days", "-1 days", "8 days"):
        refused(
            db, f"within => '{within}'", psycopg.errors.InvalidParameterValue, "within is", "between one day and seven"
        )
    refused(db, "", state, "no column that tells when a user signed up", "created_at")
    db.sql("ALTER TABLE users ADD created_at timestamptz NOT NULL DEFAULT now()")
    refused(db, "", state, "no table has a foreign key to public.users", "ADD FOREIGN KEY")
    db.sql("CREATE TABLE projects (owner_id bigint REFERENCES users)")
    refused(db, "", state, "none of the tables that reference public.users can be read along time", "created_at")
    db.sql("ALTER TABLE projects ADD created_at timestamptz NOT NULL DEFAULT now()")
    refused(db, "", state, "only 0 users of public.users signed up at least 14 days ago", "Ask again")
    refused(
        db,
        "retained => activation.query('SELECT 1 FROM projects')",
        psycopg.errors.InvalidParameterValue,
        "does not ask about a user",
        "$1",
    )
    db.sql("CREATE TABLE people (a integer, b integer, created_at timestamptz DEFAULT now(), PRIMARY KEY (a, b))")
    refused(
        db, "users => 'people'", psycopg.errors.InvalidTableDefinition, "has no primary key of one column", "set_users"
    )
    db.sql("CREATE VIEW looks AS SELECT * FROM users")
    refused(db, "users => 'looks'", psycopg.errors.WrongObjectType, "is not a table", "whose rows are users")
    db.sql("INSERT INTO users SELECT g, now() - interval '20 days' FROM generate_series(1, 300) g")
    with pytest.raises(psycopg.errors.UndefinedTable, match='relation "nowhere" does not exist'):
        suggest(db, "retained => activation.query('SELECT 1 FROM nowhere WHERE id = $1')")


def test_rights(db: Database, cluster: Cluster) -> None:
    """It reads with the caller's rights: what they may not read is left out, and their query runs as they do."""
    app(db, 0.95, planted=True, decoys=1)
    db.sql("""
        CREATE ROLE analyst LOGIN;
        GRANT USAGE ON SCHEMA activation TO analyst;
        GRANT EXECUTE ON FUNCTION activation.suggest, activation.query, activation._suggest_plan, activation._suggest_rank, activation._look_up TO analyst;
        GRANT SELECT ON users, sessions, projects TO analyst;
    """)
    try:
        with db.connect() as session:
            notices: list[str] = []
            session.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
            session.execute("SET ROLE analyst")
            first = session.execute("SELECT table_name FROM activation.suggest()").fetchone()
            assert first == ("public.projects",)
            assert any("public.decoy_0: you may not read it" in notice for notice in notices)
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for table trait"):
                session.execute(
                    "SELECT * FROM activation.suggest(retained => activation.query('SELECT 1 FROM trait WHERE id = $1'))"
                )
    finally:
        db.sql("DROP OWNED BY analyst; DROP ROLE analyst")
