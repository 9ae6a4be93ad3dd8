# ruff: noqa: RUF001
"""What a signup pays: single INSERTs at 1 and 8 clients, many rows in one statement, processor time a row.

Ours, ways of writing the trigger that we did not take, and job queues of others that are fed from a trigger of the same
table.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import app
import peers
from common import Effort, Figure, cpu_seconds, pgbench, ratios, say

from harness import Cluster, Database

#: The floor: the least that a trigger must do to remember a row.
BARE = """
    CREATE TABLE bare (LIKE plain INCLUDING ALL);
    CREATE TABLE bare_queue (at timestamptz DEFAULT now(), key text);
    CREATE FUNCTION bare_capture() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN INSERT INTO bare_queue (key) SELECT id::text FROM new_rows; RETURN NULL; END$$;
    CREATE TRIGGER bare AFTER INSERT ON bare REFERENCING NEW TABLE AS new_rows
        FOR EACH STATEMENT EXECUTE FUNCTION bare_capture();
"""
#: Other ways of writing our trigger: what it is, the queue's key, the trigger's level and its body.
VARIANTS = {
    "row": ("a row trigger", "", "ROW", "INSERT INTO {q} (source_id, user_id) VALUES (1, format('%s', NEW.id))"),
    "row_pk": (
        "a row trigger, queue with a primary key",
        "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,",
        "ROW",
        "INSERT INTO {q} (source_id, user_id) VALUES (1, format('%s', NEW.id))",
    ),
    "statement_pk": (
        "a statement trigger, queue with a primary key",
        "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,",
        "STATEMENT",
        "INSERT INTO {q} (source_id, user_id) SELECT 1, format('%s', n.id) FROM new_rows n",
    ),
    "statement_unique": (
        "a statement trigger, queue with a unique key",
        "UNIQUE (source_id, user_id),",
        "STATEMENT",
        "INSERT INTO {q} (source_id, user_id) SELECT 1, format('%s', n.id) FROM new_rows n ON CONFLICT DO NOTHING",
    ),
}
INSERT = "INSERT INTO {table} (email, name) VALUES ('ada@acme.dev', 'Ada');\n"
BULK = "INSERT INTO {table} (email, name) SELECT 'u' || g || '@acme.dev', 'U' || g FROM generate_series(1, {rows}) g"


def _variant(db: Database, name: str) -> str:
    _, key, level, body = VARIANTS[name]
    table, queue = f"users_{name}", f"queue_{name}"
    db.sql(f"CREATE TABLE {table} (LIKE plain INCLUDING ALL)")
    db.sql(f"CREATE TABLE {queue} ({key} source_id integer, user_id text, at timestamptz DEFAULT now())")
    db.sql(
        f"CREATE FUNCTION {table}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        f" $$BEGIN {body.format(q='public.' + queue)}; RETURN NULL; END$$"
    )
    rows = "REFERENCING NEW TABLE AS new_rows " if level == "STATEMENT" else ""
    db.sql(f"CREATE TRIGGER t AFTER INSERT ON {table} {rows}FOR EACH {level} EXECUTE FUNCTION {table}()")
    return table


class Signup:
    def __init__(self, db: Database, effort: Effort) -> None:
        self.db, self.effort = db, effort

    def clients(self, number: int) -> Callable[[str], float]:
        return lambda table: pgbench(self.db, INSERT.format(table=table), self.effort.seconds, number)

    def bulk(self, rows: int) -> Callable[[str], float]:
        def seconds(table: str) -> float:
            start = time.perf_counter()
            self.db.sql(BULK.format(table=table, rows=rows))
            return time.perf_counter() - start

        return seconds

    def processor(self, table: str) -> float:
        """Microseconds of the session's process for one of 20,000 single INSERTs, each committed."""
        rows = 5_000 if self.effort.quick else 20_000
        with self.db.connect() as session:
            session.prepare_threshold = 0
            session.execute("SET synchronous_commit = off")
            pid = session.info.backend_pid
            start = cpu_seconds(pid)
            for _ in range(rows):
                session.execute(INSERT.format(table=table).encode())
            return (cpu_seconds(pid) - start) / rows * 1e6

    def price(
        self, what: str, table: str, *, rows: int = 100_000, bulk: str = "", ours: bool = False, peer: bool = False
    ) -> list[Figure]:
        """All figures of one way. bulk: the table to use for many rows, if it is another."""
        say(f"INSERT, {what} …")
        eight = ratios(self.clients(8), table, "plain", self.effort.pairs)
        charted = ours or peer or table == "bare"
        figures = [
            Figure(
                f"INSERT at 8 clients, {what} ÷ no trigger",
                eight,
                at_least=0.82 if ours else None,
                chart="signup" if charted else "",
                label="activation" if ours else what.split(" (")[0],
            ),
            Figure(
                f"{rows:,} rows in one INSERT, {what}, × no trigger",
                ratios(self.bulk(rows), bulk or table, "plain", self.effort.pairs),
                at_most=1.8 if ours else None,
            ),
        ]
        if ours or not self.effort.quick:
            one = ratios(self.clients(1), table, "plain", self.effort.pairs)
            figures += [
                Figure(f"INSERT at 1 client, {what} ÷ no trigger", one),
                Figure(f"processor time of an INSERT, {what}, µs", [self.processor(table)], digits=0),
            ]
        for used in {table, bulk or table, "plain"}:
            self.db.sql(f"TRUNCATE {used}")
        return figures


def measure(cluster: Cluster, effort: Effort, url: str) -> list[Figure]:
    db = cluster.create_database()
    app.install(db, url)
    db.sql(BARE)
    db.sql("CALL activation.tick()")
    signup = Signup(db, effort)
    figures = [
        Figure("INSERT at 8 clients, no trigger, a second", [signup.clients(8)("plain") for _ in range(3)], digits=0),
        Figure("processor time of an INSERT, no trigger, µs", [signup.processor("plain")], digits=0),
    ]
    ours = signup.price("with the loop", "users", ours=True)
    bare = signup.price("bare hand-written trigger", "bare")
    figures += ours + bare
    figures.append(
        Figure(
            "INSERT at 8 clients, with the loop ÷ bare hand-written trigger",
            ratios(signup.clients(8), "users", "bare", effort.pairs),
            at_least=0.98,
        )
    )
    db.sql("TRUNCATE users, bare, bare_queue")
    if not effort.quick:
        for name, (what, *_) in VARIANTS.items():
            figures += signup.price(what, _variant(db, name))
    db.drop()
    for peer in peers.available(cluster):
        db = cluster.create_database()
        db.sql(app.SCHEMA.partition("CREATE TABLE users")[0])
        peer.install(db)
        for table, body, level in (("single", peer.row, "ROW"), ("many", peer.statement, "STATEMENT")):
            db.sql(f"CREATE TABLE {table} (LIKE plain INCLUDING ALL)")
            peer.trigger(db, table, body, level)
        figures += Signup(db, effort).price(
            f"{peer.name} ({peer.version})", "single", rows=10_000, bulk="many", peer=True
        )
        db.drop()
    return figures
