"""Who does it all: a seed decides what happens, in which order, and how."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import psycopg

import faults
from faults import Record
from world import World, forgivable


def sequence(rng: Random, names: list[str]) -> Iterator[str]:
    """Names at random, none again before all have had their turn."""
    while True:
        yield from rng.sample(names, len(names))


class Adversary:
    """Two tracks: heavy faults one after the other, with time to recover from each; light ones all the time.

    What it does is a function of the seed; only how far it gets depends on how long things take.
    """

    def __init__(self, world: World, seed: int, *, cron: bool) -> None:
        self._world = world
        self._seed = seed
        self._cron = cron
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(12, thread_name_prefix="fault")
        self._tracks = [threading.Thread(target=track, daemon=True) for track in (self._heavy, self._light)]
        self.log: list[Record] = []
        #: A mistake of the suite itself; it must not pass for calm weather.
        self.broken: Exception | None = None

    def start(self) -> None:
        for track in self._tracks:
            track.start()

    def stop(self) -> None:
        """Begin nothing more, wait until all is over, and leave the world healthy."""
        self._stopped.set()
        for track in self._tracks:
            track.join()
        self._pool.shutdown(wait=True)
        self._world.sandbox.clear_faults()

    def _heavy(self) -> None:
        rng = Random(f"{self._seed} heavy")
        names = sequence(rng, list(faults.HEAVY))
        number = 0
        last_end = -75.0 if self._cron else 0.0
        stalls = self._world.long and not self._cron and self._seed % 3 == 0
        # In a run of a few minutes there is room for one of these, which takes a minute.
        plan = ["stalled_deliverer"] if stalls else []
        while not self._stopped.wait(rng.uniform(5.5, 7) if self._world.long else rng.uniform(2.5, 3.5)):
            number += 1
            name = plan.pop() if plan else next(names)
            if self._cron and name in faults.ENDS_WORKERS:
                # Time enough for pg_cron to start the workers again.
                if time.monotonic() < last_end + 75:
                    continue
                last_end = time.monotonic()
            fault = faults.stalled_deliverer if name == "stalled_deliverer" else faults.HEAVY[name]
            self._apply(fault, name, number)

    def _light(self) -> None:
        rng = Random(f"{self._seed} light")
        names = sequence(rng, list(faults.LIGHT))
        number = 1000
        while not self._stopped.wait(rng.uniform(0.8, 2.2) if self._world.long else rng.uniform(0.3, 1.3)):
            number += 1
            name = next(names)
            self._pool.submit(self._apply, faults.LIGHT[name], name, number)

    def _apply(self, fault: faults.Fault, name: str, number: int) -> None:
        record = Record(number, name, time.time())
        with self._lock:
            self.log.append(record)
        try:
            faults.apply(fault, self._world, Random(f"{self._seed} {number}"), record)
        except psycopg.Error as error:
            if not forgivable(error):
                self._world.ledger.complain(f"adversary, {name}", error)
        except Exception as error:
            record.applied, record.detail = False, f"{type(error).__name__}: {error}"
            self.broken = error
