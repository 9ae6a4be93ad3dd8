"""Create the app's tables: `python -m fastapi_app.create_tables`, with the DATABASE_URL of their owner."""

from __future__ import annotations

from .database import connect
from .models import Base


def create_tables() -> None:
    """Create the tables that are not there yet."""
    engine = connect()
    Base.metadata.create_all(engine)
    engine.dispose()


if __name__ == "__main__":
    create_tables()
