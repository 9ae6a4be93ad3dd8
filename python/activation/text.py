"""Small things about texts that many rooms need: literals of SQL, and what somebody may have meant. Imports nothing of
ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def literal(text: str) -> str:
    """A text as a literal of SQL, whatever standard_conforming_strings says."""
    if "\0" in text:
        raise ValueError("PostgreSQL's texts hold no NUL character")
    quoted = text.replace("'", "''")
    return "E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in text else f"'{quoted}'"


def dollar_quoted(text: str, tag: str = "") -> str:
    """A text between dollar quotes. tag: what stands in them, if the text allows it."""
    quote = f"${tag}$"
    while (text + quote).index(quote) < len(text):
        tag += "_" if tag else "q"
        quote = f"${tag}$"
    return f"{quote}{text}{quote}"


def near(value: object, names: Iterable[str]) -> str:
    """The beginning of a hint: which of the names may have been meant."""
    found = difflib.get_close_matches(value, names, n=1, cutoff=0.5) if isinstance(value, str) else []
    return f'Did you mean "{found[0]}"? ' if found else ""
