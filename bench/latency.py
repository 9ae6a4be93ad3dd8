"""How long after an action's commit its request is at the provider, at 20 people a second under real pg_cron, over the
minutes at which the jobs change; and what the jobs cost while nothing happens."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import app
import requests
from common import Effort, Figure, cpu_seconds, program, say

from harness import Cluster, wait_until


@contextmanager
def sandbox() -> Iterator[str]:
    """The sandbox in a process of its own; its address."""
    with program(sys.executable, "-m", "activation.cli", "sandbox", "--port", "0") as said:
        match = re.search(r"http://\S+", said)
        assert match, said
        yield match.group().rstrip("/")


def _latencies(cluster: Cluster, url: str, seconds: float) -> list[float]:
    """Milliseconds from the commit of an action to the arrival of its request, at 20 users a second."""
    acted: dict[str, float] = {}
    end = time.time() + seconds
    number = 0
    while time.time() < end:
        number += 1
        beat = time.time()
        address = f"l{number}@acme.dev"
        user = cluster.value("INSERT INTO users (email, name) VALUES (%s, 'Ada') RETURNING id", address)
        cluster.sql("INSERT INTO user_actions VALUES (%s, 'first_project_created')", user)
        acted[address] = time.time()
        time.sleep(max(0.0, 0.05 - (time.time() - beat)))

    def emails() -> list[dict[str, object]]:
        got = requests.get(f"{url}/_sandbox/emails", params={"limit": 100000}, timeout=30).json()["emails"]
        return list(got)

    wait_until(lambda: len(emails()) == len(acted), 60)
    return sorted((float(e["received_at"]) - acted[e["to"][0]]) * 1000 for e in emails())  # type: ignore[arg-type,index]


def _workers_run(cluster: Cluster) -> bool:
    shown = "SELECT count(*) FROM activation.status WHERE component ~ '^(det|del)' AND state = 'ok'"
    return bool(cluster.value(shown) == 2)


def _idle(cluster: Cluster, seconds: float) -> float:
    """Per cent of a core that both workers use with nothing to do."""

    def used() -> float:
        return sum(
            cpu_seconds(row[0]) for row in cluster.sql("SELECT pid FROM activation.worker WHERE pid IS NOT NULL")
        )

    # Who had work looks more often for five seconds.
    busy = "SELECT FROM activation.worker WHERE worked_at > now() - interval '7 seconds'"
    wait_until(lambda: not cluster.sql(busy), 30)
    # Within one run of the jobs, whose processes change at the full minute.
    wait_until(lambda: 5 < time.time() % 60 < 58 - seconds, 70)
    wait_until(lambda: _workers_run(cluster), 10)
    start = used()
    time.sleep(seconds)
    return (used() - start) / seconds * 100


def measure(cluster: Cluster, effort: Effort, url: str) -> list[Figure]:
    app.install(cluster, url)
    cluster.sql("SELECT activation.start()")
    say("pg_cron starts the workers at the full minute …")
    wait_until(lambda: _workers_run(cluster), 100)
    seconds = 15.0 if effort.quick else 130.0
    say(f"20 people a second, for {seconds:.0f} s …")
    found = _latencies(cluster, url, seconds)

    def at(share: float) -> list[float]:
        return [found[min(int(len(found) * share), len(found) - 1)]]

    figures = [
        Figure("commit to request, p50, ms", at(0.5), at_most=30, digits=0),
        Figure("commit to request, p95, ms", at(0.95), at_most=60, digits=0),
        Figure("commit to request, p99, ms", at(0.99), digits=0),
        Figure("commit to request, longest, ms", at(1), digits=0, note=f"of {len(found):,}, over the full minute"),
    ]
    say("Idle …")
    figures.append(
        Figure("both workers idle, % of a core", [_idle(cluster, 10 if effort.quick else 30)], at_most=1, digits=1)
    )
    cluster.sql("SELECT activation.stop()")
    running = "SELECT FROM pg_stat_activity WHERE query LIKE 'CALL activation%%'"
    wait_until(lambda: not cluster.sql(running), 75)
    return figures
