"""A table that a condition reads: what its INSERTs cost, however many wait, while hardly any of them act."""

from __future__ import annotations

from common import Effort, Figure, pgbench, ratios, say, worker
from detection import Waiting

from harness import Cluster, Database, wait_until

#: Users who do not wait for anything, and, for one in a hundred, users who do.
SCRIPT = """
\\set stranger random(100000001, 200000000)
\\set known random(1, {people})
\\set one random(1, 100)
INSERT INTO {table} VALUES (CASE WHEN :one <= {share} THEN :known::bigint ELSE :stranger::bigint END, 'seen');
"""
#: The way not taken: a trigger that looks first whether the user waits.
LOOK_FIRST = """
    CREATE TABLE look_actions (LIKE user_actions INCLUDING ALL);
    CREATE UNLOGGED TABLE look_wake (source_id integer, user_id text, at timestamptz DEFAULT now());
    CREATE FUNCTION look_first() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        INSERT INTO public.look_wake (source_id, user_id)
        SELECT 1, pg_catalog.format('%s', n.user_id) FROM new_rows n
         WHERE EXISTS (SELECT FROM activation.enrollment e
                        WHERE e.loop_id OPERATOR(pg_catalog.=) 1 AND e.activated_at IS NULL
                          AND e.user_id OPERATOR(pg_catalog.=) pg_catalog.format('%s', n.user_id));
        RETURN NULL;
    END $$;
    CREATE TRIGGER look AFTER INSERT ON look_actions REFERENCING NEW TABLE AS new_rows
        FOR EACH STATEMENT EXECUTE FUNCTION look_first();
"""
WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)"


def _wal_bytes(db: Database, table: str) -> float:
    """Bytes of WAL for each of 20,000 single INSERTs, after others have written the pages for the first time."""
    insert = f"INSERT INTO {table} SELECT 100000000 + g, 'seen' FROM generate_series(%s::bigint, %s::bigint) g"
    db.sql(insert, 1, 20_000)
    begin = db.value("SELECT pg_current_wal_insert_lsn()::text")
    with db.connect() as session:
        for number in range(20_000):
            session.execute(f"INSERT INTO {table} VALUES (%s, 'seen')", [100_000_000 + number])
    return float(db.value(WAL, begin)) / 20_000


def measure(cluster: Cluster, effort: Effort) -> list[Figure]:
    figures: list[Figure] = []
    db = cluster.create_database()
    waiting = Waiting(db)
    db.sql("CREATE TABLE plain_actions (LIKE user_actions INCLUDING ALL)")
    db.sql(LOOK_FIRST)
    for people in [0, 10_000] if effort.quick else [0, 10_000, 1_000_000]:
        waiting.grow(people)
        with worker(db, "detect"):
            wait_until(lambda: db.value("SELECT EXISTS (SELECT FROM activation.schedule WHERE watching)"), 10)
            for share in (0, 1) if people else (0,):
                who = "strangers" if share == 0 else f"{share} % of those who wait"
                say(f"Watched table, {people:,} wait, {who} act …")

                def rate(table: str, people: int = people, share: int = share) -> float:
                    script = SCRIPT.format(table=table, people=max(people, 1), share=share)
                    return pgbench(db, script, effort.seconds)

                figures.append(
                    Figure(
                        f"watched table at 8 clients, {people:,} wait, {who} act, ÷ no trigger",
                        ratios(rate, "user_actions", "plain_actions", effort.pairs),
                        at_least=0.82,
                    )
                )
                if share == 0 and people and not effort.quick:
                    figures.append(
                        Figure(
                            f"the same, {people:,} wait, a trigger that looks first whether the user waits",
                            ratios(rate, "look_actions", "plain_actions", effort.pairs),
                        )
                    )
    db.sql("CREATE TABLE untouched_actions (LIKE user_actions INCLUDING ALL)")
    figures.append(
        Figure(
            "a table without a trigger, ÷ no trigger: what is noise",
            ratios(
                lambda table: pgbench(db, SCRIPT.format(table=table, people=1, share=0), effort.seconds),
                "untouched_actions",
                "plain_actions",
                effort.pairs,
            ),
            at_least=0.98,
        )
    )
    plain, watched = _wal_bytes(db, "plain_actions"), _wal_bytes(db, "user_actions")
    figures.append(
        Figure(
            "WAL of an INSERT into a watched table, bytes", [watched], digits=0, note=f"{plain:.0f} without a trigger"
        )
    )
    db.drop()
    return figures
