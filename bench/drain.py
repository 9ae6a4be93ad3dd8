"""Emails a second, from messages that are queued to the last answer recorded: rendered, stored, sent, written down.

To a server that answers at once and to one that takes 50 ms, with one deliverer and with four. Beside it Resend's own
SDK, posting batches that were made before, and the workers of other queues, which post a request for each job.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import app
import peers
import requests
from common import Effort, Figure, program, say, worker

from harness import Cluster, Database, wait_until

SERVER = Path(__file__).parent / "server.py"
SDK = """
import os, sys, time
import resend
resend.api_key = "re_bench"
mails = [{"from": "a@acme.dev", "to": ["b@acme.dev"], "subject": "Hello", "html": "<p>" + "x" * 8000}] * 100
batches = int(sys.argv[1])
resend.Batch.send(mails)
start = time.perf_counter()
for _ in range(batches):
    resend.Batch.send(mails)
print(batches * 100 / (time.perf_counter() - start), flush=True)
"""


@contextmanager
def server(delay: float) -> Iterator[str]:
    with program(sys.executable, SERVER, "--delay", str(delay)) as url:
        yield url


def _count(url: str) -> int:
    return int(requests.get(f"{url}/count", timeout=10).json()["count"])


def _ours(db: Database, url: str, people: int, deliverers: int) -> float:
    db.sql("SELECT activation.configure(api_key => 'env:NOT_SET')")
    db.sql(app.SIGN_UP, people)
    db.sql("CALL activation.tick()")
    for table in ("message", "enrollment", "request"):
        db.sql(f"ANALYZE activation.{table}")
    db.sql("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
    before, start = _count(url), time.perf_counter()
    with ExitStack() as stack:
        for slot in range(1, deliverers + 1):
            stack.enter_context(worker(db, "deliver", slot))
        wait_until(lambda: _count(url) - before >= people, 300)
        wait_until(lambda: db.value(app.QUIET), 300)
        took = time.perf_counter() - start
    assert db.value("SELECT count(*) FROM activation.message WHERE state <> 'sent'") == 0
    return people / took


def _peer(db: Database, peer: peers.Peer, url: str, jobs: int) -> float:
    """From the first job's request to the last one's."""
    db.sql("INSERT INTO many (email, name) SELECT 'u' || g || '@acme.dev', 'U' FROM generate_series(1, %s) g", jobs)
    before = _count(url)
    with peer.worker(db, url):
        first = wait_until(lambda: _count(url) - before, 60)
        start = time.perf_counter()
        wait_until(lambda: _count(url) - before >= jobs, 300)
        return (jobs - first) / (time.perf_counter() - start)


def measure(cluster: Cluster, effort: Effort) -> list[Figure]:
    figures = []
    people, times = (5_000, 1) if effort.quick else (20_000, 3)
    for delay, target in ((0.0, 5_000), (0.05, 4_000)):
        with server(delay) as url:
            answered = "at once" if not delay else f"after {delay * 1000:.0f} ms"
            for deliverers in (1,) if effort.quick else (1, 4):
                say(f"Drain, answered {answered}, {deliverers} deliverer(s) …")
                db = cluster.create_database()
                app.install(db, url)
                _ours(db, url, 1_000, deliverers)
                figures.append(
                    Figure(
                        f"emails a second, answered {answered}, deliverers: {deliverers}",
                        [_ours(db, url, people, deliverers) for _ in range(times)],
                        at_least=target if deliverers == 1 else None,
                        digits=0,
                        chart="drain" if delay and deliverers == 1 else "",
                        label="activation",
                    )
                )
                db.drop()
            say(f"The SDK, answered {answered} …")
            batches = str(50 if effort.quick else 200)
            with program(sys.executable, "-c", SDK, batches, environment={"RESEND_API_URL": url}) as said:
                figures.append(
                    Figure(
                        f"emails a second, answered {answered}, Resend's SDK posting ready-made batches one by one",
                        [float(said)],
                        digits=0,
                    )
                )
            for peer in peers.available(cluster) if delay or not effort.quick else []:
                say(f"Drain, answered {answered}, {peer.name} …")
                db = cluster.create_database()
                db.sql(app.SCHEMA.partition("CREATE TABLE users")[0])
                peer.install(db)
                db.sql("CREATE TABLE many (LIKE plain INCLUDING ALL)")
                peer.trigger(db, "many", peer.statement, "STATEMENT")
                jobs = peer.jobs // 10 if effort.quick else peer.jobs
                figures.append(
                    Figure(
                        f"jobs a second, answered {answered}, {peer.name} ({peer.version})",
                        [_peer(db, peer, url, jobs) for _ in range(times)],
                        digits=0,
                        chart="drain" if delay else "",
                        label=peer.name,
                    )
                )
                db.drop()
    return figures
