"""The API key: where it may lie, that mail waits until it is there, and that nobody sees it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import tick
from mail import received, sign_up, status, statuses


@pytest.mark.parametrize("content", [None, "", "re_one\nre_two", "re_with_\u00fc", "\x00"])
def test_a_key_file_that_holds_no_key(
    db: Database, live: Connection, sandbox: Sandbox, tmp_path: Path, content: str | None
) -> None:
    """Nor one that is not there: mail waits, nothing of the file is shown, and it goes when the file is right."""
    tmp_path.chmod(0o755)
    key = tmp_path / "key"
    if content is not None:
        key.write_text(content, encoding="utf-8")
    live.execute("SELECT activation.configure(api_key => %s)", [f"file:{key}"])
    sign_up(live, 1)
    tick(db)
    state, detail = status(db, "provider")
    assert state == "paused" and str(key) in detail and "re_" not in detail and "1 messages wait" in detail
    assert statuses(db) == {"1": "queued"} and sandbox.log == []
    key.write_text("re_right")
    tick(db)
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}


def test_the_secret_of_a_stored_key(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A key stored in the database; the provider knows no other."""
    sandbox.configure(api_keys=["re_stored"])
    live.execute("SELECT activation.configure(api_key => 'secret:resend')")
    sign_up(live, 1)
    tick(db)
    assert statuses(db) == {"1": "queued"} and "no secret is stored" in status(db, "provider")[1]
    live.execute("SELECT activation.set_secret('resend', %s)", ["re_stored"])
    tick(db)
    assert statuses(db) == {"1": "sent"} and received(sandbox) == {"u1@acme.dev": 1}


def test_another_key_ends_a_pause(db: Database, live: Connection, sandbox: Sandbox, tmp_path: Any) -> None:
    tmp_path.chmod(0o755)
    key = tmp_path / "key"
    key.write_text("re_bad")
    sandbox.configure(api_keys=["re_good"])
    live.execute("SELECT activation.configure(api_key => %s)", [f"file:{key}"])
    sign_up(live, 1)
    tick(db)
    assert statuses(db) == {"1": "queued"} and status(db, "provider")[0] == "paused"
    key.write_text("re_good")
    tick(db, "5 minutes")
    assert statuses(db) == {"1": "sent"} and status(db, "provider")[0] == "ok"


def test_the_key_is_nowhere_to_be_seen(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """After every kind of failure: not in our tables, not in a dump, not in the server's log."""
    secret = "re_5ecret_0f_0urs"
    live.execute("SELECT activation.set_secret('resend', %s)", [secret])
    live.execute("SELECT activation.configure(api_key => 'secret:resend')")
    for fault in ("drop_after", "garbage", "html", "partial"):
        sandbox.fail(fault)
    sandbox.fail("status", status=401, name="restricted_api_key", message="no")
    sign_up(live, 1)
    for minutes in (0, 10, 20, 30, 40):
        tick(db, f"{minutes} minutes")
    sandbox.stop()
    live.execute("SELECT activation.resume()")
    tick(db, "50 minutes")
    outcomes = {name for (name,) in db.sql("SELECT outcome FROM activation.attempt")}
    assert {"unanswered", "erred", "refused"} <= outcomes
    assert secret not in db.run("pg_dump")
    assert secret not in db.cluster.log
    tables = db.sql("SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'activation'::regnamespace"
                    " AND relkind IN ('r', 'v') AND relname <> 'secret'")  # fmt: skip
    assert len(tables) > 15
    for (table,) in tables:
        assert not re.search(secret, str(db.sql(f"SELECT * FROM {table}")))
    assert secret not in str(db.sql("SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid()"))
