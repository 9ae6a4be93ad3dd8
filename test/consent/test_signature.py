"""Signatures of webhooks against the fixed vector and the official SDK's verifier; tokens against whoever tampers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import pytest

from activation.errors import KeyUnavailable
from activation.mail import unsubscribe
from activation.resend import credentials
from activation.resend.signature import BadSecret, BadSignature, key, verify
from activation.sandbox import signing
from activation.server import entry

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID, AT, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", '{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def signed(body: str, at: str, secret: str = SECRET) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return "v1," + base64.b64encode(hmac.digest(key, f"{ID}.{at}.{body}".encode(), hashlib.sha256)).decode()


KEY, ANOTHER = key(SECRET), b"another key of 24 bytes."


def test_the_published_vector() -> None:
    verify(BODY, ID, AT, SIGNATURE, [KEY], float(AT))
    verify(BODY, ID, AT, f"v2,abc {'v1,' + 'A' * 44} {SIGNATURE}", [ANOTHER, KEY], float(AT) + 300)


@pytest.mark.parametrize("size", [24, 25, 26, 32, 64])
def test_secrets_that_are_good(size: int) -> None:
    """With any padding, or none; Python 3.13 refuses more of it than there should be."""
    raw = bytes(range(size))
    padded = base64.b64encode(raw).decode()
    for secret in (padded, padded.rstrip("="), f"whsec_{padded}", f"whsec_{padded.rstrip('=')}"):
        assert key(secret) == raw
    assert signing.is_secret(f"whsec_{padded}")


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        ("not base64!", "not base64"),
        ("whsec_ü", "not base64"),
        ("whsec_", "0 bytes"),
        ("whsec_AAAA", "3 bytes and needs 24"),
        ("whsec_" + base64.b64encode(b"x" * 23).decode(), "23 bytes and needs 24"),
    ],
)
def test_secrets_that_are_none(secret: str, says: str) -> None:
    with pytest.raises(BadSecret, match=says):
        key(secret)
    assert not signing.is_secret(secret)
    with pytest.raises(KeyUnavailable) as caught:
        credentials.webhook_key("secret:hook", lambda _: secret)
    assert "secret:hook" in str(caught.value) and secret not in str(caught.value).replace("whsec_…", "")


def test_one_of_two_cannot_be_read() -> None:
    """The other is asked; what is wrong with the first is told only where it could have mattered."""

    def problem(references: str, signature: str = SIGNATURE) -> tuple[int, str] | None:
        stored = json.dumps({"good": SECRET, "short": "whsec_AAAA"})
        found = json.loads(entry.webhook_problem(BODY, ID, AT, signature, references, stored, float(AT)) or "null")
        return found and (found["status"], found["problem"])

    for bad in ("secret:gone", "secret:short", "env:NOT_THERE"):
        assert problem(f"{bad} secret:good") is None and problem(f"secret:good {bad}") is None
        said = problem(f"secret:good {bad}", "v1,AAAA")
        assert said and said[0] == 401 and bad.partition(":")[2] in said[1]
        said = problem(bad)
        assert said and said[0] == 503 and bad.partition(":")[2] in said[1]
    said = problem("secret:gone secret:short")
    assert said and said[0] == 503 and "gone" in said[1] and "short" in said[1]
    assert problem("") == (503, "no webhook_secret is configured")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"body": BODY + " "}, "by none"),
        ({"webhook_id": "msg_2"}, "by none"),
        ({"timestamp": "1614265331"}, "by none"),
        ({"signatures": SIGNATURE.replace("v1,", "v2,")}, "by none"),
        ({"signatures": SIGNATURE[:-2]}, "by none"),
        ({"signatures": ""}, "by none"),
        ({"signatures": "v1,ü"}, "by none"),
        ({"keys": [ANOTHER]}, "by none"),
        ({"keys": []}, "by none"),
        ({"now": float(AT) + 301}, "more than 300 s"),
        ({"now": float(AT) - 301}, "more than 300 s"),
        ({"timestamp": "soon"}, "not a number"),
        ({"timestamp": "1614265330.5"}, "not a number"),
        ({"timestamp": "9" * 400}, "not a number"),
    ],
)
def test_what_is_refused(change: dict[str, object], says: str) -> None:
    given = {
        "body": BODY,
        "webhook_id": ID,
        "timestamp": AT,
        "signatures": SIGNATURE,
        "keys": [KEY],
        "now": float(AT),
    }
    with pytest.raises(BadSignature, match=says):
        verify(**{**given, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("body", ['{"a": "ü€😀"}', "{}", '{"type":"email.sent"}\n'])
def test_as_the_official_sdk(body: str) -> None:
    import resend

    at = str(int(time.time()))
    resend.Webhooks.verify(
        {
            "payload": body,
            "headers": {"id": ID, "timestamp": at, "signature": signed(body, at)},
            "webhook_secret": SECRET,
        }
    )
    verify(body, ID, at, signed(body, at), [KEY], time.time())


def test_tokens() -> None:
    token = unsubscribe.make("key", 42)
    assert len(token) == 32 and unsubscribe.read("key", token) == 42
    assert unsubscribe.read("another", token) is None
    last = "B" if token[-1] == "A" else "A"
    for forged in (
        "",
        "a",
        token[:-1],
        token + "=",
        token + token,
        token[:-1] + last,
        token.swapcase(),
        token + "\n",
        "ü" * 32,
        "=" * 32,
    ):
        assert unsubscribe.read("key", forged) is None, forged
    assert unsubscribe.read("key", unsubscribe.make("key", 2**62)) == 2**62
    assert unsubscribe.link(None, "key", 1) is None and unsubscribe.link("https://acme.dev/", None, 1) is None
    assert unsubscribe.link("https://acme.dev/a/", "key", 42) == f"https://acme.dev/a/unsubscribe?token={token}"
