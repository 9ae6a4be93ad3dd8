"""The app on a throwaway database, as its own role, with a sandbox in Resend's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient
from sqlalchemy import make_url

# Where activation[testing] is installed, pytest has these fixtures by itself.
from activation.testing import Activation, activation, activation_database, activation_server  # noqa: F401
from fastapi_app import passwords
from fastapi_app.main import app


@pytest.fixture(scope="session")
def migrations() -> Config:
    """As `alembic -c fastapi_app/alembic.ini` has them."""
    return Config(Path(__file__).parents[1] / "alembic.ini")


@pytest.fixture(scope="session")
def activation_schema(migrations: Config) -> Callable[[str], None]:
    """What the tests' databases are copies of: all migrations."""

    def prepare(url: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_URL", url)
            command.upgrade(migrations, "head")

    return prepare


@pytest.fixture
def client(activation: Activation, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:  # noqa: F811
    """The running app."""
    url = make_url(activation.url).set(username="example_app")
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    # Hashes that are weak, and quick.
    monkeypatch.setattr(passwords, "_N", 16)
    # The middleware remembers of whom it has told; this test's users are others.
    app.middleware_stack = None
    with TestClient(app) as running:
        yield running
