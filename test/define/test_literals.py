"""Which strings of an author's SQL the server would read, held against the server's own parser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pglast import ast, parse_sql
from pglast.parser import ParseError

from activation.authoring.literals import literals, with_parameters, with_types
from activation.errors import Refusal


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SELECT 'a', E'b', U&'c', $$d$$, $x$e$x$", ["'a'", "E'b'", "U&'c'", "$$d$$", "$x$e$x$"]),
        ("SELECT U&'d!0061' UESCAPE '!'", ["U&'d!0061' UESCAPE '!'"]),
        ("SELECT 'a'\n  'b'", ["'a'\n  'b'"]),
        ("SELECT interval '1' day, timestamp(3) with time zone 'x', bit varying(3) 'x', double precision '1'", []),
        ("SELECT B'1', X'1F', N'x', '1'::interval day, '1'::numeric(3), CAST('1' AS interval hour)", []),
        ("SELECT extract('epoch' FROM now()), at AT TIME ZONE 'UTC'", ["'UTC'"]),
        ("SELECT 'a' -- 'b'\n, 'c' /* 'd' /* 'e' */ 'f' */, \"'g'\"", ["'a'", "'c'"]),
        ("SELECT 'a' --\r, 'b'", ["'a'", "'b'"]),
        ("SELECT x LIKE 'a' ESCAPE '#', CASE x WHEN 'b' THEN 'c' ELSE 'd' END", ["'a'", "'#'", "'b'", "'c'", "'d'"]),
    ],
)
def test_found(text: str, found: list[str]) -> None:
    assert [one.string for one in literals(text, 1)] == found


@pytest.mark.parametrize(
    ("text", "type_name"),
    [
        ("SELECT date '2024-01-01'", "date"),
        ("SELECT app.kind 'x'", "app.kind"),
        ("SELECT \"interval\" 'x'", '"interval"'),
        ("SELECT app.interval 'x'", "app.interval"),
        ("SELECT varying 'x'", "varying"),
        ("SELECT double 'x'", "double"),
        ('SELECT "App"."Kind"\'x\'', '"App"."Kind"'),
    ],
)
def test_a_type_that_is_no_keyword(text: str, type_name: str) -> None:
    """It may be anybody's: the string is not left to it."""
    (one,) = literals(text, 0)
    assert one.type_name == type_name
    assert with_parameters(text, [one], 1).split()[-1] == f"$1::{type_name}"
    assert "CAST('" in with_types(text, [one], ["pg_catalog.text"])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("SELECT 1; SELECT 2", "42P11"),
        ("SELECT 1) AS q; SELECT (2", "42601"),
        ("SELECT (1; SELECT 2", "42601"),
        ("SELECT $2", "42P02"),
        ("SELECT 'a", "42601"),
        ("SELECT \x01", "42601"),
        ("SELECT app.kind(3) 'x'", "0A000"),
        ("SELECT app.N'x'", "0A000"),
        ("COPY users TO STDOUT", "42P11"),
        ("SHOW search_path", "42601"),
    ],
)
def test_refused(text: str, code: str) -> None:
    with pytest.raises(Refusal) as raised:
        literals(text, 1)
    assert raised.value.code == code


def test_everything_else_stands_where_it_stood() -> None:
    text = "SELECT FROM a WHERE x = 'some words' AND missing = 'and more' AND date '2020-01-01' < y"
    prepared = with_parameters(text, literals(text, 0), 1)
    assert len(prepared) == len(text)
    for word in ("missing", "AND", "< y"):
        assert prepared.index(word) == text.index(word)


PIECES = st.sampled_from(
    [
        *"()[],;:.=<>+-*/ \t\n\r'\"$",
        *("'a'", "E'a\\'b'", "U&'\\0061'", "U&'!0061' UESCAPE '!'", "N'n'", "B'1'", "X'F'", "$$d$$", "$q$d$q$", "''''"),
        *("-- 'x'\n", "-- 'x'\r", "/* 'x' /* 'y' */ */", "::", "$1", "x", "a.b", '"q"', "1", "2.5", "\u00a0", "é"),
        *(" AS ", " CAST(", " AND ", " OR ", " LIKE ", " ESCAPE ", " IN (", " CASE WHEN ", " THEN ", " ELSE ", " END "),
        *(
            " interval ",
            " timestamp ",
            " time ",
            " zone ",
            " with ",
            " at ",
            " date ",
            " varying ",
            " bit ",
            " double ",
        ),
        *(
            " char ",
            " app.interval ",
            ' "interval" ',
            " extract(",
            " from ",
            " SELECT ",
            " UNION ",
            " int ",
            " numeric(3) ",
        ),
        *(
            " day ",
            " precision ",
            " N ",
            " e ",
            " null ",
            " f(",
            " array[",
            " row(",
            " between ",
            " escape ",
            " collate ",
        ),
    ]
)


OPERANDS = st.sampled_from(
    [
        *(
            "'a'",
            "x",
            "app.kind 'x'",
            "interval '1' day",
            "CAST('x' AS int)",
            "CAST('x' AS app.kind)",
            "'x'::app.kind[]",
        ),
        *(
            "extract('epoch' from y)",
            "U&'a!0061' UESCAPE '!'",
            "N'x'",
            "time(3) with time zone 'x'",
            "coalesce('a', 'b')",
        ),
        *("ARRAY['a', x]", "(SELECT 'a' UNION SELECT y)", 'x COLLATE "C"', "CASE x WHEN 'a' THEN 'b' ELSE 'c' END"),
        *(
            "'a'\n'b'",
            "/* ' */ 'x'",
            "-- '\n 'x'",
            "-- '\r 'x'",
            "$$it's$$",
            "varying 'x'",
            "\"interval\" 'x'",
            "date'x'",
        ),
        *("app.interval 'x'", "f('a', b => 'c')", "'x'::interval day", "y AT TIME ZONE 'UTC'", "ROW('a', 1)", "E'\\''"),
    ]
)
OPERATORS = st.sampled_from(["=", "<", "||", " LIKE ", " AND ", " OR ", " IN ('a', 'b') OR x = ", " IS DISTINCT FROM "])
EXPRESSIONS = st.lists(st.tuples(OPERANDS, OPERATORS), max_size=6).flatmap(
    lambda terms: OPERANDS.map(lambda last: "".join(a + b for a, b in terms) + last)
)


def strings_of(node: Any, parents: tuple[Any, ...] = ()) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The strings of a parsed text that the server would read, with what they stand in."""
    if isinstance(node, ast.A_Const) and isinstance(node.val, ast.String):
        yield node.val.sval, parents
    if isinstance(node, ast.Node):
        for name in node:
            yield from strings_of(getattr(node, name), (*parents, node))
    elif isinstance(node, tuple | list):
        for item in node:
            yield from strings_of(item, parents)


def is_built_in(parents: tuple[Any, ...]) -> bool:
    """Whether the server reads a string as a type of its own."""
    around = parents[-1]
    if isinstance(around, ast.TypeCast):
        return around.typeName.names[0].sval == "pg_catalog"
    return isinstance(around, ast.FuncCall) and [name.sval for name in around.funcname] == ["pg_catalog", "extract"]


@given(st.lists(PIECES, max_size=14).map("".join) | EXPRESSIONS, st.sampled_from(["pg_catalog.int4", "app.kind"]))
def test_no_string_is_left_to_a_type_of_somebodys(text: str, type_name: str) -> None:
    query = f"SELECT 1 WHERE {text}"
    try:
        strings = literals(query, 1)
    except Refusal:
        return
    typed = with_types(query, strings, [type_name] * len(strings))
    try:
        parsed = parse_sql(typed)
    except (ParseError, UnicodeError):
        return
    for string, parents in strings_of(parsed):
        assert is_built_in(parents), (string, typed)
