"""A table that a condition reads: what its INSERTs cost, however many wait, while hardly any of them act."""

from __future__ import annotations

from common import Row, pgbench, ratios, say, shown, worker
from detection import Waiting

from harness import Cluster, Database, wait_until

PLAIN = """
    CREATE TABLE plain_actions (LIKE user_actions INCLUDING ALL);
"""
#: Users who do not wait for anything, and, for one in a hundred, users who do.
SCRIPT = """
\\set stranger random(100000001, 200000000)
\\set known random(1, {people})
\\set one random(1, 100)
INSERT INTO {table} VALUES (CASE WHEN :one <= {share} THEN :known::bigint ELSE :stranger::bigint END, 'seen');
"""
WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)"


def wal_bytes(db: Database, table: str) -> float:
    """Bytes of WAL for each of 20,000 single INSERTs, after a checkpoint and with their pages written once."""
    insert = f"INSERT INTO {table} SELECT 100000000 + g, 'seen' FROM generate_series(%s::bigint, %s::bigint) g"
    db.sql(insert, 1, 20_000)
    begin = db.value("SELECT pg_current_wal_insert_lsn()::text")
    with db.connect() as session:
        for number in range(20_000):
            session.execute(f"INSERT INTO {table} VALUES (%s, 'seen')", [100_000_000 + number])
    return float(db.value(WAL, begin)) / 20_000


def measure(cluster: Cluster, sizes: list[int], pairs: int, seconds: float) -> list[Row]:
    rows: list[Row] = []
    db = cluster.create_database()
    waiting = Waiting(db)
    db.sql(PLAIN)
    for people in sizes:
        waiting.grow(people)
        with worker(db, "detect"):
            wait_until(lambda: db.value("SELECT EXISTS (SELECT FROM activation.schedule WHERE watching)"), 10)
            for share in (0, 1) if people else (0,):
                say(f"Watched table, {people:,} wait, {share} % of them act …")

                def rate(table: str, people: int = people, share: int = share) -> float:
                    return pgbench(db, SCRIPT.format(table=table, people=max(people, 1), share=share), seconds)

                found = ratios(rate, "user_actions", "plain_actions", pairs)
                who = "strangers" if share == 0 else f"{share} % of those who wait"
                rows.append(
                    (f"watched table at 8 clients, {people:,} wait, {who} act, ÷ no trigger", "≥ 0.82", shown(found))
                )
    plain, watched = wal_bytes(db, "plain_actions"), wal_bytes(db, "user_actions")
    rows.append(
        ("WAL of an INSERT into a watched table, bytes, ÷ no trigger", "", f"{watched:.0f} ({watched / plain:.2f})")
    )
    db.drop()
    return rows
