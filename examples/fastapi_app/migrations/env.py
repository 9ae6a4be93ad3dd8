"""How Alembic finds the models and the database, which is that of DATABASE_URL."""

from __future__ import annotations

from alembic import context

from activation.alembic import include_name, include_object
from fastapi_app.database import connect
from fastapi_app.models import Base

options = {
    "target_metadata": Base.metadata,
    # Autogenerate leaves alone what is the extension's.
    "include_name": include_name,
    "include_object": include_object,
}

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = connect()
    with engine.connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()
