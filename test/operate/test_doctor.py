# ruff: noqa: E501
"""doctor(): a healthy installation is ok throughout; each check sees what is broken, and its cure, as printed, mends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from activation.sandbox import Sandbox
from harness import Cluster, Connection, Database, wait_until
from loops import define, tick
from mail import go_live, sign_up
from standby import standby_of

CHECKS = [
    "versions", "mode", "key", "sender", "public_url", "webhooks", "pause", "pg_cron", "jobs", "workers", "lag", "leases",
    "unknown", "loops", "users", "triggers", "conditions", "indexes", "autovacuum", "retention",
]  # fmt: skip

Findings = dict[str, tuple[str, str, str]]


def findings(db: Database) -> Findings:
    """What is not ok: its state, what it means, the cure."""
    rows = db.sql("SELECT * FROM activation.doctor()")
    assert [row[0] for row in rows] == CHECKS
    return {check: (state, detail, cure) for check, state, detail, cure in rows if state != "ok"}


def apply(db: Database, cure: str) -> None:
    """What is printed, a command a line, with a person's own values where it shows dots."""
    for line in cure.splitlines():
        if not line.startswith("--"):
            mine = "a@acme.dev" if "sender" in line else "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
            db.sql(line.replace("'…'", f"'{mine}'"))


def hear(db: Database) -> None:
    """Webhooks are set up."""
    db.sql("SELECT activation.set_secret('resend', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')")
    db.sql("SELECT activation.configure(webhook_secret => 'secret:resend')")


@pytest.fixture
def well(db: Database, live: Connection) -> Database:
    """Live, with somebody who got mail; tick() is called by other means."""
    hear(db)
    sign_up(live, 1)
    tick(db)
    assert findings(db) == {}
    return db


EVALUATE = 'activation_compiled."first: evaluate (1.v1)"(text[])'

BROKEN = {
    "no key": ("key", "SELECT activation.configure(api_key => 'env:NOT_THERE')", "NOT_THERE is not set"),
    "no sender": ("sender", "SELECT activation.configure(sender => '')", "messages wait"),
    "a sender of Resend's": ("sender", "SELECT activation.configure(sender => 'a@resend.dev')", "your own address"),
    "nowhere to unsubscribe": (
        "public_url",
        "UPDATE activation.setting SET public_url = NULL",
        "unsubscribe from mail",
    ),
    "at home": (
        "public_url",
        "SELECT activation.configure(public_url => 'http://localhost:8000')",
        "localhost:8000 is no",
    ),
    "not https": ("public_url", "SELECT activation.configure(public_url => 'http://acme.dev/a')", "one click"),
    "no webhook secret": ("webhooks", "SELECT activation.configure(webhook_secret => 'secret:hook')", "name hook"),
    "a short webhook secret": (
        "webhooks",
        "UPDATE activation.secret SET value = 'whsec_AAAA'",
        "leads to is no webhook secret",
    ),
    "one of two": (
        "webhooks",
        "SELECT activation.configure(webhook_secret => s.webhook_secret || ' secret:next') FROM activation.setting s",
        "under the name next",
    ),
    "nothing is heard": ("webhooks", "SELECT activation.configure(webhook_secret => '')", "bounces and complaints"),
    "erasures wait": (
        "retention",
        "INSERT INTO activation.erasure VALUES ('9', now() - interval '3 days')",
        "people wait to be erased",
    ),
    "paused": (
        "pause",
        "UPDATE activation.provider SET paused_until = 'infinity', pause_reason = 'API key is invalid'",
        "API key is invalid",
    ),
    "late": (
        "lag",
        "INSERT INTO activation.signal (at, source_id, generation, user_id)"
        " SELECT now() - interval '1 hour', min(source_id), 1, '7' FROM activation.source",
        "people to enroll wait since",
    ),
    "late at a step": (
        "lag",
        "UPDATE activation.enrollment SET state = 'waiting', deadline = now() - interval '1 hour'",
        "people whose step is due wait since",
    ),
    "late mail": (
        "lag",
        "UPDATE activation.message SET state = 'queued', request_id = NULL, finished_at = NULL,"
        " next_attempt_at = now() - interval '1 hour'",
        "messages wait since",
    ),
    "a stuck lease": (
        "leases",
        "UPDATE activation.request SET state = 'open', lease_id = request_id, lease_until = now() - interval '1 hour'",
        "requests hang since",
    ),
    "unknown": ("unknown", "UPDATE activation.message SET state = 'unknown' WHERE user_id = '1'", "to u1@acme.dev"),
    "a paused loop": ("loops", "SELECT activation.pause_loop('first')", "loop first is paused"),
    "a failing loop": ("loops", "UPDATE activation.loop SET state = 'failing', reason = 'why'", "is failing: why"),
    "the brake": ("loops", "UPDATE activation.loop SET state = 'stopped'", "stopped by the brake"),
    "a strike": (
        "loops",
        "INSERT INTO activation.strike SELECT loop_id, 'detect', 1, now(), 'it raised', now() FROM activation.loop",
        "it raised",
    ),
    "no address": ("users", "ALTER TABLE users RENAME email TO email_address", "every mail to its people fails"),
    "no trigger": ("triggers", "DROP TRIGGER activation_insert ON users", "public.users is missing"),
    "a disabled trigger": ("triggers", "ALTER TABLE actions DISABLE TRIGGER activation_insert", "actions is disabled"),
    "no event trigger": ("triggers", "ALTER EVENT TRIGGER activation_follow_table DISABLE", "INSERTs of the app could"),
    "no other event trigger": (
        "triggers",
        "ALTER EVENT TRIGGER activation_follow_drop DISABLE",
        "INSERTs of the app could",
    ),
    "nothing compiled": ("conditions", f"DROP FUNCTION {EVALUATE}", "loop first, version 1, are gone"),
    "other rights": ("conditions", f"ALTER FUNCTION {EVALUATE} SECURITY INVOKER", "rights of postgres"),
    "no index": ("indexes", "DROP INDEX actions_user_id_idx", "public.actions by user_id"),
    "no vacuum of one": ("autovacuum", "ALTER TABLE activation.signal SET (autovacuum_enabled = off)", "signal"),
    "old rows": (
        "retention",
        "INSERT INTO activation.event (at, user_id, event, properties) VALUES (now() - interval '92 days', '1', 'e', '{}')",
        "though they are kept for 90 days",
    ),
}


@pytest.fixture(scope="module")
def patient(cluster: Cluster) -> Iterator[Database]:
    """The same, for tests that leave it as well as they found it."""
    database = cluster.create_database()
    with Sandbox() as sandbox, database.connect() as app:
        go_live(app, sandbox)
        hear(database)
        sign_up(app, 1)
        tick(database)
        yield database
    database.drop()


@pytest.mark.parametrize(("check", "broken", "seen"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_seen_and_cured(patient: Database, check: str, broken: str, seen: str) -> None:
    assert findings(patient) == {}
    patient.sql(broken)
    found = findings(patient)
    assert list(found) == [check]
    assert seen in found[check][1]
    apply(patient, found[check][2])
    assert findings(patient) == {}


def test_a_copy(well: Database) -> None:
    """It is not to send, and what was on its way in the other mode is no matter of this one."""
    well.sql("UPDATE activation.request SET state = 'open', lease_id = request_id, lease_until = '-infinity'")
    well.sql("UPDATE activation.identity SET port = 1")
    found = findings(well)
    assert list(found) == ["mode", "leases"] and "disarmed" in found["mode"][1]
    apply(well, found["mode"][2])
    assert well.value("SELECT mode FROM activation.setting") == "capture"
    assert findings(well) == {}


def test_nobody_calls_tick(well: Database) -> None:
    well.sql("UPDATE activation.schedule SET watched_until = now() - interval '1 second'")
    found = findings(well)
    assert list(found) == ["pg_cron", "workers"]
    assert "shared_preload_libraries" in found["pg_cron"][2]
    apply(well, found["workers"][2])
    assert findings(well) == {}


def test_a_process_that_hangs(well: Database) -> None:
    """As a worker, as the holder of a lease, and in a transaction."""
    hung = well.connect(autocommit=False)
    hung.execute("SELECT pg_current_xact_id()")
    pid = hung.info.backend_pid
    well.sql("UPDATE activation.schedule SET detectors = 1")
    well.sql(
        "INSERT INTO activation.worker SELECT 'detector', 1, pid, backend_start, now(), now() - interval '1 hour'"
        " FROM pg_stat_activity WHERE pid = %s",
        pid,
    )
    well.sql(
        "UPDATE activation.request SET state = 'open', lease_id = request_id, lease_until = now() - interval '1 hour',"
        " lease_pid = pid, lease_start = backend_start FROM pg_stat_activity WHERE pid = %s",
        pid,
    )
    found = findings(well)
    assert f"process {pid} hangs" in found["workers"][1] and f"held by process {pid}" in found["leases"][1]
    well.sql("SELECT set_config('activation.now', (now() + interval '2 hours')::text, false)")
    found |= {"autovacuum": findings(well)["autovacuum"]}
    assert f"process {pid}" in found["autovacuum"][1]
    terminate = f"SELECT pg_terminate_backend({pid}, 5000);"
    assert all(terminate in found[check][2] for check in ("workers", "leases", "autovacuum"))
    apply(well, found["leases"][2])
    assert "autovacuum" not in findings(well)
    well.sql("RESET activation.now")
    found = findings(well)
    assert "leases" not in found and "hangs" not in str(found.get("workers"))
    hung.close()


def test_autovacuum_is_off(well: Database) -> None:
    well.sql("ALTER SYSTEM SET autovacuum = off")
    well.sql("SELECT pg_reload_conf()")
    wait_until(lambda: "autovacuum is off" in findings(well).get("autovacuum", ("", "", ""))[1])
    apply(well, findings(well)["autovacuum"][2])
    wait_until(lambda: findings(well) == {})


def test_dead_rows(well: Database) -> None:
    """Those that nobody removed for an hour."""
    well.sql("ALTER TABLE activation.event SET (autovacuum_enabled = off)")
    well.sql(
        "INSERT INTO activation.event (at, user_id, event, properties) SELECT now(), g, 'e', '{}'"
        " FROM generate_series(1, 60000) g"
    )
    well.sql("DELETE FROM activation.event")
    well.close()
    wait_until(lambda: "60000 dead rows" in findings(well).get("autovacuum", ("", "", ""))[1])
    apply(well, findings(well)["autovacuum"][2])
    well.close()
    wait_until(lambda: findings(well) == {})


def test_a_right_that_was_revoked(well: Database) -> None:
    well.sql("CREATE ROLE doctors_author")
    try:
        well.sql("CREATE TABLE members (id int PRIMARY KEY, email text); ALTER TABLE members OWNER TO doctors_author")
        well.sql("CREATE TABLE deeds (user_id int); CREATE INDEX ON deeds (user_id)")
        well.sql("GRANT SELECT ON deeds TO doctors_author")
        with well.connect() as author:
            author.add_notice_handler(lambda _: None)
            define(author, "SELECT FROM deeds WHERE user_id = $1", "theirs", table="members", owner="doctors_author")
        assert findings(well) == {}
        well.sql("REVOKE SELECT ON deeds FROM doctors_author")
        found = findings(well)
        assert list(found) == ["conditions"]
        assert "condition of loop theirs does not run: permission denied for table deeds" in found["conditions"][1]
        apply(well, found["conditions"][2])
        assert findings(well) == {}
    finally:
        well.sql("DROP EXTENSION activation CASCADE; DROP OWNED BY doctors_author CASCADE; DROP ROLE doctors_author")


@pytest.mark.parametrize(
    ("index", "query", "found"),
    [
        ("actions (what, user_id)", "SELECT FROM actions WHERE user_id = $1 AND what = 'made'", []),
        ("actions (what, user_id)", "SELECT FROM actions WHERE user_id = $1", ["indexes"]),
        ("actions (user_id, what)", "SELECT FROM actions WHERE user_id = $1", []),
        ("actions (user_id) WHERE what = 'made'", "SELECT FROM actions WHERE user_id = $1 AND what = 'made'", []),
        ("actions (lower(what), user_id)", "SELECT FROM actions WHERE user_id = $1 AND what = 'made'", ["indexes"]),
    ],
)
def test_which_index_serves(well: Database, index: str, query: str, found: list[str]) -> None:
    well.sql("SELECT activation.archive_loop('first'); DROP INDEX actions_user_id_idx")
    well.sql(f"CREATE INDEX ON {index}")
    with well.connect() as app:
        define(app, query, "second")
    assert list(findings(well)) == found


def test_partitions(well: Database) -> None:
    """A table is as good as the worst of its parts."""
    well.sql("""
        CREATE TABLE parts (user_id bigint NOT NULL, at date NOT NULL) PARTITION BY RANGE (at);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
        CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
        CREATE INDEX ON parts_1 (user_id);
    """)
    with well.connect() as app:
        define(app, "SELECT FROM parts WHERE user_id = $1", "second")
    well.sql("ALTER TABLE parts_2 DISABLE TRIGGER activation_insert")
    found = findings(well)
    assert list(found) == ["triggers", "indexes"]
    for _, _, cure in found.values():
        apply(well, cure)
    assert findings(well) == {}


def test_a_check_that_fails_is_a_row(well: Database) -> None:
    well.sql("ALTER TABLE activation.provider RENAME TO away")
    found = findings(well)
    assert list(found) == ["pause", "lag"]
    assert all(state == "problem" and "could not be looked at" in detail for state, detail, _ in found.values())


def test_it_waits_for_no_lock(well: Database) -> None:
    with well.connect(autocommit=False) as migration:
        migration.execute("LOCK TABLE actions, users, activation.provider, activation.request")
        # The locks are held meanwhile: whoever waited for one would wait for ever.
        well.sql("SET statement_timeout = '1min'")
        found = findings(well)
        assert "waits for a lock" in found["conditions"][1]
        assert "lock timeout" in found["pause"][1]
    assert findings(well) == {}


def test_it_only_reads(well: Database) -> None:
    with well.connect(autocommit=False) as reader:
        reader.execute("SET TRANSACTION READ ONLY")
        reader.execute("SELECT * FROM activation.doctor()")
        assert reader.execute("SELECT pg_current_xact_id_if_assigned()").fetchone() == (None,)


def test_a_fresh_database(db: Database) -> None:
    assert findings(db) == {}


def test_another_version_is_installed(db: Database) -> None:
    """There is no update from it to apply."""
    version = db.value("SELECT extversion FROM pg_extension WHERE extname = 'activation'")
    db.sql("UPDATE pg_extension SET extversion = '0.0.0' WHERE extname = 'activation'")
    found = findings(db)
    assert found["versions"][0] == "problem" and found["versions"][2] == "ALTER EXTENSION activation UPDATE;"
    assert f"version {version} is installed on the server, this database has 0.0.0" in found["versions"][1]
    assert "the Python package of activation 0.0.0 is not installed" in found["versions"][1]


def test_a_standby(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster(environment={"RESEND_API_KEY": "re_test"}) as primary, primary.connect() as app:
        go_live(app, sandbox)
        hear(primary)
        tick(primary)
        with standby_of(primary, tmp_path / "data", monkeypatch) as standby:
            found = findings(standby)
            assert list(found) == ["mode"] and "would send nothing" in found["mode"][1]
            apply(primary, found["mode"][2])
            wait_until(lambda: findings(standby) == {})


# Under pg_cron.


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """Started, and both workers have run."""
    with Sandbox() as sandbox, Cluster(cron=True, environment={"RESEND_API_KEY": "re_test"}) as cluster:
        with cluster.connect() as app:
            go_live(app, sandbox)
        hear(cluster)
        found = findings(cluster)
        assert list(found) == ["workers"]
        apply(cluster, found["workers"][2])
        assert findings(cluster) == {}, "a job may wait a minute for its first run"
        wait_until(lambda: cluster.value("SELECT count(*) FROM activation.worker") == 2, 100)
        yield cluster


@pytest.mark.parametrize(
    ("broken", "seen"),
    [
        ("SELECT cron.unschedule('activation-detect-1')", "detector 1 is missing"),
        ("UPDATE cron.job SET active = false WHERE jobname = 'activation-deliver-1'", "deliverer 1 is not active"),
        ("UPDATE cron.job SET nodename = '/nowhere'", "connects to /nowhere"),
        ("UPDATE cron.job SET command = 'SELECT 1'", "not as start() made it"),
    ],
)
def test_jobs(server: Cluster, broken: str, seen: str) -> None:
    server.sql(broken)
    found = findings(server)
    assert list(found) == ["jobs"] and seen in found["jobs"][1]
    apply(server, found["jobs"][2])
    assert findings(server) == {}


def test_the_job_that_pulls(server: Cluster) -> None:
    """It is looked for like the others, and no cure of another's takes it away."""
    server.sql("SELECT activation.start(pull => true)")
    pulls = "SELECT count(*) FROM cron.job WHERE jobname = 'activation-pull-1'"
    assert findings(server) == {} and server.value(pulls) == 1
    for broken, seen in (
        ("SELECT cron.unschedule('activation-pull-1')", "puller 1 is missing"),
        ("SELECT cron.unschedule('activation-detect-1')", "detector 1 is missing"),
        (
            "UPDATE cron.job SET command = 'SELECT 1' WHERE jobname = 'activation-pull-1'",
            "puller 1 is not as start() made it",
        ),
    ):
        server.sql(broken)
        found = findings(server)
        assert list(found) == ["jobs"] and seen in found["jobs"][1]
        apply(server, found["jobs"][2])
        assert findings(server) == {} and server.value(pulls) == 1
        assert server.value("SELECT pull FROM activation.schedule")
    server.sql("SELECT activation.start()")
    assert findings(server) == {} and server.value(pulls) == 0


def test_no_pg_cron_in_the_database(server: Cluster) -> None:
    server.sql("DROP EXTENSION pg_cron")
    found = findings(server)
    assert list(found) == ["pg_cron"] and "not installed in this database" in found["pg_cron"][1]
    apply(server, found["pg_cron"][2])
    assert findings(server) == {}
    # pg_cron remembers in each session which tables were its own.
    server.close()


def test_a_worker_that_is_gone(server: Cluster) -> None:
    server.sql("SELECT cron.unschedule('activation-deliver-1')")
    wait_until(lambda: server.sql("SELECT FROM activation.worker WHERE kind = 'deliverer'"))
    server.sql("SELECT pg_terminate_backend(pid, 5000) FROM activation.worker WHERE kind = 'deliverer'")
    server.sql("UPDATE activation.worker SET beat_at = now() - interval '1 hour' WHERE kind = 'deliverer'")
    server.sql("UPDATE activation.schedule SET watched_until = now() + interval '20 minutes'")
    found = findings(server)
    assert list(found) == ["jobs", "workers"] and "deliverer 1 has given no sign of life since" in found["workers"][1]
    apply(server, found["workers"][2])
    wait_until(lambda: findings(server) == {}, 100)


def test_pg_cron_is_not_loaded(server: Cluster) -> None:
    server.sql("ALTER SYSTEM SET shared_preload_libraries = 'auto_explain'")
    server.restart()
    found = findings(server)
    assert found["pg_cron"][2].startswith("ALTER SYSTEM SET shared_preload_libraries = 'auto_explain', 'pg_cron';")
    assert "pg_cron is not running on this server" in found["pg_cron"][1]
    apply(server, found["pg_cron"][2])
    server.restart()
    wait_until(lambda: findings(server) == {}, 100)
