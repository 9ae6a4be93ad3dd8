"""`activation import`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..text import dollar_quoted, literal
from .database import Refused, connected, rows, url_option, value
from .output import json_option, note, plain, print_json, print_table, say, shown_json

if TYPE_CHECKING:
    from .database import Connection

#: What a file is, by how its name ends.
_KINDS = {
    **dict.fromkeys((".ts", ".mts", ".cts", ".js", ".mjs", ".cjs"), "config"),
    **dict.fromkeys((".yaml", ".yml"), "journey"),
    ".json": "definition",
}
_CHANGES = ("added", "removed", "changed")


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", metavar="LOOP", help="The loop's name.  [default: from the file's: skene.config.ts is skene]")
@click.option("--milestones", metavar="LIST", help="Of a journey: only these, as stage.milestone,stage.milestone.")
@click.option("--yes", "--apply", "apply", is_flag=True, help="Define the loop without asking.")
@url_option
@json_option
@click.pass_context
def import_(
    context: click.Context,
    file: Path,
    name: str | None,
    milestones: str | None,
    apply: bool,
    url: str | None,
    as_json: bool,
) -> None:
    """Define a loop from a file, after showing it and what it changes.

    FILE is a skene.config.ts, a journey.yaml, or a loop as activation.export_loop() writes it, as .json.

    On a terminal it asks before it applies; elsewhere only --yes applies. Ends with 1 if there is something to apply
    and it was not applied.
    """
    kind = _KINDS.get(file.suffix.lower())
    if kind is None:
        raise click.UsageError(f"{plain(file)} ends in none of {', '.join(_KINDS)}")
    if milestones is not None and kind != "journey":
        raise click.UsageError("--milestones is for a journey.yaml")
    text = _read(file, kind)
    name = name or re.sub(r"\W+", "_", file.name.partition(".")[0]) or "loop"
    with connected(url) as connection:
        definition = _definition(connection, kind, text, milestones)
        document = json.dumps(definition)
        defined = _is_defined(connection, name)
        diff: list[dict[str, Any]] = []
        if defined:
            query = "SELECT change, part, before, after FROM activation.diff_loop(%s, %s::text::jsonb)"
            diff = rows(connection, query, name, document)
        changed = not defined or any(row["change"] in _CHANGES for row in diff)
        if not as_json:
            _show(name, definition, defined, changed, diff)
        version = None
        if changed and (apply or (not as_json and _confirmed(name))):
            version = value(connection, "SELECT activation.import_loop(%s, %s::text::jsonb)", name, document)
    if as_json:
        print_json(
            {
                "loop": name,
                "definition": definition,
                "defined": defined,
                "changed": changed,
                "diff": diff,
                "version": version,
            }
        )
    elif version is not None:
        say(f'Loop "{plain(name)}" is defined, in version {version}.')
    if changed and version is None:
        context.exit(1)


def _read(file: Path, kind: str) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
        if kind == "definition":
            json.loads(text)
    except OSError as error:
        raise Refused(f"{plain(file)} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Refused(f"{plain(file)} is not UTF-8: byte {error.start}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise Refused(f"{plain(file)} is not JSON: {error}") from None
    if "\0" in text:
        raise Refused(f"{plain(file)} holds a NUL character")
    return text


def _definition(connection: Connection, kind: str, text: str, milestones: str | None) -> Any:
    """What the file says, as the server reads it."""
    if kind == "config":
        return value(connection, "SELECT activation.skene_definition(%s)", text)
    if kind == "journey":
        wanted = None if milestones is None else [part.strip() for part in milestones.strip("{} ").split(",")]
        query = "SELECT activation.journey_definition(%s, milestones => %s::text[])"
        return value(connection, query, text, wanted)
    return json.loads(text)


def _is_defined(connection: Connection, name: str) -> bool:
    """Whether there is such a loop, in use. One that was archived is brought back by its definition."""
    from psycopg import errors

    try:
        rows(connection, "SELECT activation.export_loop(%s)", name)
    except errors.UndefinedObject:
        return False
    try:
        return str(value(connection, "SELECT state FROM activation.loop WHERE name = %s", name)) != "archived"
    except errors.InsufficientPrivilege:
        # An author may call the functions, and not read the table.
        return True


def _show(name: str, definition: Any, defined: bool, changed: bool, diff: list[dict[str, Any]]) -> None:
    document = dollar_quoted(f"\n{shown_json(definition)}\n", "loop")
    say(f"SELECT activation.import_loop({literal(plain(name))}, {document});\n")
    if not defined:
        say(f'There is no loop "{plain(name)}" yet.')
    elif not changed:
        say(f'Loop "{plain(name)}" is that already.')
    else:
        say(f'What it changes in loop "{plain(name)}":\n')
        print_table(["change", "part", "before", "after"], diff)
        say()


def _confirmed(name: str) -> bool:
    if not sys.stdin.isatty():
        note("Nothing was applied: --yes applies it.")
        return False
    return click.confirm(f'Define loop "{plain(name)}"?', err=True)
