# ruff: noqa: E402, RUF001, RUF002, RUF005
"""What the parts of the benchmark share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "test" / "cluster")]

import psycopg

from harness import Database, programs

#: One line of the results: what was measured, the target, the figure.
Row = tuple[str, str, str]


def say(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


def shown(values: list[float], digits: int = 2) -> str:
    """Median (lowest–highest)."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def ratios(measure: Callable[[str], float], table: str, plain: str, pairs: int) -> list[float]:
    """What a table's slices are to those of the plain one before and after them."""
    found = []
    before = measure(plain)
    for _ in range(pairs):
        own = measure(table)
        after = measure(plain)
        found.append(own / ((before + after) / 2))
        before = after
    return found


def pgbench(db: Database, script: str, seconds: float, clients: int = 8) -> float:
    """Transactions a second of a pgbench script."""
    path = db.cluster.data.parent / "pgbench.sql"
    path.write_text(script)
    said = subprocess.run(
        [programs() / "pgbench", "-U", "postgres", "-n", "-M", "prepared", "-c", str(clients)]
        + ["-j", str(min(clients, 2)), "-T", str(seconds), "-f", path, db.name],
        env={**os.environ, **db.cluster.address()},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    match = re.search(r"^tps = ([0-9.]+)", said, re.MULTILINE)
    assert match, said
    return float(match.group(1))


@contextmanager
def worker(db: Database, kind: str) -> Iterator[None]:
    """A detector or deliverer in a session of its own, one run after the other, as pg_cron would have it."""
    with db.connect() as session:
        stopping = threading.Event()

        def work() -> None:
            while not stopping.is_set():
                try:
                    session.execute(f"CALL activation.{kind}(1)")
                except psycopg.errors.QueryCanceled:
                    return

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            db.sql("SELECT activation.stop()")
            thread.join()
