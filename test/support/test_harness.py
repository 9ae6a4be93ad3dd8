"""The clusters that the other tests stand on."""

from __future__ import annotations

import psycopg
import pytest

from harness import Cluster, Database


def test_databases_do_not_see_each_other(cluster: Cluster, db: Database) -> None:
    db.sql("CREATE TABLE only_here ()")
    other = cluster.create_database()
    assert other.value("SELECT to_regclass('only_here')") is None
    assert other.value("SELECT extname FROM pg_extension WHERE extname = 'activation'") == "activation"
    other.drop()


def test_the_server_does_not_see_the_checkout(db: Database) -> None:
    db.sql(
        "CREATE FUNCTION path() RETURNS text LANGUAGE plpython3u AS $$import activation; return activation.__file__$$"
    )
    with pytest.raises(psycopg.errors.ExternalRoutineException, match="No module named 'activation'"):
        db.sql("SELECT path()")
    folder = db.value("SELECT setting || '/activation-0.1.0/activation/' FROM pg_config WHERE name = 'PKGLIBDIR'")
    db.sql("SELECT activation._python()")
    assert str(db.value("SELECT path()")).startswith(folder)


def test_killed_and_started_again() -> None:
    with Cluster(fsync=True, environment={"GREETING": "hello"}, settings={"work_mem": "5MB"}) as cluster:
        cluster.sql("CREATE TABLE kept (at timestamptz)")
        cluster.sql("INSERT INTO kept VALUES (now())")
        first = cluster.pid
        cluster.kill9()
        with pytest.raises(psycopg.OperationalError):
            cluster.connect()
        cluster.start()
        assert cluster.pid != first
        assert cluster.value("SELECT count(*) FROM kept") == 1
        assert cluster.value("SHOW work_mem") == "5MB"
        assert "automatic recovery in progress" in cluster.log
        cluster.sql(
            "CREATE FUNCTION hi() RETURNS text LANGUAGE plpython3u AS $$import os; return os.environ['GREETING']$$"
        )
        assert cluster.value("SELECT hi()") == "hello"
        assert [line for line in cluster.log.splitlines() if "ready to accept connections" in line][1:]


def test_identity() -> None:
    query = "SELECT system_identifier FROM pg_control_system()"
    with Cluster() as one, Cluster() as copy, Cluster(own_identity=True) as other:
        assert one.value(query) == copy.value(query) != other.value(query)
        assert other.value("SELECT count(*) FROM pg_extension WHERE extname = 'activation'") == 1
