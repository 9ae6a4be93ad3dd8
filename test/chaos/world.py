"""One seed's world: a server, an app, a provider and the network to it, and somebody on call."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator

import psycopg

from activation.sandbox import Sandbox
from driver import TABLES, TIMEOUT
from harness import Cluster, Connection
from ledger import Ledger, lost_connection
from network import Network

#: Tries after the first, of every request.
RETRIES = 6

GOOD_KEY = "re_test"

_DEFINE = """
    SELECT activation.define_loop('first', trigger => activation.on_insert('users'),
        condition => activation.query('SELECT FROM actions WHERE user_id = $1', timeout => {timeout}),
        action => activation.email('activation_welcome', subject => {subject}),
        otherwise => activation.email('activation_nudge'), recovery => {recovery});
    SELECT activation.define_loop('paid', trigger => activation.on_insert('users', filter => 'NEW.plan = ''paid'''),
        condition => activation.query('SELECT FROM actions WHERE user_id = $1 AND what = ''paid'''),
        action => activation.email('milestone', subject => {subject}), recovery => {recovery})
"""


class World:
    """What the adversary can do something to. cron: workers are pg_cron's. long: a fault may take a minute."""

    def __init__(self, *, cron: bool, long: bool, rate: int) -> None:
        self.long = long
        self.ledger = Ledger()
        #: Requests that a worker lost to one who had no right to them.
        self.observed: list[str] = []
        self.sandbox = Sandbox(rate=rate, api_keys=[GOOD_KEY])
        self.sandbox.start()
        self.network = Network("127.0.0.1", int(self.sandbox.url.rpartition(":")[2]))
        self.network.start()
        environment = {"RESEND_API_KEY": GOOD_KEY, "WRONG_KEY": "re_wrong"}
        self.cluster = Cluster(fsync=True, cron=cron, environment=environment)
        for statement in (
            TABLES,
            "SELECT activation.configure(sender => 'Acme <hello@acme.dev>',"
            " public_url => 'https://acme.dev/activation', api_key => 'env:RESEND_API_KEY',"
            f" max_per_hour => 100000000, resend_url => '{self.network.url}')",
            definition(TIMEOUT, "Hello {{ user.name }}"),
            "SELECT activation.set_mode('live')",
        ):
            self.cluster.sql(statement)

    def destroy(self) -> None:
        self.network.thaw()
        self.network.refuse()
        self.sandbox.stop()
        self.cluster.destroy()

    def order(self, statement: str, *values: object, patience: str = "2s") -> None:
        """A statement of an operator, in a session of its own that does not wait long for locks."""
        with self.cluster.connect() as session:
            session.execute("SELECT set_config('lock_timeout', %s, false)", [patience])
            session.execute(statement.encode(), values or None)

    def insist(self, statement: str, *values: object) -> None:
        """An order that is given again until it is carried out."""
        end = time.monotonic() + 120
        while True:
            try:
                return self.order(statement, *values, patience="10s")
            except psycopg.Error as error:
                if not forgivable(error):
                    self.ledger.complain("operator", error)
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def workers(self, kind: str | None = None) -> list[int]:
        """The processes of the workers that run now."""
        with self.cluster.connect() as session:
            found = session.execute(
                "SELECT w.pid FROM activation.worker w JOIN pg_stat_activity a USING (pid, backend_start)"
                " WHERE %(kind)s::text IS NULL OR w.kind = %(kind)s ORDER BY w.kind, w.slot",
                {"kind": kind},
            )
            return [row[0] for row in found]

    def is_paused(self) -> bool:
        """Whether the provider is paused, as far as that can be learnt now."""
        with contextlib.suppress(psycopg.Error), self.cluster.connect() as session:
            return session.execute("SELECT FROM activation.provider WHERE paused_until > now()").rowcount > 0
        return False

    @contextlib.contextmanager
    def halted(self, pid: int) -> Iterator[None]:
        """A process that is stopped where it stands."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def definition(timeout: int, subject: str) -> str:
    """The loops, or a new version of them: `first` with a nudge, `paid` with a filter and without an end."""
    recovery = f"activation.retry({RETRIES}, 'exponential', initial => '200 ms', max => '2 s')"
    return _DEFINE.format(timeout=f"'{timeout} s'", subject=f"'{subject}'", recovery=recovery)


def forgivable(error: psycopg.Error) -> bool:
    """What an operator meets in bad weather: the server is away, or somebody holds the table."""
    return lost_connection(error) or isinstance(
        error, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected
    )


class OnCall:
    """Somebody who looks at the status, and resumes what has stopped for good: a paused provider, a failing loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.did: Counter[str] = Counter()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stopped.wait(0.3):
            try:
                with self._world.cluster.connect() as session:
                    session.execute("SET lock_timeout = '5s'")
                    while not self._stopped.wait(0.3):
                        self._look(session)
            except psycopg.Error as error:
                if not forgivable(error):
                    self._world.ledger.complain("on call", error)

    def _look(self, session: Connection) -> None:
        # The tables that the view status is made of: it also looks at keys and counts messages, which takes its time.
        if session.execute("SELECT FROM activation.provider WHERE paused_until > now()").rowcount:
            session.execute("SELECT activation.resume()")
            self.did["the provider was paused"] += 1
        for name, state in session.execute(
            "SELECT name, state FROM activation.loop WHERE state IN ('failing', 'stopped')"
        ).fetchall():
            session.execute("SELECT activation.resume_loop(%s)", [name])
            self.did[f"a loop was {state}"] += 1
