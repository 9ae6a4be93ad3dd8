"""What activation's mails lead to: webhooks in, one click out. See docs/consent.md."""

from __future__ import annotations

import html
import json
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool

from .database import Database

router = APIRouter(prefix="/activation", tags=["activation"])

#: What activation takes; a larger body is not even read to its end.
LARGEST_WEBHOOK = 1_000_000

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Mail from Acme</title>
<body style="font: 1rem/1.5 system-ui; max-width: 32rem; margin: 3rem auto; padding: 0 1rem">
<h1>Mail from Acme</h1>{content}</body></html>"""
_BUTTON = '<form method="post" action="?token={token}&amp;everything={everything}"><button>{label}</button></form>'


@router.post("/webhooks", status_code=204)
async def webhooks(request: Request, database: Database) -> None:
    """Resend's webhooks, as they came; activation checks the signature and says what to answer."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_WEBHOOK:
            raise HTTPException(413)
    statement = text("SELECT activation.receive_webhook(:body, CAST(:headers AS jsonb))")
    try:
        given = {"body": body.decode(), "headers": json.dumps(dict(request.headers))}
        await run_in_threadpool(lambda: (database.execute(statement, given), database.commit()))
    except UnicodeDecodeError:
        raise HTTPException(400) from None
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or ""
        if not state.startswith("HT"):
            raise
        raise HTTPException(int(state[2:])) from None


@router.get("/unsubscribe", response_class=HTMLResponse)
def page(token: str, database: Database) -> str:
    """Changes nothing: mail scanners follow links. The same for a token that is none."""
    statement = text("SELECT topic, name, description, subscribed FROM activation.preferences(token => :token)")
    topics = database.execute(statement, {"token": token}).all()
    lines = "".join(
        f"<li>{html.escape(topic.name)}{'' if topic.subscribed else ' (unsubscribed)'}"
        f" {html.escape(topic.description or '')}</li>"
        for topic in topics
        if topic.topic
    )
    buttons = "".join(
        _BUTTON.format(token=quote(token), everything=everything, label=label)
        for everything, label in (
            ("false", "Unsubscribe from mails like this one"),
            ("true", "Unsubscribe from everything but receipts"),
        )
    )
    return _PAGE.format(content=f"<ul>{lines}</ul>{buttons}")


@router.post("/unsubscribe", response_class=HTMLResponse)
def unsubscribe(token: str, database: Database, everything: bool = False) -> str:
    """The page's buttons, and a mail program's one click (RFC 8058)."""
    database.execute(
        text("SELECT activation.unsubscribe(:token, everything => :everything)"),
        {"token": token, "everything": everything},
    )
    database.commit()
    return _PAGE.format(content="<p>Done. You will get no more of these.</p>")
