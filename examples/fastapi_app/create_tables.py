"""Create the app's tables: `python -m fastapi_app.create_tables`, with the DATABASE_URL of their owner."""

from __future__ import annotations

from .database import connect
from .models import Base

if __name__ == "__main__":
    engine = connect()
    Base.metadata.create_all(engine)
    engine.dispose()
