"""The app's tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "users",
        _key(),
        sa.Column("email", sa.Text, nullable=False, unique=True),
        sa.Column("name", sa.Text),
        sa.Column("activation_link", sa.Text, nullable=False),
        sa.Column("invited_by", sa.BigInteger, sa.ForeignKey("users.id", ondelete="SET NULL")),
        sa.Column("password_hash", sa.Text, nullable=False),
        _created_at(),
    )
    op.create_table(
        "sessions",
        sa.Column("token_hash", sa.LargeBinary, primary_key=True),
        _user("user_id", index=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "projects",
        _key(),
        _user("owner_id", index=True),
        sa.Column("name", sa.Text, nullable=False),
        _created_at(),
    )
    op.create_table(
        "api_keys",
        _key(),
        _user("user_id", index=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("key_hash", sa.LargeBinary, nullable=False, unique=True),
        _created_at(),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "user_actions",
        _key(),
        _user("user_id"),
        sa.Column("action_type", sa.Text, nullable=False),
        _created_at(),
    )
    op.create_index("user_actions_user_id_action_type_idx", "user_actions", ["user_id", "action_type"])
    op.create_index(
        "user_actions_first_project_key",
        "user_actions",
        ["user_id"],
        unique=True,
        postgresql_where=sa.text("action_type = 'first_project_created'"),
    )


def downgrade() -> None:
    # CASCADE: the condition of a loop that is archived still hangs on them.
    op.execute("DROP TABLE user_actions, api_keys, projects, sessions, users CASCADE")


def _key() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True)


def _user(name: str, index: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=index)


def _created_at() -> sa.Column[object]:
    return sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())
