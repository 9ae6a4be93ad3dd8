"""How much of the provider's limit is used, and how often it is overstepped: `make bench-rate`.

Each cell is a fresh database on one throwaway server, a queue that does not run dry, one to four deliverers, and a
sandbox with a limit and a latency, uniform between two bounds. Counted from the first request for so many seconds:
emails accepted, as a share of limit x 100 x seconds, and answers 429.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import threading
import time
from dataclasses import dataclass

from activation.sandbox import Sandbox
from harness import Cluster, Database, wait_until

SCHEMA = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text, name text);
    SELECT activation.configure(sender => 'Acme <hello@acme.dev>', public_url => 'https://acme.dev/activation',
                                api_key => 'env:NOT_THERE', resend_url => '{url}',
                                max_per_hour => 10000000);
    SELECT activation.define_loop('welcome', trigger => activation.on_insert('users'),
                                  action => activation.email('activation_welcome'));
    SELECT activation.set_mode('live');
    INSERT INTO users SELECT g, 'u' || g || '@acme.dev', 'U' || g FROM generate_series(1, {people}) g;
"""


@dataclass(frozen=True)
class Cell:
    """rate: requests a second. low, spread: the shortest latency, and what is added at most (ms)."""

    rate: int
    low: float
    spread: float
    deliverers: int = 1


def cells(more: bool) -> list[Cell]:
    latencies = [(0.0, 100.0), (250.0, 100.0), (950.0, 100.0)]
    found = [Cell(rate, low, spread) for rate in (2, 5, 10) for low, spread in latencies]
    if more:
        found += [Cell(10, low, spread, n) for n in (2, 4) for low, spread in latencies]
        found += [Cell(10, 50, 0), Cell(10, 50, 200), Cell(10, 300, 500), Cell(10, 50, 200, 4), Cell(40, 250, 100)]
    return found


def measure(server: Cluster, cell: Cell, seconds: float, sliding: bool, way_there: float) -> tuple[float, int]:
    """The share of the limit that was used (%), and the number of answers 429."""
    db = server.create_database()
    settings = {"rate": cell.rate, "latency_ms": cell.low, "jitter_ms": cell.spread}
    with Sandbox(**settings, sliding=sliding, way_there=way_there) as sandbox:
        db.sql(SCHEMA.format(url=sandbox.url, people=int(cell.rate * 100 * (seconds + 5))))
        db.sql("CALL activation.tick()")
        db.sql("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
        stopping = threading.Event()
        workers = [
            threading.Thread(target=deliver, args=[db, slot, stopping]) for slot in range(1, cell.deliverers + 1)
        ]
        for worker in workers:
            worker.start()
        first = wait_until(lambda: sandbox.log, 20)[0].at
        time.sleep(max(0.0, first + seconds - time.time()))
        stopping.set()
        db.sql("SELECT activation.stop()")
        for worker in workers:
            worker.join()
        entries = [entry for entry in sandbox.log if entry.at < first + seconds]
    db.drop()
    emails = sum(entry.accepted for entry in entries)
    return 100 * emails / (cell.rate * 100 * seconds), sum(entry.status == 429 for entry in entries)


def deliver(db: Database, slot: int, stopping: threading.Event) -> None:
    """As pg_cron does: one run after another."""
    with db.connect() as connection:
        while not stopping.is_set():
            connection.execute("CALL activation.deliver(%s)", [slot])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--more", action="store_true", help="also two and four deliverers, and wilder latencies")
    parser.add_argument("--sliding", action="store_true", help="the provider counts in any second, not the clock's")
    parser.add_argument("--way-there", type=float, default=0.0, help="which part of the latency lies before it counts")
    options = parser.parse_args()
    print("# The rate\n")
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"{options.seconds:g} s a cell; "
        f"the provider counts in {'any second' if options.sliding else 'seconds of its clock'}, "
        f"{options.way_there:.0%} of the latency before it does. `make bench-rate`\n"
    )
    print("| limit (requests/s) | latency (ms) | deliverers | used | 429 |\n|---|---|---|---|---|")
    with Cluster(fsync=True, environment={"RESEND_API_KEY": "re_bench"}) as server:
        for cell in cells(options.more):
            used, limited = measure(server, cell, options.seconds, options.sliding, options.way_there)
            latency = f"{cell.low:g} to {cell.low + cell.spread:g}"
            print(f"| {cell.rate} | {latency} | {cell.deliverers} | {used:.1f} % | {limited} |", flush=True)


if __name__ == "__main__":
    main()
