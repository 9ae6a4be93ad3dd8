"""The rules of sql/ that no other tool knows. Part of `make lint`; says each breach as `file:line: what`.

- `sql/manifest` names every part once. A part uses only what stands in itself or in a part above it. What a comment or
  the words of an error say of a public verb does not count.
- A part has at most 300 lines, and a line 100 columns.
- A function of more than 80 lines says why it is that long: the comment above it begins a sentence with "Long because".
- A private function (`_name`) says in a comment above it what it is for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SQL = Path(__file__).parents[1] / "sql"
PART_LINES, FUNCTION_LINES, COLUMNS = 300, 80, 100

CREATE = re.compile(
    r"^CREATE (?:UNLOGGED )?(FUNCTION|PROCEDURE|VIEW|TABLE|TYPE|SEQUENCE) activation\.\"?(\w+)\"?", re.MULTILINE
)
REFERENCE = re.compile(r"\bactivation\.\"?([a-z_]\w*)")
COMMENT = re.compile(r"--[^\n]*")
STRING = re.compile(r"'(?:[^']|'')*'")


@dataclass
class Statement:
    """One statement of a part: what it creates, if anything, and its text without the comment above it."""

    part: str
    line: int
    kind: str | None
    name: str | None
    comment: str
    text: str


def statements(part: str) -> Iterator[Statement]:
    """The statements of a part, in order. A body ends with its dollar quote, or with the END of BEGIN ATOMIC."""
    comment: list[str] = []
    lines: list[str] = []
    begin, quote, atomic = 0, None, False
    for number, line in enumerate((SQL / f"{part}.sql").read_text().splitlines(), 1):
        if not lines:
            if not line.strip():
                comment = []
                continue
            if line.startswith(("--", "\\")):
                comment.append(line)
                continue
            begin = number
        lines.append(line)
        code = line if quote else COMMENT.sub("", line)
        for tag in re.findall(r"\$[A-Za-z_]*\$", code):
            quote = tag if quote is None else None if tag == quote else quote
        atomic = atomic or (quote is None and code.lstrip().startswith("BEGIN ATOMIC"))
        if quote or (atomic and line != "END;") or not code.rstrip().endswith(";"):
            continue
        text = "\n".join(lines)
        created = CREATE.match(text)
        kind, name = (created[1], created[2]) if created else (None, None)
        yield Statement(part, begin, kind, name, "\n".join(comment), text)
        comment, lines, atomic = [], [], False


def references(text: str) -> Iterator[str]:
    """The names that a statement uses: those in its code, and private ones in its strings (generated SQL)."""
    code = COMMENT.sub("", text)
    yield from REFERENCE.findall(STRING.sub("''", code))
    yield from (name for string in STRING.findall(code) for name in REFERENCE.findall(string) if name.startswith("_"))


def problems() -> Iterator[str]:
    """Every breach of the rules above."""
    parts = (SQL / "manifest").read_text().split()
    there = {str(path.relative_to(SQL).with_suffix("")) for path in SQL.rglob("*.sql")}
    yield from (f"sql/manifest: {part} is named twice" for part in sorted({p for p in parts if parts.count(p) > 1}))
    yield from (f"sql/{part}.sql: not in sql/manifest" for part in sorted(there - set(parts)))
    yield from (f"sql/manifest: there is no sql/{part}.sql" for part in parts if part not in there)

    found = [statement for part in parts if part in there for statement in statements(part)]
    place: dict[str, int] = {}
    for statement in found:
        if statement.name:
            # A table and a verb may share a name (step): what stands first is what is meant.
            place.setdefault(statement.name, parts.index(statement.part))
    for statement in found:
        where = f"sql/{statement.part}.sql:{statement.line}"
        here = parts.index(statement.part)
        for name in sorted(set(references(statement.text))):
            if place.get(name, here) > here:
                yield f"{where}: {statement.name or 'this'} uses {name}, which stands below, in {parts[place[name]]}"
        if statement.kind not in ("FUNCTION", "PROCEDURE"):
            continue
        length = statement.text.count("\n") + 1
        if length > FUNCTION_LINES and "Long because" not in statement.comment:
            yield f"{where}: {statement.name} has {length} lines, and no reason above it"
        if str(statement.name).startswith("_") and not statement.comment:
            yield f"{where}: {statement.name} does not say what it is for"
    for part in parts:
        lines = (SQL / f"{part}.sql").read_text().splitlines() if part in there else []
        if len(lines) > PART_LINES:
            yield f"sql/{part}.sql: {len(lines)} lines"
        wide = [(number, len(line)) for number, line in enumerate(lines, 1) if len(line) > COLUMNS]
        yield from (f"sql/{part}.sql:{number}: {length} columns" for number, length in wide)


def main() -> int:
    """Print what was found; 1 if there is anything."""
    found = list(problems())
    print(*found, sep="\n", end="\n" if found else "")
    print(f"sql: {len(found)} problems" if found else "sql: order, lengths and comments are kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
