"""A throwaway PostgreSQL, for tests and the demo: on a socket in a closed directory, and gone once it is stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import psycopg
import testing.common.database
import testing.postgresql
from psycopg import sql


class Server:
    """Started by `start()`, removed by `stop()`.

    programs: the directory of PostgreSQL's programs; by default what ACTIVATION_PG_BIN or pg_config names, or Debian's
    newest. Raises RuntimeError as root, as which PostgreSQL does not run, and where there is no PostgreSQL.
    """

    def __init__(self, programs: Path | None = None) -> None:
        if os.geteuid() == 0:
            raise RuntimeError("PostgreSQL does not run as root: run this as another user")
        programs = programs or find_programs()
        # Not TMPDIR: a socket's path may have 107 bytes.
        self._folder = tempfile.mkdtemp(prefix="activation-", dir="/tmp")
        self._server = _Postgres(self._folder, programs)

    def start(self) -> None:
        """Make it and start it. Raises RuntimeError if it does not start."""
        try:
            self._server.setup()
            self._server.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it and remove it."""
        self._server.terminate(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """The address of a database, as its superuser."""
        return f"postgresql://postgres@/{database}?host={quote(self._server.socket, safe='')}&port={self._server.port}"

    def create(self, database: str, copy_of: str = "template1") -> None:
        """Make a database, as a copy of another one that nobody is connected to."""
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self._run(statement.format(sql.Identifier(database), sql.Identifier(copy_of)))

    def drop(self, database: str) -> None:
        """Remove a database, whoever is connected."""
        self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))

    def _run(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


def find_programs() -> Path:
    """Where PostgreSQL's programs are. Raises RuntimeError if they are nowhere."""
    named = os.environ.get("ACTIVATION_PG_BIN")
    if named:
        return Path(named)
    config = shutil.which("pg_config")
    if config is not None:
        found = Path(subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
        # Debian's own pg_config is there with libpq alone.
        if (found / "initdb").exists():
            return found
    newest = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]), default=None)
    if newest is None:
        raise RuntimeError("no PostgreSQL is found: set ACTIVATION_PG_BIN to the directory of its initdb")
    return newest.parent


class _Postgres(testing.postgresql.Postgresql):  # type: ignore[misc]
    """The process and its data directory; asked through the socket whether it is up."""

    def __init__(self, folder: str, programs: Path) -> None:
        self.socket = f"{folder}/tmp"
        super().__init__(
            auto_start=0,
            base_dir=folder,
            boot_timeout=60,
            initdb=str(programs / "initdb"),
            initdb_args="-U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync",
            port=testing.common.database.get_unused_port(),
            postgres=str(programs / "postgres"),
            postgres_args="-F -c logging_collector=off -c listen_addresses= -c jit=off",
        )
        self.name = "PostgreSQL"

    @property
    def port(self) -> int:
        return int(self.settings["port"])

    def get_server_commandline(self) -> list[str]:
        # The extension has a Python package of its own; what this process imports must not stand in for it.
        command: Sequence[str] = super().get_server_commandline()
        return ["env", "-u", "PYTHONPATH", *command]

    def is_server_available(self) -> bool:
        try:
            psycopg.connect(host=self.socket, port=self.port, user="postgres", dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def poststart(self) -> None:
        pass

    def terminate(self, _signal: int = signal.SIGINT, *_: object) -> None:
        testing.common.database.Database.terminate(self, _signal)
