# ruff: noqa: RUF001 (letters that look like others are what this is about)
"""Nobody who is suppressed or forgotten is reached by another spelling of their address."""

from __future__ import annotations

import contextlib
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from activation.errors import RenderError
from activation.mail.address import address_of, folded
from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import tick
from mail import last_error, received, statuses

#: Ways to write ada@acme.dev that mail programs may read as that.
SPELLINGS = [
    *(f"ada@acme.dev{blank}" for blank in "\t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000"),
    *(f"{unseen}ada@acme.dev{unseen}" for unseen in "\u200b\u200d\u2060\ufeff\u00ad\u034f\u3164\ufe0f\U000e0020"),
    "\u3000\t ADA@Acme.DEV \n",
    *(
        "ada@ａcme.dev",
        "ａda@acme.dev",
        "ada＠acme.dev",
        "ada@acme.dev.",
        "ada@acme.dev..",
        "ada@acme。dev",
        "ada@acme．dev",
    ),
    *(
        "ada@acme｡dev",
        "ada@acme.dev。",
        "ada@ac\u00adme.dev",
        "ada@ac\ufe0fme.dev",
        "a\u200bda@acme.dev",
        "ada@ⓐcme.dev",
    ),
    *(
        "ada@acme\u200d.dev",
        "ada@xn--acme-.dev",
        "ada@xn--acme-876a.dev",
        "ada@𝐚cme.dev",
        "ADA@ACME.DEV",
        " <ada@acme.dev>\t",
    ),
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_are_folded_alike_or_not_sent(spelling: str) -> None:
    try:
        sent = address_of(spelling)
    except RenderError:
        return
    assert folded(sent) == folded(spelling) == "ada@acme.dev"


@pytest.mark.parametrize(
    "address",
    [
        *("ada@acme.dev", "Ada.Lovelace+x@Acme.dev", "o'hara@acme.co.uk", "a_b%c@my_host.dev", "zoë@acme.dev"),
        *(
            "hello@bücher.example",
            "hello@xn--bcher-kva.example",
            "ada@xn--strae-oqa.de",
            "ada@straße.de",
            "我@中文.中国",
        ),
    ],
)
def test_what_is_sent_stays_as_it_is(address: str) -> None:
    assert address_of(f" {address}\u3000\n") == address


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("hello@bücher.example", "HELLO@xn--bcher-kva.EXAMPLE"),
        ("hello@bücher.example", "hello@BU\u0308CHER.example"),
        ("ada@straße.de", "ada@xn--strae-oqa.de"),
        ("我@中文.中国", "我@xn--fiq228c.xn--fiqs8s"),
    ],
)
def test_domains_that_are_the_same(one: str, other: str) -> None:
    assert folded(one) == folded(other)


def canonical(address: str) -> tuple[str, str]:
    """A mailbox, as the programs on the way may read it: by the standard library's IDNA of 2003."""
    local, _, domain = address.rpartition("@")
    with contextlib.suppress(UnicodeError):
        domain = domain.encode("idna").decode()
    return unicodedata.normalize("NFKC", local).casefold(), domain.lower().rstrip(".")


BITS = st.one_of(
    st.sampled_from("\t\n \x85\xa0\u3000\u200b\u200d\ufeff\u00ad\u034f\ufe0f\u3002.<>@\u3164\u2800\u115f"),
    st.characters(codec="utf-8"),
)


@given(st.lists(st.tuples(st.integers(0, 12), BITS), max_size=4), st.booleans())
@example([(12, "\u0085")], False)
def test_decorations(decorations: list[tuple[int, str]], wide: bool) -> None:
    """Whatever is put into an address: it is folded onto it, or not sent, or another mailbox."""
    spelling = "ada@acme.dev"
    if wide:
        spelling = "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in spelling)
    for at, what in decorations:
        spelling = spelling[:at] + what + spelling[at:]
    assert folded(folded(spelling)) == folded(spelling)
    try:
        sent = address_of(spelling)
    except RenderError:
        return
    assert sent in spelling and folded(sent) == folded(spelling)
    assert sent.isprintable() and not any(map(str.isspace, sent))
    assert (folded(sent) == "ada@acme.dev") or canonical(sent) != ("ada", "acme.dev")


@given(st.text(BITS, max_size=20), st.text(BITS, max_size=20))
def test_the_same_mailbox_has_one_fold(one: str, other: str) -> None:
    sent = []
    for domain in (one, other):
        try:
            sent.append(address_of(f"ada@{domain}"))
        except RenderError:
            return
    if canonical(sent[0]) == canonical(sent[1]):
        assert folded(sent[0]) == folded(sent[1])


@given(st.text(st.one_of(BITS, st.sampled_from("aAzZ019-_%+xn")), max_size=40))
def test_the_list_can_hold_what_is_sent(text: str) -> None:
    try:
        known = folded(address_of(text))
    except RenderError:
        return
    assert len(known.encode()) <= 320 and known.count("@") == 1


def test_long_ones_take_no_time() -> None:
    for text in ("<" * 100_000, "<>  " * 100_000, "a\u0315\u0300" * 100_000 + "@b", "x  " * 100_000, "xn--" * 100_000):
        folded(text)
        with pytest.raises(RenderError):
            address_of(text)


@pytest.mark.parametrize("forgotten", [False, True])
def test_nobody_is_reached(db: Database, live: Connection, sandbox: Sandbox, forgotten: bool) -> None:
    if forgotten:
        live.execute("INSERT INTO users (id, email) VALUES (1000, 'Ada@acme.dev')")
        live.execute("SELECT activation.erase('1000')")
        live.execute("DELETE FROM users")
        tick(db)
        assert db.value("SELECT address LIKE 'sha256:%%' FROM activation.suppression")
    else:
        db.sql("SELECT activation.suppress('ada@acme.dev')")
    live.execute("INSERT INTO users (id, email) VALUES (0, 'bob@acme.dev')")
    for number, spelling in enumerate(SPELLINGS, 1):
        live.execute("INSERT INTO users (id, email) VALUES (%s, %s)", [number, spelling])
    live.execute("INSERT INTO actions (user_id) SELECT id FROM users")
    tick(db)
    tick(db)
    assert received(sandbox) == {"bob@acme.dev": 1}
    assert {status for user, status in statuses(db).items() if user != "0"} <= {"suppressed", "failed"}
    assert statuses(db)["1"] == "suppressed"


@settings(deadline=None)
@given(st.text(st.one_of(BITS, st.sampled_from("aAzZ019-_%+<>@xn. ")), max_size=30))
@example("ada@acme.dev\n")
@example("I@XN--a")
def folds_as_python(db: Database, text: str) -> None:
    text = text.replace("\0", "")
    assert db.value("SELECT activation._fold_address(%s)", text) == folded(text)


def test_sql_folds_as_python(db: Database) -> None:
    folds_as_python(db)


def test_why_an_address_is_not_written_to(db: Database, live: Connection) -> None:
    live.execute("INSERT INTO users (id, email) VALUES (1, 'ada@ａcme.dev')")
    live.execute("INSERT INTO actions (user_id) VALUES (1)")
    tick(db)
    assert last_error(db, 1) == "not an email address: ada@ａcme.dev"
