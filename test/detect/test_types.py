# ruff: noqa: E501
"""Whatever types an app's tables have, and whatever stands in them: each signup goes through, each person ends with a mail or
with a reason, and a plain person beside them gets theirs in the same run."""

from __future__ import annotations

import itertools

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from harness import Cluster, Connection, Database
from loops import tick

#: Texts of which each type takes those that it can: extremes, and what is odd.
CANDIDATES = [
    "", " ", "0", "1", "-1", "NaN", "Infinity", "-infinity", "epoch", "t", "a", "é", "\u2603", "9" * 300, "-32768", "2147483647",
    "9223372036854775807", "1e308", "5e-324", "0.00", "1" * 5001, "{}", "{NULL}", "{1,2}", "empty", "[1,2)", "(,)", "(0,0)", "(0,0),(1,1)", "[(0,0),(1,1)]",
    "((0,0),(1,1))", "<(0,0),1>", "{1,2,3}", "10:00", "10:00+15:59", "24:00:00", "2026-02-29", "4713-01-01 BC", "5874897-12-31", "294276-12-31 23:59:59.999999",
    "178000000 years", "-178000000 years 3 mons", "::1", "255.255.255.255/32", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00:00:01", r"\x00ff", "B101", "101",
    "null", '"a"', '{"a": "\\u0000"}', '{"a": "\\ud800"}', '{"a": 1e400}', "[" * 3000 + "]" * 3000, "<a/>", "'a':1A fat:2B", "a & !b",
    "00000000-0000-0000-0000-000000000000", "0/0", "1:1:", "10:20:10,14,15", "(0,1)", "pg_class", "pg_catalog", "now()", "english", "postgres", "$.a", "x" * 2000,
]  # fmt: skip

#: Types of columns that only the server itself makes.
BUILT_IN = """
    SELECT format_type(t.oid, NULL) FROM pg_type t
     WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typtype IN ('b', 'r', 'm') AND t.typname !~ '^(_pg_|pg_|gtsvector)' AND t.typisdefined
       AND (t.typcategory <> 'A' OR t.typname IN ('_text', '_int4', '_jsonb', '_numeric', '_timestamptz', '_bytea')) AND t.typcategory <> 'Z'
       AND t.typrelid = 0
     ORDER BY 1
"""

DEFINE = "SELECT activation.define_loop(%s, trigger => activation.on_insert(%s::regclass), action => activation.email('activation_welcome'))"


def accepted(app: Connection, type_: str) -> list[str]:
    """Of the candidates those that the type takes, the same value once."""
    found = {}
    for text in CANDIDATES:
        try:
            with app.transaction():
                row = app.execute(f"SELECT pg_catalog.format('%%s', %s::text::{type_})".encode(), [text]).fetchone()
        except psycopg.Error:
            continue
        found.setdefault(row[0] if row else None, text)
    return list(found.values())


def ended(db: Database, loop: str) -> dict[str, tuple[str, str | None]]:
    return {user: (state, error) for user, state, error in db.sql(
        "SELECT user_id, status, last_error FROM activation.message_log WHERE loop = %s", loop)}  # fmt: skip


def assert_all_ended(found: dict[str, tuple[str, str | None]]) -> None:
    for user, (state, error) in found.items():
        assert state == "captured" or (state == "failed" and error), f"{user[:50]}: {state}, {error}"


def test_columns_of_every_type(db: Database) -> None:
    with db.connect() as app:
        types = [type_ for (type_,) in app.execute(BUILT_IN)]
        assert len(types) > 55
        columns = ", ".join(f"c{number} {type_}" for number, type_ in enumerate(types))
        app.execute(
            f"CREATE TABLE users (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text, {columns})".encode()
        )
        app.execute(DEFINE, ["first", "users"])
        people = 0
        for number, type_ in enumerate(types):
            for text in [None, *accepted(app, type_)]:
                app.execute(
                    f"INSERT INTO users (email, c{number}) VALUES ('u@acme.dev', %s::text::{type_})".encode(), [text]
                )
                people += 1
        app.execute("INSERT INTO users (email, c0) SELECT 'u@acme.dev', NULL FROM generate_series(1, 3)")
        large = types.index("text")
        app.execute(
            f"INSERT INTO users (email, c{large}) SELECT 'u@acme.dev', repeat('ü', 5000000) FROM generate_series(1, 5)".encode()
        )
        tick(db)
        found = ended(db, "first")
        assert len(found) == people + 3 + 5
        assert_all_ended(found)
        assert {found[str(people + plain)][0] for plain in (1, 2, 3)} == {"captured"}
        # Only what can be read neither as jsonb nor by Python.
        failed = [error for state, error in found.values() if state == "failed"]
        assert 0 < len(failed) < 12, failed


def test_keys_of_every_type(db: Database) -> None:
    """A type that can be no key is refused when the loop is defined, in words."""
    refused = {}
    with db.connect() as app:
        app.execute("SET client_min_messages = error")
        types = [type_ for (type_,) in app.execute(BUILT_IN)]
        wanted: dict[str, int] = {}
        for number, type_ in enumerate(types):
            table = f"people{number}"
            app.execute(f"CREATE TABLE {table} (id {type_}, email text)".encode())
            try:
                app.execute(f"CREATE INDEX ON {table} (id)".encode())
                app.execute("SELECT activation.set_users(%s::regclass, key => 'id')", [table])
                app.execute(DEFINE, [table, table])
            except psycopg.Error as error:
                refused[type_] = str(error)
                continue
            keys = [text for text in accepted(app, type_) if len(text) < 1500]
            for text in keys:
                app.execute(f"INSERT INTO {table} VALUES (%s::text::{type_}, 'u@acme.dev')".encode(), [text])
            wanted[table] = len(keys)
        tick(db)
        for table, people in wanted.items():
            found = ended(db, table)
            assert_all_ended(found)
            assert len(found) == people, f"{table} {types[int(table[6:])]}: {sorted(found)}"
    assert len(wanted) > 35
    for type_, error in refused.items():
        assert "no default operator class for access method" in error or "activation" in error or "loop" in error, (
            type_,
            error,
        )


@pytest.fixture(scope="module")
def people(cluster: Cluster) -> Database:
    database = cluster.create_database()
    with database.connect() as app:
        app.execute(
            "CREATE TABLE users (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text, name text, plain json, more jsonb, raw bytea, n numeric)"
        )
        app.execute(DEFINE, ["first", "users"])
        app.execute("SELECT activation.configure(max_per_hour => 1000000)")
    return database


TEXTS = st.one_of(
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40),
    st.sampled_from(["x" * 150_000, "ü" * 600_000]),
)
NESTED = st.integers(1, 3500).map(lambda depth: "[" * depth + "]" * depth)
JSON = st.one_of(NESTED, st.sampled_from(['"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '{"a":1,"a":2}', "1e-400", "-0", "1" * 5000]),
                 st.text("\\u0d8c{}[]\":,1e", max_size=20).map(lambda text: '"' + text.replace("\\", "").replace('"', "") + '"'))  # fmt: skip
ROWS = st.fixed_dictionaries(
    {"email": st.one_of(st.none(), st.just("u@acme.dev"), TEXTS), "name": st.one_of(st.none(), TEXTS), "plain": st.one_of(st.none(), JSON),
     "more": st.one_of(st.none(), JSON), "raw": st.one_of(st.none(), st.binary(max_size=50)), "n": st.one_of(st.none(), st.decimals())}
)  # fmt: skip


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(rows=st.lists(ROWS, min_size=1, max_size=8))
def test_rows_of_any_kind(people: Database, rows: list[dict[str, object]]) -> None:
    with people.connect() as app:
        made = []
        for row in [{"email": "plain@acme.dev"}, *rows]:
            names = sql.SQL(", ").join(map(sql.Identifier, row))
            values = sql.SQL(", ").join(itertools.repeat(sql.Placeholder(), len(row)))
            try:
                made += app.execute(
                    sql.SQL("INSERT INTO users ({}) VALUES ({}) RETURNING id").format(names, values), [*row.values()]
                ).fetchall()
            except psycopg.Error as error:
                # PostgreSQL itself does not take it.
                assert error.sqlstate and error.sqlstate[:2] in ("22", "54"), error
        tick(people)
        found = ended(people, "first")
        assert_all_ended({str(id_): found[str(id_)] for (id_,) in made})
        assert found[str(made[0][0])] == ("captured", None)
