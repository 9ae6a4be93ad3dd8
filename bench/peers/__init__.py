"""Job queues in PostgreSQL that we compare with: how an application's trigger puts a job into each, and its worker.

Each is used as its own documentation shows, through its own functions. row and statement are the bodies of a trigger;
where a queue has a function for many jobs, the statement trigger uses it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from common import program

from harness import Cluster, Database

HERE = Path(__file__).parent


def _npm() -> Path | None:
    folder = os.environ.get("ACTIVATION_PEERS")
    return Path(folder) if folder else None


def _node(db: Database, *arguments: str) -> list[str | Path]:
    return ["node", HERE / "worker.mjs", *arguments, _url(db)]


def _url(db: Database) -> str:
    address = db.cluster.address()
    host, port = address["PGHOST"].replace("/", "%2F"), address["PGPORT"]
    return f"postgresql://postgres@{host}:{port}/{db.name}"


def _run(*command: str | Path) -> None:
    subprocess.run(command, env=_environment(), check=True, stdout=subprocess.DEVNULL)


def _environment() -> dict[str, str]:
    return {**os.environ, "NODE_PATH": str((_npm() or HERE) / "node_modules")}


@dataclass(frozen=True)
class Peer:
    """install: makes its objects in a database, and a queue `bench`. row, statement: the body of a trigger in plpgsql,
    or a complete trigger. command: its worker, without the address of the mail server. jobs: how many it is to drain.
    """

    name: str
    version: str
    install: Callable[[Database], None]
    row: str
    statement: str
    command: Callable[[Database], list[str | Path]]
    jobs: int

    def trigger(self, db: Database, table: str, body: str, level: str) -> None:
        """Has a job enqueued for each row that is inserted into a table."""
        if body.startswith("CREATE TRIGGER"):
            db.sql(body.format(table=table))
            return
        function = f"{table}_enqueue"
        db.sql(f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body}; RETURN NULL; END$$")
        rows = "REFERENCING NEW TABLE AS new_rows " if level == "STATEMENT" else ""
        db.sql(f"CREATE TRIGGER enqueue AFTER INSERT ON {table} {rows}FOR EACH {level} EXECUTE FUNCTION {function}()")

    def worker(self, db: Database, url: str) -> AbstractContextManager[str]:
        """Its own worker, which posts a request for each job."""
        return program(*self.command(db), url, environment=_environment())


def _python(kind: str) -> Callable[[Database], list[str | Path]]:
    return lambda db: [sys.executable, HERE / "worker.py", kind, db.dsn()]


def _javascript(kind: str) -> Callable[[Database], list[str | Path]]:
    return lambda db: _node(db, kind)


def _install_pgq(db: Database) -> None:
    db.sql("CREATE EXTENSION pgq")
    db.sql("SELECT pgq.create_queue('bench')")
    db.sql("SELECT pgq.set_queue_config('bench', 'ticker_max_lag', '100 milliseconds')")
    db.sql("SELECT pgq.register_consumer('bench', 'mail')")


def _install_pgmq(db: Database) -> None:
    from pgmq.install import get_embedded_install_sql

    db.sql(get_embedded_install_sql())
    db.sql("SELECT pgmq.create('bench')")


def _install_procrastinate(db: Database) -> None:
    from procrastinate.schema import SchemaManager

    db.sql(SchemaManager.get_schema())


def _install_javascript(kind: str) -> Callable[[Database], None]:
    return lambda db: _run(*_node(db, f"install-{kind}"))


def available(cluster: Cluster) -> list[Peer]:
    """Those that this machine has."""
    found = []
    if cluster.sql("SELECT FROM pg_available_extensions WHERE name = 'pgq'"):
        version = cluster.value("SELECT default_version FROM pg_available_extensions WHERE name = 'pgq'")
        logutriga = (
            "CREATE TRIGGER enqueue AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION pgq.logutriga('bench')"
        )
        found.append(Peer("PgQ", version, _install_pgq, logutriga, logutriga, _python("pgq"), 20_000))
    found.append(
        Peer(
            "pgmq",
            importlib.metadata.version("pgmq"),
            _install_pgmq,
            "PERFORM pgmq.send('bench', jsonb_build_object('user', NEW.id))",
            "PERFORM pgmq.send_batch('bench', (SELECT array_agg(jsonb_build_object('user', id)) FROM new_rows))",
            _python("pgmq"),
            20_000,
        )
    )
    one = "('default', 'mail', 0, NULL, NULL, jsonb_build_object('user', {}.id), NULL)::procrastinate_job_to_defer_v1"
    found.append(
        Peer(
            "Procrastinate",
            importlib.metadata.version("procrastinate"),
            _install_procrastinate,
            f"PERFORM procrastinate_defer_jobs_v1(ARRAY[{one.format('NEW')}])",
            f"PERFORM procrastinate_defer_jobs_v1((SELECT array_agg({one.format('n')}) FROM new_rows n))",
            _python("procrastinate"),
            3_000,
        )
    )
    if folder := _npm():

        def version_of(package: str) -> str:
            return str(json.loads((folder / "node_modules" / package / "package.json").read_text())["version"])

        spec = (
            "('mail', json_build_object('user', {}.id), NULL, NULL, NULL, NULL, NULL, NULL)::graphile_worker.job_spec"
        )
        found.append(
            Peer(
                "graphile-worker",
                version_of("graphile-worker"),
                _install_javascript("graphile"),
                "PERFORM graphile_worker.add_job('mail', json_build_object('user', NEW.id))",
                f"PERFORM graphile_worker.add_jobs((SELECT array_agg({spec.format('n')}) FROM new_rows n))",
                _javascript("graphile"),
                20_000,
            )
        )
        found.append(
            Peer(
                "pg-boss",
                version_of("pg-boss"),
                _install_javascript("boss"),
                "INSERT INTO pgboss.job (name, data) VALUES ('bench', jsonb_build_object('user', NEW.id))",
                "INSERT INTO pgboss.job (name, data) SELECT 'bench', jsonb_build_object('user', id) FROM new_rows",
                _javascript("boss"),
                20_000,
            )
        )
    return found
