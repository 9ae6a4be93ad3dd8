"""What stands in a mail: addresses, names, and what a user's row or a template makes of it."""

from __future__ import annotations

import pytest

from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import tick
from mail import last_error, received, sign_up, statuses


@pytest.mark.parametrize(
    "address",
    [
        None,
        "",
        "not an address",
        "  ",
        "a",
        "@",
        "a@",
        "@b",
        "a@b@c",
        "a b@c.de",
        "a@b.de, c@d.de",
        "<a@b.de>",
        "a@b.de\nBcc: c@d.de",
        "a\t@b.de",
    ],
)
def test_addresses_that_are_none(db: Database, live: Connection, sandbox: Sandbox, address: str | None) -> None:
    """That message fails with the reason, and nothing else stops."""
    sign_up(live, 2)
    live.execute("INSERT INTO users (id, email) VALUES (1, %s)", [address])
    live.execute("INSERT INTO actions (user_id) VALUES (1)")
    tick(db)
    assert statuses(db) == {"1": "failed", "2": "sent"}
    assert ("not an email address" if (address or "").strip() else "no email address") in last_error(db, 1)
    assert received(sandbox) == {"u2@acme.dev": 1}


def test_sender_and_reply_to(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Names go out quoted where they need it, and readable."""
    live.execute(
        "SELECT activation.configure(sender => 'Acme, Inc. (EU) <hello@acme.dev>',"
        " reply_to => 'Zoë: Übel <z@acme.dev>')"
    )
    live.execute(
        "SELECT activation.define_loop('second', trigger => activation.on_insert('users'),"
        " action => activation.email('milestone', sender => '株式会社 <kk@acme.dev>',"
        ' reply_to => \'"Ada \\"the\\" L" <ada@acme.dev>\'))'
    )
    sign_up(live, 1)
    tick(db)
    assert sorted((email.sender, *email.reply_to) for email in sandbox.emails) == [
        ('"Acme, Inc. (EU)" <hello@acme.dev>', '"Zoë: Übel" <z@acme.dev>'),
        ("株式会社 <kk@acme.dev>", '"Ada \\"the\\" L" <ada@acme.dev>'),
    ]


def test_what_a_name_may_hold(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """Line breaks, white space and marks in a name neither stop its mail nor reach the subject; nor does an address of
    another kind reach a link."""
    live.execute(
        "SELECT activation.set_template('greets', 'Hi {{ user.name }}!',"
        ' html => $$<a href="{{ user.plan }}">go</a>$$)'
    )
    live.execute(
        "SELECT activation.define_loop('second', trigger => activation.on_insert('users'),"
        " action => activation.email('greets'))"
    )
    names = {1: "Ada\r\nBcc: x@y.de", 2: "a\u2028b\u2029c\x85d\te\xa0\xa0f", 3: "\u202eadA\u2069\x01", 4: "Ada"}
    for user, name in names.items():
        plan = "https://acme.dev/" if user == 4 else "java\tscript:alert(1)"
        live.execute(
            "INSERT INTO users (id, email, name, plan) VALUES (%s, %s, %s, %s)", [user, f"u{user}@acme.dev", name, plan]
        )
    tick(db)
    found = {int(email.to[0][1]): (email.subject, email.html, email.text) for email in sandbox.emails}
    assert found == {
        1: ("Hi Ada Bcc: x@y.de!", "<a>go</a>", "go"),
        2: ("Hi a b c d e f!", "<a>go</a>", "go"),
        3: ("Hi adA!", "<a>go</a>", "go"),
        4: ("Hi Ada!", '<a href="https://acme.dev/">go</a>', "go (https://acme.dev/)"),
    }


def test_rows_that_python_cannot_hold(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A number is written as the database writes it, however long. What is nested too deeply fails that one mail."""
    live.execute("ALTER TABLE users ADD COLUMN amount numeric, ADD COLUMN data jsonb")
    live.execute("SELECT activation.set_template('sums', 'You have {{ user.amount }}', body_text => 'Hello')")
    live.execute(
        "SELECT activation.define_loop('second', trigger => activation.on_insert('users'),"
        " action => activation.email('sums'))"
    )
    sign_up(live, 1, 2, 3, acts=False)
    live.execute("UPDATE users SET amount = 12.50 WHERE id = 1")
    live.execute("UPDATE users SET amount = repeat('9', 5001)::numeric WHERE id = 2")
    live.execute("UPDATE users SET amount = 1, data = (repeat('[', 3000) || repeat(']', 3000))::jsonb WHERE id = 3")
    tick(db)
    found = {email.to[0]: email.subject for email in sandbox.emails}
    assert found == {"u1@acme.dev": "You have 12.50", "u2@acme.dev": "You have " + "9" * 5001}
    assert statuses(db) == {"1": "sent", "2": "sent", "3": "failed"}
    assert last_error(db, 3) == "the user's row cannot be read: a value in it is nested too deeply"


def test_a_template_without_end(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """It fails its mails with the reason, and the others go."""
    live.execute("ALTER TABLE users ADD COLUMN n bigint")
    for name, body in (
        ("sums", "{% assign r = (1..user.n) %}{{ r | sum }}"),
        ("turns", "{% for i in (1..20000) %}{% endfor %}" * 1_000),
    ):
        live.execute("SELECT activation.set_template(%s, 'Hi', body_text => %s)", [name, body])
        live.execute(
            "SELECT activation.define_loop(%s, trigger => activation.on_insert('users'),"
            " action => activation.email(%s))",
            [name, name],
        )
    live.execute("INSERT INTO users (id, email, n) VALUES (1, 'u1@acme.dev', 999999999999)")
    live.execute("INSERT INTO actions VALUES (1)")
    tick(db)
    assert dict(db.sql("SELECT loop, last_error FROM activation.message_log")) == {
        "first": None,
        "sums": "text: a range of more than 20,000 items",
        "turns": "text: rendering takes longer than 2 seconds",
    }
    assert received(sandbox) == {"u1@acme.dev": 1}


def test_template_that_fails(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """A column that the template needs is dropped after the loop was defined."""
    live.execute("SELECT activation.set_template('greeting', 'Hello {{ user.name }}', body_text => 'Hello')")
    live.execute(
        "SELECT activation.define_loop('second', trigger => activation.on_insert('users'),"
        " action => activation.email('greeting'))"
    )
    live.execute("ALTER TABLE users RENAME name TO full_name")
    sign_up(live, 1)
    tick(db)
    assert dict(db.sql("SELECT loop, status FROM activation.message_log")) == {"first": "sent", "second": "failed"}
    assert "user.name" in db.value("SELECT last_error FROM activation.message_log WHERE loop = 'second'")
    assert received(sandbox) == {"u1@acme.dev": 1}


def test_a_value_that_a_template_cannot_take(db: Database, live: Connection, sandbox: Sandbox) -> None:
    """One user's own text raises in a filter: theirs fails with the reason, the others get their mail."""
    live.execute("SELECT activation.set_template('milestone', 'Round {{ user.plan | ceil }}', body_text => 'Hello')")
    live.execute(
        "SELECT activation.define_loop('first', trigger => activation.on_insert('users'),"
        " action => activation.email('milestone'))"
    )
    live.execute("INSERT INTO users (id, email, plan) VALUES (1, 'u1@acme.dev', '1e400'), (2, 'u2@acme.dev', '1.5')")
    tick(db)
    assert statuses(db) == {"1": "failed", "2": "sent"} and "subject: " in last_error(db, 1)
    assert [(email.to, email.subject) for email in sandbox.emails] == [(["u2@acme.dev"], "Round 2")]
