"""The connection to PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine, create_engine, make_url, orm


def connect() -> Engine:
    """The engine for DATABASE_URL, which may be a plain postgresql:// address."""
    url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
    return create_engine(url, pool_pre_ping=True)


def database_session(request: Request) -> Iterator[orm.Session]:
    """A session for one request. The endpoint commits; whatever it did not commit is rolled back."""
    with orm.Session(request.app.state.engine, expire_on_commit=False) as session:
        yield session


Database = Annotated[orm.Session, Depends(database_session)]
