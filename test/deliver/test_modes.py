"""Who may send: a server that was told to, and no copy of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

import harness
from activation.sandbox import Sandbox
from harness import Cluster, Connection, Database, wait_until
from loops import journey, tick
from mail import Worker, go_live, received, sign_up, status, statuses

ENVIRONMENT = {"RESEND_API_KEY": "re_test"}


def in_every_state(db: Database, app: Connection, sandbox: Sandbox) -> None:
    """1 was sent, 2 is accepted without our knowing it, 3 is queued, 4 waits for the deadline."""
    sign_up(app, 1)
    tick(db)
    sandbox.fail("drop_after")
    sign_up(app, 2)
    tick(db)
    app.execute("SELECT activation.configure(api_key => 'env:NOT_THERE')")
    sign_up(app, 3)
    sign_up(app, 4, acts=False)
    tick(db)
    app.execute("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
    assert statuses(db) == {"1": "sent", "2": "sending", "3": "queued"}
    assert journey(db) == {"1": "completed", "2": "completed", "3": "completed", "4": "waiting"}


def restored(db: Database, name: str) -> Database:
    """A dump of the database, restored beside it."""
    dump = db.run("pg_dump")
    db.cluster.postgres.sql(f'CREATE DATABASE "{name}"')
    copy = Database(db.cluster, name)
    copy.psql(dump)
    return copy


@pytest.fixture
def copy(db: Database, live: Connection, sandbox: Sandbox) -> Iterator[Database]:
    """A copy in another database of the same server, made in the middle of everything."""
    in_every_state(db, live, sandbox)
    database = restored(db, f"{db.name}_copy")
    yield database
    database.drop()


def test_a_copy_beside_it_sends_nothing_and_works_on(db: Database, copy: Database, sandbox: Sandbox) -> None:
    """Disarmed, and says so; it still enrolls, evaluates and promises."""
    before = len(sandbox.log)
    sign_up(copy.connect(), 5)
    copy.sql("INSERT INTO actions (user_id) VALUES (4)")
    for later in ("0", "10 minutes", "25 hours"):
        tick(copy, later)
    assert len(sandbox.log) == before
    component, state, detail = copy.sql("SELECT component, state, detail FROM activation.status")[0]
    assert (component, state) == ("mode", "disarmed") and "copy" in detail
    assert statuses(copy) == {"1": "sent", "2": "sending", "3": "queued", "4": "queued", "5": "queued"}
    assert set(journey(copy).values()) == {"completed"}
    # The original knows nothing of it.
    tick(db, "10 minutes")
    assert statuses(db) == {"1": "sent", "2": "sent", "3": "sent"}
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in (1, 2, 3)}


def test_a_copy_that_takes_over(copy: Database, sandbox: Sandbox) -> None:
    """The backlog is sent when asked for, under the keys of the original: the sandbox holds each mail once."""
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="2 messages wait") as caught:
        copy.sql("SELECT activation.set_mode('live')")
    assert "backlog" in str(caught.value.diag.message_hint)
    assert status(copy, "mode")[0] == "disarmed"
    copy.sql("SELECT activation.set_mode('live', backlog => 'send')")
    tick(copy, "10 minutes")
    assert statuses(copy) == {"1": "sent", "2": "sent", "3": "sent"}
    assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in (1, 2, 3)}
    assert status(copy, "mode")[0] == "live"


def test_a_copy_that_captures(copy: Database, sandbox: Sandbox) -> None:
    """What was queued ends there, and nothing that may have gone is sent again."""
    before = len(sandbox.log)
    copy.sql("SELECT activation.set_mode('capture')")
    tick(copy, "10 minutes")
    assert statuses(copy) == {"1": "sent", "2": "sending", "3": "captured"}
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="1 messages wait"):
        copy.sql("SELECT activation.set_mode('live')")
    copy.sql("SELECT activation.set_mode('live', backlog => 'cancel')")
    tick(copy, "10 minutes")
    assert statuses(copy) == {"1": "sent", "2": "unknown", "3": "captured"}
    assert len(sandbox.log) == before


def test_a_worker_of_a_copy_warns(copy: Database, sandbox: Sandbox) -> None:
    """In the server's log, once a run."""
    before = len(sandbox.log)
    worker = Worker(copy)
    wait_until(lambda: "activation sends nothing: mode live was set on another server" in copy.cluster.log)
    copy.sql("SELECT activation.stop()")
    assert worker.ended(20) and worker.error is None
    worker.connection.close()
    assert len(sandbox.log) == before


def test_going_live_tells_of_people_on_their_way(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute("SELECT activation.set_mode('capture')")
    sign_up(live, 1, 2, acts=False)
    sign_up(live, 3)
    tick(db)
    notices: list[str] = []
    live.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    live.execute("SELECT activation.set_mode('live')")
    assert notices == ["2 people are in the middle of a loop and may now be mailed"]
    live.execute("INSERT INTO actions (user_id) VALUES (1)")
    tick(db)
    assert statuses(db) == {"1": "sent", "3": "captured"} and received(sandbox) == {"u1@acme.dev": 1}


def test_redirected(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Everything to one address, and the log says so; what may have gone to real users is not repeated there."""
    sandbox.fail("drop_after")
    sign_up(live, 1)
    tick(db)
    live.execute("SELECT activation.set_mode('redirect', redirect_to => 'dev@acme.dev')")
    sign_up(live, 2, 3)
    tick(db, "10 minutes")
    assert statuses(db) == {"1": "sending", "2": "sent", "3": "sent"}
    assert received(sandbox) == {"u1@acme.dev": 1, "dev@acme.dev": 2} and len(sandbox.log) == 2
    assert {row[0] for row in db.sql("SELECT recipient FROM activation.message_log WHERE user_id <> '1'")} == {
        "dev@acme.dev"
    }
    assert status(db, "mode") == ("redirect", "all mail goes to dev@acme.dev")
    live.execute("SELECT activation.set_mode('live')")
    tick(db, "20 minutes")
    assert statuses(db)["1"] == "sent" and received(sandbox)["u1@acme.dev"] == 1


def test_capture_is_final(db: Database, live: Connection, sandbox: Sandbox) -> None:
    live.execute("SELECT activation.set_mode('capture')")
    sign_up(live, 1)
    tick(db)
    live.execute("SELECT activation.set_mode('live')")
    tick(db)
    assert statuses(db) == {"1": "captured"}
    assert sandbox.log == []


def test_capture_is_the_default(db: Database, sandbox: Sandbox) -> None:
    """Without a key or a sender, everything runs and nothing leaves."""
    app = db.connect()
    go_live(app, sandbox)
    app.execute("DELETE FROM activation.setting; DELETE FROM activation.identity")
    app.execute("SELECT activation.configure(resend_url => %s)", [sandbox.url])
    sign_up(app, 1)
    tick(db)
    assert status(db, "mode")[0] == "capture" and statuses(db) == {"1": "captured"}
    ((recipient, subject),) = db.sql("SELECT recipient, subject FROM activation.message_log")
    assert recipient == "u1@acme.dev" and subject
    assert sandbox.log == []
    app.close()


def test_hosts_that_match_nothing_here(db: Database, live: Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"this server is .*:"):
        live.execute("SELECT activation.set_mode('live', hosts => ARRAY['db%.acme.dev:5432'])")
    assert status(db, "mode")[0] == "live"


def test_a_restored_copy_mails_no_one(sandbox: Sandbox) -> None:
    """A dump with a message in the queue and a request on its way, restored on another server."""
    with Cluster(environment=ENVIRONMENT) as here:
        db = here.create_database()
        app = db.connect()
        go_live(app, sandbox)
        sandbox.fail("drop_after", times=1)
        sign_up(app, 1)
        tick(db)
        take_the_key_away = "SELECT activation.configure(api_key => 'env:NOT_THERE')"
        app.execute(take_the_key_away)
        sign_up(app, 2)
        sign_up(app, 3, acts=False)
        tick(db)
        app.execute("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
        assert statuses(db) == {"1": "sending", "2": "queued"}
        app.close()
        dump = db.run("pg_dump")
        with Cluster(environment=ENVIRONMENT, own_identity=True) as there:
            copy = Database(there, "copy")
            there.postgres.sql("CREATE DATABASE copy")
            copy.psql(dump)
            before = len(sandbox.log)
            copy_app = copy.connect()
            copy_app.execute("INSERT INTO actions (user_id) VALUES (3)")
            sign_up(copy_app, 4)
            tick(copy, "10 minutes")
            assert len(sandbox.log) == before
            assert copy.sql("SELECT component, state FROM activation.status LIMIT 1") == [("mode", "disarmed")]
            assert statuses(copy) == {"1": "sending", "2": "queued", "3": "queued", "4": "queued"}
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="4 messages wait"):
                copy_app.execute("SELECT activation.set_mode('live')")
            copy_app.execute("SELECT activation.set_mode('live', backlog => 'cancel')")
            tick(copy, "10 minutes")
            assert statuses(copy) == {"1": "unknown", "2": "cancelled", "3": "cancelled", "4": "cancelled"}
            assert len(sandbox.log) == before
            copy_app.close()
            copy.close()
        tick(db, "10 minutes")
        assert statuses(db) == {"1": "sent", "2": "sent"}
        assert received(sandbox) == {"u1@acme.dev": 1, "u2@acme.dev": 1}


@contextmanager
def copied_directory(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A server on a copy of the data directory, as a file system's snapshot gives; the original stands still."""
    original = cluster.data.parent / "copied"
    cluster.stop()
    shutil.copytree(cluster.data, original)
    monkeypatch.setattr(harness, "_template", lambda: Path(original))
    with Cluster(environment=ENVIRONMENT) as other:
        yield other


@pytest.mark.parametrize("hosts", ["NULL", "ARRAY['%:{port}']", "ARRAY['nowhere', '%']"])
def test_a_copied_data_directory(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, hosts: str) -> None:
    """Same system identifier, same database; another directory and port. Patterns may say that this is all right."""
    with Cluster(environment=ENVIRONMENT) as here:
        app = here.connect()
        go_live(app, sandbox)
        app.execute(f"SELECT activation.set_mode('live', hosts => {hosts.format(port=here.port)})")
        in_every_state(here, app, sandbox)
        app.close()
        before = len(sandbox.log)
        with copied_directory(here, monkeypatch) as there:
            tick(there, "10 minutes")
            if "%']" in hosts:
                assert statuses(there) == {"1": "sent", "2": "sent", "3": "sent"}
            else:
                state, detail = status(there, "mode")
                assert state == "disarmed" and str(there.port) in detail
                assert ("data directory" in detail) == (hosts == "NULL")
                assert statuses(there) == {"1": "sent", "2": "sending", "3": "queued"}
                assert len(sandbox.log) == before
        here.start()
        tick(here, "10 minutes")
        assert statuses(here) == {"1": "sent", "2": "sent", "3": "sent"}
        # A copy that the patterns allow to send is as good as the original: it must not run beside it.
        assert received(sandbox) == {"u1@acme.dev": 1, "u2@acme.dev": 1, "u3@acme.dev": 1 if "%']" not in hosts else 2}
