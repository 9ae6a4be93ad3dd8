"""The engine outside of the server, on psycopg."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from activation.engine.outside import PsycopgDatabase
from activation.engine.protocol import Cancelled, Failed
from activation.sandbox import Sandbox
from harness import Connection, Database, wait_until
from mail import received, sign_up, statuses

ENVIRONMENT = {**os.environ, "RESEND_API_KEY": "re_test"}


def engine(db: Database, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "activation.engine", "--dsn", db.dsn(), *arguments]


def test_once(db: Database, sandbox: Sandbox, live: Connection) -> None:
    sign_up(live, 1, 2)
    result = subprocess.run(engine(db, "--once"), env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert received(sandbox) == {"u1@acme.dev": 1, "u2@acme.dev": 1}
    assert statuses(db) == {"1": "sent", "2": "sent"}


def test_until_interrupted(db: Database, sandbox: Sandbox, live: Connection) -> None:
    """It gives its slots back, so that another one may work at once."""
    with subprocess.Popen(engine(db), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as running:
        try:
            sign_up(live, 1)
            wait_until(lambda: statuses(db) == {"1": "sent"}, 30)
            sign_up(live, 2)
            wait_until(lambda: statuses(db) == {"1": "sent", "2": "sent"}, 30)
            running.send_signal(signal.SIGTERM)
            assert running.wait(20) == 0, running.stderr and running.stderr.read()
        finally:
            running.kill()
    assert received(sandbox) == {"u1@acme.dev": 1, "u2@acme.dev": 1}
    assert db.sql("SELECT kind FROM activation.worker WHERE pid IS NOT NULL") == []


def test_a_database_without_the_extension(db: Database) -> None:
    db.sql("DROP EXTENSION activation CASCADE")
    with pytest.raises(RuntimeError, match="no activation"):
        PsycopgDatabase(db.dsn())


@pytest.fixture
def outside(db: Database) -> Iterator[PsycopgDatabase]:
    with PsycopgDatabase(db.dsn()) as database:
        yield database


def test_values_are_those_of_plpy(outside: PsycopgDatabase) -> None:
    (row,) = outside.execute(
        "SELECT '2030-01-07 09:00+00'::timestamptz AS t, ARRAY['2030-01-07 09:00+00'::timestamptz, NULL] AS ts,"
        " '{\"a\": 1}'::jsonb AS j, gen_random_uuid() AS u, $1::bigint[] AS ids, $2::timestamptz[] AS given",
        [1, 2**40],
        [None, "2030-01-07 09:00+00"],
    )
    assert row["t"].startswith("2030-01-07") and row["ts"][0].startswith("2030-01-07") and row["ts"][1] is None
    assert row["j"] == '{"a": 1}' and len(row["u"]) == 36 and row["ids"] == [1, 2**40]
    assert row["given"][1].startswith("2030-01-07")


def test_errors(outside: PsycopgDatabase) -> None:
    """A subtransaction that raised leaves what came before it; an interrupt is obeyed once."""
    outside.execute("CREATE TEMP TABLE t AS SELECT 1 AS n")
    with pytest.raises(Failed) as caught, outside.subtransaction():
        outside.execute("INSERT INTO t SELECT 1 / 0")
    assert caught.value.code == "22012"
    assert outside.execute("SELECT n FROM t") == [{"n": 1}]
    outside.interrupt()
    with pytest.raises(Cancelled):
        outside.execute("SELECT 1 AS one")
    outside.rollback()
    assert outside.execute("SELECT 1 AS one") == [{"one": 1}]
