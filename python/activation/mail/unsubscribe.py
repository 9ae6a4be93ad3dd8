"""Tokens of unsubscribe links: which enrollment the mail was of, signed. Pure.

They hold no address and no key of a user, and do not expire: a mail may be found again after years.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

_ID, _MAC = 8, 16


def make(key: str, enrollment_id: int) -> str:
    """The token of an enrollment: 32 characters that are safe in a URL."""
    number = enrollment_id.to_bytes(_ID, "big")
    return base64.urlsafe_b64encode(number + _signature(key, number)).decode()


def read(key: str, token: str) -> int | None:
    """The enrollment of a token, or None for whatever make() has not made."""
    try:
        found = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    number, mac = found[:_ID], found[_ID:]
    # One token, one text: what decodes to the same bytes is none.
    if (
        len(found) != _ID + _MAC
        or not hmac.compare_digest(mac, _signature(key, number))
        or make(key, int.from_bytes(number, "big")) != token
    ):
        return None
    return int.from_bytes(number, "big")


def link(public_url: str | None, key: str | None, enrollment_id: int) -> str | None:
    """Where the page is on which somebody leaves; None where none is configured."""
    return f"{public_url.rstrip('/')}/unsubscribe?token={make(key, enrollment_id)}" if public_url and key else None


def _signature(key: str, number: bytes) -> bytes:
    return hmac.digest(key.encode(), b"unsubscribe " + number, hashlib.sha256)[:_MAC]
