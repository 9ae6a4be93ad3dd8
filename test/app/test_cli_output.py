"""The command line without a database: what it shows of hostile text, which addresses it takes, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from activation.cli import main
from activation.cli.address import parameters
from activation.cli.output import plain, shown_json

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SECRET = "s3kr3t"


@given(TEXTS)
def test_nothing_shown_moves_the_cursor(text: str) -> None:
    for lines in (False, True):
        shown = plain(text, lines=lines)
        left = {c for c in shown if unicodedata.category(c) in ("Cc", "Zl", "Zp")}
        assert left <= ({"\n"} if lines else set())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("[red]José 👩\u200d💻[/red]", "[red]José 👩\u200d💻[/red]"),
        ("two\nlines\tand\rmore", "two lines and\\rmore"),
    ],
)
def test_shown(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | TEXTS, lambda x: st.lists(x) | st.dictionaries(TEXTS, x))
)
def test_a_document_is_shown_as_itself(document: object) -> None:
    shown = shown_json(document)
    assert json.loads(shown) == document
    assert {c for c in shown if unicodedata.category(c) == "Cc"} <= {"\n"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://ada@db:6432/app", {"user": "ada", "host": "db", "port": "6432", "dbname": "app"}),
        ("postgres://db/app", {"host": "db", "dbname": "app"}),
        (
            "postgresql+psycopg://ada:pw@/app?host=/tmp/x",
            {"user": "ada", "password": "pw", "dbname": "app", "host": "/tmp/x"},
        ),
        ("postgresql+asyncpg://db/app?ssl=require", {"host": "db", "dbname": "app", "sslmode": "require"}),
        (
            "postgres://db/app?schema=public&sslmode=require&pgbouncer=true",
            {"host": "db", "dbname": "app", "sslmode": "require"},
        ),
        ("postgresql://a%40b:p%2F%3a%25@db/app", {"user": "a@b", "password": "p/:%", "host": "db", "dbname": "app"}),
        # Libraries take these as they stand, libpq does not.
        (
            "postgresql+psycopg2://ada:p/?#:%w@db/app",
            {"user": "ada", "password": "p/?#:%w", "host": "db", "dbname": "app"},
        ),
        ("postgresql://:pw@[::1]:5/app", {"password": "pw", "host": "::1", "port": "5", "dbname": "app"}),
        ("host=db dbname='my app'", {"host": "db", "dbname": "my app"}),
        ("service=production", {"service": "production"}),
    ],
)
def test_addresses(url: str, expected: dict[str, str]) -> None:
    assert parameters(url, "--url") == expected


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://ada:{SECRET}@db/app",
        f"postgresql://ada:{SECRET}@more@db/app",
        f"postgresql://ada:{SECRET}/app",
        f"postgresql://db/app?password={SECRET}&nonsense=1",
        f"postgresql://db/app?{SECRET}",
        f"postgresql://db/app?{SECRET}=1",
        f"host=db password={SECRET} nonsense",
        f"host=db {SECRET}=1",
        f"password='{SECRET}",
        SECRET,
    ],
)
def test_addresses_refused(url: str) -> None:
    for given_by in ({"args": ["status", "--url", url]}, {"args": ["status"], "env": {"DATABASE_URL": url}}):
        result = CliRunner().invoke(main, **given_by)  # type: ignore[arg-type]
        assert result.exit_code == 2, result.output
        assert SECRET not in result.output
        assert ("DATABASE_URL" if "env" in given_by else "--url") in result.stderr and not result.stdout


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"postgresql+psycopg://ada:{SECRET}@127.0.0.1:1/app", "127.0.0.1"),
        (f"postgresql://ada:{SECRET}@/app?host=/nowhere", "/nowhere"),
        ("service=nowhere", "nowhere"),
    ],
)
def test_nobody_there(url: str, said: str) -> None:
    result = CliRunner().invoke(main, ["why", "42", "--json"], env={"DATABASE_URL": url})
    assert result.exit_code == 3, result.output
    assert said in result.stderr and not result.stdout
    assert SECRET not in result.output


def test_a_stray_at_is_no_part_of_a_hosts_name() -> None:
    with pytest.raises(click.UsageError, match="an @ too many"):
        parameters("postgresql://ada:p@ss@db/app", "--url")


def test_completion() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from activation.cli import main; main(prog_name='activation')"],
        env={**os.environ, "_ACTIVATION_COMPLETE": "bash_complete", "COMP_WORDS": "activation st", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "plain,status\n"


def test_usage() -> None:
    result = CliRunner().invoke(main, ["why"])
    assert result.exit_code == 2 and "USER" in result.stderr
    assert CliRunner().invoke(main, ["--help"]).exit_code == 0
