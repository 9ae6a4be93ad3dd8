"""Who is calling: a person with the token of a login, or a program with an API key."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import func, select

from .database import Database
from .models import FIRST_API_CALL, ApiKey, Session, User
from .passwords import hash_token

_bearer = HTTPBearer(auto_error=False)
_key = APIKeyHeader(name="X-API-Key", auto_error=False)


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


def api_user(database: Database, key: Annotated[str | None, Depends(_key)]) -> User:
    """Whose API key it is."""
    if key is not None:
        user = database.scalar(
            select(User)
            .join(ApiKey, ApiKey.user_id == User.id)
            .where(ApiKey.key_hash == hash_token(key), ApiKey.revoked_at.is_(None))
        )
        if user is not None:
            # No table tells of a call; what comes of it is the loop first_api_call.
            database.execute(select(func.activation.track(str(user.id), FIRST_API_CALL)))
            database.commit()
            return user
    raise HTTPException(401, "This takes an API key", headers={"WWW-Authenticate": "X-API-Key"})


CurrentUser = Annotated[User, Depends(current_user)]
ApiUser = Annotated[User, Depends(api_user)]
