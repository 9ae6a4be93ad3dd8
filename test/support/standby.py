"""A standby of a throwaway server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import harness
from harness import Cluster, wait_until

ENVIRONMENT = {"RESEND_API_KEY": "re_test"}


@contextmanager
def standby_of(
    primary: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch, *, cron: bool = False
) -> Iterator[Cluster]:
    """A standby that the primary's commits wait for."""
    primary.run("pg_basebackup", "-D", str(folder), "-R", "-X", "stream", "-c", "fast")
    with monkeypatch.context() as patched:
        patched.setattr(harness, "_template", lambda: folder)
        # The extension came with the copy.
        standby = Cluster(environment=ENVIRONMENT, settings=CRON if cron else None)
    with standby:
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.sql("SELECT pg_reload_conf()")
        wait_until(lambda: primary.sql("SELECT sync_state FROM pg_stat_replication") == [("sync",)])
        yield standby


#: As Cluster(cron=True) sets it, without cron.host: the address stands in the jobs.
CRON = {"shared_preload_libraries": "pg_cron", "cron.database_name": harness.DATABASE}
