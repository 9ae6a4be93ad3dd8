"""The API: signup, login, projects."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from fastapi import FastAPI, HTTPException
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from . import mail
from .database import CurrentUser, Database, connect
from .models import FIRST_PROJECT_CREATED, Project, Session, User, UserAction
from .passwords import NO_PASSWORD, hash_password, hash_token, new_token, verify_password
from .schemas import LoginIn, ProjectIn, ProjectOut, SignupIn, TokenOut, UserOut


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect when the app starts, hang up when it ends."""
    app.state.engine = connect()
    yield
    app.state.engine.dispose()


app = FastAPI(title="Example app", lifespan=lifespan)
app.include_router(mail.router)


@app.get("/")
def health(database: Database) -> dict[str, str]:
    """Whether the app can reach its database."""
    database.execute(select(1))
    return {"status": "ok"}


@app.post("/signup", status_code=201, response_model=UserOut)
def signup(body: SignupIn, database: Database) -> User:
    """Create an account. This INSERT is what starts the loop."""
    user = User(
        email=body.email,
        name=body.name,
        # This app has no pages of its own; its interactive documentation stands in for the first one.
        activation_link=os.environ.get("APP_URL", "http://127.0.0.1:8000") + "/docs",
        password_hash=hash_password(body.password),
    )
    database.add(user)
    try:
        database.commit()
    except IntegrityError as error:
        raise HTTPException(409, "There is an account with this email already") from error
    return user


@app.post("/login")
def login(body: LoginIn, database: Database) -> TokenOut:
    """Trade email and password for a token, to be sent as `Authorization: Bearer …`."""
    user = database.scalar(select(User).where(User.email == body.email))
    if not verify_password(body.password, user.password_hash if user else NO_PASSWORD) or user is None:
        raise HTTPException(401, "Wrong email or password")
    token = new_token()
    database.add(Session(token_hash=hash_token(token), user_id=user.id, expires_at=func.now() + timedelta(days=14)))
    database.commit()
    return TokenOut(access_token=token)


@app.post("/projects", status_code=201, response_model=ProjectOut)
def create_project(body: ProjectIn, user: CurrentUser, database: Database) -> Project:
    """Create a project. The first one is also an action, written in the same transaction: both stand, or neither."""
    project = Project(owner_id=user.id, name=body.name)
    database.add(project)
    database.execute(
        insert(UserAction)
        .values(user_id=user.id, action_type=FIRST_PROJECT_CREATED)
        .on_conflict_do_nothing(
            index_elements=[UserAction.user_id], index_where=UserAction.action_type == FIRST_PROJECT_CREATED
        )
    )
    database.commit()
    return project


@app.get("/projects", response_model=list[ProjectOut])
def list_projects(user: CurrentUser, database: Database) -> Sequence[Project]:
    """The user's own projects, oldest first."""
    return database.scalars(select(Project).where(Project.owner_id == user.id).order_by(Project.id)).all()
