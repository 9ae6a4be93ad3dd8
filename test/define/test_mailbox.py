"""From and Reply-To: one mailbox, quoted where its name needs it, or a refusal that says why."""

from __future__ import annotations

import re
from email import policy
from email.headerregistry import Address, AddressHeader
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation.authoring import definition
from activation.errors import Refusal
from activation.mail.mailbox import mailbox


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("hello@acme.dev", "hello@acme.dev"),
        (" <hello@acme.dev> ", "hello@acme.dev"),
        ("Acme <hello@acme.dev>", "Acme <hello@acme.dev>"),
        ('"Acme" <hello@acme.dev>', "Acme <hello@acme.dev>"),
        ("Acme, Inc. <hello@acme.dev>", '"Acme, Inc." <hello@acme.dev>'),
        ('"Acme, Inc." <hello@acme.dev>', '"Acme, Inc." <hello@acme.dev>'),
        ("Acme: Support (EU) <hello@acme.dev>", '"Acme: Support (EU)" <hello@acme.dev>'),
        ('"Ada @ Acme" <hello@acme.dev>', '"Ada @ Acme" <hello@acme.dev>'),
        ('"Ada \\"the\\" Countess" <hello@acme.dev>', '"Ada \\"the\\" Countess" <hello@acme.dev>'),
        ("Zoë von Übel <hello@acme.dev>", "Zoë von Übel <hello@acme.dev>"),
        ("株式会社アクメ <hello@acme.dev>", "株式会社アクメ <hello@acme.dev>"),
        ("Zoë, Übel & Söhne <hello@acme.dev>", '"Zoë, Übel & Söhne" <hello@acme.dev>'),
        ("=?utf-8?q?=C3=BCbel?= <hello@acme.dev>", "übel <hello@acme.dev>"),
        ('"first last"@acme.dev', '"first last"@acme.dev'),
        ("hello@bücher.example", "hello@bücher.example"),
    ],
)
def test_one_mailbox(given: str, stored: str) -> None:
    assert mailbox("sender", given) == stored
    assert mailbox("sender", stored) == stored


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("a@acme.dev, b@acme.dev", "more than one"),
        ("Ada <a@acme.dev>, Bob <b@acme.dev>", "more than one"),
        ("Team: a@acme.dev, b@acme.dev;", "more than one"),
        ("undisclosed:;", "more than one"),
        ("Acme", "not an address"),
        ("acme@", "not an address"),
        ("@acme.dev", "not an address"),
        ("Acme <hello>", "not an address"),
        ("Acme <a b@acme.dev>", "not an address"),
        ("Acme <a@acme.dev", "not an address"),
        ("Acme <a@acme.dev> x", "not an address"),
        ("a@acme..dev", "not an address"),
        (" ", "not an address"),
        ("Acme\r\nBcc: x@y.de <a@acme.dev>", "line break"),
        ("Acme\u2028 <a@acme.dev>", "line break"),
        ("Acme\x00 <a@acme.dev>", "control"),
        ("\u202eemcA <a@acme.dev>", "control"),
        ("=?utf-8?q?a=0Ab?= <a@acme.dev>", "not an address"),
        ("=?utf-8?q?=E2=80=AEemcA?= <a@acme.dev>", "control"),
        ("{{ user.manager_email }}", "Liquid"),
        ("Acme <{{ user.email }}>", "Liquid"),
        ("a" * 330 + "@acme.dev", "longer than 320"),
        ("(" * 300, "not an address"),
    ],
)
def test_what_is_none(given: str, problem: str) -> None:
    with pytest.raises(Refusal, match=problem) as caught:
        mailbox("sender", given)
    assert caught.value.hint and caught.value.code == "22023" and "\n" not in caught.value.message


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from('<>@,;:"()[]\\. =?\r\n')), max_size=60))
def test_any_text(text: str) -> None:
    try:
        found = mailbox("sender", text)
    except Refusal as refusal:
        assert refusal.hint
        return
    assert len(found.splitlines()) == 1
    header = cast(AddressHeader, policy.default.header_factory("From", found))
    assert len(header.addresses) == 1 and header.addresses[0].domain


@given(
    st.text(
        alphabet=st.characters(categories=("L", "N", "P", "S", "Zs"), exclude_characters='<>@"\\='),
        min_size=1,
        max_size=60,
    )
)
def test_any_name(name: str) -> None:
    """A name is never read as anything else than a name."""
    name = " ".join(name.split())
    found = mailbox("sender", f"{name} <hello@acme.dev>")
    header = cast(AddressHeader, policy.default.header_factory("From", found))
    assert header.addresses == (Address(name, "hello", "acme.dev"),)


def test_in_a_document() -> None:
    action = {"template": "x", "sender": "Acme, Inc. <a@b.de>", "replyTo": "Zoë <z@b.de>"}
    document = {"trigger": {"table": "t", "event": "insert"}, "action": action}
    made = definition.normalise("l", document)
    assert made["steps"][0]["action"]["sender"] == '"Acme, Inc." <a@b.de>'
    assert definition.normalise("l", made) == made
    for key in ("sender", "reply_to"):
        with pytest.raises(
            Refusal, match=re.escape(f'loop "l": action.{key} "a@b.de, c@d.de" is more than one mailbox')
        ):
            definition.normalise("l", {**document, "action": {"template": "x", key: "a@b.de, c@d.de"}})
