"""The SQL that the documents show."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[str]:
    """The SQL of a page, a text for each block."""
    text = (DOCS / page).read_text()
    return [
        re.sub(r"^ +", "", block, flags=re.MULTILINE) if indent else block
        for indent, block in re.findall(r"^( *)```sql\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    ]
