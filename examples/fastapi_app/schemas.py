"""What the API takes and gives."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Email = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True,
        to_lower=True,
        max_length=254,
        pattern=r"^[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+\.[^@\s\x00-\x1f]+$",
    ),
]
# One line: no control characters.
Name = Annotated[str, StringConstraints(strip_whitespace=True, max_length=100, pattern=r"^[^\x00-\x1f]+$")]
# Long enough to be safe, short enough to be hashed.
Password = Annotated[str, Field(min_length=8, max_length=200)]


class SignupIn(BaseModel):
    """A new account."""

    email: Email
    password: Password
    name: Name | None = None


class LoginIn(BaseModel):
    """Who wants to log in."""

    email: Email
    password: Password


class ProjectIn(BaseModel):
    """A new project."""

    name: Name


class ApiKeyIn(BaseModel):
    """A new API key."""

    name: Name


class UserOut(BaseModel):
    """An account, without its secrets."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    name: str | None
    created_at: datetime


class TokenOut(BaseModel):
    """What to send as `Authorization: Bearer …`."""

    access_token: str
    token_type: str = "bearer"


class ProjectOut(BaseModel):
    """A project."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    created_at: datetime


class ApiKeyOut(BaseModel):
    """An API key, without the key."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    created_at: datetime
    revoked_at: datetime | None


class NewApiKeyOut(ApiKeyOut):
    """A new API key: the only answer that has the key itself, to be sent as `X-API-Key: …`."""

    key: str
