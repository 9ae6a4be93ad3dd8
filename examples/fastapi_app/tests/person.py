"""Somebody who uses the app."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient
from httpx2 import Response

from fastapi_app.main import tracker

PASSWORD = "correct horse battery staple"


class Person:
    """Signed up and logged in."""

    def __init__(self, client: TestClient, name: str) -> None:
        self.client = client
        self.email = f"{name}@acme.test"
        credentials = {"email": self.email, "password": PASSWORD}
        self.account: dict[str, Any] = client.post("/signup", json={**credentials, "name": name.title()}).json()
        self.token: str = client.post("/login", json=credentials).json()["access_token"]
        self._login = {"Authorization": f"Bearer {self.token}"}

    def get(self, path: str) -> Response:
        """Read something."""
        return self.client.get(path, headers=self._login)

    def post(self, path: str, **body: str) -> Response:
        """Make something."""
        return self.client.post(path, json=body, headers=self._login)

    def delete(self, path: str) -> Response:
        """Remove something."""
        return self.client.delete(path, headers=self._login)

    def new_key(self, name: str = "a key") -> str:
        """A new API key."""
        key: str = self.post("/api-keys", name=name).json()["key"]
        return key

    def call(self, key: str) -> Response:
        """Call the API with a key, as a program does; what is told of it has been told."""
        answer = self.client.get("/v1/projects", headers={"X-API-Key": key})
        assert self.client.portal is not None
        self.client.portal.call(tracker.close)
        return answer
