"""For FastAPI apps: the pages behind the mails, Resend's webhooks, the dashboard, and telling what users do.

from activation.fastapi import Tracker, TrackingMiddleware, activation_router

app.include_router(activation_router(lambda: app.state.pool, dashboard=require_admin))
"""

from __future__ import annotations

try:
    import fastapi as _fastapi  # noqa: F401
except ImportError:
    raise ImportError("activation.fastapi needs FastAPI: pip install 'activation[fastapi]'") from None

from .database import Unavailable
from .router import activation_router
from .tracking import Track, Tracker, TrackingMiddleware

__all__ = ["Track", "Tracker", "TrackingMiddleware", "Unavailable", "activation_router"]
