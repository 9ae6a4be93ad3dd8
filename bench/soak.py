"""Whether it stays as it is: `make bench-soak > bench/SOAK.md`, half an hour; ARGS='--minutes 6' for less.

200 people sign up a second and 1,000 actions are written, a tenth of them by people who wait, under real pg_cron, with
history kept for two minutes. Once a second somebody signs up and acts, and the time until the request left is taken.
Latencies and the sizes of our tables in the last sixth of the time against those in the first.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import app
from common import say
from drain import server

from harness import Cluster, Database, programs, wait_until

SIGN_UPS, ACTIONS = 200, 1000
SIGN_UP = "INSERT INTO users (email, name) VALUES ('ada@acme.dev', 'Ada');\n"
ACT = """
\\set stranger random(1000000001, 2000000000)
\\set one random(1, 10)
INSERT INTO user_actions
SELECT CASE WHEN :one = 1 THEN last_value - 1 - (random() * 5000)::bigint ELSE :stranger END, 'first_project_created'
  FROM users_id_seq;
"""
SIZES = """
    SELECT c.relname, pg_total_relation_size(c.oid)
      FROM pg_class c WHERE c.relnamespace = 'activation'::regnamespace AND c.relkind = 'r' ORDER BY 1
"""
HOT = """
    SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables
     WHERE schemaname = 'activation' AND n_tup_upd > 1000 ORDER BY 1
"""
LATENCY = """
    SELECT extract(epoch FROM a.started_at) FROM activation.message m JOIN activation.attempt a USING (message_id)
     WHERE m.user_id = %s ORDER BY a.attempt LIMIT 1
"""


@contextmanager
def _load(db: Database, script: str, rate: int) -> Iterator[None]:
    """So many transactions a second, until the end."""
    path = db.cluster.data.parent / f"load-{rate}.sql"
    path.write_text(script)
    command = [programs() / "pgbench", "-U", "postgres", "-n", "-M", "prepared", "-c", "4", "-R", str(rate)]
    process = subprocess.Popen(
        [*command, "-T", "100000", "-f", path, db.name],
        env={**os.environ, **db.cluster.address()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _probe(db: Database) -> float:
    """Milliseconds from the commit of somebody's action until their request left."""
    user = db.value("INSERT INTO users (email, name) VALUES ('probe@acme.dev', 'Probe') RETURNING id")
    db.sql("INSERT INTO user_actions VALUES (%s, 'first_project_created')", user)
    acted = time.time()
    return (float(wait_until(lambda: db.sql(LATENCY, str(user)), 60)[0][0]) - acted) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    minutes = parser.parse_args().minutes
    environment = {"RESEND_API_KEY": "re_bench"}
    latencies: list[tuple[float, float]] = []
    sizes: list[tuple[float, dict[str, int]]] = []
    with server(0.05) as url, Cluster(cron=True, fsync=True, environment=environment) as cluster:
        app.install(cluster, url)
        # Shorter than configure() allows, so that what is removed is as much as what comes within the first minutes.
        cluster.sql("UPDATE activation.setting SET retention = '2 minutes'")
        cluster.sql("SELECT activation.start()")
        with _load(cluster, SIGN_UP, SIGN_UPS), _load(cluster, ACT, ACTIONS):
            say("pg_cron starts the workers, and the tables fill …")
            time.sleep(min(240, 40 * minutes))
            begin = time.monotonic()
            while (at := (time.monotonic() - begin) / 60) < minutes:
                latencies.append((at, _probe(cluster)))
                if not sizes or at - sizes[-1][0] >= 0.5:
                    sizes.append((at, {name: int(size) for name, size in cluster.sql(SIZES)}))
                    say(f"{at:.0f} min, {latencies[-1][1]:.0f} ms, {sum(sizes[-1][1].values()) >> 20} MB")
                time.sleep(1)
        people = cluster.value("SELECT count(*) FROM activation.enrollment")
        kept = cluster.value("SELECT pg_total_relation_size('activation.enrollment')") / people
        updates = cluster.sql(HOT)
        cluster.sql("SELECT activation.stop()")
    print("# Soak\n")
    print(
        f"`make bench-soak`, {datetime.date.today()}, {os.cpu_count()} cores; {SIGN_UPS} signups and {ACTIONS:,}"
        f" actions a second for {minutes:g} minutes, {people:,} people in all.\n"
    )
    print("| what | first sixth | last sixth | ratio |\n|---|---|---|---|")
    first = sorted(value for at, value in latencies if at < minutes / 6)
    last = sorted(value for at, value in latencies if at >= minutes * 5 / 6)
    for share in (0.5, 0.95):
        early, late = first[int(len(first) * share)], last[int(len(last) * share)]
        print(f"| commit to request, p{share * 100:.0f}, ms | {early:.0f} | {late:.0f} | {late / early:.2f} |")
    for table in sizes[0][1]:
        early = median(size[table] for at, size in sizes if at < minutes / 6) / 2**20
        late = median(size[table] for at, size in sizes if at >= minutes * 5 / 6) / 2**20
        if late >= 1:
            note = f"{kept:.0f} bytes a person, for ever" if table == "enrollment" else f"{late / max(early, 0.01):.2f}"
            print(f"| size of {table}, MB | {early:.1f} | {late:.1f} | {note} |")
    print("\n| table | updates | of them without touching an index (HOT) |\n|---|---|---|")
    for table, updated, hot in updates:
        print(f"| {table} | {updated:,} | {hot / updated:.0%} |")


if __name__ == "__main__":
    main()
