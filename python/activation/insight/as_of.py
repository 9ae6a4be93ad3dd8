"""simulate(): a query about a user rewritten to what it would have said at an earlier moment. Pure.

Each table that it reads is hidden behind a common table expression of the same name with the rows that had come by
then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from activation.authoring.sqltext import folded, significant, tokens, with_parameter, without_terminator

#: What depends on the clock: the moment at which the answer changed is in no row.
_CLOCK = frozenset(
    (
        "now",
        "current_timestamp",
        "current_date",
        "current_time",
        "localtimestamp",
        "localtime",
        "clock_timestamp",
        "statement_timestamp",
        "transaction_timestamp",
        "timeofday",
        "age",
        "random",
    )
)


@dataclass(frozen=True)
class TimedTable:
    """A table that a query reads. made: its column with the time at which a row came, quoted."""

    schema: str
    name: str
    made: str


def called(sql: str) -> list[str]:
    """Names before a parenthesis, folded: functions, and keywords such as `in`."""
    words = significant(sql)
    return sorted(
        {folded(word.text) for word, following in pairwise(words) if word.kind == "name" and following.text == "("}
    )


def names(sql: str) -> list[str]:
    """Every name and keyword, as the server folds it in any encoding: what it may mean is looked up under these."""
    written = [word.text for word in significant(sql) if word.kind == "name"]
    in_ascii = (
        text if text.startswith('"') else re.sub("[A-Z]+", lambda found: found[0].lower(), text) for text in written
    )
    return sorted({folded(text) for text in written} | {text for text in in_ascii if not text.startswith('"')})


def has_escaped_names(sql: str) -> bool:
    """Whether a name is written in Unicode escapes."""
    return any(word.kind == "name" and word.text[:3].lower() == 'u&"' for word in significant(sql))


def depends_on_clock(sql: str) -> str | None:
    """The first name that reads the clock, if there is one."""
    return next(
        (word.text for word in significant(sql) if word.kind == "name" and folded(word.text) in _CLOCK),
        None,
    )


def as_of(sql: str, tables: list[TimedTable], key: str, at: str) -> str:
    """A query that returns a row where sql would have done so at a moment, for a key: SQL expressions both."""
    body = with_parameter(_unqualified(without_terminator(sql), tables), key)
    hidden = ", ".join(
        f"{_quoted(table.name)} AS NOT MATERIALIZED (SELECT * FROM {_quoted(table.schema)}.{_quoted(table.name)} AS r"
        f" WHERE r.{table.made}::pg_catalog.timestamptz OPERATOR(pg_catalog.<=) {at})"
        for table in tables
    )
    return f"WITH {hidden} SELECT 1 FROM ({body}\n) AS answer LIMIT 1"


def _unqualified(sql: str, tables: list[TimedTable]) -> str:
    """The text with `schema.table` written as `table`, which then is the common table expression."""
    known = {(table.schema, table.name) for table in tables}
    found = list(tokens(sql))
    words = [i for i, token in enumerate(found) if token.kind != "space"]
    dropped: set[int] = set()
    for a, b, c in zip(words, words[1:], words[2:], strict=False):
        if (
            found[a].kind == "name"
            and found[b].text == "."
            and found[c].kind == "name"
            and (folded(found[a].text), folded(found[c].text)) in known
        ):
            dropped |= {a, b}
    return "".join(token.text for i, token in enumerate(found) if i not in dropped)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
