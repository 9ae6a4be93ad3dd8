"""The fixtures of the tests on throwaway clusters, the order of the tests, and how a run ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import Cluster, Connection, Database
from mail import go_live
from suites import collected

if TYPE_CHECKING:
    from activation.sandbox import Sandbox


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server without pg_cron, for one module."""
    with Cluster(environment={"RESEND_API_KEY": "re_test"}) as server:
        yield server


@pytest.fixture(scope="session")
def cron_cluster() -> Iterator[Cluster]:
    """The shared server with pg_cron. A new job can wait a minute for its first run, so share it."""
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


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return collected(file_path, parent)


#: Files that mostly wait. They come first, so that the other processes work meanwhile.
WAITING = ("test_failover.py", "test_schedule.py", "test_stuck.py")


#: Seconds for a test of these, by folder or file; all others have what pyproject.toml says.
TIMEOUTS = {"chaos": 900, "fuzz": 900, "test_schedule.py": 600, "test_failover.py": 600}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in WAITING)
    for item in items:
        for part in (item.path.name, item.path.parent.name):
            if part in TIMEOUTS and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(TIMEOUTS[part]))


def pytest_configure() -> None:
    # Fixtures end their servers on the way out, which is not the way of an unhandled signal.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: pytest.exit("terminated", returncode=1))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.collectonly:
        return
    count = {kind: len(reporter.stats.get(kind, [])) for kind in ("passed", "failed", "error")}
    print(f"{count['passed']} passed, {count['failed'] + count['error']} failed", file=sys.stdout, flush=True)
