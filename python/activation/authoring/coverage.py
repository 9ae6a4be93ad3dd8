"""Which rows can make a condition true? Read from the planner's answer, not from the author's text.

The condition is explained with its key replaced by an expression that can't be mistaken for anything else. Views and
partitions come expanded, and the planner has already carried `a.user_id = key` over joins. A table is covered when
every scan of it is restricted to one user's rows by a column of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

KEY = "«key»"
_CONDITIONS = ("Filter", "Index Cond", "Recheck Cond", "Join Filter")
_NAME = r'(?:"(?:[^"]|"")+"|[a-z_\u0080-\uffff][a-z0-9_$\u0080-\uffff]*)'
_CAST = r"(?:::[a-z ]+(?:\([0-9]+\))?)?"
_COLUMN_IS_KEY = re.compile(
    rf"^\(*(?:{_NAME}\.)?(?P<column>{_NAME})\)?{_CAST} = \(*{KEY}\)*{_CAST}\)*$"
    rf"|^\(*{KEY}\)*{_CAST} = \(*(?:{_NAME}\.)?(?P<column2>{_NAME})\)?{_CAST}\)*$"
)
# A row that vanishes can make such a condition true.
_NEGATIVE = re.compile(r"\bNOT\b|<> ALL|\bFalse\b")


@dataclass
class Coverage:
    """covered: (schema, table, column) triples. uncovered: (schema, table) read without regard to the user.

    negative: the condition can become true when a row goes away.
    """

    covered: set[tuple[str, str, str]] = field(default_factory=set)
    uncovered: set[tuple[str, str]] = field(default_factory=set)
    negative: bool = False


def coverage(plan: list[dict[str, Any]], key_expressions: list[str]) -> Coverage:
    """What a condition's plan (EXPLAIN VERBOSE, FORMAT JSON) says about the tables it reads.

    key_expressions: the texts under which the server shows the user's key, longest first.
    """
    found = Coverage()
    for node in _nodes(plan[0]["Plan"]):
        texts = [str(node[name]) for name in _CONDITIONS if name in node]
        for i, text in enumerate(texts):
            for expression in key_expressions:
                text = text.replace(expression, KEY)
            texts[i] = text
        # What a subquery yields may be compared in any way: `> ALL`, IS NULL.
        if (
            node["Node Type"] in ("Aggregate", "SetOp", "WindowAgg", "Limit", "Unique")
            or node.get("Join Type") in ("Left", "Right", "Full", "Anti")
            or node.get("Parent Relationship") in ("InitPlan", "SubPlan")
        ):
            found.negative = True
        if any(_NEGATIVE.search(text.replace("IS NOT NULL", "")) for text in texts):
            found.negative = True
        if "Relation Name" not in node:
            continue
        table = (str(node["Schema"]), str(node["Relation Name"]))
        columns = [column for text in texts for conjunct in _conjuncts(text) if (column := _key_column(conjunct))]
        if columns:
            found.covered.update((*table, column) for column in columns)
        else:
            found.uncovered.add(table)
    found.covered = {entry for entry in found.covered if entry[:2] not in found.uncovered}
    return found


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


def _key_column(conjunct: str) -> str | None:
    match = _COLUMN_IS_KEY.match(conjunct)
    if not match:
        return None
    name = match.group("column") or match.group("column2")
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _conjuncts(condition: str) -> list[str]:
    """`((a = 1) AND (b = 2))` as `["(a = 1)", "(b = 2)"]`: only what must hold whatever else does."""
    condition = _unwrapped(condition)
    parts: list[str] = []
    depth, start, quote = 0, 0, ""
    for i, char in enumerate(condition):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif depth == 0 and condition.startswith(" AND ", i):
            parts.append(condition[start:i])
            start = i + len(" AND ")
        elif depth == 0 and condition.startswith(" OR ", i):
            return []
    return [*parts, condition[start:]]


def _unwrapped(condition: str) -> str:
    while condition.startswith("(") and condition.endswith(")") and _closes_at_end(condition):
        condition = condition[1:-1]
    return condition


def _closes_at_end(condition: str) -> bool:
    depth, quote = 0, ""
    for i, char in enumerate(condition):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "()":
            depth += 1 if char == "(" else -1
            if depth == 0:
                return i == len(condition) - 1
    return False
