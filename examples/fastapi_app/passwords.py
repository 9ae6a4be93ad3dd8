"""Passwords, tokens and keys, with the standard library alone."""

from __future__ import annotations

import hashlib
import hmac
import secrets

_N, _R, _P = 2**14, 8, 5


def hash_password(password: str) -> str:
    """A salted scrypt hash, with its parameters, so that they can be raised later."""
    salt = secrets.token_bytes(16)
    return f"scrypt${_N}${_R}${_P}${salt.hex()}${_scrypt(password, salt, _N, _R, _P).hex()}"


def verify_password(password: str, stored: str) -> bool:
    """Whether this is the password that `hash_password` was given."""
    _, n, r, p, salt, expected = stored.split("$")
    return hmac.compare_digest(_scrypt(password, bytes.fromhex(salt), int(n), int(r), int(p)), bytes.fromhex(expected))


def new_token() -> str:
    """A token or key that nobody can guess."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> bytes:
    """What is stored of a token. It is random, so that a fast hash is enough."""
    return hashlib.sha256(token.encode()).digest()


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r)


# Checked when there is no such user, so that the time an answer takes does not tell whether there is one.
NO_PASSWORD = hash_password(secrets.token_hex())
