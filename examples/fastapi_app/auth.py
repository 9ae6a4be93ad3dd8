"""Who is calling: a person with the token of a login, a program with an API key, or an operator with a password."""

from __future__ import annotations

import hmac
import os
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import (
    APIKeyHeader,
    HTTPAuthorizationCredentials,
    HTTPBasic,
    HTTPBasicCredentials,
    HTTPBearer,
)
from sqlalchemy import func, select

from .database import Database
from .models import ApiKey, Session, User
from .passwords import hash_token

_bearer = HTTPBearer(auto_error=False)
_key = APIKeyHeader(name="X-API-Key", auto_error=False)
_basic = HTTPBasic()


def current_user(
    database: Database, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> User:
    """Who the bearer token belongs to."""
    if credentials is not None:
        user = database.scalar(
            select(User)
            .join(Session, Session.user_id == User.id)
            .where(Session.token_hash == hash_token(credentials.credentials), Session.expires_at > func.now())
        )
        if user is not None:
            return user
    raise HTTPException(401, "Log in first", headers={"WWW-Authenticate": "Bearer"})


def api_user(request: Request, database: Database, key: Annotated[str | None, Depends(_key)]) -> User:
    """Whose API key it is."""
    if key is not None:
        user = database.scalar(
            select(User)
            .join(ApiKey, ApiKey.user_id == User.id)
            .where(ApiKey.key_hash == hash_token(key), ApiKey.revoked_at.is_(None))
        )
        if user is not None:
            # For the middleware in main.py, which tells of the first call.
            request.state.user_id = user.id
            return user
    raise HTTPException(401, "This takes an API key", headers={"WWW-Authenticate": "X-API-Key"})


def require_operator(credentials: Annotated[HTTPBasicCredentials, Depends(_basic)]) -> None:
    """Let in whoever knows OPERATOR_PASSWORD, which browsers ask for; nobody where it is not set."""
    expected = os.environ.get("OPERATOR_PASSWORD", "")
    if not expected or not hmac.compare_digest(credentials.password.encode(), expected.encode()):
        raise HTTPException(401, "This is for operators", headers={"WWW-Authenticate": "Basic"})


CurrentUser = Annotated[User, Depends(current_user)]
ApiUser = Annotated[User, Depends(api_user)]
