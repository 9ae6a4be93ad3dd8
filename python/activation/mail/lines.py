"""Text of one line, such as a subject or a name: white space folded, and nothing in it that cannot be seen. Pure."""

from __future__ import annotations

import re

#: What ends a line, here or for some mail program.
LINE_BREAK = re.compile(r"[\n-\r\x1c-\x1e\x85\u2028\u2029]")

#: Control characters but for white space, marks that turn the direction of what follows, and characters without width
#: that can hide in an address. Those that letters and emoji are joined with stay.
UNSEEN = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)

#: Runs of white space, and what is white space to a mail program only by breaking the line. A single wide or
#: non-breaking space is somebody's typography.
_FOLDED = re.compile(r"\s{2,}|[\t-\r\x1c-\x1f\x85\u2028\u2029]")


def one_line(text: str) -> str:
    """The text as one line of what can be seen."""
    if not text.isprintable() or "  " in text:
        text = _FOLDED.sub(" ", UNSEEN.sub("", text))
    return text.strip()


def writable(text: str) -> str:
    """The text without what the database, JSON or a mail cannot hold: NUL, and halves of characters."""
    if "\0" in text:
        text = text.replace("\0", "")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
