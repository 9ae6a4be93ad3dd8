"""API keys: make one, see which there are, revoke one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path
from sqlalchemy import func, select, update

from .auth import CurrentUser
from .database import Database
from .models import ApiKey
from .passwords import hash_token, new_token
from .schemas import ApiKeyIn, ApiKeyOut, NewApiKeyOut

router = APIRouter(prefix="/api-keys", tags=["API keys"])


@router.post("", status_code=201)
def create_api_key(body: ApiKeyIn, user: CurrentUser, database: Database) -> NewApiKeyOut:
    """Make a key. It is in this answer and never again."""
    key = new_token()
    made = ApiKey(user_id=user.id, name=body.name, key_hash=hash_token(key))
    database.add(made)
    database.commit()
    return NewApiKeyOut(**ApiKeyOut.model_validate(made).model_dump(), key=key)


@router.get("", response_model=list[ApiKeyOut])
def list_api_keys(user: CurrentUser, database: Database) -> Sequence[ApiKey]:
    """The user's keys, oldest first, also those that are revoked."""
    return database.scalars(select(ApiKey).where(ApiKey.user_id == user.id).order_by(ApiKey.id)).all()


@router.delete("/{key_id}", status_code=204)
def revoke_api_key(key_id: Annotated[int, Path(ge=1, lt=2**63)], user: CurrentUser, database: Database) -> None:
    """Revoke a key: from now on it opens nothing."""
    mine = (ApiKey.id == key_id, ApiKey.user_id == user.id, ApiKey.revoked_at.is_(None))
    revoked = database.scalar(update(ApiKey).where(*mine).values(revoked_at=func.now()).returning(ApiKey.id))
    if revoked is None:
        raise HTTPException(404, "There is no such key")
    database.commit()
