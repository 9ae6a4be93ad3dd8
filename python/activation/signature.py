"""Signatures of webhooks, as Svix and Standard Webhooks make them. Pure; checked against the official SDK's verifier.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

#: How far its timestamp may be from now, both ways (seconds): the reference implementation's.
TOLERANCE = 300


class BadSignature(Exception):
    """The text says what is wrong; it holds nothing of a secret."""


def verify(body: str, webhook_id: str, timestamp: str, signatures: str, secrets: Iterable[str], now: float) -> None:
    """Raises BadSignature unless one of the signatures (`v1,… v1,…`) is by one of the secrets, and fresh.

    body: as it came, byte for byte. timestamp: Unix seconds as text. secrets: with or without `whsec_`. now: Unix
    seconds.
    """
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        raise BadSignature("its timestamp is not a number of seconds")
    if abs(now - int(timestamp)) > TOLERANCE:
        raise BadSignature(f"its timestamp is more than {TOLERANCE} s from this server's clock")
    signed = f"{webhook_id}.{timestamp}.{body}".encode()
    given = [part[3:].encode("utf-8", "replace") for part in signatures.split(" ") if part.startswith("v1,")]
    valid = False
    for secret in secrets:
        expected = base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256))
        for signature in given:
            # No early end: how long it takes tells nothing.
            valid |= hmac.compare_digest(expected, signature)
    if not valid:
        raise BadSignature("its signature is by none of the configured secrets")


def _key(secret: str) -> bytes:
    text = secret.removeprefix("whsec_")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise BadSignature("the configured secret is not base64: it is the one that Resend shows, whsec_…") from None
