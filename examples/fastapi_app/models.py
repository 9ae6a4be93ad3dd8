"""The app's tables."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, DateTime, ForeignKey, Identity, Index, MetaData, Text, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from . import loops

FIRST_PROJECT_CREATED = "first_project_created"
FIRST_API_CALL = "first_api_call"


class Base(DeclarativeBase):
    """All tables of the app. Numbers are bigint, strings are text, and times have a zone."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {int: BigInteger, str: Text, datetime: DateTime(timezone=True)}
    # What autogenerate and `alembic check` compare with the database.
    metadata = MetaData(info={"activation": loops.ALL})


class User(Base):
    """Someone who signed up."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str | None]
    activation_link: Mapped[str]
    invited_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    password_hash: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Session(Base):
    """A login. Only the token's hash is stored, so that a leaked copy of this table opens no door."""

    __tablename__ = "sessions"

    token_hash: Mapped[bytes] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime]


class Project(Base):
    """What a user came for."""

    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Base):
    """What a program calls the API with. Only the key's hash is stored: it is shown once, when it is made."""

    __tablename__ = "api_keys"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    key_hash: Mapped[bytes] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]


class UserAction(Base):
    """Something a user did that somebody may want to know of."""

    __tablename__ = "user_actions"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    action_type: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


Index("user_actions_user_id_action_type_idx", UserAction.user_id, UserAction.action_type)

# There is one first project, also for someone who clicks twice.
Index(
    "user_actions_first_project_key",
    UserAction.user_id,
    unique=True,
    postgresql_where=UserAction.action_type == FIRST_PROJECT_CREATED,
)
