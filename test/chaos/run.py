"""The chaos suite: `make chaos SEED=7 MINUTES=3`, or `make chaos SEEDS=1-20 MINUTES=3` for the report."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psycopg

import check
import evidence
import report
from adversary import Adversary
from check import Offence
from driver import Client
from engine import Engine, PgCron, Supervisor
from faults import HEAVY, Record
from world import OnCall, World

CLIENTS = 4

#: After a crash, so long may the app still find the server away (seconds).
STORM = 20

#: How long the engine may take to finish once all is healthy (seconds).
PATIENCE = 180


@dataclass
class Result:
    """What came of one seed."""

    seed: int
    cron: bool
    seconds: float
    rate: int
    users: int = 0
    emails: int = 0
    states: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    offences: list[Offence] = field(default_factory=list)
    recoveries: list[tuple[float, str]] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)
    quiet_after: float = 0
    kept: Path | None = None


def run_seed(seed: int, seconds: float, *, cron: bool = False) -> Result:
    """One seed: chaos for so long, then peace, then the count."""
    rng = Random(f"{seed} world")
    rate = rng.choice([10, 20, 50])
    result = Result(seed, cron, seconds, rate)
    world = World(cron=cron, long=seconds >= 120, rate=rate)
    try:
        engine: Engine = PgCron(world.cluster) if cron else Supervisor(world.cluster)
        clients = [
            Client(number, world.cluster, world.ledger, Random(f"{seed} client {number}")) for number in range(CLIENTS)
        ]
        adversary, on_call = Adversary(world, seed, cron=cron), OnCall(world)
        engine.start()
        on_call.start()
        for client in clients:
            client.start()
        if cron:
            _wait(lambda: len(world.workers()) == 4, 90)
        adversary.start()
        time.sleep(seconds)
        adversary.stop()
        for client in clients:
            client.stop()
        peace = time.monotonic()
        left: dict[str, int] = {"not looked": 1}

        def quiet() -> bool:
            nonlocal left
            with contextlib.suppress(psycopg.Error):
                left = check.work_left(world.cluster)
            return not left

        _wait(quiet, PATIENCE)
        result.quiet_after = time.monotonic() - peace
        on_call.stop()
        engine.stop()
        check.expire(world.cluster)
        _count(result, world, adversary.log, left)
        result.remarks = engine.errors + on_call.did
        bunched = len(check.over_the_rate(world, bunched=True))
        result.remarks += Counter({"a request came too soon because the network had held others back": bunched})
        if result.offences or any(seconds > report.TARGETS[cron] for seconds, _ in result.recoveries):
            result.kept = evidence.keep(result, world, adversary.log)
        if adversary.broken:
            raise adversary.broken
    finally:
        world.destroy()
    return result


def _wait(predicate: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _count(result: Result, world: World, log: list[Record], left: dict[str, int]) -> None:
    done = [record for record in log if record.applied]
    stormy = [(r.began - 0.1, r.ended + STORM) for r in log if r.name in ("kill_worker", "stop_server")]
    result.faults = Counter(record.name for record in done)
    result.users = len(world.ledger.committed)
    result.emails = len(world.sandbox.emails)
    result.states = check.states(world.cluster)
    result.offences = check.offences(world, left, stormy)
    result.recoveries = recoveries(world, done)


def recoveries(world: World, log: list[Record]) -> list[tuple[float, str]]:
    """For each heavy fault, how long after its end both went on: somebody was enrolled, and a request was sent (and not
    refused for its key). People sign up all the time, so there is always work due."""
    found = []
    heavy = [record for record in log if record.name in HEAVY or record.name == "stalled_deliverer"]
    with world.cluster.connect() as session:
        for record in heavy:
            row = session.execute(
                """
                SELECT extract(epoch FROM greatest(
                    (SELECT min(created_at) FROM activation.enrollment WHERE created_at > to_timestamp(%(ended)s)),
                    (SELECT min(started_at) FROM activation.attempt
                      WHERE started_at > to_timestamp(%(ended)s) AND http_status IS DISTINCT FROM 403)))
                """,
                {"ended": record.ended},
            ).fetchone()
            if row and row[0] is not None:
                found.append((float(row[0]) - record.ended, f"{record.name} at {record.ended:.3f}"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1", help="a number, a range 1-20, or a list 3,5,8")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument(
        "--cron", default="", help="the seeds that run under pg_cron; by default every fifth of several"
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many seeds run at a time, each on a server of its own")
    arguments = parser.parse_args()
    # A server is ended on the way out, which is not the way of an unhandled signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    seeds = _seeds(arguments.seeds)
    cron = set(_seeds(arguments.cron)) if arguments.cron else {s for s in seeds[4::5]}
    results = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for future in as_completed(
            [pool.submit(run_seed, seed, arguments.minutes * 60, cron=seed in cron) for seed in seeds]
        ):
            results.append(future.result())
            print(report.line(results[-1]), file=sys.stderr, flush=True)
    print(report.text(sorted(results, key=lambda result: result.seed), arguments.jobs))
    return 1 if any(result.offences for result in results) else 0


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


if __name__ == "__main__":
    sys.exit(main())
