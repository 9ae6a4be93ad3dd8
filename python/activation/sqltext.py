"""Just enough of PostgreSQL's lexical rules to find where strings, names and comments end in an author's SQL.

Nothing is decided here about what the text means: the server parses it. These functions only cut a trailing semicolon,
free a `SELECT *` from columns it does not need, replace the parameter, and tell which columns of a row are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_PLAIN = re.compile(
    r"""
      (?P<space>\s+|--[^\n]*)
    | (?P<string>[eE]'(?:\\.|''|[^'\\])*'|(?:[uU]&|[bBxXnN])?'(?:''|[^'])*')
    | (?P<name>(?:[uU]&)?"(?:""|[^"])*"|[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_$\u0080-\U0010ffff]*)
    | (?P<param>\$[0-9]+)
    | (?P<number>[0-9][0-9A-Za-z_.]*)
    """,
    re.VERBOSE | re.DOTALL,
)
_DOLLAR = re.compile(r"\$(?:[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_\u0080-\U0010ffff]*)?\$")
_COMMENT_EDGE = re.compile(r"/\*|\*/")


@dataclass(frozen=True)
class Token:
    """kind: space, string, name, param, number or symbol. start, end: where it stands in the text."""

    kind: str
    text: str
    start: int
    end: int


def tokens(sql: str) -> Iterator[Token]:
    """The text cut into tokens; comments count as space, block comments nest."""
    at = 0
    while at < len(sql):
        end, kind = _token_at(sql, at)
        yield Token(kind, sql[at:end], at, end)
        at = end


def _token_at(sql: str, at: int) -> tuple[int, str]:
    if sql.startswith("/*", at):
        return _comment_end(sql, at), "space"
    if match := _DOLLAR.match(sql, at):
        close = sql.find(match.group(), match.end())
        return (len(sql) if close < 0 else close + len(match.group())), "string"
    if match := _PLAIN.match(sql, at):
        return match.end(), str(match.lastgroup)
    return at + 1, "symbol"


def _comment_end(sql: str, at: int) -> int:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, at):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)


def significant(sql: str) -> list[Token]:
    """The tokens but space and comments."""
    return [token for token in tokens(sql) if token.kind != "space"]


def without_terminator(sql: str) -> str:
    """The statement without its trailing semicolons and what is written after them."""
    words = significant(sql)
    while words and words[-1].text == ";":
        sql = sql[: words.pop().start]
    return sql


def without_star(sql: str) -> str | None:
    """`SELECT FROM …` for a plain `SELECT * FROM …`, which has as many rows and needs no column; None for others."""
    words = significant(sql)
    if [word.text.upper() for word in words[:3]] != ["SELECT", "*", "FROM"]:
        return None
    depth = 0
    for word in words:
        depth += {"(": 1, ")": -1}.get(word.text, 0)
        if depth == 0 and word.text.upper() in ("UNION", "INTERSECT", "EXCEPT"):
            return None
    return sql[: words[1].start] + " " + sql[words[1].end :]


def with_parameter(sql: str, replacement: str) -> str:
    """The text with every `$1` replaced."""
    return "".join(replacement if token.kind == "param" and token.text == "$1" else token.text for token in tokens(sql))


def row_columns(expression: str, row: str, columns: Iterable[str]) -> list[str]:
    """Which of a row's columns an expression names as `row.column`; all of them when it names the whole row."""
    known = list(columns)
    words = significant(expression)
    used: list[str] = []
    for i, word in enumerate(words):
        if word.kind != "name" or folded(word.text) != row:
            continue
        if i > 0 and words[i - 1].text == ".":
            continue
        if i + 2 < len(words) and words[i + 1].text == "." and words[i + 2].kind == "name":
            used.append(folded(words[i + 2].text))
        else:
            return known
    return [column for column in known if column in used]


def folded(identifier: str) -> str:
    """The name that an identifier stands for."""
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier.lower()
