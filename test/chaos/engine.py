"""Two ways of keeping workers running: real pg_cron, which starts them anew within a minute, and a supervisor, which
does so at once."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Protocol

import psycopg

from harness import Cluster
from ledger import lost_connection

DETECTORS = 2
DELIVERERS = 2


class Engine(Protocol):
    """What keeps the workers running."""

    #: What the CALLs raised, other than by being cancelled or losing the server.
    errors: Counter[str]

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Supervisor:
    """A session for each worker, and a new one as soon as it has ended."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stopped = threading.Event()
        self.errors: Counter[str] = Counter()
        slots = [("detect", slot) for slot in range(1, DETECTORS + 1)]
        slots += [("deliver", slot) for slot in range(1, DELIVERERS + 1)]
        self._threads = [threading.Thread(target=self._keep, args=slot, daemon=True) for slot in slots]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        _end_workers(self._cluster)
        for thread in self._threads:
            thread.join(30)

    def _keep(self, procedure: str, slot: int) -> None:
        while not self._stopped.is_set():
            try:
                with self._cluster.connect() as session:
                    session.execute(f"CALL activation.{procedure}(slot => {slot})")
            except psycopg.errors.QueryCanceled:
                pass
            except psycopg.Error as error:
                if not lost_connection(error):
                    self.errors[f"{procedure}() raised {error.sqlstate}: {error.diag.message_primary}"] += 1
            self._stopped.wait(0.1)


class PgCron:
    """The jobs that activation.start() makes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.errors: Counter[str] = Counter()

    def start(self) -> None:
        self._cluster.sql("SELECT activation.start(detectors => %s, deliverers => %s)", DETECTORS, DELIVERERS)

    def stop(self) -> None:
        with self._cluster.connect() as session:
            session.execute("SELECT activation.stop()")
        _end_workers(self._cluster)


def _end_workers(cluster: Cluster) -> None:
    with cluster.connect() as session:
        session.execute("SELECT pg_terminate_backend(pid) FROM activation.worker")
