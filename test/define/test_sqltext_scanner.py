"""Our cuts of an author's SQL beside those of the server's own scanner, which pglast brings along (that of 18)."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pglast.parser import ParseError, scan

from activation.authoring import sqltext

#: Refused for what a token holds, not for where it ends.
CONTENT = (
    "invalid Unicode",
    "invalid byte sequence",
    "operator too long",
    "parameter number too large",
    "zero-length delimited identifier",
)
KINDS = {"SCONST": "string", "USCONST": "string", "XCONST": "string", "BCONST": "string", "PARAM": "param"}
KINDS |= {"ICONST": "number", "FCONST": "number", "SQL_COMMENT": "comment", "C_COMMENT": "comment"}
KINDS |= {"IDENT": "name", "UIDENT": "name"}

PIECES = [
    *"'\"$-/*\\+eEuU&bBxXnN_.:=<>@?|;,()[]{}\r\n\t\f\v\x1c\x85\x7f\u00a0\u2003\ufeffé𝄞0179a !%^~`#",
    *("''", '""', "--", "/*", "*/", "$$", "$a$", "$é$", "$1", "$1a", "$01", "$a", "E'", "U&'", 'U&"', "B'", "X'", "N'"),
    *(
        "\\'",
        "\\\\",
        "\\x4",
        "\\101",
        "\\u0041",
        "\r\n",
        "'\n'",
        "' --x\n'",
        "'\v\n'",
        "'/**/'",
        "UESCAPE",
        "0x1F",
        "0b1",
    ),
    *("1_000", "1e5", "1e+", "1.", "..", ".5", "::", ":=", "=>", "+-", "@-", "select", "\u00a0'", "plan", "'x'", '"y"'),
]
texts = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


def ours(sql: str) -> list[tuple[str, int, int]]:
    found = []
    for token in sqltext.tokens(sql):
        kind = token.kind
        if kind == "space" and token.text.startswith(("--", "/*")):
            kind = "comment"
        if kind != "space":
            found.append((kind, token.start, token.end))
    return found


def servers(sql: str) -> list[tuple[str, int, int]]:
    """Its offsets are those of characters."""
    return [
        (KINDS.get(token.name) or ("symbol" if token.kind == "NO_KEYWORD" else "name"), token.start, token.end + 1)
        for token in scan(sql)
    ]


def compare(sql: str) -> None:
    problem = sqltext.problem(sql)
    assert "".join(token.text for token in sqltext.tokens(sql)) == sql
    try:
        expected = servers(sql)
    except ParseError as error:
        assert problem or str(error.args[0]).startswith(CONTENT), (sql, error)
        return
    if problem:
        # The scanner of pglast takes names after parameters, and leaves control characters to the grammar.
        first = next(token for token in sqltext.tokens(sql) if token.kind in ("unclosed", "junk", "control"))
        assert first.kind == "control" or (first.kind == "junk" and first.text.startswith("$")), (sql, problem)
        return
    assert ours(sql) == expected, sql


@settings(max_examples=1500, deadline=None, database=None)
@given(texts)
@example("E'a'\n'\\''")
@example("''\r--'")
@example("$1E'\\''")
@example("-- a\r'b'")
def test_the_cuts_are_the_servers(sql: str) -> None:
    compare(sql)


@pytest.mark.parametrize(
    ("sql", "strings"),
    [
        ("--x\r'a'", ["'a'"]),
        ("\u00a0'a'", ["'a'"]),
        ("\x85$$a$$", []),
        ("a\u2003$$b$$", []),
        ("a$b$'c'", ["'c'"]),
        ("1$x$'$x$", ["$x$'$x$"]),
        ("$1$x$'$x$", ["$x$'$x$"]),
        ("$é$'$é$", ["$é$'$é$"]),
        ("$\u00a0$'$\u00a0$ 'b'", ["$\u00a0$'$\u00a0$", "'b'"]),
        (r"E'\'' 'b'", [r"E'\''", "'b'"]),
        (r"'\' 'b'", [r"'\'", "'b'"]),
        ("E'a'\n'\\' b'", ["E'a'\n'\\' b'"]),
        ("E'a' --c'\r'\\' b'", ["E'a' --c'\r'\\' b'"]),
        ("E'a' /*\n*/ '\\'", ["E'a'", "'\\'"]),
        ("B'1''0'", ["B'1'", "'0'"]),
        ("N'a'", ["'a'"]),
        ("u&'\\' 'b'", ["u&'\\'", "'b'"]),
        ("u& 'b'", ["'b'"]),
        ("ue'\\' 'b'", ["'\\'", "'b'"]),
        ("+--'\n'a'", ["'a'"]),
        ("*/*'*/'a'", ["'a'"]),
        ("/*/*'*/'*/'a'", ["'a'"]),
        ("/*/**/'*/'a'", ["'a'"]),
        ("1..'a'", ["'a'"]),
    ],
)
def test_strings(sql: str, strings: list[str]) -> None:
    assert sqltext.problem(sql) is None
    assert [token.text for token in sqltext.tokens(sql) if token.kind == "string"] == strings
    compare(sql)


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("SELECT 'a", "What begins with 'a at character 8 has no end."),
        ("SELECT E'a\\'", "What begins with E'a\\' at character 8 has no end."),
        ("SELECT 'a'\n'b", "What begins with 'a'\n'b at character 8 has no end."),
        ('SELECT "a', 'What begins with "a at character 8 has no end.'),
        ("/* /* */ a", "What begins with /* /* */ a at character 1 has no end."),
        ("$a$ b $$ it goes on for long", "What begins with $a$ b $$ it goes on … at character 1 has no end."),
        ("a\x1cb", "A control character (U+001C) stands at character 2."),
        ("a = 1b", "1b at character 5 is neither a number or parameter nor a name."),
        ("a = $1b", "$1b at character 5 is neither a number or parameter nor a name."),
        ("0x1$x$'$x$", "0x1$x$ at character 1 is neither a number or parameter nor a name."),
    ],
)
def test_problems(sql: str, problem: str) -> None:
    assert sqltext.problem(sql) == problem


# Each of these took minutes where a token was looked for anew from each place.
LONG = (
    "'a' ",
    "'a'\n",
    "'a'\n--x\n",
    "--",
    "/*",
    "1_",
    "$a",
    "$a$",
    "+-",
    "@-",
    "'' ",
    "E'\\",
    "(",
    '"',
    "1.1e1",
    "\n",
)


@pytest.mark.parametrize("piece", LONG)
def test_long_texts(piece: str) -> None:
    sql = "SELECT " + piece * 50_000
    assert "".join(token.text for token in sqltext.tokens(sql)) == sql


def test_names_are_folded_as_the_server_does() -> None:
    assert sqltext.folded("ÉTAT") == "ÉTAT".replace("TAT", "tat")
    assert sqltext.folded("\u212aEY") == "\u212aey"


def test_names_with_escapes_may_be_any_column() -> None:
    assert sqltext.row_columns('NEW.U&"pl\\0061n" = 1', "new", ["plan", "id"]) == ["plan", "id"]


def test_a_parameter_may_have_leading_zeros() -> None:
    assert sqltext.with_parameter("a = $01 AND b = $10", "K") == "a = K AND b = $10"
