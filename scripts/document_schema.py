"""Writes the tables of docs/definition.md from the schema in python/activation/schema.py.

python3 scripts/document_schema.py            writes them
python3 scripts/document_schema.py --check    fails unless they are as they would be written
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "python"))
# A detached `python3 scripts/…` leaves nothing behind in the package.
sys.dont_write_bytecode = True

from activation import schema  # noqa: E402

PAGE = ROOT / "docs" / "definition.md"
BEGIN, END = "<!-- from here on made by scripts/document_schema.py -->", "<!-- made up to here -->"


def tables() -> str:
    """The part of the page between the marks."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield from _table("The loop", "activation.define_loop", schema.LOOP.keys)
    yield from _table("A step", "activation.step", schema.STEP.keys)
    yield from ("## A trigger", "")
    builders = {"database": "`activation.on_insert`, `on_update`, `on_delete`"}
    yield from _rows([schema.TRIGGER_TYPE])
    for kind, part in schema.TRIGGERS.items():
        made_with = builders.get(kind, f"`activation.on_{kind}`")
        yield from (f"And with `type` `{kind}` ({made_with}):", "")
        yield from _rows(part.keys)
    yield from _table("A condition", "activation.query", schema.CONDITION.keys)
    yield from _table("An email", "activation.email", schema.EMAIL.keys)
    yield from _table("A recovery", "activation.retry", schema.RECOVERY.keys)
    yield from _table("A send window", "activation.send_window", schema.SEND_WINDOW.keys)


def _table(title: str, builder: str, keys: Iterable[schema.Key]) -> Iterator[str]:
    yield from (f"## {title}", "", f"In SQL: `{builder}(…)`.", "")
    yield from _rows(keys)


def _rows(keys: Iterable[schema.Key]) -> Iterator[str]:
    yield from ("| key | what it may be | default | what it says |", "|---|---|---|---|")
    for key in keys:
        default = "needed" if key.required else _shown(key.default)
        argument = f"; the argument is `{key.argument}`" if key.argument else ""
        yield f"| `{key.name}` | {key.described} | {default} | {key.meaning}{argument} |"
    yield ""


def _shown(default: Any) -> str:
    if default is None:
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def written(page: str) -> str:
    """A page with what is between its marks as the schema says."""
    made, count = re.subn(
        f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", lambda _: f"\n{tables()}", page, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"{PAGE.name} does not have the two marks once, in this order: {BEGIN} {END}")
    return made


def main() -> None:
    page = PAGE.read_text()
    if written(page) == page:
        return
    if "--check" in sys.argv[1:]:
        raise SystemExit(f"{PAGE.name} is not as the schema says: run python3 scripts/document_schema.py")
    PAGE.write_text(written(page))


if __name__ == "__main__":
    main()
