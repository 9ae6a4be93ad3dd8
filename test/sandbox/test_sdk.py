"""Resend's own Python SDK against the sandbox: a real client, our server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import resend
from resend.exceptions import (
    InvalidApiKeyError,
    MissingRequiredFieldsError,
    RateLimitError,
    ResendError,
    ValidationError,
)

from activation.sandbox import Sandbox

MAIL: resend.Emails.SendParams = {
    "from": "Acme <hello@acme.dev>",
    "to": ["ada@lovelace.dev"],
    "subject": "Welcome",
    "html": "<p>Hello</p>",
    "tags": [{"name": "loop", "value": "first_project"}],
    "headers": {"List-Unsubscribe": "<https://acme.dev/u>"},
}


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox() as server:
        monkeypatch.setattr(resend, "api_url", server.url)
        monkeypatch.setattr(resend, "api_key", "re_123")
        yield server


def mail_to(*recipients: str) -> resend.Emails.SendParams:
    return {**MAIL, "to": list(recipients)}


def test_send_and_get(sandbox: Sandbox) -> None:
    sent = resend.Emails.send(MAIL)
    [email] = sandbox.emails
    assert email.id == sent["id"]
    assert (email.sender, email.to, email.subject) == ("Acme <hello@acme.dev>", ["ada@lovelace.dev"], "Welcome")
    assert (email.html, email.text) == ("<p>Hello</p>", None)
    assert email.tags == {"loop": "first_project"}
    assert email.headers == {"List-Unsubscribe": "<https://acme.dev/u>"}
    got = resend.Emails.get(email.id)
    assert (got["id"], got["to"], got["last_event"]) == (email.id, ["ada@lovelace.dev"], "delivered")


def test_list_pages_through_all_emails(sandbox: Sandbox) -> None:
    ids = [resend.Emails.send(MAIL)["id"] for _ in range(5)]
    first = resend.Emails.list({"limit": 2})
    assert [email["id"] for email in first["data"]] == [ids[4], ids[3]] and first["has_more"]
    rest = resend.Emails.list({"limit": 10, "after": ids[3]})
    assert [email["id"] for email in rest["data"]] == [ids[2], ids[1], ids[0]] and not rest["has_more"]
    back = resend.Emails.list({"limit": 10, "before": ids[3]})
    assert [email["id"] for email in back["data"]] == [ids[4]]


def test_batch_keeps_the_order(sandbox: Sandbox) -> None:
    answer = resend.Batch.send([mail_to(f"u{n}@acme.dev") for n in range(100)])
    assert [email.id for email in sandbox.emails] == [item["id"] for item in answer["data"]]
    assert [email.to for email in sandbox.emails] == [[f"u{n}@acme.dev"] for n in range(100)]
    assert [email.index for email in sandbox.emails] == list(range(100))


def test_permissive_batch_names_the_bad_ones(sandbox: Sandbox) -> None:
    mails = [mail_to("a@acme.dev"), mail_to("nobody"), mail_to("c@acme.dev")]
    answer = resend.Batch.send(mails, {"batch_validation": "permissive"})
    assert [error["index"] for error in answer["errors"]] == [1]
    assert [(email.to, email.index) for email in sandbox.emails] == [(["a@acme.dev"], 0), (["c@acme.dev"], 2)]


def test_idempotency_key(sandbox: Sandbox) -> None:
    first = resend.Emails.send(MAIL, {"idempotency_key": "welcome/1"})
    again = resend.Emails.send(MAIL, {"idempotency_key": "welcome/1"})
    assert first["id"] == again["id"] and len(sandbox.emails) == 1
    with pytest.raises(ResendError) as caught:
        resend.Emails.send(mail_to("other@acme.dev"), {"idempotency_key": "welcome/1"})
    assert (caught.value.code, caught.value.error_type) == (409, "invalid_idempotent_request")
    batch = resend.Batch.send([MAIL], {"idempotency_key": "welcome/1"})
    assert batch["data"][0]["id"] != first["id"], "a key belongs to one endpoint"
    assert resend.Batch.send([MAIL], {"idempotency_key": "welcome/1"})["data"] == batch["data"]
    assert len(sandbox.emails) == 2


def test_errors_are_those_the_sdk_knows(sandbox: Sandbox) -> None:
    with pytest.raises(MissingRequiredFieldsError, match="`subject`"):
        resend.Emails.send({"from": "a@acme.dev", "to": "b@acme.dev", "text": "x"})
    with pytest.raises(ValidationError, match="`to`"):
        resend.Emails.send(mail_to("nobody"))
    sandbox.configure(api_keys=["re_other"])
    with pytest.raises(InvalidApiKeyError):
        resend.Emails.send(MAIL)
    sandbox.configure(api_keys=None)
    sandbox.fail("status", status=429, name="daily_quota_exceeded", headers={"retry-after": "3"})
    with pytest.raises(RateLimitError) as caught:
        resend.Emails.send(MAIL)
    assert caught.value.error_type == "daily_quota_exceeded" and caught.value.headers["retry-after"] == "3"
    sandbox.fail("html", status=503)
    with pytest.raises(ResendError) as no_json:
        resend.Emails.send(MAIL)
    assert (no_json.value.code, no_json.value.error_type) == (503, "application_error")
    assert sandbox.emails == []
