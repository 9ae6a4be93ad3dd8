"""What people click in their mails, what Resend posts, and what operators look at: activation's pages, in this app."""

from __future__ import annotations

import base64
import hmac
import json
import time
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient

from activation.testing import Activation
from fastapi_app.tests.person import Person

KEY = b"the webhook's secret, as Resend shows it"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
SUBSCRIBED = "SELECT bool_or(subscribed) FROM activation.preferences(%s)"


def unsubscribe_link(activation: Activation, person: Person) -> str:
    """The link in the mail's header, at the app."""
    headers = activation.mail(person.email).as_json()["headers"]
    assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    link = urlsplit(headers["List-Unsubscribe"].strip("<>"))
    return f"{link.path}?{link.query}"


def test_one_click(client: TestClient, activation: Activation) -> None:
    ada = Person(client, "ada")
    ada.post("/projects", name="Engine")
    activation.tick()
    link = unsubscribe_link(activation, ada)
    user = [str(ada.account["id"])]
    assert client.get(link).status_code == 200
    assert activation.sql(SUBSCRIBED, user) == [(True,)], "to look changes nothing"
    assert client.post(link, data={"List-Unsubscribe": "One-Click"}).status_code == 200
    assert activation.sql(SUBSCRIBED, user) == [(False,)]
    ada.call(ada.new_key())
    assert activation.sql("SELECT event FROM activation.event") == [("first_api_call",)]
    activation.later("1 day")
    assert len(activation.mails(ada.email)) == 1


def test_a_token_that_is_none(client: TestClient) -> None:
    for method in ("GET", "POST"):
        assert client.request(method, "/activation/unsubscribe", params={"token": "<script>"}).status_code == 200


def test_a_bounce_comes_back(client: TestClient, activation: Activation) -> None:
    ada = Person(client, "ada")
    ada.post("/projects", name="Engine")
    activation.tick()
    activation.mail(ada.email)
    activation.sql("SELECT activation.set_secret('hook', %s)", [SECRET])
    activation.sql("SELECT activation.configure(webhook_secret => 'secret:hook')")
    ((message,),) = activation.sql("SELECT message_id::text FROM activation.message_log")
    told = {"to": [ada.email], "tags": {"activation_message": message}, "bounce": {"type": "Permanent"}}
    body = json.dumps({"type": "email.bounced", "created_at": "2026-01-01T09:00:00Z", "data": told})
    for key, status, suppressed in ((b"somebody else's", 401, []), (KEY, 204, [(ada.email,)])):
        answer = client.post("/activation/webhooks", content=body, headers=signed(body, key))
        assert answer.status_code == status, answer.text
        assert activation.sql("SELECT address FROM activation.suppression") == suppressed


def test_the_dashboard_is_for_operators(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = Person(client, "ada")
    timeline = f"/activation/people/{ada.account['id']}"
    for password in ("", "secret"):
        assert client.get("/activation/", auth=("me", password)).status_code == 401, "there is no password"
    monkeypatch.setenv("OPERATOR_PASSWORD", "secret")
    for path in ("/activation/", timeline):
        assert client.get(path).status_code == 401
        assert client.get(path, auth=("me", "guessed")).status_code == 401
        assert ada.get(path).status_code == 401
        answer = client.get(path, auth=("me", "secret"))
        assert answer.status_code == 200 and "first_project" in answer.text


def signed(body: str, key: bytes) -> dict[str, str]:
    """The headers that Resend sends along."""
    stamp = str(int(time.time()))
    signature = base64.b64encode(hmac.digest(key, f"msg_1.{stamp}.{body}".encode(), "sha256")).decode()
    return {"svix-id": "msg_1", "svix-timestamp": stamp, "svix-signature": f"v1,{signature}"}
