"""How webhooks are signed, from the text of Standard Webhooks. It shares nothing with the code that checks signatures:
tests of one against the other find the mistakes of both.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac

_PREFIX = "whsec_"

#: The shortest key, in bytes: the standard's.
_SHORTEST = 24


def is_secret(text: str) -> bool:
    """Whether it is a secret as Resend shows it: `whsec_` and the base64 of a key that is long enough."""
    try:
        key = _key(text)
    except ValueError:
        return False
    return text.startswith(_PREFIX) and len(key) >= _SHORTEST


def signature(secret: str, event_id: str, timestamp: str, body: bytes) -> str:
    """The signature of one event, as its header has it."""
    signed = b".".join((event_id.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode()


def _key(secret: str) -> bytes:
    text = secret.removeprefix(_PREFIX).rstrip("=")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
