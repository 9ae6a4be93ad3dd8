"""The role that the app logs in as: it may read and insert, and revoke keys, and nothing else."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Roles belong to the whole server: another database's migration may have made it.
    op.execute("DO $$ BEGIN CREATE ROLE example_app LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    op.execute("GRANT USAGE ON SCHEMA public TO example_app")
    op.execute("GRANT SELECT, INSERT ON users, sessions, projects, api_keys, user_actions TO example_app")
    op.execute("GRANT UPDATE (revoked_at) ON api_keys TO example_app")


def downgrade() -> None:
    op.execute("REVOKE ALL ON users, sessions, projects, api_keys, user_actions FROM example_app")
    op.execute("REVOKE USAGE ON SCHEMA public FROM example_app")
