"""Who is mailed what, and when."""

from __future__ import annotations

from fastapi.testclient import TestClient

from activation.testing import Activation
from fastapi_app.tests.person import Person


def test_welcomed_with_the_first_project(client: TestClient, activation: Activation) -> None:
    ada = Person(client, "ada")
    activation.later("4 minutes")
    assert activation.emails == []
    ada.post("/projects", name="Engine")
    activation.tick()
    mail = activation.mail(ada.email)
    assert mail.subject == "You are off to a great start"
    assert "Hi Ada," in (mail.text or "") and "http://127.0.0.1:8000/start" in (mail.text or "")
    ada.post("/projects", name="Notes")
    activation.later("30 days")
    assert len(activation.mails(ada.email)) == 1


def test_not_welcomed_when_it_took_longer(client: TestClient, activation: Activation) -> None:
    ada = Person(client, "ada")
    activation.later("6 minutes")
    ada.post("/projects", name="Engine")
    activation.later("30 days")
    assert activation.emails == []


def test_mailed_about_the_first_call(client: TestClient, activation: Activation) -> None:
    ada, bob = Person(client, "ada"), Person(client, "bob")
    key = ada.new_key()
    assert bob.call("guessed").status_code == 401
    activation.tick()
    assert activation.emails == [], "to have a key is no call, and a call without one is nobody's"
    ada.call(key)
    activation.tick()
    mail = activation.mail(ada.email)
    assert mail.subject == "Your API key works" and "Hi Ada," in (mail.text or "")
    ada.call(key)
    activation.later("30 days")
    ada.call(ada.new_key("another"))
    activation.later("30 days")
    assert len(activation.emails) == 1
