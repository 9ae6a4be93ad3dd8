"""Writes docs/reference.md to standard output, from the catalog of a throwaway cluster. Run by `make reference`.

What a routine is for stands in its COMMENT, in lines that read well in psql's \\df+ too:

    Lets a user out of a loop, …                    what it does; may go on over several lines
    user_id: the user's key as text.                an argument; what follows it is indented by two spaces
    Returns a row for each check.                   what comes back, unless that is nothing
    state: ok, warning or problem.                  a column of it
    Raises 42704 for an unknown loop.               SQLSTATEs of docs/errors.md

A column of a view has a COMMENT of its own. The order, the topics and the examples are those of docs/reference.sql.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "test" / "support"))

from harness import Cluster, Database

ROOT = Path(__file__).parents[1]
WIDTH = 110
KINDS = ("app", "author", "migration", "operator", "viewer", "analyst")

ROUTINES = """
SELECT p.proname, p.prokind = 'p', p.proretset, format_type(p.prorettype, NULL), obj_description(p.oid, 'pg_proc'),
       coalesce((SELECT array_agg(ARRAY[u.name, format_type(u.type, NULL), coalesce(u.mode, 'i'),
                                        CASE WHEN coalesce(u.mode, 'i') = 'i'
                                             THEN pg_get_function_arg_default(p.oid, u.n::integer) END] ORDER BY u.n)
                   FROM unnest(p.proargnames, coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargmodes::text[])
                        WITH ORDINALITY AS u(name, type, mode, n)), '{}')
  FROM pg_proc p
 WHERE p.pronamespace = 'activation'::regnamespace AND left(p.proname, 1) <> '_'
 ORDER BY 1
"""

VIEWS = """
SELECT c.relname, obj_description(c.oid, 'pg_class'),
       array_agg(ARRAY[a.attname::text, format_type(a.atttypid, NULL), col_description(c.oid, a.attnum)]
                 ORDER BY a.attnum)
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relnamespace = 'activation'::regnamespace AND c.relkind = 'v'
   AND left(c.relname, 1) <> '_' AND c.relname <> 'call'
 GROUP BY 1, 2
 ORDER BY 1
"""

OPENING = """\
# Reference

Every public function, procedure and view. `make reference` writes this page from the comments in the database, so
psql shows the same: `\\df+ activation.why`, `\\d+ activation.journey`. The words are those of the
[glossary](glossary.md), the SQLSTATEs those of [errors.md](errors.md). Users' keys are texts, whatever their type in
the users table. Each example is run by the tests.
"""


@dataclass
class Argument:
    """An argument, or a column of what is returned or shown."""

    name: str
    type: str
    default: str | None
    meaning: str | None = None


@dataclass
class Entry:
    """A routine or a view."""

    name: str
    kind: str
    about: str
    returns: str | None = None
    told: str | None = None
    raises: str | None = None
    arguments: list[Argument] = field(default_factory=list)
    columns: list[Argument] = field(default_factory=list)

    def problems(self) -> Iterator[str]:
        """What its comments lack."""
        if not self.about:
            yield f"{self.name} has no comment"
        for each in (*self.arguments, *self.columns):
            if not each.meaning:
                yield f"{self.name}: the comment says nothing of {each.name}"
        if self.kind == "function" and (self.returns != "void") != (self.told is not None):
            yield f"{self.name}: the comment says what a function without a result returns, or does not say it"


def routine_of(row: tuple) -> Entry:
    """A routine, with what its comment says of each part."""
    name, is_procedure, returns_set, returns, comment, rows = row
    entry = Entry(name, "procedure" if is_procedure else "function", "", None if is_procedure else returns)
    for argument, type_, mode, default in rows:
        # The casts of literals say nothing new: '7 days'::interval, current_setting('search_path'::text).
        short = re.sub(r"^\((.*)\)$", r"\1", re.sub(r"::[a-z ]+(?=\)|$)", "", default)) if default else None
        (entry.columns if mode == "t" else entry.arguments).append(Argument(argument, short_type(type_), short))
    if returns_set:
        entry.returns = "TABLE (…)"
    prose: list[str] = []
    for item in items(comment or ""):
        word, _, rest = item.partition(": ")
        # Arguments come before what is returned, columns after it: a name may be both.
        named = {each.name: each for each in (entry.arguments if entry.told is None else entry.columns)}
        if word in named:
            named[word].meaning = rest
        elif item.startswith("Returns "):
            entry.told = item
        elif item.startswith("Raises"):
            entry.raises = item
        else:
            prose.append(item)
    entry.about = " ".join(prose)
    return entry


def short_type(name: str) -> str:
    """A type as people write it."""
    return re.sub(r"^(time|timestamp) with(out)? time zone", lambda found: found[1] + ("" if found[2] else "tz"), name)


def items(comment: str) -> Iterator[str]:
    """The parts of a routine's comment, each in one line: what is indented belongs to the line before."""
    item = ""
    for line in comment.splitlines():
        if line.startswith("  "):
            item += " " + line.strip()
        else:
            if item:
                yield item
            item = line
    if item:
        yield item


def view_of(row: tuple) -> Entry:
    """A view with its columns."""
    name, comment, rows = row
    columns = [Argument(column, short_type(type_), None, meaning) for column, type_, meaning in rows]
    return Entry(name, "view", comment or "", columns=columns)


def topics(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """The topics of docs/reference.sql: each with its entries' names and examples."""
    found = []
    for part in re.split(r"^-- # ", text, flags=re.MULTILINE)[1:]:
        topic, _, rest = part.partition("\n")
        entries = [each.partition("\n") for each in re.split(r"^-- ## ", rest, flags=re.MULTILINE)[1:]]
        found.append((topic, [(name, example.strip()) for name, _, example in entries]))
    return found


def wrapped(text: str, first: str = "", rest: str = "") -> str:
    """Prose in lines."""
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


class Page:
    """What the page is made of, and how comments become Markdown."""

    def __init__(self, db: Database) -> None:
        self.entries = {
            entry.name: entry for entry in (*map(routine_of, db.sql(ROUTINES)), *map(view_of, db.sql(VIEWS)))
        }
        self.topics = topics((ROOT / "docs" / "reference.sql").read_text())
        self.rights = {
            kind: db.sql("SELECT routines, tables FROM activation._rights_of(%s)", kind)[0] for kind in KINDS
        }
        self._mention = re.compile(rf"(?:activation\.)?\b({'|'.join(self.entries)})\([^()]*\)")

    def problems(self) -> list[str]:
        """What keeps the page from being complete."""
        ordered = [name for _, entries in self.topics for name, _ in entries]
        found = [f"docs/reference.sql lacks {name}" for name in sorted(set(self.entries) - set(ordered))]
        found += [
            f"docs/reference.sql has {name} twice" for name in sorted({n for n in ordered if ordered.count(n) > 1})
        ]
        found += [f"docs/reference.sql has {name}, which is none" for name in ordered if name not in self.entries]
        return found + [problem for entry in self.entries.values() for problem in entry.problems()]

    def text(self) -> str:
        """The page."""
        parts = [OPENING]
        parts += [
            "\n".join(
                wrapped(f"**{topic}**: " + ", ".join(f"[{name}](#{name})" for name, _ in entries), "- ", "  ")
                for topic, entries in self.topics
            )
            + "\n"
        ]
        for topic, entries in self.topics:
            parts.append(f"## {topic}\n")
            parts += ["\n\n".join(self.entry(self.entries[name], example)) + "\n" for name, example in entries]
        return "\n".join(parts)

    def entry(self, entry: Entry, example: str) -> Iterator[str]:
        """The paragraphs about one routine or view."""
        yield f"### {entry.name}"
        yield (
            f"A view. {wrapped(self.prose(entry.about))}" if entry.kind == "view" else wrapped(self.prose(entry.about))
        )
        if entry.kind != "view":
            yield f"```\n{signature(entry)}\n```"
        if entry.arguments:
            yield "\n".join(wrapped(f"`{a.name}`: {self.prose(a.meaning or '')}", "- ", "  ") for a in entry.arguments)
        if entry.name == "grant_role":
            yield self.rights_table()
        if entry.told:
            yield wrapped(self.prose(entry.told))
        if entry.columns:
            rows = ((f"`{c.name}`", c.type, self.prose(c.meaning or "")) for c in entry.columns)
            yield table(("column", "type", ""), rows)
        if entry.raises:
            yield wrapped(re.sub(r"\b(HT\d{3}|\d[0-9A-Z]{4})\b", r"`\1`", self.prose(entry.raises)))
        yield f"```sql\n{example}\n```"

    def rights_table(self) -> str:
        """What each kind of role may call and read."""
        rows = []
        for kind, (routines, tables) in self.rights.items():
            calls = ", ".join(f"[{name}](#{name})" for name in sorted(routines) if not name.startswith("_"))
            reads = ", ".join(f"[{name}](#{name})" if name in self.entries else name for name in sorted(tables))
            rows.append((f"`{kind}`", calls, reads))
        return table(("kind", "may call", "may read"), rows)

    def prose(self, text: str) -> str:
        """A comment's words in Markdown, with links to what they name."""
        escaped = text.replace("<", "&lt;").replace("*", "\\*").replace("docs/", "")
        escaped = re.sub(r"\b(\w+\.md)\b", r"[\1](\1)", escaped)
        return self._mention.sub(lambda found: f"[{found[0]}](#{found[1]})", escaped)


def signature(entry: Entry) -> str:
    """How it is called: an argument a line where it would be long."""
    arguments = [
        f"{a.name} {a.type}" + (f" DEFAULT {a.default}" if a.default is not None else "") for a in entry.arguments
    ]
    call = "CALL " if entry.kind == "procedure" else ""
    returns = f" RETURNS {entry.returns}" if entry.returns else ""
    line = f"{call}activation.{entry.name}({', '.join(arguments)}){returns}"
    if len(line) <= 100:
        return line
    return f"{call}activation.{entry.name}(\n  " + ",\n  ".join(arguments) + f"\n){returns}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    head = tuple(head)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
    return "\n".join(line.replace("|  |", "| |") for line in lines)


def main() -> int:
    """Print the page; 1, and what is missing, if it cannot be complete."""
    with Cluster() as cluster:
        page = Page(cluster)
    if found := page.problems():
        print(*found, sep="\n", file=sys.stderr)
        return 1
    print(page.text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
