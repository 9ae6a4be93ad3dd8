# ruff: noqa: RUF001, RUF002, RUF005
"""What the parts of the benchmark share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psycopg

from harness import Database, programs


@dataclass(frozen=True)
class Figure:
    """One line of the results. values: each single measurement. at_least, at_most: the target for their median."""

    what: str
    values: list[float]
    at_least: float | None = None
    at_most: float | None = None
    digits: int = 2
    note: str = ""
    #: What it is called in a chart, and in which.
    chart: str = ""
    label: str = ""

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def shown(self) -> str:
        """Median (lowest–highest)."""
        text = f"{self.median:,.{self.digits}f}"
        if len(self.values) > 1:
            text += f" ({min(self.values):,.{self.digits}f}–{max(self.values):,.{self.digits}f})"
        return text + (f"; {self.note}" if self.note else "")

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:,g}"
        return f"≤ {self.at_most:,g}" if self.at_most is not None else ""

    @property
    def reached(self) -> bool | None:
        if self.at_least is not None:
            return self.median >= self.at_least
        return self.median <= self.at_most if self.at_most is not None else None


@dataclass
class Effort:
    """How much of the benchmark is run. pairs of slices, the seconds of a slice, and how many people at most."""

    quick: bool = False
    pairs: int = field(init=False)
    seconds: int = field(init=False)
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.pairs = 3 if self.quick else 7
        self.seconds = 1
        self.sizes = [10_000, 100_000] if self.quick else [10_000, 100_000, 1_000_000, 10_000_000]


def say(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


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


def pgbench(db: Database, script: str, seconds: int, clients: int = 8) -> float:
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


def cpu_seconds(pid: int) -> float:
    """What a process has used, of its own and of the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def worker(db: Database, kind: str, slot: int = 1) -> Iterator[None]:
    """A detector or deliverer in a session of its own, one run after the other, as pg_cron would have it."""
    with db.connect() as session:
        stopping = threading.Event()

        def work() -> None:
            while not stopping.is_set():
                try:
                    session.execute(f"CALL activation.{kind}({slot})")
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


@contextmanager
def program(*command: str | Path, environment: dict[str, str] | None = None) -> Iterator[str]:
    """A program beside us, for as long as it is needed; what it says first."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
