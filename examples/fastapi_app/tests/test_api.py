"""What the API promises: accounts, projects and keys."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from activation.testing import Activation
from fastapi_app.tests.person import PASSWORD, Person


def test_signup_and_login(client: TestClient) -> None:
    ada = Person(client, "ada")
    assert ada.account["email"] == "ada@acme.test" and "password_hash" not in ada.account
    again = client.post("/signup", json={"email": " ADA@acme.test", "password": PASSWORD})
    assert again.status_code == 409
    for email, password in (("ada@acme.test", "something else"), ("bob@acme.test", PASSWORD)):
        assert client.post("/login", json={"email": email, "password": password}).status_code == 401
    assert client.get("/projects").status_code == 401
    assert client.get("/projects", headers={"Authorization": "Bearer guessed"}).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {"email": "ada", "password": PASSWORD},
        {"email": "ada@acme.test\nBcc: all@acme.test", "password": PASSWORD},
        {"email": "ada@acme.test", "password": "short"},
        {"email": "ada@acme.test", "password": PASSWORD, "name": "Ada\x00"},
    ],
)
def test_no_account(client: TestClient, activation: Activation, body: dict[str, Any]) -> None:
    assert client.post("/signup", json=body).status_code == 422
    assert activation.sql("SELECT * FROM users") == []


def test_a_session_ends(client: TestClient, activation: Activation) -> None:
    ada = Person(client, "ada")
    assert ada.get("/projects").status_code == 200
    activation.sql("UPDATE sessions SET expires_at = now()")
    assert ada.get("/projects").status_code == 401


def test_projects_are_ones_own(client: TestClient, activation: Activation) -> None:
    ada, bob = Person(client, "ada"), Person(client, "bob")
    for name in ("Engine", "Notes"):
        assert ada.post("/projects", name=name).status_code == 201
    assert [project["name"] for project in ada.get("/projects").json()] == ["Engine", "Notes"]
    assert bob.get("/projects").json() == []
    assert bob.post("/projects", name="  ").status_code == 422
    first = activation.sql("SELECT user_id, action_type FROM user_actions")
    assert first == [(ada.account["id"], "first_project_created")]


def test_a_key_opens_the_api(client: TestClient) -> None:
    ada, bob = Person(client, "ada"), Person(client, "bob")
    ada.post("/projects", name="Engine")
    assert [project["name"] for project in ada.call(ada.new_key()).json()] == ["Engine"]
    assert bob.call(bob.new_key()).json() == []


def test_what_is_no_key_opens_nothing(client: TestClient) -> None:
    ada = Person(client, "ada")
    assert client.get("/v1/projects").status_code == 401
    assert ada.call("guessed").status_code == 401
    assert ada.call(ada.token).status_code == 401, "a login is no key"
    key = ada.new_key()
    assert client.get("/projects", headers={"Authorization": f"Bearer {key}"}).status_code == 401, "a key is no login"


def test_a_key_is_shown_once(client: TestClient, activation: Activation) -> None:
    ada = Person(client, "ada")
    key = ada.new_key("laptop")
    (listed,) = ada.get("/api-keys").json()
    assert listed["name"] == "laptop" and listed["revoked_at"] is None and "key" not in listed
    ((stored, hashed),) = activation.sql("SELECT api_keys::text, length(key_hash) FROM api_keys")
    assert hashed == 32 and key not in stored and key.encode().hex() not in stored


def test_a_revoked_key_opens_nothing(client: TestClient) -> None:
    ada = Person(client, "ada")
    kept, revoked = ada.new_key("kept"), ada.new_key("revoked")
    number = ada.get("/api-keys").json()[1]["id"]
    assert ada.delete(f"/api-keys/{number}").status_code == 204
    assert ada.call(revoked).status_code == 401 and ada.call(kept).status_code == 200
    assert [bool(key["revoked_at"]) for key in ada.get("/api-keys").json()] == [False, True]
    assert ada.delete(f"/api-keys/{number}").status_code == 404, "it is revoked already"


def test_a_key_is_revoked_by_whose_it_is(client: TestClient) -> None:
    ada, bob = Person(client, "ada"), Person(client, "bob")
    key = ada.new_key()
    (listed,) = ada.get("/api-keys").json()
    assert bob.get("/api-keys").json() == []
    assert bob.delete(f"/api-keys/{listed['id']}").status_code == 404
    assert client.delete(f"/api-keys/{listed['id']}").status_code == 401
    assert ada.delete("/api-keys/9223372036854775808").status_code == 422
    assert ada.call(key).status_code == 200
