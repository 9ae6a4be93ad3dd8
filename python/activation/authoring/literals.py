"""The strings of an author's SQL, which the server would read while it parses.

Reading is execution: the text of an array, a row or a range of domains is checked by the domains' own functions. So the
server is first shown the text with a parameter in place of each string, and says of what type each is; then each string
is written with its type, and one of a type that is not built in is read as text and converted when the query runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from activation.authoring.sqltext import Token, problem, significant
from activation.errors import Refusal

#: Keywords of built-in types that cannot be names of other types. What is read as such a type runs nobody's code.
_BUILT_IN = frozenset((
    "BIGINT", "BIT", "BOOLEAN", "CHAR", "CHARACTER", "DEC", "DECIMAL", "FLOAT", "INT", "INTEGER", "INTERVAL",
    "NCHAR", "NUMERIC", "PRECISION", "REAL", "SMALLINT", "TIME", "TIMESTAMP", "VARCHAR",
))  # fmt: skip

#: Words after which an expression may begin. After any other word a string is of the type that it names: date '…'.
_BEFORE_EXPRESSIONS = frozenset((
    "ALL", "AND", "ANY", "ARRAY", "AS", "ASYMMETRIC", "BETWEEN", "BOTH", "BY", "CASE", "DISTINCT", "ELSE", "ESCAPE",
    "EXCEPT", "FETCH", "FIRST", "FOLLOWING", "FOR", "FROM", "GROUPS", "HAVING", "ILIKE", "IN", "INTERSECT", "IS",
    "LEADING", "LIKE", "LIMIT", "NEXT", "NOT", "OFFSET", "ON", "OR", "OVERLAPS", "PASSING", "PLACING", "RANGE",
    "RETURNING", "ROW", "ROWS", "SELECT", "SIMILAR", "SOME", "SYMMETRIC", "THEN", "TO", "TRAILING", "UNION", "USING",
    "VALUE", "VALUES", "VARIADIC", "WHEN", "WHERE", "ZONE",
))  # fmt: skip

#: Commands that return no rows, or that the server does not prepare.
_OTHER_COMMANDS = frozenset((
    "ALTER", "ANALYZE", "BEGIN", "CALL", "COMMENT", "COMMIT", "COPY", "CREATE", "DEALLOCATE", "DECLARE", "DISCARD",
    "DO", "DROP", "EXECUTE", "EXPLAIN", "GRANT", "LISTEN", "LOCK", "NOTIFY", "PREPARE", "REFRESH", "RESET", "REVOKE",
    "ROLLBACK", "SET", "SHOW", "TRUNCATE", "VACUUM",
))  # fmt: skip


@dataclass(frozen=True)
class Literal:
    """A string whose type the server decides. start, end: what stands for it in the text, a type before it included.
    string: as it is written. type_name: that type, or ''."""

    start: int
    end: int
    string: str
    type_name: str


def literals(sql: str, parameters: int) -> list[Literal]:
    """The strings that the server would read as it sees fit, in their order; those that can only be of a built-in type
    are left out. parameters: how many `$n` the text may name. Raises Refusal for what is not one statement."""
    if wrong := problem(sql):
        raise Refusal(f"syntax error: {wrong}", code="42601")
    words = significant(sql)
    if _word(words, 0) in _OTHER_COMMANDS:
        raise Refusal("it is not a SELECT", code="42P11" if _word(words, 0) not in ("EXPLAIN", "SHOW") else "42601")
    strings: list[Literal] = []
    i = 0
    while i < len(words):
        word = words[i]
        if word.text == ";":
            if _depth(words[:i]):
                raise Refusal('syntax error at or near ";"', code="42601")
            raise Refusal(
                "it is more than one statement", hint="Leave out what comes from the semicolon on.", code="42P11"
            )
        if word.kind == "param" and int(word.text[1:]) > parameters:
            raise Refusal(f"there is no parameter {word.text}", code="42P02")
        if word.kind == "string" and word.text[0] not in "bBxX":
            last = _end_of_string(words, i)
            if not _is_built_in(words, i, last):
                first = _start_of_type(words, i)
                strings.append(
                    Literal(
                        words[first].start,
                        words[last].end,
                        sql[word.start : words[last].end],
                        sql[words[first].start : words[i - 1].end] if first < i else "",
                    )
                )
            i = last
        i += 1
    return strings


def with_parameters(sql: str, strings: list[Literal], first: int) -> str:
    """The text with parameters from this number on in place of the strings; as far as they are not longer, all else
    stands where it stood."""
    return _replaced(
        sql,
        strings,
        [
            (f"${first + n}" + (f"::{one.type_name}" if one.type_name else "")).ljust(one.end - one.start)
            for n, one in enumerate(strings)
        ],
    )


def with_types(sql: str, strings: list[Literal], types: list[str]) -> str:
    """The text with the type of each string written out."""
    return _replaced(sql, strings, [_typed(one.string, type_) for one, type_ in zip(strings, types, strict=True)])


def _typed(string: str, type_name: str) -> str:
    if type_name.startswith("pg_catalog."):
        return f"CAST({string} AS {type_name})"
    return f"CAST(CAST({string} AS pg_catalog.text) AS {type_name})"


def _replaced(sql: str, strings: list[Literal], by: list[str]) -> str:
    parts, at = [], 0
    for one, text in zip(strings, by, strict=True):
        parts += [sql[at : one.start], text]
        at = one.end
    return "".join([*parts, sql[at:]])


def _word(words: list[Token], i: int) -> str:
    """An unquoted word in capitals; '' for anything else and beyond the ends."""
    return words[i].text.upper() if 0 <= i < len(words) and words[i].kind == "name" and words[i].text[-1] != '"' else ""


def _symbol(words: list[Token], i: int, text: str) -> bool:
    return 0 <= i < len(words) and words[i].text == text


def _depth(words: list[Token]) -> int:
    return sum({"(": 1, ")": -1}.get(word.text, 0) for word in words)


def _end_of_string(words: list[Token], i: int) -> int:
    """The last token of a string: it may be followed by UESCAPE and another."""
    if _word(words, i + 1) == "UESCAPE" and i + 2 < len(words) and words[i + 2].kind == "string":
        i += 2
    return i


def _names_built_in(words: list[Token], i: int) -> bool:
    """Whether the word there ends the name of a type that can only be a built-in one."""
    if _symbol(words, i - 1, "."):
        return False
    word = _word(words, i)
    if word == "VARYING":
        return _word(words, i - 1) in ("BIT", "CHAR", "CHARACTER", "NCHAR") and not _symbol(words, i - 2, ".")
    return word in _BUILT_IN


def _is_built_in(words: list[Token], i: int, last: int) -> bool:
    """Whether the string from i to last can only be read as a built-in type: INTERVAL '…',
    TIMESTAMP(3) WITH TIME ZONE '…', '…'::interval day, CAST('…' AS numeric(3)), EXTRACT('…' FROM …)."""
    before = i - 1
    if _word(words, before) == "N" and words[before].end == words[i].start:
        # The server takes this N for the word NCHAR.
        if _symbol(words, before - 1, "."):
            raise Refusal("N'…' follows a dot", hint="Write the type as a cast.", code="0A000")
        return True
    if (
        _word(words, before) == "ZONE"
        and _word(words, before - 1) == "TIME"
        and _word(words, before - 2) in ("WITH", "WITHOUT")
    ):
        before -= 3
    if _symbol(words, before, ")"):
        depth = 0
        while before >= 0:
            depth += {")": 1, "(": -1}.get(words[before].text, 0)
            before -= 1
            if depth == 0:
                break
        if not _names_built_in(words, before):
            raise Refusal(
                f"string {words[i].text[:40]} follows a bracket",
                hint="Write its type as a cast: '…'::app.type(3).",
                code="0A000",
            )
    if _names_built_in(words, before):
        return True
    after = last + 1
    if _symbol(words, after, "::"):
        return _builtin_follows(words, after + 1)
    if _word(words, i - 2) == "CAST" and _symbol(words, i - 1, "(") and _word(words, after) == "AS":
        return _builtin_follows(words, after + 1)
    return (
        _word(words, i - 2) == "EXTRACT"
        and _symbol(words, i - 1, "(")
        and not _symbol(words, i - 3, ".")
        and _word(words, after) == "FROM"
    )


def _builtin_follows(words: list[Token], i: int) -> bool:
    return _word(words, i) in _BUILT_IN and not _symbol(words, i + 1, ".")


def _start_of_type(words: list[Token], i: int) -> int:
    """Where the type of the string at i begins: the string itself, or a name before it, with its schema."""
    if i == 0 or words[i - 1].kind != "name":
        return i
    if _word(words, i - 1) in _BEFORE_EXPRESSIONS and not _symbol(words, i - 2, "."):
        return i
    first = i - 1
    while _symbol(words, first - 1, ".") and first >= 2 and words[first - 2].kind == "name":
        first -= 2
    return first
