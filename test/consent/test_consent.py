# ruff: noqa: E501
"""What people want is done, what Resend tells is heard, and who is to be forgotten is."""

from __future__ import annotations

import base64
import json
import random
import re
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import tick
from web import SECRET, signed

APP = """
    CREATE TABLE users (id text PRIMARY KEY, email text, name text);
    CREATE TABLE actions (user_id text);
    CREATE INDEX ON actions (user_id);
"""
WELCOME, NUDGE = "activation.email('activation_welcome')", "activation.email('activation_nudge')"


@pytest.fixture
def app(db: Database, sandbox: Sandbox) -> Iterator[Connection]:
    connection = db.connect()
    connection.execute(APP)
    db.sql("SELECT activation.set_secret('hook', %s)", SECRET)
    db.sql(
        "SELECT activation.configure(sender => 'a@acme.dev', api_key => 'env:RESEND_API_KEY', resend_url => %s,"
        " public_url => 'https://acme.dev/activation', webhook_secret => 'secret:hook')",
        sandbox.url,
    )
    db.sql("SELECT activation.set_mode('live')")
    yield connection
    connection.close()


def define(db: Database, more: str, name: str = "first") -> None:
    db.sql(f"SELECT activation.define_loop('{name}', trigger => activation.on_insert('users'), {more})")


STEPS = f"steps => ARRAY[activation.step('a', action => {WELCOME}), activation.step('b', delay => '1 day', action => {NUDGE})]"


def sign_up(app: Connection, *users: str) -> None:
    for user in users:
        app.execute("INSERT INTO users VALUES (%s, %s, %s)", [user, f"{user}@acme.dev", f"Name of {user}"])


def statuses(db: Database, user: str) -> list[tuple[Any, ...]]:
    return db.sql(
        "SELECT loop, step, status FROM activation.message_log WHERE user_id = %s ORDER BY created_at, loop, step", user
    )


def told(db: Database, user: str) -> str:
    return "\n".join(
        f"{event}: {detail}" for event, detail in db.sql("SELECT event, detail FROM activation.why(%s)", user)
    )


def token_of(sandbox: Sandbox, user: str) -> str:
    (email,) = (email for email in sandbox.emails if email.to == [f"{user}@acme.dev"])
    url = email.as_json()["headers"]["List-Unsubscribe"].strip("<>")
    assert url.startswith("https://acme.dev/activation/unsubscribe?token=")
    return str(url.partition("token=")[2])


def headers(body: str, **more: Any) -> dict[str, Any]:
    """As a proxy may hand them on: one in capitals, and others among them."""
    found = signed(body, **more)
    return {"Svix-Id": found.pop("svix-id"), **found, "host": "acme.dev"}


def hook(db: Database, kind: str, data: dict[str, Any], at: str = "2026-11-22T23:41:12.126Z", **more: Any) -> str:
    body = json.dumps({"type": kind, "created_at": at, "data": data})
    return str(db.value("SELECT activation.receive_webhook(%s, %s::jsonb)", body, json.dumps(headers(body, **more))))


def about(db: Database, user: str, **more: Any) -> dict[str, Any]:
    """The data of an event about a user's first mail."""
    ((message_id, resend_id),) = db.sql(
        "SELECT message_id::text, resend_id FROM activation.message_log WHERE user_id = %s ORDER BY created_at LIMIT 1",
        user,
    )
    return {
        "email_id": resend_id,
        "to": [f"{user}@acme.dev"],
        "created_at": "2026-11-22T23:41:11.894Z",
        "tags": {"activation_message": message_id},
        **more,
    }


def test_the_links_of_a_mail(db: Database, app: Connection, sandbox: Sandbox) -> None:
    """Both headers, the link in the body; none in a transactional mail."""
    define(db, f"action => {WELCOME}")
    define(db, f"action => {WELCOME}, transactional => true", "receipt")
    sign_up(app, "ada")
    tick(db)
    mails = [email.as_json() for email in sandbox.emails]
    (marketing,) = [mail for mail in mails if mail.get("headers")]
    assert marketing["headers"]["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    url = marketing["headers"]["List-Unsubscribe"].strip("<>")
    assert url in marketing["text"] and url in marketing["html"]
    (receipt,) = [mail for mail in mails if not mail.get("headers")]
    assert "unsubscribe" not in receipt["text"].lower()


def test_without_a_public_url(db: Database, app: Connection) -> None:
    """Nobody is written to who could not leave."""
    define(db, f"action => {WELCOME}, transactional => true", "receipt")
    define(db, f"action => {WELCOME}")
    state = psycopg.errors.ObjectNotInPrerequisiteState
    with pytest.raises(state, match="people could not unsubscribe from mail of first"):
        db.sql("SELECT activation.configure(public_url => '')")
    db.sql("SELECT activation.set_mode('capture')")
    db.sql("SELECT activation.configure(public_url => '')")
    with pytest.raises(state, match="people could not unsubscribe from mail of first") as caught:
        db.sql("SELECT activation.set_mode('live')")
    assert "public_url" in str(caught.value.diag.message_hint)
    db.sql("SELECT activation.archive_loop('first')")
    db.sql("SELECT activation.set_mode('live')")
    with pytest.raises(state, match="people could not unsubscribe from mail of second"):
        define(db, f"action => {WELCOME}", "second")
    assert db.sql("SELECT name FROM activation.loop ORDER BY 1") == [("first",), ("receipt",)]


def test_unsubscribing(db: Database, app: Connection, sandbox: Sandbox) -> None:
    """From the mail's topic; what comes later and what is queued is not sent; other topics are."""
    define(db, f"{STEPS}, topic => 'tips'", "tips")
    define(db, f"steps => ARRAY[activation.step('x', delay => '1 day', action => {WELCOME})], topic => 'news'", "news")
    define(
        db,
        f"steps => ARRAY[activation.step('y', delay => '1 day', action => {WELCOME})], transactional => true, topic => 'tips'",
        "receipt",
    )
    sign_up(app, "ada", "bob")
    tick(db)
    token = token_of(sandbox, "ada")
    app.execute("SELECT activation.unsubscribe(%s)", [token])
    app.execute("SELECT activation.unsubscribe(%s)", [token])
    tick(db, "25 hours")
    assert statuses(db, "ada") == [("tips", "a", "sent"), ("news", "x", "sent"), ("receipt", "y", "sent")]
    assert ("tips", "b", "sent") in statuses(db, "bob")
    assert "unsubscribed: topic tips, by unsubscribe link of loop tips" in told(db, "ada")
    assert db.sql("SELECT state FROM activation.journey WHERE user_id = 'ada' AND loop = 'tips'") == [("exited",)]
    db.sql("SELECT activation.set_topic('tips', 'Tips & tricks', 'One a week')")
    assert db.sql("SELECT topic, name, subscribed FROM activation.preferences(token => %s)", token) == [
        ("", "Everything", True),
        ("news", "news", True),
        ("tips", "Tips & tricks", False),
    ]
    # A new loop on the topic reaches only the other one; and everything is everything.
    define(db, f"action => {WELCOME}, topic => 'tips', enroll => 'existing'", "more tips")
    tick(db)
    tick(db)
    assert ("more tips", "step1", "cancelled") in statuses(db, "ada") and ("more tips", "step1", "sent") in statuses(
        db, "bob"
    )
    app.execute("SELECT activation.unsubscribe(%s, everything => true)", [token])
    assert [row[0] for row in db.sql("SELECT subscribed FROM activation.preferences('ada')")] == [False] * 3
    app.execute("SELECT activation.resubscribe(%s)", [token])
    assert [row[0] for row in db.sql("SELECT subscribed FROM activation.preferences('ada')")] == [True] * 3


def test_unsubscribed_while_it_was_queued(db: Database, app: Connection, sandbox: Sandbox) -> None:
    define(db, f"action => {WELCOME}")
    sign_up(app, "ada")
    tick(db)
    token = token_of(sandbox, "ada")
    define(db, f"action => {WELCOME}", "second")
    db.sql("SELECT activation.configure(api_key => 'env:NOT_THERE')")
    db.sql("SELECT activation.enroll('ada', 'second')")
    tick(db)
    assert statuses(db, "ada")[1:] == [("second", "step1", "queued")]
    app.execute("SELECT activation.unsubscribe(%s)", [token])
    db.sql("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
    tick(db)
    assert statuses(db, "ada")[1:] == [("second", "step1", "cancelled")] and len(sandbox.emails) == 1


def test_tokens_that_are_none(db: Database, app: Connection, sandbox: Sandbox) -> None:
    """No effect, and no hint whether there is such a person."""
    define(db, f"action => {WELCOME}")
    sign_up(app, "ada")
    tick(db)
    token = token_of(sandbox, "ada")
    for forged in (token[:-1], token + "A", token * 2, "", "x" * 32, "' OR 1=1"):
        assert db.sql("SELECT activation.unsubscribe(%s), activation.resubscribe(%s)", forged, forged) == [("", "")]
        assert db.sql("SELECT * FROM activation.preferences(token => %s)", forged) == []
    assert db.value("SELECT count(*) FROM activation.consent") == 0
    db.sql("SELECT activation.archive_loop('first')")
    app.execute("SELECT activation.unsubscribe(%s)", [token])
    assert db.value("SELECT count(*) FROM activation.consent WHERE NOT subscribed") == 1
    app.execute("DELETE FROM users WHERE id = 'ada'")
    db.sql("SELECT activation.erase('ada')")
    app.execute("SELECT activation.unsubscribe(%s)", [token])
    assert db.value("SELECT count(*) FROM activation.consent") == 0


EVENTS = {
    "email.sent": ({}, "sent", False),
    "email.scheduled": ({}, "sent", False),
    "email.delivered": ({}, "delivered", False),
    "email.delivery_delayed": ({}, "sent", False),
    "email.opened": ({"open": {"ipAddress": "1.2.3.4"}}, "sent", False),
    "email.clicked": ({"click": {"link": "https://acme.dev/x", "ipAddress": "1.2.3.4"}}, "sent", False),
    "email.complained": ({}, "complained", True),
    "email.bounced": (
        {"bounce": {"type": "Permanent", "subType": "NoEmail", "message": "no such box", "diagnosticCode": ["550"]}},
        "bounced",
        True,
    ),
    "email.bounced ": (
        {"bounce": {"type": "Transient", "subType": "MailboxFull", "message": "full", "diagnosticCode": "452"}},
        "bounced",
        False,
    ),
    "email.failed": ({"failed": {"reason": "reached_daily_quota"}}, "failed", False),
    "email.suppressed": ({"suppressed": {"type": "OnAccountSuppressionList", "message": "listed"}}, "suppressed", True),
    "email.something_new": ({}, "sent", False),
}


@pytest.mark.parametrize("kind", EVENTS)
def test_every_event(db: Database, app: Connection, sandbox: Sandbox, kind: str) -> None:
    """It reaches the message and why(); a bounce for good or a complaint stops all further mail."""
    data, status, suppressed = EVENTS[kind]
    define(db, STEPS)
    sign_up(app, "ada")
    tick(db)
    assert hook(db, kind.strip(), about(db, "ada", **data), webhook_id="msg_1") == "applied"
    assert hook(db, kind.strip(), about(db, "ada", **data), webhook_id="msg_1") == "duplicate"
    assert statuses(db, "ada") == [("first", "a", status)]
    assert f"told by Resend: {kind.strip()}" in told(db, "ada")
    assert [row[0] for row in db.sql("SELECT address FROM activation.suppression")] == (
        ["ada@acme.dev"] if suppressed else []
    )
    tick(db, "25 hours")
    assert statuses(db, "ada")[1] == ("first", "b", "suppressed" if suppressed else "sent")


def test_mail_numbers(db: Database, app: Connection) -> None:
    """Each mail counts once, however often it was opened."""
    define(db, f"action => {WELCOME}")
    sign_up(app, "ada", "bob")
    tick(db)
    for kind in ("email.delivered", "email.opened", "email.opened", "email.clicked", "email.clicked"):
        hook(db, kind, about(db, "ada"))
    assert db.sql(
        "SELECT template, sent, delivered, bounced, complained, opened, clicked FROM activation.mail_numbers"
    ) == [("activation_welcome", 2, 1, 0, 0, 1, 1)]


def test_any_order(db: Database, app: Connection, sandbox: Sandbox) -> None:
    """A message moves only forwards; and tags may be an array."""
    define(db, f"action => {WELCOME}")
    sign_up(app, "ada")
    tick(db)
    data = about(db, "ada")
    data["tags"] = [{"name": "activation_message", "value": data["tags"]["activation_message"]}]
    for kind in ("email.complained", "email.bounced", "email.delivered", "email.sent", "email.opened"):
        assert hook(db, kind, data) == "applied"
    assert statuses(db, "ada") == [("first", "step1", "complained")]
    assert hook(db, "contact.created", {"id": "x"}) == "kept"
    assert hook(db, "email.delivered", {"email_id": "another's"}) == "kept"
    assert hook(db, "suppression.added", {"email": "Bob@ACME.dev", "origin": "complaint"}) == "applied"
    assert "bob@acme.dev" in {row[0] for row in db.sql("SELECT address FROM activation.suppression")}


def test_it_settles_what_was_unknown(db: Database, app: Connection) -> None:
    define(db, f"action => {WELCOME}")
    sign_up(app, "ada")
    tick(db)
    db.sql("UPDATE activation.message SET state = 'unknown', sent_at = NULL, resend_id = NULL, finished_at = now()")
    assert hook(db, "email.delivered", about(db, "ada", email_id="e1")) == "applied"
    assert db.sql("SELECT status, resend_id, sent_at IS NOT NULL FROM activation.message_log") == [
        ("delivered", "e1", True)
    ]


def test_before_the_answer_was_written_down(db: Database, app: Connection) -> None:
    """An event that overtakes the answer waits for it."""
    define(db, f"action => {WELCOME}")
    sign_up(app, "ada")
    tick(db)
    db.sql("UPDATE activation.message SET state = 'sending', sent_at = NULL")
    assert hook(db, "email.delivered", about(db, "ada")) == "kept"
    db.sql("UPDATE activation.message SET state = 'sent', sent_at = now()")
    tick(db)
    assert statuses(db, "ada") == [("first", "step1", "delivered")]


def test_two_secrets(db: Database, app: Connection) -> None:
    other = "whsec_" + base64.b64encode(b"another secret of 24 byt").decode()
    db.sql("SELECT activation.set_secret('old', %s)", other)
    db.sql("SELECT activation.configure(webhook_secret => 'secret:hook secret:old')")
    for secret in (SECRET, other):
        body = json.dumps({"type": "contact.created", "created_at": "2026-11-22T23:41:12Z", "data": {}})
        assert (
            db.value("SELECT activation.receive_webhook(%s, %s::jsonb)", body, json.dumps(headers(body, secret=secret)))
            == "kept"
        )


GOOD = '{"type": "contact.created", "created_at": "2026-11-22T23:41:12Z", "data": {}}'


@pytest.mark.parametrize(
    ("body", "given", "code"),
    [
        ("x" * 1_000_001, {}, "HT413"),
        ("", {}, "HT400"),
        (GOOD[:-3], {}, "HT400"),
        ("[1]", {}, "HT400"),
        ('{"type": 5}', {}, "HT400"),
        (GOOD, {"svix-signature": "v1,AAAA"}, "HT401"),
        (GOOD, {"svix-signature": None}, "HT400"),
        (GOOD, {"svix-signature": ["v1,a", "v1,b"]}, "HT400"),
        (GOOD, {"SVIX-SIGNATURE": "v1,b"}, "HT400"),
        (GOOD, {"webhook-id": "x"}, "HT400"),
        (GOOD, {"svix-timestamp": "1614265330"}, "HT401"),
        (GOOD, {"svix-timestamp": "never"}, "HT401"),
        (GOOD, {"Svix-Id": "m" * 300}, "HT400"),
    ],
)
def test_refused(db: Database, app: Connection, body: str, given: dict[str, Any], code: str) -> None:
    """With the status to answer in its code; nothing is kept but a count."""
    sent = {name: value for name, value in {**headers(body), **given}.items() if value is not None}
    before = db.value("SELECT last_value + is_called::integer FROM activation.webhook_refused")
    with pytest.raises(psycopg.Error) as caught:
        db.sql("SELECT activation.receive_webhook(%s, %s::jsonb)", body, json.dumps(sent))
    assert caught.value.sqlstate == code and code[2:] in str(caught.value.diag.message_hint)
    assert SECRET.removeprefix("whsec_") not in str(caught.value)
    assert db.value("SELECT last_value + is_called::integer FROM activation.webhook_refused") == before + 1
    assert db.value("SELECT count(*) FROM activation.webhook_event") == 0


def test_without_a_secret(db: Database, app: Connection) -> None:
    db.sql("SELECT activation.configure(webhook_secret => '')")
    with pytest.raises(psycopg.Error, match="no webhook_secret is configured") as caught:
        hook(db, "contact.created", {})
    assert caught.value.sqlstate == "HT503"


def test_suppression(db: Database, app: Connection, sandbox: Sandbox) -> None:
    """By address, whatever its case and display name; also of transactional mail; and lifted again."""
    define(db, f"action => {WELCOME}, transactional => true")
    db.sql("SELECT activation.suppress('Ada <ADA@Acme.dev>', 'asked by phone')")
    db.sql("SELECT activation.suppress('ada@acme.dev')")
    app.execute("INSERT INTO users VALUES ('ada', 'Ada@ACME.dev', 'Ada')")
    tick(db)
    assert statuses(db, "ada") == [("first", "step1", "suppressed")] and sandbox.emails == []
    assert "asked by phone" in told(db, "ada")
    assert db.sql("SELECT activation.unsuppress('ADA@acme.dev'), activation.unsuppress('ADA@acme.dev')") == [
        (True, False)
    ]
    with pytest.raises(psycopg.errors.InvalidParameterValue, match='"nobody" is not an address'):
        db.sql("SELECT activation.suppress('nobody')")


def dump(db: Database) -> str:
    """Every table of ours as text, but for ids and keys: hexadecimal digits now and then spell a name."""
    tables = db.sql(
        "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'activation'::regnamespace AND c.relkind = 'r'"
        " AND c.relname <> 'cause'"
    )
    text = "\n".join(
        str(db.value(f"SELECT coalesce(jsonb_agg(to_jsonb(t)), '[]')::text FROM {table} AS t")) for (table,) in tables
    )
    return re.sub(r"\b[0-9a-f-]{32,}\b", "", text)


def test_export_and_erase(db: Database, app: Connection, sandbox: Sandbox) -> None:
    """What was exported is gone: address, name and key are in no table of ours; others are untouched."""
    define(db, STEPS)
    define(
        db,
        "condition => activation.query($$SELECT FROM activation.event WHERE user_id = $1 AND event = 'called'$$), action => activation.email('milestone')",
        "called",
    )
    sign_up(app, "ada-lovelace", "bob")
    tick(db)
    db.sql("""SELECT activation.track('ada-lovelace', 'called', '{"note": "Name of ada-lovelace"}')""")
    tick(db)
    hook(db, "email.clicked", about(db, "ada-lovelace", click={"link": "https://acme.dev"}))
    app.execute(
        "SELECT activation.unsubscribe(%s)",
        [
            next(
                e.as_json()["headers"]["List-Unsubscribe"].strip("<>").partition("token=")[2]
                for e in sandbox.emails
                if e.to == ["ada-lovelace@acme.dev"]
            )
        ],
    )
    db.sql(
        """INSERT INTO activation.signal (source_id, generation, user_id, loop_id) VALUES (0, 0, 'ada-lovelace', 1)"""
    )
    exported = db.value("SELECT activation.export_user('ada-lovelace')")
    for part in ("enrollments", "messages", "attempts", "webhooks", "events", "consent", "signals"):
        assert exported[part], part
    assert "ada-lovelace@acme.dev" in dump(db)
    app.execute("DELETE FROM users WHERE id = 'ada-lovelace'")
    db.sql("SELECT activation.erase('ada-lovelace')")
    left = dump(db)
    assert "ada-lovelace" not in left and "bob@acme.dev" in left
    assert not any(
        db.value("SELECT activation.export_user('ada-lovelace')")[part]
        for part in ("enrollments", "messages", "events", "consent")
    )
    tick(db, "25 hours")
    assert ("first", "b", "sent") in statuses(db, "bob")
    # Who comes again under the same address stays unmailed.
    app.execute("INSERT INTO users VALUES ('x', 'Ada-Lovelace@acme.dev', 'Ada')")
    tick(db)
    assert statuses(db, "x") == [("first", "a", "suppressed")]
    assert db.value("SELECT activation.unsuppress('ada-lovelace@acme.dev')") is True


def test_not_while_a_mail_is_on_its_way(db: Database, app: Connection) -> None:
    """What may have been accepted is asked for again with the same words; then they are forgotten."""
    define(db, STEPS)
    sign_up(app, "ada")
    tick(db)
    db.sql("UPDATE activation.request SET state = 'open', next_try_at = now() + interval '1 hour'")
    assert db.value("SELECT activation.erase('ada')") is False
    tick(db)
    assert statuses(db, "ada") == [("first", "a", "sent")]
    assert db.sql("SELECT state FROM activation.journey") == [("exited",)]
    db.sql("UPDATE activation.request SET state = 'done'")
    app.execute("DELETE FROM users")
    tick(db)
    assert "ada" not in dump(db)


def test_deleting_the_row_forgets(db: Database, app: Connection) -> None:
    define(db, STEPS)
    sign_up(app, "ada", "bob")
    tick(db)
    app.execute("DELETE FROM users WHERE id = 'ada'")
    tick(db)
    assert statuses(db, "ada") == [("first", "a", "sent")], "unless it is asked for, history stays"
    db.sql("SELECT activation.configure(erase_on_delete => true)")
    app.execute("DELETE FROM users WHERE id = 'bob'")
    tick(db)
    assert "bob" not in dump(db) and statuses(db, "ada") != []


def no_user_can_be_read(db: Database) -> None:
    """Their loop's users function has lost its owner's rights, and is refused."""
    function = db.value("SELECT quote_ident(users_function) FROM activation.loop_version")
    db.sql(f"ALTER FUNCTION activation_compiled.{function} SECURITY INVOKER")


def test_nobody_is_erased_because_a_function_fails(db: Database, app: Connection) -> None:
    define(db, STEPS)
    sign_up(app, "ada")
    tick(db)
    db.sql("SELECT activation.configure(erase_on_delete => true)")
    with app.transaction():
        app.execute("DELETE FROM users WHERE id = 'ada'")
        sign_up(app, "ada")
    no_user_can_be_read(db)
    tick(db)
    tick(db)
    assert db.value("SELECT count(*) FROM activation.erasure") == 0
    assert db.value("SELECT count(*) FROM activation.enrollment WHERE user_id = 'ada'") == 1
    assert db.value("SELECT count(*) FROM activation.suppression") == 0
    assert "could not be told: " in db.value("SELECT error FROM activation.capture_failure")
    told = "SELECT event FROM activation.why('ada') WHERE detail LIKE '%could not be told: %'"
    assert db.sql(told) == [("deletion unclear",)], "and not that somebody enrolled is not"


def test_a_loop_that_harms_the_session_erases_nobody(db: Database, app: Connection) -> None:
    """Asked whether a deleted user is there again, its own code does what it may not: it is failing for that."""
    define(db, STEPS)
    sign_up(app, "ada")
    tick(db)
    db.sql("SELECT activation.configure(erase_on_delete => true)")
    with app.transaction():
        app.execute("DELETE FROM users WHERE id = 'ada'")
        sign_up(app, "ada")
    app.execute("""
        CREATE FUNCTION prepares() RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN EXECUTE 'PREPARE planted AS SELECT 1'; RETURN true; END $$;
        CREATE ROLE clerk;
        GRANT ALL ON users, actions TO clerk;
        ALTER TABLE users OWNER TO clerk;
        ALTER TABLE users ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        CREATE POLICY prepares ON users USING (prepares());
    """)
    try:
        db.sql(
            "UPDATE activation.loop_version SET owner = 'clerk'::regrole, owner_name = 'clerk';"
            "DO $$ DECLARE p regprocedure; BEGIN FOR p IN SELECT oid FROM pg_proc WHERE pronamespace = 'activation_compiled'::regnamespace"
            " AND prorettype <> 'trigger'::regtype LOOP EXECUTE format('ALTER FUNCTION %s OWNER TO clerk', p); END LOOP; END $$"
        )
        tick(db)
        ((state, detail),) = db.sql("SELECT state, detail FROM activation.status WHERE component = 'loop first'")
        assert (state, "it prepared statement planted" in detail) == ("failing", True)
        assert db.value("SELECT count(*) FROM activation.enrollment WHERE user_id = 'ada'") == 1
        assert db.value("SELECT count(*) FROM activation.erasure") == 0
    finally:
        app.execute("DROP OWNED BY clerk CASCADE; DROP ROLE clerk")


@pytest.mark.parametrize("cure", ["bind", "define"])
def test_an_address_that_cannot_be_read_is_told(db: Database, app: Connection, cure: str) -> None:
    """What was mailed to is a hash; the address in the row, which is another by now, is one once it can be read."""
    define(db, STEPS)
    sign_up(app, "ada")
    tick(db)
    app.execute("UPDATE users SET email = 'ada@home.dev'")
    no_user_can_be_read(db)
    heard: list[str | None] = []
    with db.connect() as operator:
        operator.add_notice_handler(lambda told: heard.append(told.message_primary))
        assert operator.execute("SELECT activation.erase('ada')").fetchone() == (True,)
    (told,) = heard
    assert db.value("SELECT count(*) FROM activation.suppression") == 1
    if cure == "bind":
        assert db.value("SELECT activation.bind()") == 1
    else:
        define(db, STEPS)
    assert db.value("SELECT activation.erase('ada')") is True
    assert db.value("SELECT count(*) FROM activation.suppression") == 2
    assert told and told.startswith("the address of user ada in public.users could not be read: compiled function")


def test_who_has_to_wait_comes_last(db: Database, app: Connection) -> None:
    """A hundred people with a mail on its way keep nobody else from being forgotten."""
    define(db, STEPS)
    waiting = [f"w{number}" for number in range(100)]
    sign_up(app, "ada")
    tick(db)
    sign_up(app, *waiting)
    tick(db)
    db.sql(
        "UPDATE activation.request SET state = 'open', next_try_at = now() + interval '1 hour' WHERE request_id IN"
        " (SELECT request_id FROM activation.message WHERE user_id <> 'ada')"
    )
    db.sql("INSERT INTO activation.erasure SELECT u, now() - interval '1 hour' FROM unnest(%s::text[]) AS u", waiting)
    db.sql("INSERT INTO activation.erasure VALUES ('ada', now())")
    assert db.value("SELECT done FROM activation._erase_due()") == 0
    assert db.value("SELECT done FROM activation._erase_due()") == 1
    assert "ada" not in dump(db)


#: Which each of them signed, in an event about somebody's first mail or in one about nobody's.
NOISE = random.Random(7).randbytes(3000).hex()
HOSTILE = {
    "nested deeper than the stack": "[" * 400_000 + "]" * 400_000,
    "an event nested so": '{"type": "email.opened", "data": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}",
    "a NUL": '{"type": "email.opened", "data": {"email_id": "\\u0000"}}',
    "a NUL for a type": '{"type": "\\u0000"}',
    "half a character": '{"type": "email.opened", "data": {"email_id": "\\ud800"}}',
    "no such escape": '{"type": "\\x41"}',
    "a number that is none": '{"type": "email.opened", "data": NaN}',
    "a number that is too large": '{"type": "email.opened", "data": 1e999999}',
    "a long type": json.dumps({"type": NOISE}),
    "a long address that is suppressed": json.dumps({"type": "suppression.added", "data": {"email": NOISE + "@a.dev"}}),
    "a long address that is not": json.dumps({"type": "suppression.removed", "data": {"email": NOISE + "@a.dev"}}),
    "an address that is a list": json.dumps({"type": "suppression.removed", "data": {"email": [NOISE]}}),
    "a time that never comes": json.dumps({"type": "suppression.added", "created_at": "infinity", "data": {"email": "a@b.c"}}),
    "a time that is none": json.dumps({"type": "suppression.added", "created_at": "99999999-01-01", "data": {"email": "a@b.c"}}),
    "no data": json.dumps({"type": "email.bounced", "data": None}),
    "tags that are none": json.dumps({"type": "email.bounced", "data": {"tags": [1, {"name": {}}, None]}}),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_body_that_means_harm(db: Database, app: Connection, what: str) -> None:
    """Though it is signed: it is an event or HT400, and nothing else."""
    body = HOSTILE[what]
    try:
        said = db.value("SELECT activation.receive_webhook(%s, %s::jsonb)", body, json.dumps(headers(body)))
        assert said in ("kept", "applied")
        assert db.value("SELECT count(*) FROM activation.webhook_event WHERE at <= now() + interval '1 day'") == 1
    except psycopg.Error as error:
        assert error.sqlstate == "HT400"
        assert db.value("SELECT count(*) FROM activation.webhook_event") == 0
    assert db.value("SELECT coalesce(max(length(payload::text)), 0) < 1000 FROM activation.webhook_event")


#: A few bytes in jsonb each, and 131,072 as a text.
HUGE = "[" + ", ".join(["1e131071"] * 2000) + "]"


@pytest.mark.parametrize(
    "data",
    [
        {"created_at": "never"},
        {"created_at": "infinity"},
        {"created_at": 5},
        {"to": "nobody", "email_id": {"a": 1}},
        {"to": [["x"], None, 5, NOISE]},
        {"email_id": NOISE, "bounce": {"type": "Permanent", "message": "x" * 900_000}},
        {"bounce": "HUGE"},
        {"bounce": {"type": "HUGE", "subType": [], "message": 7}, "to": "HUGE", "email_id": "HUGE", "click": "HUGE"},
        {"bounce": [1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["email.bounced", "email.delivered", "email.suppressed"])
def test_an_event_that_means_harm(db: Database, app: Connection, kind: str, data: dict[str, Any]) -> None:
    """About a mail of ours: it is applied, and what is kept of it is short."""
    define(db, f"action => {WELCOME}")
    sign_up(app, "ada")
    tick(db)
    db.sql("UPDATE activation.message SET state = 'unknown', sent_at = NULL, resend_id = NULL, finished_at = now()")
    event = {"type": kind, "created_at": "2026-11-22T23:41:12Z", "data": about(db, "ada", **data)}
    body = json.dumps(event).replace('"HUGE"', HUGE)
    said = db.value("SELECT activation.receive_webhook(%s, %s::jsonb)", body, json.dumps(headers(body)))
    assert said == "applied"
    assert statuses(db, "ada")[0][2] == kind.partition(".")[2]
    assert "told by Resend" in told(db, "ada")
    assert db.value("SELECT length(activation.export_user('ada')::text)") < 20_000


@pytest.mark.parametrize("value", [HUGE, '{"a": 1}', "null", "17", f'"{NOISE * 10}"'], ids=len)
@pytest.mark.parametrize("name", ["svix-id", "svix-timestamp", "svix-signature"])
def test_headers_that_mean_harm(db: Database, app: Connection, name: str, value: str) -> None:
    given = json.dumps({**signed(GOOD), name: "?"}).replace('"?"', value)
    with pytest.raises(psycopg.Error) as caught:
        db.sql("SELECT activation.receive_webhook(%s, %s::jsonb)", GOOD, given)
    assert str(caught.value.sqlstate) in ("HT400", "HT401")


def test_one_secret_that_cannot_be_read(db: Database, app: Connection) -> None:
    """Webhooks that the other one signed are taken meanwhile; status tells."""
    for references in ("secret:hook secret:next", "env:NOT_THERE secret:hook"):
        db.sql("SELECT activation.configure(webhook_secret => %s)", references)
        assert hook(db, "contact.created", {}) == "kept"
        ((state, detail),) = db.sql("SELECT state, detail FROM activation.status WHERE component = 'webhooks'")
        assert state == "waiting" and ("next" in detail or "NOT_THERE" in detail)
    db.sql("SELECT activation.configure(webhook_secret => 'secret:next')")
    with pytest.raises(psycopg.Error, match="under the name next") as caught:
        hook(db, "contact.created", {})
    assert caught.value.sqlstate == "HT503"
    assert db.value("SELECT state FROM activation.status WHERE component = 'webhooks'") == "failing"
    db.sql("SELECT activation.configure(webhook_secret => 'secret:hook')")
    assert db.sql("SELECT FROM activation.status WHERE component = 'webhooks'") == []


def test_a_webhook_secret_that_is_too_short(db: Database, app: Connection) -> None:
    """Refused where it is seen first, and never believed."""
    short = "whsec_" + base64.b64encode(b"a guessable secret").decode()
    for call, value in (("configure(webhook_secret => 'secret:short')", "short"), ("set_secret('hook', %s)", "hook")):
        if value == "short":
            db.sql("SELECT activation.set_secret('short', %s)", short)
        with pytest.raises(
            psycopg.errors.InvalidParameterValue, match=f"secret:{value}.* 18 bytes and needs 24"
        ) as caught:
            db.sql(f"SELECT activation.{call}", *([short] if "%s" in call else []))
        assert short.removeprefix("whsec_") not in str(caught.value)
    db.sql("UPDATE activation.secret SET value = %s", short)
    with pytest.raises(psycopg.Error) as refused:
        hook(db, "contact.created", {}, secret=short)
    assert refused.value.sqlstate == "HT503"


MARK = "quux-marker"


def delete_and_erase(db: Database, app: Connection, way: str) -> None:
    if way == "by itself":
        db.sql("SELECT activation.configure(erase_on_delete => true)")
    app.execute("DELETE FROM users WHERE id = 'ada'")
    if way != "at once":
        tick(db)
    if way != "by itself":
        assert db.value("SELECT activation.erase('ada')") is True
    tick(db)


@pytest.mark.parametrize("way", ["at once", "later", "by itself"])
@pytest.mark.parametrize(
    "what",
    [
        "suppressed by hand",
        "and never enrolled",
        "not suppressed any more",
        "cancelled before it was claimed",
        "suppressed once its messages are gone",
        "had another address",
        "of another mail of the account",
        "told of before the deletion",
        "told of after it",
    ],
)
def test_no_address_is_left(db: Database, app: Connection, sandbox: Sandbox, what: str, way: str) -> None:
    """Wherever it came from, and though the row that tells whose it was is gone before erase() is called."""
    ADDRESS = f"{MARK}@acme.dev"
    define(
        db, "steps => ARRAY[activation.step('a', delay => '1 hour', action => activation.email('activation_welcome'))]"
    )
    db.sql("SELECT activation.configure(sync_suppressions => true, rate => 1000)")
    if what == "and never enrolled":
        db.sql("SELECT activation.pause_loop('first')")
    app.execute(
        "INSERT INTO users VALUES ('ada', %s, 'Ada')", [f"Ada <{ADDRESS.upper()}>" if "hand" in what else ADDRESS]
    )
    tick(db)
    if what == "not suppressed any more":
        db.sql("SELECT activation.suppress(%s), activation.unsuppress(%s)", ADDRESS, ADDRESS)
        assert db.value("SELECT count(*) FROM activation.unsuppression") == 1
    elif what == "cancelled before it was claimed":
        db.sql("SELECT activation.suppress(%s), activation.cancel('ada', 'first')", ADDRESS)
    elif what in ("suppressed once its messages are gone", "had another address"):
        tick(db, "2 hours")
        assert hook(db, "email.complained", about(db, "ada", to=[ADDRESS])) == "applied"
        if what == "had another address":
            app.execute("UPDATE users SET email = 'another@acme.dev'")
        for days in (100, 101):
            tick(db, f"{days} days")
        assert db.value("SELECT count(*) FROM activation.message") == 0
    elif what == "of another mail of the account":
        tick(db, "2 hours")
        hook(
            db,
            "email.bounced",
            {"email_id": "e", "to": [ADDRESS], "from": ADDRESS, "subject": MARK, "bounce": {"message": MARK}},
        )
        hook(db, "contact.created", {"email": ADDRESS, "first_name": MARK})
        hook(db, "email.received", {"from": ADDRESS, "to": [ADDRESS], "subject": MARK})
        hook(db, "something.new", {"email": ADDRESS, "note": [MARK]})
        assert MARK not in str(db.sql("SELECT * FROM activation.webhook_event")), "it is never kept"
    elif what != "told of after it":
        db.sql("SELECT activation.suppress(%s)", ADDRESS)
    if what.startswith("told of"):
        hook(db, "suppression.added", {"email": ADDRESS, "origin": "bounce"})
        hook(db, "suppression.removed", {"email": "x@acme.dev"})
    assert MARK in dump(db).lower() or what == "of another mail of the account"
    delete_and_erase(db, app, way)
    assert MARK not in dump(db).lower()
    # What comes after it leaves nothing, either.
    hook(db, "suppression.added", {"email": ADDRESS, "origin": "complaint"})
    hook(db, "email.complained", {"email_id": "e2", "to": [ADDRESS], "tags": {"activation_message": str(uuid.uuid4())}})
    if way == "later":
        sandbox.suppress(ADDRESS, "complaint")
        db.sql("CALL activation.sync_suppressions()")
        db.sql("CALL activation.pull_webhooks()")
    db.sql("SELECT activation.suppress(%s, 'once more')", ADDRESS)
    assert MARK not in dump(db).lower()
    assert db.value("SELECT count(*) FROM activation.past_address WHERE user_id = 'ada'") == 0


def test_a_mail_that_was_refused_with_others(db: Database, app: Connection, sandbox: Sandbox) -> None:
    """It was in several requests, and what was wrong with it stands with all who shared them."""
    define(db, f"action => {WELCOME}")
    app.execute("INSERT INTO users SELECT g::text, 'u' || g || '@acme.dev' FROM generate_series(1, 5) g")
    app.execute("INSERT INTO users VALUES ('ada', %s, 'Ada')", [f"{MARK}@acme.dev"])
    sandbox.fail("status", status=422, name="validation_error", message=f"Invalid `to` field: {MARK}@acme.dev", times=1)
    tick(db)
    assert db.value("SELECT count(*) FROM activation.request WHERE body LIKE %s", f"%{MARK}%") >= 2
    assert db.value("SELECT count(*) FROM activation.attempt WHERE error LIKE %s", f"%{MARK}%") > 1
    delete_and_erase(db, app, "later")
    assert MARK not in dump(db).lower()
    assert {status for (status,) in db.sql("SELECT DISTINCT status FROM activation.message_log")} == {"sent"}


def test_a_filter_that_named_somebody(db: Database, app: Connection) -> None:
    """Its error stands with all who came in the same statement."""
    db.sql(
        f"SELECT activation.define_loop('first', trigger => activation.on_insert('users', filter => 'NEW.name::integer > 0'), action => {WELCOME})"
    )
    app.execute("INSERT INTO users VALUES ('ada', 'a@acme.dev', %s), ('bob', 'b@acme.dev', '5')", [MARK])
    tick(db)
    assert db.value("SELECT count(*) FROM activation.capture_failure WHERE error LIKE %s", f"%{MARK}%") == 2
    delete_and_erase(db, app, "later")
    assert MARK not in dump(db) and db.value("SELECT count(*) FROM activation.capture_failure") == 1


def test_deleting_is_never_held_up(db: Database, app: Connection) -> None:
    """Whatever becomes of the column with the address: renamed, dropped, of another type."""
    define(db, STEPS)
    for change in ("RENAME email TO mail", "DROP mail CASCADE", "ADD email integer", "DROP email", "ADD email varchar"):
        app.execute(f"ALTER TABLE users {change}".encode())
        app.execute("INSERT INTO users (id) VALUES ('ada')")
        app.execute("DELETE FROM users")
    app.execute("ALTER TABLE users ADD mail text; INSERT INTO users (id, mail) VALUES ('bob', 'bob@acme.dev')")
    db.sql("SELECT activation.set_users('users', email => 'mail')")
    app.execute("DELETE FROM users")
    assert db.sql("DELETE FROM activation.signal WHERE address <> '' RETURNING address") == [("bob@acme.dev",)]
    db.sql("SELECT activation.set_users('users', email => 'email')")
    app.execute("INSERT INTO users (id, email) VALUES ('ada', %s)", [NOISE])
    app.execute("DELETE FROM users")
    assert db.sql("SELECT length(address) FROM activation.signal WHERE address <> ''") == [(1000,)]
    tick(db)
    assert db.value("SELECT count(*) FROM activation.signal") == 0


def test_addresses_of_the_deleted_are_kept_for_retention(db: Database, app: Connection) -> None:
    """As hashes; of those who are suppressed for as long as they are."""
    define(db, STEPS)
    sign_up(app, "ada", "bob")
    tick(db)
    db.sql("SELECT activation.suppress('bob@acme.dev')")
    app.execute("DELETE FROM users")
    tick(db)
    assert db.sql("SELECT user_id, hash LIKE 'sha256:%%' FROM activation.past_address ORDER BY 1") == [
        ("ada", True),
        ("bob", True),
    ]
    tick(db, "91 days")
    assert db.sql("SELECT user_id FROM activation.past_address") == [("bob",)]
    # Who is there again is the same user.
    app.execute("INSERT INTO users VALUES ('cid', 'cid@acme.dev')")
    app.execute("BEGIN; DELETE FROM users; INSERT INTO users VALUES ('cid', 'cid@acme.dev'); COMMIT")
    tick(db)
    assert db.value("SELECT count(*) FROM activation.past_address WHERE user_id = 'cid'") == 0
