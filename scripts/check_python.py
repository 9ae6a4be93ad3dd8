"""The rule of lengths in Python that no other tool knows. Part of `make lint`; says each breach as `file:line: what`.

A class has at most 250 lines. A function of more than 80 lines says why it is that long: its docstring, or the comment
above it, has a sentence that begins with "Long because".
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLASS_LINES, FUNCTION_LINES = 250, 80


def problems(path: Path) -> Iterator[str]:
    """Every breach in a file."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        said = (ast.get_docstring(node) or "") + "\n".join(lines[max(first - 6, 0) : first - 1])
        where = f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        if isinstance(node, ast.ClassDef):
            if length > CLASS_LINES:
                yield f"{where} has {length} lines"
        elif length > FUNCTION_LINES and "Long because" not in said:
            yield f"{where} has {length} lines, and no reason"


def main() -> int:
    """Print what was found; 1 if there is anything."""
    found = [problem for path in sorted((ROOT / "python").rglob("*.py")) for problem in problems(path)]
    print(*found, sep="\n", end="\n" if found else "")
    print(f"python: {len(found)} problems" if found else "python: lengths are kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
