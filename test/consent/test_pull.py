"""Asking Resend, where no webhook reaches the database: events, and its suppression list."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import psycopg
import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database, wait_until
from loops import tick

APP = "CREATE TABLE users (id text PRIMARY KEY, email text)"
PULL = "CALL activation.pull_webhooks()"
SYNC = "CALL activation.sync_suppressions()"


@pytest.fixture
def app(db: Database, sandbox: Sandbox) -> Iterator[Connection]:
    connection = db.connect()
    connection.execute(APP)
    db.sql(
        "SELECT activation.configure(sender => 'a@acme.dev', api_key => 'env:RESEND_API_KEY', resend_url => %s,"
        " public_url => 'https://acme.dev/activation')",
        sandbox.url,
    )
    db.sql("SELECT activation.set_mode('live')")
    db.sql(
        "SELECT activation.define_loop('first', trigger => activation.on_insert('users'),"
        " action => activation.email('activation_welcome'))"
    )
    yield connection
    connection.close()


def mail(db: Database, app: Connection, *addresses: str) -> None:
    for address in addresses:
        app.execute("INSERT INTO users VALUES (%s, %s)", [address.partition("@")[0], address])
    tick(db)


def states(db: Database) -> dict[str, str]:
    return dict(db.sql("SELECT user_id, status FROM activation.message_log"))


def asked(sandbox: Sandbox) -> list[str]:
    return [entry.path for entry in sandbox.log if entry.method == "GET"]


def refusal(db: Database, call: str = PULL) -> list[str]:
    """The warnings of a call."""
    heard: list[str] = []
    with db.connect() as connection:
        connection.add_notice_handler(lambda notice: heard.append(f"{notice.severity}: {notice.message_primary}"))
        connection.execute(call)
    return heard


def test_what_became_of_mails(db: Database, app: Connection, sandbox: Sandbox) -> None:
    mail(db, app, "ada@acme.dev", "bounced@resend.dev", "complained@resend.dev", "suppressed@resend.dev")
    db.sql(PULL)
    assert states(db) == {
        "ada": "delivered",
        "bounced": "bounced",
        "complained": "complained",
        "suppressed": "suppressed",
    }
    assert set(db.sql("SELECT address FROM activation.suppression")) == {
        ("bounced@resend.dev",),
        ("complained@resend.dev",),
        ("suppressed@resend.dev",),
    }
    events = len(asked(sandbox))
    db.sql(PULL)
    assert len(asked(sandbox)) == events + 2, "which webhook, and one page of events: nothing is asked for again"
    assert db.value("SELECT count(*) FROM activation.webhook_event") == 8


def test_a_webhook_and_a_pull_tell_the_same_once(db: Database, app: Connection, sandbox: Sandbox) -> None:
    mail(db, app, "ada@acme.dev")
    db.sql(PULL)
    assert db.value("SELECT count(*) FROM activation.webhook_event WHERE NOT applied") == 0
    event = json.loads(db.value("SELECT payload::text FROM activation.webhook_event LIMIT 1"))
    ((known,),) = db.sql("SELECT webhook_id FROM activation.webhook_event LIMIT 1")
    again = db.value("SELECT activation._keep_event(%s, %s::jsonb, NULL, activation._now())", known, json.dumps(event))
    assert again == "duplicate"


def test_many_pages_and_an_end_in_the_middle(db: Database, app: Connection, sandbox: Sandbox) -> None:
    mail(db, app, "ada@acme.dev")
    for number in range(150):
        sandbox.tell("email.opened", email_id=str(number), to=["x@acme.dev"])
    # Two lists and 30 events, and then no more.
    sandbox.configure(api_keys=None)
    db.sql("SELECT activation.configure(rate => 1000)")
    with db.connect() as connection:
        connection.execute("SET statement_timeout = '2500ms'")
        try:
            connection.execute(PULL)
        except psycopg.errors.QueryCanceled:
            connection.rollback()
    kept = db.value("SELECT count(*) FROM activation.webhook_event")
    db.sql(PULL)
    assert db.value("SELECT count(*) FROM activation.webhook_event") == 152 >= kept
    assert len([path for path in asked(sandbox) if "/events/" in path]) == 152, "each was asked for once"


def test_the_rate_is_kept_to(db: Database, app: Connection, sandbox: Sandbox) -> None:
    sandbox.configure(rate=10)
    mail(db, app, "ada@acme.dev")
    for number in range(25):
        sandbox.tell("email.opened", email_id=str(number), to=["x@acme.dev"])
    db.sql(PULL)
    assert {entry.status for entry in sandbox.log} == {200}
    assert db.value("SELECT count(*) FROM activation.webhook_event") == 27


def test_several_webhooks_none_and_a_key_that_only_sends(db: Database, app: Connection, sandbox: Sandbox) -> None:
    db.sql("SELECT activation.configure(webhook_id => 'another')")
    assert "Webhook not found" in refusal(db)[0]
    db.sql("SELECT activation.configure(webhook_id => '')")
    assert refusal(db) == []
    sandbox.configure(api_keys=["another"])
    assert "WARNING" in refusal(db)[0] and "API key is invalid" in refusal(db)[0]
    assert db.value("SELECT count(*) FROM activation.provider WHERE paused_until IS NOT NULL") == 0, "it still sends"
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="not the id of a webhook"):
        db.sql("SELECT activation.configure(webhook_id => 'https://resend.com/webhooks/1')")


def test_a_copy_and_capture_ask_nothing(db: Database, app: Connection, sandbox: Sandbox) -> None:
    db.sql("SELECT activation.set_mode('capture')")
    assert refusal(db) == ["NOTICE: activation asked Resend nothing: mode is capture: nothing is asked of Resend"]
    db.sql("SELECT activation.set_mode('live')")
    db.sql("UPDATE activation.identity SET port = 1")
    assert "this one is a copy" in refusal(db)[0] or "another server" in refusal(db)[0]
    assert "NOTICE" in refusal(db, SYNC)[0]
    assert sandbox.log == []


def test_events_that_make_no_sense(db: Database, app: Connection, sandbox: Sandbox) -> None:
    mail(db, app, "ada@acme.dev")
    sandbox.tell("email.opened", email_id="nul \0", to=["x@acme.dev"])
    sandbox.tell("email.brand_new", email_id="?", to={"no": "list"})
    sandbox.tell("inbox.thing", email_id="?")
    sandbox.tell("email.nul\0", email_id="?")
    sandbox.tell("email.opened", email_id="half a character \ud800")
    sandbox.tell("email.opened", email_id="?", more=float("inf"))
    sandbox.tell("email.opened", email_id="?", more=float("nan"))
    db.sql(PULL)
    assert states(db) == {"ada": "delivered"}
    assert db.value("SELECT count(*) FROM activation.webhook_event") == 7, "what is not about mail is not asked for"
    assert db.value("SELECT count(*) FROM activation.webhook_event WHERE payload = %s", '{"type": "email.opened"}') == 4


def test_who_was_erased_stays_forgotten(db: Database, app: Connection, sandbox: Sandbox) -> None:
    """What is told of them later is known by its id alone."""
    mail(db, app, "ada@acme.dev")
    app.execute("DELETE FROM users")
    db.sql("SELECT activation.erase('ada')")
    sandbox.suppress("Ada@acme.dev", "complaint")
    db.sql(PULL)
    db.sql(SYNC)
    assert db.value("SELECT count(*) FROM activation.webhook_event") == 3
    assert db.value("SELECT count(*) FROM activation.webhook_event WHERE payload::text ILIKE '%acme%'") == 0
    assert db.value("SELECT count(*) FROM activation.suppression WHERE address ILIKE '%ada%'") == 0


def test_suppressions_go_both_ways(db: Database, app: Connection, sandbox: Sandbox) -> None:
    db.sql("SELECT activation.configure(sync_suppressions => true)")
    for number in range(120):
        sandbox.suppress(f"Theirs{number}@acme.dev", "bounce")
    db.sql("SELECT activation.suppress('ours' || g || '@acme.dev') FROM generate_series(1, 120) g")
    db.sql(SYNC)
    ours = {address for (address,) in db.sql("SELECT address FROM activation.suppression")}
    assert ours == sandbox.suppressions and len(ours) == 240
    assert db.value("SELECT reason FROM activation.suppression WHERE address = 'theirs1@acme.dev'") == "bounce"
    # Taken back here, it is taken back there, and does not come back.
    db.sql("SELECT activation.unsuppress('theirs1@acme.dev'), activation.unsuppress('ours1@acme.dev')")
    db.sql(SYNC)
    assert len(sandbox.suppressions) == 238
    assert db.value("SELECT count(*) FROM activation.suppression") == 238
    assert db.value("SELECT count(*) FROM activation.unsuppression") == 0
    mail(db, app, "theirs2@acme.dev", "ours1@acme.dev")
    assert [email.to for email in sandbox.emails] == [["ours1@acme.dev"]]


def test_what_is_told_of_the_list(db: Database, app: Connection, sandbox: Sandbox) -> None:
    """An address that Resend forgets is forgotten, unless it was put here by hand."""
    mail(db, app, "someone@acme.dev")
    for address in ("ada@acme.dev", "bob@acme.dev"):
        sandbox.suppress(address)
    db.sql("SELECT activation.suppress('bob@acme.dev')")
    db.sql(PULL)
    assert {a for (a,) in db.sql("SELECT address FROM activation.suppression")} == {"ada@acme.dev", "bob@acme.dev"}
    for address in ("ada@acme.dev", "bob@acme.dev"):
        sandbox.unsuppress(address)
    db.sql(PULL)
    assert {a for (a,) in db.sql("SELECT address FROM activation.suppression")} == {"bob@acme.dev"}
    added = {"type": "suppression.added", "created_at": "2020-01-01T00:00:00Z", "data": {"email": "Ada@acme.dev"}}
    db.sql("SELECT activation._keep_event('late', %s::jsonb, NULL, activation._now())", json.dumps(added))
    assert db.value("SELECT count(*) FROM activation.suppression WHERE address = 'ada@acme.dev'") == 0, (
        "that it was there is told after that it is gone"
    )


def test_kinds_of_history(db: Database, app: Connection, sandbox: Sandbox) -> None:
    mail(db, app, "ada@acme.dev")
    db.sql(PULL)
    db.sql("SELECT activation.track('ada', 'call')")

    def left() -> dict[str, int]:
        kinds = {
            "messages": "message",
            "bodies": "request WHERE body <> ''",
            "attempts": "attempt",
            "webhooks": "webhook_event",
            "events": "event",
        }
        return {kind: db.value(f"SELECT count(*) FROM activation.{table}") for kind, table in kinds.items()}

    assert left() == {"messages": 1, "bodies": 1, "attempts": 1, "webhooks": 2, "events": 1}
    kept = {"bodies": "1 day", "attempts": "3 days", "webhooks": "5 days", "events": "7 days", "messages": "9 days"}
    for kind, keep in kept.items():
        db.sql("SELECT activation.set_retention(%s, %s)", kind, keep)
    gone: list[str] = []
    for days in range(0, 11, 2):
        tick(db, f"{days} days")
        assert {kind for kind, count in left().items() if not count} == set(gone), days
        gone += [kind for kind, keep in kept.items() if int(keep[0]) == days + 1]
    db.sql("SELECT activation.set_retention('bodies', NULL)")
    assert db.value("SELECT count(*) FROM activation.retention") == 4


@pytest.mark.parametrize(
    "arguments, hint",
    [
        ("'mails', '1 day'", "It is one of"),
        ("NULL, '1 day'", "It is one of"),
        ("'webhooks', '1 day'", "at least '2 days'"),
        ("'bodies', '-1 day'", "at least '01:00:00'"),
        ("'messages', '12 hours'", "at least '1 day'"),
    ],
)
def test_kinds_that_are_none(db: Database, arguments: str, hint: str) -> None:
    db.sql("SELECT activation.configure(max_per_user => 3)")
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        db.sql(f"SELECT activation.set_retention({arguments})")
    assert hint in str(caught.value.diag.message_hint)
    assert db.value("SELECT count(*) FROM activation.retention") == 0


def test_the_sandbox_pushes(sandbox: Sandbox) -> None:
    """Signed POSTs as Resend makes them, again until they are taken."""
    import http.server
    import threading

    from activation.resend import signature

    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    heard: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            stamp = self.headers["svix-timestamp"]
            signature.verify(
                body,
                self.headers["svix-id"],
                stamp,
                self.headers["svix-signature"],
                [signature.key(secret)],
                int(stamp),
            )
            heard.append(json.loads(body)["type"])
            self.send_response(500 if len(heard) == 1 else 200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        sandbox.configure(webhook_url=f"http://127.0.0.1:{server.server_address[1]}/", webhook_secret=secret)
        request = urllib.request.Request(
            sandbox.url + "/emails",
            json.dumps({"from": "a@acme.dev", "to": "bounced@resend.dev", "subject": "s", "text": "t"}).encode(),
            {"Authorization": "Bearer re_1", "User-Agent": "test", "Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).close()
        wait_until(lambda: len(heard) == 3)
        assert heard == ["email.sent", "email.sent", "email.bounced"]
        with pytest.raises(ValueError, match="webhook_secret"):
            sandbox.configure(webhook_secret="whsec_?")
    finally:
        server.shutdown()
        server.server_close()
