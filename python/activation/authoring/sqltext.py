"""PostgreSQL's lexical rules, to find where strings, names and comments end in an author's SQL.

Nothing is decided here about what the text means: the server parses it. These functions cut a trailing semicolon,
free a `SELECT *` from columns it does not need, replace the parameter, and tell which columns of a row are named.

The cuts are those of the server's own scanner (scan.l of PostgreSQL 15 to 18, with standard_conforming_strings on),
since a string that is taken for something else here would be read unseen there; test_sqltext_scanner.py compares them.
What one of these versions refuses for its text alone is a token of a kind of its own, and `problem` names it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# To the scanner a letter is any byte over 127: a no-break space is a name.
_LETTER = r"[A-Za-z_\u0080-\U0010ffff]"
_NAME = rf"{_LETTER}[A-Za-z0-9_$\u0080-\U0010ffff]*"
_DIGITS = r"[0-9](?:_?[0-9])*"
_DECIMAL = rf"(?:{_DIGITS}\.(?!\.)(?:{_DIGITS})?|\.{_DIGITS})"
_REAL = rf"(?:{_DECIMAL}|{_DIGITS})[eE][+-]?{_DIGITS}"

_START = re.compile(
    rf"""
      (?P<space>[ \t\n\r\f\v]+|--[^\n\r]*)
    | (?P<comment>/\*)
    | (?P<escaped>[eE]')
    | (?P<bits>[bBxX]')
    | (?P<plain>(?:[uU]&)?')
    | (?P<quoted>(?:[uU]&)?")
    | (?P<dollar>\$(?:{_LETTER}[A-Za-z0-9_\u0080-\U0010ffff]*)?\$)
    | (?P<name>{_NAME})
    | (?P<param>\$[0-9]+)
    | (?P<number>0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+|{_REAL}|{_DECIMAL}|{_DIGITS})
    | (?P<operator>[~!@#^&|`?+\-*/%<>=]{{1,65}})
    | (?P<control>[\x00-\x08\x0e-\x1f\x7f])
    | (?P<symbol>::|:=|\.\.|.)
    """,
    re.VERBOSE | re.DOTALL,
)
# A name straight after a number or a parameter. Later versions read 0x1F and 1_000, which are such to earlier ones.
_JUNK = re.compile(rf"(?:{_REAL}|{_DECIMAL}|{_DIGITS}|\$[0-9]+){_NAME}")
# No possessive groups: those of Python 3.11.2, Debian 12's, end in the wrong place.
_INSIDE = {
    "escaped": re.compile(r"(?:[^'\\]+|\\.|\\\Z|'')*", re.DOTALL),
    "bits": re.compile(r"[^']*"),
    "plain": re.compile(r"(?:[^']+|'')*"),
    "quoted": re.compile(r'(?:[^"]+|"")*'),
}
# Strings with nothing but white space between them, and a line's end in it, are one.
_CONTINUED = re.compile(r"[ \t\f\v]*(?:--[^\n\r]*)?[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*[\n\r])*'")
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_COMMENT_START = re.compile(r"/\*|--")

_REFUSED = {
    "unclosed": "What begins with {text} at character {at} has no end.",
    "junk": "{text} at character {at} is neither a number or parameter nor a name.",
    "control": "A control character (U+{code:04X}) stands at character {at}.",
}


@dataclass(frozen=True)
class Token:
    """kind: space (comments, too), string, name, param, number, symbol, or one that the server refuses: unclosed (up to
    the text's end), junk, control. start, end: where it stands in the text."""

    kind: str
    text: str
    start: int
    end: int


def tokens(sql: str) -> Iterator[Token]:
    """The text cut into tokens; comments count as space, block comments nest."""
    at = 0
    while at < len(sql):
        kind, end = _token_at(sql, at)
        yield Token(kind, sql[at:end], at, end)
        at = end


def problem(sql: str) -> str | None:
    """What in a text no version of the server would take for a token, in a sentence; the first one."""
    for token in tokens(sql):
        if token.kind in _REFUSED:
            text = token.text if len(token.text) <= 20 else token.text[:20] + "…"
            return _REFUSED[token.kind].format(text=text, at=token.start + 1, code=ord(token.text[0]))
    return None


def _token_at(sql: str, at: int) -> tuple[str, int]:
    """The kind of the token that begins at a place, and where it ends."""
    match = _START.match(sql, at)
    assert match is not None  # Its last branch is any character.
    begun, end = str(match.lastgroup), match.end()
    closed: int | None
    match begun:
        case "comment":
            kind, closed = "space", _comment_end(sql, at)
        case "escaped" | "bits" | "plain":
            kind, closed = "string", _string_end(sql, end, _INSIDE[begun])
        case "quoted":
            kind, closed = "name", _quote_end(sql, end, _INSIDE[begun])
        case "dollar":
            close = sql.find(match.group(), end)
            kind, closed = "string", None if close < 0 else close + len(match.group())
        case "param" | "number":
            junk = _JUNK.match(sql, at)
            kind, closed = ("junk", junk.end()) if junk and junk.end() > end else (begun, end)
        case "operator":
            kind, closed = "symbol", at + _operator_length(match.group())
        case _:
            kind, closed = begun, end
    return ("unclosed", len(sql)) if closed is None else (kind, closed)


def _quote_end(sql: str, at: int, inside: re.Pattern[str]) -> int | None:
    """Behind the quote that closes what began before a place; None where none does."""
    content = inside.match(sql, at)
    return content.end() + 1 if content and content.end() < len(sql) else None


def _string_end(sql: str, at: int, inside: re.Pattern[str]) -> int | None:
    end = _quote_end(sql, at, inside)
    while end is not None and (more := _CONTINUED.match(sql, end)):
        end = _quote_end(sql, more.end(), inside)
    return end


def _comment_end(sql: str, at: int) -> int | None:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, at):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    return None


def _operator_length(run: str) -> int:
    """How much of a run of operators' characters is the first operator: a comment ends it, and a + or - is its last
    character only beside one that SQL's own operators lack."""
    comment = _COMMENT_START.search(run)
    operator = run[: comment.start()] if comment else run
    if not re.search(r"[~!@#^&|`?%]", operator[:-1]):
        operator = operator[0] + operator[1:].rstrip("+-")
    return len(operator)


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
    return "".join(replacement if is_parameter(token) else token.text for token in tokens(sql))


def is_parameter(token: Token) -> bool:
    """Whether it is the first parameter, which may have leading zeros."""
    return token.kind == "param" and token.text[1:].lstrip("0") == "1"


def row_columns(expression: str, row: str, columns: Iterable[str]) -> list[str]:
    """Which of a row's columns an expression names as `row.column`; all of them when it names the whole row."""
    known = list(columns)
    words = significant(expression)
    used: list[str] = []
    for i, word in enumerate(words):
        if word.kind == "name" and word.text[:2] in ("U&", "u&"):
            return known  # It may have escapes, even of its own kind (UESCAPE).
        if word.kind != "name" or folded(word.text) != row:
            continue
        if i > 0 and words[i - 1].text == ".":
            continue
        if i + 2 < len(words) and words[i + 1].text == "." and words[i + 2].kind == "name":
            used.append(folded(words[i + 2].text))
        else:
            return known
    return [column for column in known if column in used]


_FOLDED = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def folded(identifier: str) -> str:
    """The name that an identifier stands for. Of a multibyte encoding the server folds ASCII's letters alone."""
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier.translate(_FOLDED)
