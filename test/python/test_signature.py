"""Signatures of webhooks against the fixed vector and the official SDK's verifier; tokens against whoever tampers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

import pytest

from activation import tokens
from activation.signature import BadSignature, verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID, AT, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", '{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def signed(body: str, at: str, secret: str = SECRET) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return "v1," + base64.b64encode(hmac.digest(key, f"{ID}.{at}.{body}".encode(), hashlib.sha256)).decode()


def test_the_published_vector() -> None:
    verify(BODY, ID, AT, SIGNATURE, [SECRET], float(AT))
    verify(BODY, ID, AT, f"v2,abc {'v1,' + 'A' * 44} {SIGNATURE}", ["whsec_AAAA", SECRET], float(AT) + 300)


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
        ({"secrets": ["whsec_AAAA"]}, "by none"),
        ({"secrets": []}, "by none"),
        ({"secrets": ["not base64!"]}, "is not base64"),
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
        "secrets": [SECRET],
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
    verify(body, ID, at, signed(body, at), [SECRET], time.time())


def test_tokens() -> None:
    token = tokens.make("key", 42)
    assert len(token) == 32 and tokens.read("key", token) == 42
    assert tokens.read("another", token) is None
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
        assert tokens.read("key", forged) is None, forged
    assert tokens.read("key", tokens.make("key", 2**62)) == 2**62
    assert tokens.link(None, "key", 1) is None and tokens.link("https://acme.dev/", None, 1) is None
    assert tokens.link("https://acme.dev/a/", "key", 42) == f"https://acme.dev/a/unsubscribe?token={token}"
