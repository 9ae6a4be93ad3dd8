"""The app: clients who sign people up, one by one and in bulk, and let them act in time, late, or never. Some of their
transactions are rolled back, and some are cut off."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import psycopg

from harness import Cluster, Connection
from ledger import Ledger, lost_connection

#: A loop's nudge comes after so many seconds without an action.
TIMEOUT = 8

TABLES = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text, name text, plan text NOT NULL);
    CREATE TABLE actions (user_id bigint NOT NULL, what text NOT NULL);
    CREATE INDEX ON actions (user_id);
"""

#: The address of user i. Resend refuses mail to example.com, and with it the whole batch.
ADDRESS = "concat('u', i, CASE WHEN mod(i, 2000) = 0 THEN '@example.com' ELSE '@acme.dev' END)"

_SIGN_UP = f"""
    INSERT INTO users (id, email, name, plan)
    SELECT i, {ADDRESS}, 'U' || i, CASE WHEN mod(i, 4) = 0 THEN 'paid' ELSE 'free' END
      FROM unnest(%s::bigint[]) AS i
"""


def sign_up(app: Connection, ids: list[int]) -> None:
    """Every fourth has the paid plan, every two thousandth an address that is refused."""
    app.execute(_SIGN_UP, [ids])


def act(app: Connection, ids: list[int], what: str) -> None:
    app.execute("INSERT INTO actions (user_id, what) SELECT unnest(%s::bigint[]), %s", [ids, what])


class Client:
    """One of the app's sessions."""

    #: Transactions a second.
    PACE = 15

    def __init__(self, number: int, cluster: Cluster, ledger: Ledger, rng: Random) -> None:
        self._who = f"client {number}"
        self._cluster = cluster
        self._ledger = ledger
        self._rng = rng
        self._stopped = threading.Event()
        self._actions: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Signs nobody up any more; who still meant to act does so now."""
        self._stopped.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stopped.is_set():
            with self._patience(), self._cluster.connect() as app:
                while not self._stopped.is_set():
                    self._one(app)
                    self._stopped.wait(self._rng.uniform(0, 2 / self.PACE))
        while self._actions:
            with self._patience(), self._cluster.connect() as app:
                while self._actions:
                    self._act(app)

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Whatever fails is written down, and the client connects anew."""
        try:
            yield
        except psycopg.Error as error:
            self._ledger.complain(self._who, error)
            if lost_connection(error):
                time.sleep(0.2)

    def _one(self, app: Connection) -> None:
        if self._actions and self._actions[0][0] <= time.time():
            self._act(app)
            return
        ways = [self._alone, self._together, self._in_bulk, self._changes_its_mind, self._in_part]
        self._rng.choices(ways, weights=[70, 13, 2, 10, 5])[0](app)

    def _act(self, app: Connection) -> None:
        due = [heapq.heappop(self._actions)[1]]
        while self._actions and self._actions[0][0] <= time.time() and len(due) < 20:
            due.append(heapq.heappop(self._actions)[1])
        what = self._rng.choice(["paid", "paid", "used"])
        if self._rng.random() < 0.05:
            app.execute("BEGIN")
            act(app, due, what)
            app.execute("ROLLBACK")
            return
        act(app, due, what)
        self._ledger.has_acted(due)

    def _intend(self, ids: list[int]) -> None:
        """In time, late, or never."""
        for user in ids:
            chance = self._rng.random()
            if chance < 0.5:
                heapq.heappush(self._actions, (time.time() + self._rng.uniform(0, TIMEOUT * 0.9), user))
            elif chance < 0.7:
                heapq.heappush(self._actions, (time.time() + TIMEOUT + self._rng.uniform(0, 5), user))

    def _alone(self, app: Connection) -> None:
        """A statement by itself."""
        ids = self._ledger.new_ids(1)
        sign_up(app, ids)
        self._ledger.signed_up(ids)
        self._intend(ids)

    def _together(self, app: Connection) -> None:
        """Several in one transaction; the first has acted at once."""
        ids = self._ledger.new_ids(self._rng.randint(2, 4))
        app.execute("BEGIN")
        for user in ids:
            sign_up(app, [user])
        act(app, ids[:1], "paid")
        app.execute("COMMIT")
        self._ledger.signed_up(ids)
        self._ledger.has_acted(ids[:1])
        self._intend(ids[1:])

    def _in_bulk(self, app: Connection) -> None:
        ids = self._ledger.new_ids(self._rng.randint(20, 120))
        sign_up(app, ids)
        self._ledger.signed_up(ids)
        self._intend(ids)

    def _changes_its_mind(self, app: Connection) -> None:
        """A transaction that is rolled back."""
        ids = self._ledger.new_ids(self._rng.randint(1, 3))
        # They never come about, whatever happens to the connection.
        self._ledger.gave_up(ids)
        app.execute("BEGIN")
        sign_up(app, ids)
        act(app, ids, "paid")
        app.execute("ROLLBACK")

    def _in_part(self, app: Connection) -> None:
        """Half of a transaction is rolled back."""
        kept, lost = ([user] for user in self._ledger.new_ids(2))
        self._ledger.gave_up(lost)
        app.execute("BEGIN")
        sign_up(app, kept)
        app.execute("SAVEPOINT here")
        sign_up(app, lost)
        app.execute("ROLLBACK TO here")
        app.execute("COMMIT")
        self._ledger.signed_up(kept)
        self._intend(kept)
