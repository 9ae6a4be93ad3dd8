"""Feeds hostile inputs to everything that takes a text of somebody's: `make fuzz MINUTES=20 SEED=7`.

Input n of a target follows from the seed, the target's name and n alone, so a failure is repeated by
`make fuzz SEED=7 ARGS='--target import_loop --only 4711'`. A failure is an exception that is none of the documented
ones, an answer that must not be, more than a second of CPU (in the database: of time), or a process that died.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import targets
from harness import Cluster
from targets import Escape, InDatabase, Target

#: Seconds that an input may take, and after which a run is broken off.
LIMIT, PATIENCE = 1.0, 30
#: Of the address space of a process.
MEMORY = 6 << 30


@dataclass
class Failure:
    """kind: what was wrong, in a word or two; the same kind is told once, with its shortest input."""

    target: str
    number: int
    kind: str
    detail: str
    given: str
    times: int = 1


@dataclass
class Report:
    """Of one target."""

    inputs: int = 0
    seconds: float = 0
    slowest: float = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, Failure] = field(default_factory=dict)

    def add(self, failure: Failure) -> None:
        known = self.failures.get(failure.kind)
        if known is None or len(failure.given) < len(known.given):
            self.failures[failure.kind] = failure
            failure.times += known.times if known else 0
        else:
            known.times += 1

    def merge(self, other: Report) -> None:
        self.inputs += other.inputs
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.outcomes += other.outcomes
        for failure in other.failures.values():
            self.add(failure)


class _TooLong(Exception):
    pass


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    def end(*_: Any) -> None:
        raise _TooLong(f"broken off after {PATIENCE} s")

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def made(seed: int, target: Target, number: int) -> Any:
    return target.make(Random(f"{seed} {target.name} {number}"))


def _seconds(target: Target, given: Any) -> tuple[float, str]:
    clock = time.monotonic if target.in_database else time.thread_time
    start = clock()
    outcome = target.run(given)
    return clock() - start, outcome


def one(seed: int, target: Target, number: int, report: Report) -> None:
    """Input `number`."""
    given = made(seed, target, number)
    kind = detail = ""
    try:
        with _patience():
            taken, outcome = _seconds(target, given)
            # A loaded machine is not slow code.
            for _ in range(2):
                if taken > LIMIT:
                    taken = min(taken, _seconds(target, given)[0])
        if taken > LIMIT:
            kind, detail = f"slow ({outcome})", f"{taken:.2f} s"
        report.outcomes[outcome] += 1
        report.slowest = max(report.slowest, taken)
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/activation/" in f.filename]
        place = f"at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        state = getattr(error, "sqlstate", None)
        # Of a text what is before the first colon or quote: the rest is of this input.
        said = re.split(r"[:\"\n]", str(error))[0][:60] if state or isinstance(error, Escape) else ""
        kind = " ".join(filter(None, (type(error).__name__, state, place, said)))
        detail = "".join(traceback.format_exception(error, limit=-4))[-1500:]
        report.outcomes["FAILED"] += 1
    report.inputs += 1
    if kind:
        report.add(Failure(target.name, number, kind, detail, json.dumps(given)))


def _work(
    job: int, jobs: int, seed: int, minutes: float, most: Mapping[str, int], dsn: str, reached: Any, answer: Any
) -> None:
    """One process: its part of every target's inputs."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    chosen = [kind() for kind in targets.TARGETS if kind.name in most]
    whole = sum(target.weight for target in chosen)
    for place, target in enumerate(chosen):
        report = Report()
        if isinstance(target, InDatabase):
            target.connect(dsn)
        start = time.monotonic()
        end = start + minutes * 60 * target.weight / whole
        for number in range(job, most[target.name], jobs):
            if time.monotonic() > end:
                break
            reached[0], reached[1] = place, number
            one(seed, target, number, report)
        report.seconds = time.monotonic() - start
        answer.send((target.name, report))
    answer.close()


def run(seed: int, minutes: float, jobs: int, most: Mapping[str, int], dsn: str) -> dict[str, Report]:
    """Targets, and so many inputs of each at most, in so many processes for so many minutes at most."""
    reports = {name: Report() for name in most}
    order = [kind.name for kind in targets.TARGETS if kind.name in most]
    context = multiprocessing.get_context("fork")
    running = []
    for job in range(jobs):
        ours, theirs = context.Pipe(duplex=False)
        reached = context.Array("q", 2, lock=False)
        process = context.Process(target=_work, args=(job, jobs, seed, minutes, most, dsn, reached, theirs))
        process.start()
        theirs.close()
        running.append((process, ours, reached))
    for process, ours, reached in running:
        last, since = (0, -1), time.monotonic()
        with contextlib.suppress(EOFError):
            while True:
                if ours.poll(1):
                    name, report = ours.recv()
                    reports[name].merge(report)
                elif tuple(reached) != last:
                    last, since = tuple(reached), time.monotonic()
                elif time.monotonic() - since > 4 * PATIENCE:
                    # What is not Python hears no alarm.
                    process.kill()
        process.join()
        if process.exitcode:
            name, number = order[reached[0]], reached[1]
            kind = "it never ended" if process.exitcode == -signal.SIGKILL else f"the process died ({process.exitcode})"
            reports[name].add(Failure(name, number, kind, "", ""))
    return reports


def shown(reports: dict[str, Report], seed: int, folder: Path) -> str:
    """The report, its failures' inputs in files."""
    lines = [f"{'target':<24}{'inputs':>10}{'seconds':>9}{'slowest':>9}  outcomes"]
    for name, report in reports.items():
        common = ", ".join(f"{outcome} {count}" for outcome, count in report.outcomes.most_common(6))
        lines.append(f"{name:<24}{report.inputs:>10}{report.seconds:>9.0f}{report.slowest:>8.2f}s  {common}")
    lines.append(
        f"{'all':<24}{sum(r.inputs for r in reports.values()):>10}{sum(r.seconds for r in reports.values()):>9.0f}"
    )
    for report in reports.values():
        for failure in report.failures.values():
            file = folder / f"{failure.target.replace(' ', '_')}-{failure.number}.json"
            file.write_text(failure.given)
            lines += [
                "",
                f"{failure.target}: {failure.kind}, {failure.times} times",
                f"  make fuzz SEED={seed} ARGS=\"--target '{failure.target}' --only {failure.number}\"",
                f"  Its input is in {file}",
                *("  " + line for line in failure.detail.rstrip().splitlines()),
            ]
    return "\n".join(lines)


@contextlib.contextmanager
def database(wanted: bool) -> Iterator[str]:
    """A throwaway server with the example's tables; the address of its database."""
    if not wanted:
        yield ""
        return
    with Cluster() as cluster:
        cluster.sql(targets.SCHEMA.replace("{secret}", targets.SECRET))
        yield cluster.dsn()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--target", action="append", help="this one alone; may be repeated")
    parser.add_argument("--only", type=int, help="this input alone")
    asked = parser.parse_args()
    names = [kind.name for kind in targets.TARGETS if not asked.target or kind.name in asked.target]
    folder = Path(tempfile.mkdtemp(prefix="activation-fuzz-"))
    with database(any(kind.in_database for kind in targets.TARGETS if kind.name in names)) as dsn:
        if asked.only is None:
            reports = run(asked.seed, asked.minutes, asked.jobs, dict.fromkeys(names, sys.maxsize), dsn)
        else:
            reports = {}
            for kind in (kind for kind in targets.TARGETS if kind.name in names):
                target = kind()
                if isinstance(target, InDatabase):
                    target.connect(dsn)
                reports[target.name] = Report()
                one(asked.seed, target, asked.only, reports[target.name])
    print(shown(reports, asked.seed, folder), flush=True)
    failed = any(report.failures for report in reports.values())
    if not failed:
        folder.rmdir()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
