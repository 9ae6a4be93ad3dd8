"""What is printed. Text from the database is data: no markup of rich's is read in it, and no control character leaves.

On a terminal there are colours, and long texts wrap; elsewhere, and with NO_COLOR, all is plain and nothing wraps.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")

#: How a state is shown, where it is not the usual thing.
_STYLES = {
    **dict.fromkeys(("ok", "live"), "green"),
    **dict.fromkeys(("warning", "waiting", "paused", "redirect", "stopped"), "yellow"),
    **dict.fromkeys(("problem", "failing", "disarmed"), "bold red"),
}
#: Wider than anything that is shown.
_ENDLESS = 1_000_000
#: The least width in which a text can be read.
_READABLE = 40


def plain(value: object, lines: bool = False) -> str:
    """A value as text that a terminal only shows. lines: line breaks stay; otherwise it becomes one line.

    Control characters become escapes such as \\x1b, and so do those that turn the direction of writing around.
    """
    text = "" if value is None else str(value)
    return "".join(c if _harmless(c) or (lines and c == "\n") else _escaped(c) for c in text)


def _harmless(character: str) -> bool:
    return character.isprintable() or (
        # What holds emoji and Indic letters together.
        unicodedata.category(character) in ("Cf", "Cn", "Co", "Zs")
        and unicodedata.bidirectional(character) not in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    )


def _escaped(character: str) -> str:
    if character in "\n\t":
        return " "
    return character.encode("unicode_escape").decode()


def shown_json(value: Any) -> str:
    """A document as it is shown to people: JSON that is still the same document, whatever it holds."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if c == "\n" or _harmless(c) else f"\\u{ord(c):04x}" for c in text)


def print_json(value: Any) -> None:
    """For programs: one document on standard output, of ASCII alone."""
    click.echo(json.dumps(value, indent=2, default=_json_value))


def _json_value(value: object) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)


def say(text: str = "", style: str | None = None) -> None:
    """A line or several on standard output, not wrapped. The text is plain() already."""
    _console().print(Text(text, style=style or ""), soft_wrap=True)


def note(text: str) -> None:
    """Something for the person and not for a pipe: on standard error."""
    click.echo(plain(text, lines=True), err=True)


def print_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows under each other. The last column wraps on a terminal; those before it, which are names, never do."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in columns[:-1]:
        table.add_column(name, no_wrap=True, overflow="ignore")
    table.add_column(columns[-1], overflow="fold")
    found = list(rows)
    for row in found:
        table.add_row(*(_cell(name, row[name]) for name in columns))
    console = _console()
    # Where the names leave too little room for it, the terminal may break lines as it likes.
    others = console.measure(table).maximum - max((len(plain(row[columns[-1]])) for row in found), default=0)
    console.width = max(console.width, others + _READABLE)
    with console.capture() as capture:
        console.print(table)
    click.echo("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()), nl=False, color=_styled() or None)


@contextmanager
def progress(first: str, steps: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, on standard error, gone at the end. What it gives is called after a step, with the next."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, markup=False)
    columns = (BarColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not (console.is_terminal and _styled())) as bar:
        task = bar.add_task(first, total=steps)
        yield lambda following: bar.update(task, advance=1, description=following)


def _cell(name: str, value: object) -> Text:
    if isinstance(value, datetime):
        value = value.astimezone().strftime("%Y-%m-%d %H:%M:%S%z")
    return Text(plain(value), style=_STYLES.get(str(value), "") if name == "state" else "")


def _styled() -> bool:
    return (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    )


def _console() -> Console:
    styled = _styled()
    return Console(
        file=sys.stdout,
        force_terminal=styled,
        color_system="auto" if styled else None,
        width=None if styled else _ENDLESS,
        markup=False,
        highlight=False,
        emoji=False,
    )
