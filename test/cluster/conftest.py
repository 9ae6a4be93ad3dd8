"""The fixtures of the tests on throwaway clusters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from harness import Cluster, Connection, Database
from mail import go_live

if TYPE_CHECKING:
    from activation.sandbox import Sandbox


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server without pg_cron, for one module."""
    with Cluster(environment={"RESEND_API_KEY": "re_test"}) as server:
        yield server


@pytest.fixture(scope="session")
def cron_cluster() -> Iterator[Cluster]:
    """The one server with pg_cron. A new job can wait a minute for its first run, so share it."""
    with Cluster(cron=True, environment={"RESEND_API_KEY": "re_test"}) as server:
        yield server


@pytest.fixture
def db(cluster: Cluster) -> Iterator[Database]:
    """A fresh database that has the extension and nothing else."""
    database = cluster.create_database()
    yield database
    database.drop()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A server in Resend's place."""
    from activation.sandbox import Sandbox

    with Sandbox() as server:
        yield server


@pytest.fixture
def live(db: Database, sandbox: Sandbox) -> Iterator[Connection]:
    """A live database with one loop and the sandbox in Resend's place; the app's connection."""
    connection = db.connect()
    go_live(connection, sandbox)
    yield connection
    connection.close()
