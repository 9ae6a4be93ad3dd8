"""Signatures of webhooks, as Svix and Standard Webhooks make them. Pure; checked against the official SDK's verifier.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable

#: The shortest key that is believed, in bytes: the standard's. A shorter one could be found by trying.
SHORTEST_KEY = 24

#: How far its timestamp may be from now, both ways (seconds): the reference implementation's.
TOLERANCE = 300


class BadSignature(Exception):
    """The text says what is wrong; it holds nothing of a secret."""


class BadSecret(Exception):
    """The text says what is wrong; it holds nothing of the secret."""


def key(secret: str) -> bytes:
    """The key that a secret stands for. secret: base64, with or without `whsec_` and padding. Raises BadSecret."""
    text = secret.removeprefix("whsec_").rstrip("=")
    try:
        # Exactly the padding that it lacks: more of it is refused since Python 3.13.
        found = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise BadSecret("it is not base64") from None
    if len(found) < SHORTEST_KEY:
        raise BadSecret(f"its key has {len(found)} bytes and needs {SHORTEST_KEY}")
    return found


def verify(body: str, webhook_id: str, timestamp: str, signatures: str, keys: Iterable[bytes], now: float) -> None:
    """Raises BadSignature unless one of the signatures (`v1,… v1,…`) is by one of the keys, and fresh.

    body: as it came, byte for byte. timestamp: Unix seconds as text. now: Unix seconds.
    """
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        raise BadSignature("its timestamp is not a number of seconds")
    if abs(now - int(timestamp)) > TOLERANCE:
        raise BadSignature(f"its timestamp is more than {TOLERANCE} s from this server's clock")
    signed = f"{webhook_id}.{timestamp}.{body}".encode()
    given = [part[3:].encode("utf-8", "replace") for part in signatures.split(" ") if part.startswith("v1,")]
    valid = False
    for known in keys:
        expected = base64.b64encode(hmac.digest(known, signed, hashlib.sha256))
        for signature in given:
            # No early end: how long it takes tells nothing.
            valid |= hmac.compare_digest(expected, signature)
    if not valid:
        raise BadSignature("its signature is by none of the configured secrets")
