"""What an address is: the form that is sent, and the form by which it is looked up. Pure.

Both are computed here alone, `folded` also for SQL, so that nobody on the list of suppressed addresses is reached by
another spelling. Where two spellings could reach one mailbox, they are folded alike; what is odd is not sent at all.
"""

from __future__ import annotations

import re
from unicodedata import normalize

from activation.errors import RenderError

#: Longer texts hold no address that is sent; a capture function keeps no more of them.
TEXT_CHARACTERS = 1000
#: As long as an address may be, also when it is folded.
BYTES = 320

_ADDRESS = re.compile(r"[^@\s<>,;:\"()\[\]\\]+@[^@\s<>,;:\"()\[\]\\]+")
#: Where the lower case of ASCII is all there is to folding. `activation._fold_address` has the same.
_PLAIN = re.compile(r"[!-;=?A-~]*@[0-9A-Za-z.-]*[0-9A-Za-z]")
_BRACKETS = re.compile(r"<([^<>]*)>\s*\Z")


def _characters(*spans: tuple[int, int]) -> str:
    return "".join(chr(code) for first, last in spans for code in range(first, last + 1))


#: White space and control characters, as Unicode has them.
_BLANK = _characters(
    (0x00, 0x20), (0x7F, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
    (0x205F, 0x205F), (0x2800, 0x2800), (0x3000, 0x3000),
)  # fmt: skip
#: What is not shown (Default_Ignorable_Code_Point), with the rest of the format characters.
_UNSEEN = _characters(
    (0xAD, 0xAD), (0x34F, 0x34F), (0x600, 0x605), (0x61C, 0x61C), (0x6DD, 0x6DD), (0x70F, 0x70F), (0x115F, 0x1160),
    (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)  # fmt: skip
_ENDS = _BLANK + _UNSEEN
_GONE = dict.fromkeys(map(ord, _UNSEEN))
#: Full stops of other scripts, which part the labels of a domain (RFC 3490).
_DOTS = dict.fromkeys((0x3002, 0xFF0E, 0xFF61), ".")


def address_of(text: str | None) -> str:
    """The address that a user's row has, as it is sent. Raises RenderError where it has none that can be written to."""
    text = text or ""
    address = text.strip(_ENDS)
    if not address:
        raise RenderError("the user has no email address")
    if (
        len(text) > TEXT_CHARACTERS
        or len(address.encode(errors="replace")) > BYTES
        or not address.isprintable()
        or not _ADDRESS.fullmatch(address)
        or "=?" in address
        or not (_is_plain(address) or _is_canonical(address))
    ):
        raise RenderError(f"not an email address: {address[:100]}")
    return address


def folded(text: str) -> str:
    """What an address is compared by: without a display name, in lower case, and all spellings of a mailbox alike."""
    found = _BRACKETS.search(text)
    address = (found[1] if found else text).strip(_ENDS)
    if _is_plain(address):
        return address.lower()
    if len(address) > TEXT_CHARACTERS:
        # It is not sent, and normalising takes quadratic time.
        return address[:TEXT_CHARACTERS]
    for _ in range(5):
        before, address = address, _folded_once(address)
        if address == before:
            break
    return address


def _is_plain(address: str) -> bool:
    return _PLAIN.fullmatch(address) is not None and "xn--" not in address.lower()


def _folded_once(address: str) -> str:
    local, at, domain = normalize("NFKC", _spelled(address).casefold()).rpartition("@")
    if not at:
        return _spelled(domain)
    labels = domain.translate(_DOTS).strip(".").split(".")
    return _spelled(f"{local}@{'.'.join(map(_decoded, labels))}").strip(_ENDS)


def _spelled(address: str) -> str:
    """Without compatibility characters, and without what is not shown."""
    return normalize("NFKC", normalize("NFKC", address).translate(_GONE))


def _decoded(label: str) -> str:
    """A label of a domain in Unicode, where it is written in ASCII (RFC 3492)."""
    if label.startswith("xn--") and label.isascii():
        try:
            decoded = label[4:].encode().decode("punycode")
            decoded.encode()
        except (UnicodeError, ValueError, OverflowError):
            return label
        return decoded
    return label


def _is_canonical(address: str) -> bool:
    """Whether an address that is not plain is spelled so that no other program reads it otherwise than it is folded."""
    domain = address.rpartition("@")[2]
    labels = domain.split(".")
    known = folded(address)
    return (
        _spelled(address) == address
        and domain.translate(_DOTS) == domain
        and all(labels)
        and all(map(_is_canonical_label, labels))
        and len(known.encode()) <= BYTES
        and known.isprintable()
        and _ADDRESS.fullmatch(known) is not None
    )


def _is_canonical_label(label: str) -> bool:
    lower = label.lower()
    if not lower.startswith("xn--"):
        return True
    decoded = _decoded(lower)
    return (
        not decoded.isascii() and _spelled(decoded) == decoded and "xn--" + decoded.encode("punycode").decode() == lower
    )
