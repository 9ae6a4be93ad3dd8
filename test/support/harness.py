"""Throwaway PostgreSQL clusters that have the extension.

A cluster is a copy of a data directory that is made once a process, so that starting one takes a fraction of a second.
It listens on a socket in a closed directory only. `scripts/with-env` sets ACTIVATION_PG_BIN, the programs to use.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import psycopg
import testing.common.database
import testing.postgresql

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

#: Each cluster has a database of this name with the extension, and one to make more of.
DATABASE = "test"
TEMPLATE = "activation_template"

_STOP = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


def programs() -> Path:
    """The directory of PostgreSQL's programs."""
    folder = os.environ.get("ACTIVATION_PG_BIN")
    if folder is None:
        raise RuntimeError("ACTIVATION_PG_BIN is not set: run this by make test, or scripts/with-env pytest …")
    return Path(folder)


def wait_until(predicate: Callable[[], T], timeout: float = 10, what: str = "it to become true") -> T:
    """Ask again and again until the answer is true, and return that answer."""
    end = time.monotonic() + timeout
    while not (answer := predicate()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout:g} s for {what}; last answer: {answer!r}")
        time.sleep(0.02)
    return answer


class Database:
    """One database of a cluster, with the extension in it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self._connection: Connection | None = None

    def connect(self, user: str = "postgres", autocommit: bool = True) -> Connection:
        """A new connection. The caller closes it."""
        return psycopg.connect(self.dsn(user), autocommit=autocommit)

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Run it as the superuser, in a transaction of its own; the last statement's rows. %s stands for a value."""
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = self.connect()
        cursor = self._connection.execute(query.encode(), values or None)
        while cursor.nextset():
            pass
        has_rows = cursor.pgresult is not None and cursor.pgresult.status == psycopg.pq.ExecStatus.TUPLES_OK
        return cursor.fetchall() if has_rows else []

    def value(self, query: str, *values: object) -> Any:
        """The only value of the only row."""
        ((value,),) = self.sql(query, *values)
        return value

    def run(self, program: str, *arguments: str, user: str = "postgres", given: str | None = None) -> str:
        """Run one of PostgreSQL's programs (psql, pg_dump, …) on this database; what it wrote. Raises if it fails."""
        environment = {**os.environ, "PGDATABASE": self.name, "PGUSER": user, **self.cluster.address()}
        result = subprocess.run(
            [programs() / program, *arguments],
            env=environment,
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise AssertionError(f"{program} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
        return result.stdout

    def psql(self, script: str, user: str = "postgres") -> str:
        """Run a script that has psql's own commands; what it wrote, unaligned."""
        return self.run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-", user=user, given=script)

    def dsn(self, user: str = "postgres") -> str:
        """The connection string."""
        return psycopg.conninfo.make_conninfo(
            dbname=self.name, user=user, host=self.cluster.socket, port=self.cluster.port
        )

    def close(self) -> None:
        """Close the connection that sql() uses."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def drop(self) -> None:
        """Drop it, whoever is connected."""
        self.close()
        self.cluster.postgres.sql(f'DROP DATABASE "{self.name}" WITH (FORCE)')


class Cluster(Database):
    """A throwaway server. As a Database it is its own database `test`.

    cron: pg_cron is loaded and lives in the database `test`; its jobs connect through the socket.
    fsync: for tests that kill the server; without it a commit is not on the disk.
    settings: lines for postgresql.conf. ALTER SYSTEM goes before them.
    environment: variables for the server, such as RESEND_API_KEY.
    own_identity: a system identifier of its own. All others have the same, as a server and its physical copies do.
    """

    def __init__(
        self,
        *,
        cron: bool = False,
        fsync: bool = False,
        settings: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
        own_identity: bool = False,
    ) -> None:
        super().__init__(self, DATABASE)
        original = None if own_identity else _template()
        self._folder = _new_folder()
        self._environment = dict(environment or {})
        self._earlier_log = ""
        self._names = itertools.count(1)
        self.postgres = Database(self, "postgres")
        lines: dict[str, object] = {"fsync": fsync, "listen_addresses": "", "log_line_prefix": "%m [%p] %q%u@%d "}
        if cron:
            lines |= {"shared_preload_libraries": "pg_cron", "cron.database_name": DATABASE, "cron.host": self.socket}
        self._server = _Server(self._folder, self._environment, original)
        try:
            self._server.setup()
            self._configure(lines | dict(settings or {}))
            self.start()
            if own_identity:
                _make_databases(self)
            if cron:
                self.sql("CREATE EXTENSION pg_cron")
        except BaseException:
            self.destroy()
            raise

    def start(self) -> None:
        """Start it, after it was stopped or killed."""
        self._earlier_log = self.log
        self._server.start()

    def stop(self, mode: str = "fast") -> None:
        """Stop it: smart, fast or immediate."""
        self.close()
        self.postgres.close()
        self._server.terminate(_STOP[mode])

    def restart(self, mode: str = "fast") -> None:
        """Stop it and start it."""
        self.stop(mode)
        self.start()

    def kill9(self) -> None:
        """SIGKILL to every process of the server, as when the machine's memory is out. start() starts it again."""
        # The postmaster first, so that it neither notices the death of a child nor starts another one.
        children = _children(self.pid)
        self._server.terminate(signal.SIGKILL)
        for child in children:
            _kill(child)
        wait_until(lambda: not any(map(_is_alive, children)), what="the killed processes to be gone")
        self.close()
        self.postgres.close()

    def destroy(self) -> None:
        """Stop it and remove it."""
        self.close()
        self.postgres.close()
        self._server.terminate(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def create_database(self) -> Database:
        """A new database that has the extension and nothing else."""
        name = f"test_{next(self._names)}"
        self.postgres.sql(f'CREATE DATABASE "{name}" TEMPLATE "{TEMPLATE}"')
        return Database(self, name)

    def address(self) -> dict[str, str]:
        """Where it listens, as libpq's environment variables."""
        return {"PGHOST": self.socket, "PGPORT": str(self.port)}

    @property
    def pid(self) -> int:
        """The postmaster's process."""
        if self._server.server_pid is None:
            raise RuntimeError("the server is not running")
        return int(self._server.server_pid)

    @property
    def socket(self) -> str:
        """The directory of its socket."""
        return f"{self._folder}/tmp"

    @property
    def port(self) -> int:
        """The number in the socket's name. Nothing listens there on TCP unless settings say so."""
        return int(self._server.settings["port"])

    @property
    def data(self) -> Path:
        """The data directory."""
        return self._folder / "data"

    @property
    def log(self) -> str:
        """All that the server has logged, over all restarts."""
        path = self._folder / "server.log"
        return self._earlier_log + (path.read_text(encoding="utf-8", errors="replace") if path.exists() else "")

    def _configure(self, settings: Mapping[str, object]) -> None:
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as file:
            for name, value in settings.items():
                text = {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
                file.write("{} = '{}'\n".format(name, text.replace("'", "''")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()


class _Server(testing.postgresql.Postgresql):  # type: ignore[misc]
    """The process and its data directory; asked through the socket whether it is up."""

    # Whoever reaches the socket is trusted: its directory is closed. The rest is Debian's.
    INITDB = "-U postgres --auth-local=trust --auth-host=scram-sha-256 -E UTF8 --locale=C.UTF-8 --no-sync"

    def __init__(self, folder: Path, environment: Mapping[str, str], copy_of: Path | None) -> None:
        self._environment = environment
        super().__init__(
            auto_start=0,
            base_dir=str(folder),
            boot_timeout=60,
            copy_data_from=None if copy_of is None else str(copy_of),
            initdb=str(programs() / "initdb"),
            initdb_args=self.INITDB,
            port=testing.common.database.get_unused_port(),
            postgres=str(programs() / "postgres"),
            postgres_args="-c logging_collector=off",
        )
        self.name = "server"

    def get_server_commandline(self) -> list[str]:
        # What this process imports must not stand in for what make install has put into the server.
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        command: Sequence[str] = super().get_server_commandline()
        return ["env", "-u", "PYTHONPATH", "-u", "PYTHONDONTWRITEBYTECODE", *variables, *command]

    def is_server_available(self) -> bool:
        try:
            psycopg.connect(host=f"{self.base_dir}/tmp", port=self.settings["port"], user="postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def poststart(self) -> None:
        pass

    def terminate(self, _signal: int = signal.SIGINT, *_: object) -> None:
        testing.common.database.Database.terminate(self, _signal)


@functools.cache
def _template() -> Path:
    """The data directory that clusters are copies of."""
    with_extension = Cluster(own_identity=True)
    with_extension.stop()
    atexit.register(with_extension.destroy)
    return with_extension.data


def _make_databases(cluster: Cluster) -> None:
    cluster.postgres.sql(f'CREATE DATABASE "{TEMPLATE}"')
    template = Database(cluster, TEMPLATE)
    template.sql("CREATE EXTENSION activation CASCADE")
    template.close()
    cluster.postgres.sql(f'CREATE DATABASE "{DATABASE}" TEMPLATE "{TEMPLATE}"')


def _new_folder() -> Path:
    # Not TMPDIR: a socket's path may have 107 bytes.
    return Path(tempfile.mkdtemp(prefix="activation-", dir="/tmp"))


def _children(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
