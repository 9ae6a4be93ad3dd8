"""Where secrets come from: references, never literals. `env:NAME`, `file:/path`, `secret:name`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from activation.errors import KeyUnavailable
from activation.resend import signature

_REFERENCE = re.compile(r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+|secret:.+)$")


def is_reference(text: str) -> bool:
    """Whether a setting is a reference to a secret; anything else may be a secret itself and is never repeated."""
    return bool(_REFERENCE.match(text))


def resolve(reference: str | None, stored: Callable[[str], str | None]) -> str:
    """The secret that a reference leads to.

    stored: looks up what set_secret() stored under a name. Raises KeyUnavailable, whose text names the reference only.
    """
    if not reference:
        raise KeyUnavailable("no api_key is configured")
    kind, _, where = reference.partition(":")
    if kind == "env":
        secret = os.environ.get(where)
        if secret is None:
            raise KeyUnavailable(f"environment variable {where} is not set for the server")
    elif kind == "file":
        try:
            secret = Path(where).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise KeyUnavailable(f"file {where} cannot be read by the server: {reason}") from None
    else:
        found = stored(where)
        if found is None:
            raise KeyUnavailable(f"no secret is stored under the name {where}")
        secret = found
    secret = secret.strip()
    # A stray byte would make the HTTP library quote the whole header in its error.
    if not secret or not re.fullmatch(r"[\x21-\x7e]+", secret):
        raise KeyUnavailable(f"what {reference} leads to is empty or not a key")
    return secret


def webhook_key(reference: str | None, stored: Callable[[str], str | None]) -> bytes:
    """The key that signs webhooks, from the secret that a reference leads to. As resolve()."""
    try:
        return signature.key(resolve(reference, stored))
    except signature.BadSecret as problem:
        raise KeyUnavailable(
            f"what {reference} leads to is no webhook secret, as Resend shows it (whsec_…): {problem}"
        ) from None
