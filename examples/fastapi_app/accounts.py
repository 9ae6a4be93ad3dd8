"""Signing up and logging in."""

from __future__ import annotations

import os
from datetime import timedelta

from fastapi import APIRouter, HTTPException
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from .database import Database
from .models import Session, User
from .passwords import NO_PASSWORD, hash_password, hash_token, new_token, verify_password
from .schemas import LoginIn, SignupIn, TokenOut, UserOut

router = APIRouter(tags=["accounts"])


@router.post("/signup", status_code=201, response_model=UserOut)
def signup(body: SignupIn, database: Database) -> User:
    """Create an account. This INSERT is what starts the loop."""
    user = User(
        email=body.email,
        name=body.name,
        activation_link=os.environ.get("APP_URL", "http://127.0.0.1:8000") + "/start",
        password_hash=hash_password(body.password),
    )
    database.add(user)
    try:
        database.commit()
    except IntegrityError as error:
        raise HTTPException(409, "There is an account with this email already") from error
    return user


@router.post("/login")
def login(body: LoginIn, database: Database) -> TokenOut:
    """Trade email and password for a token, to be sent as `Authorization: Bearer …`."""
    user = database.scalar(select(User).where(User.email == body.email))
    if not verify_password(body.password, user.password_hash if user else NO_PASSWORD) or user is None:
        raise HTTPException(401, "Wrong email or password")
    token = new_token()
    database.add(Session(token_hash=hash_token(token), user_id=user.id, expires_at=func.now() + timedelta(days=14)))
    database.commit()
    return TokenOut(access_token=token)
