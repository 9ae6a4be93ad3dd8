"""The connection to PostgreSQL, and the dependencies that need it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine, create_engine, func, make_url, orm, select

from .models import Session, User
from .passwords import hash_token


def connect() -> Engine:
    """The engine for DATABASE_URL, which may be a plain postgresql:// address."""
    url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
    return create_engine(url, pool_pre_ping=True)


def database_session(request: Request) -> Iterator[orm.Session]:
    """A session for one request. The endpoint commits; whatever it did not commit is rolled back."""
    with orm.Session(request.app.state.engine, expire_on_commit=False) as session:
        yield session


Database = Annotated[orm.Session, Depends(database_session)]

_bearer = HTTPBearer(auto_error=False)


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


CurrentUser = Annotated[User, Depends(current_user)]
