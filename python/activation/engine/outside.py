"""The engine outside of the server: a database on psycopg, for tests and for profiling.

In the server the bridge does the same on plpy. What comes out of both is the same: times, UUIDs and JSON as text.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import psycopg
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

import activation
from activation.engine import workers
from activation.engine.calls import end_session, settle
from activation.engine.protocol import Cancelled, Failed

_log = logging.getLogger("activation")

#: Types that plpy has as text.
_AS_TEXT = ("json", "jsonb", "timestamptz", "uuid")


class PsycopgDatabase:
    """activation.engine.workers.WorkerDatabase on a connection of its own. dsn: an address or a connection string."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, cursor_factory=psycopg.RawCursor, row_factory=dict_row)
        for name in _AS_TEXT:
            self._connection.adapters.register_loader(name, TextLoader)
        self._interrupted = False
        found = self.execute("SELECT e.extversion FROM pg_catalog.pg_extension e WHERE e.extname = 'activation'")
        self.rollback()
        version = found[0]["extversion"] if found else None
        if version != activation.__version__:
            self.close()
            raise RuntimeError(
                f"the package is {activation.__version__}, the database has {version or 'no activation'}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def interrupt(self) -> None:
        """From another thread: the statement that runs is cancelled, or the next one. Once."""
        self._interrupted = True
        with contextlib.suppress(psycopg.Error):
            self._connection.cancel_safe(timeout=5)

    def execute(self, sql: str, *arguments: object) -> list[dict[str, Any]]:
        if self._interrupted:
            self._interrupted = False
            raise Cancelled("interrupted")
        with self._translated():
            cursor = self._connection.execute(sql.encode(), arguments)
            return cursor.fetchall() if cursor.description else []

    def commit(self) -> None:
        trusted = settle(self)
        self.commit_settings()
        if not trusted:
            end_session(self)

    def commit_settings(self) -> None:
        with self._translated():
            self._connection.commit()

    def rollback(self) -> None:
        with self._translated():
            self._connection.rollback()

    @contextlib.contextmanager
    def subtransaction(self) -> Iterator[None]:
        # psycopg's own would commit where no transaction is open yet.
        self.execute("SAVEPOINT activation")
        try:
            yield
        except BaseException:
            with self._translated():
                self._connection.execute(b"ROLLBACK TO SAVEPOINT activation")
                self._connection.execute(b"RELEASE SAVEPOINT activation")
            raise
        with self._translated():
            self._connection.execute(b"RELEASE SAVEPOINT activation")

    def refuse(self, message: str, hint: str, code: str) -> None:
        raise Failed(f"{message}: {hint}", code)

    def warn(self, message: str) -> None:
        _log.warning(message)

    def notice(self, message: str) -> None:
        _log.info(message)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.errors.QueryCanceled as error:
            self._interrupted = False
            raise Cancelled(str(error)) from error
        except psycopg.Error as error:
            # Without a code it is the connection.
            raise Failed(error.diag.message_primary or str(error), error.sqlstate or "08006") from error


def once(dsn: str) -> None:
    """Do all that is due now, as activation.tick() does."""
    with PsycopgDatabase(dsn) as db:
        workers.tick(db)


class Engine:
    """A detector and a deliverer, each in a thread with a connection of its own. dsn: of the database. slot: theirs."""

    def __init__(self, dsn: str, slot: int = 1) -> None:
        self._dsn = dsn
        self._slot = slot
        self._stopping = threading.Event()
        self._databases: list[PsycopgDatabase] = []
        self._error: BaseException | None = None

    def stop(self) -> None:
        """From another thread or a signal's handler: let run() end."""
        self._stopping.set()

    def run(self) -> None:
        """Detect and deliver until stop(), or until one of them raises: then it raises that."""
        threads = []
        for work in (workers.detect, workers.deliver):
            self._databases.append(PsycopgDatabase(self._dsn))
            threads.append(threading.Thread(target=self._work, args=(work, self._databases[-1])))
        for thread in threads:
            thread.start()
        self._stopping.wait()
        for db in self._databases:
            db.interrupt()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _work(self, work: Callable[[PsycopgDatabase, int], None], db: PsycopgDatabase) -> None:
        try:
            with db:
                while not self._stopping.is_set():
                    began = time.monotonic()
                    work(db, self._slot)
                    if time.monotonic() - began < 1:
                        # The slot is somebody else's.
                        self._stopping.wait(1)
        except Exception as error:
            # A cancel is how it is stopped.
            if not self._stopping.is_set():
                self._error = error
                self._stopping.set()
