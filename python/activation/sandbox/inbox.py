"""The inbox in the browser: a list of the mails that came in, and one mail with all its parts."""

from __future__ import annotations

import datetime
import json
import secrets

from liquid import Environment, PackageLoader

from .messages import Request, Response
from .records import Email
from .state import State

PAGE_SIZE = 100

# Links in a mail open in a new tab; the frame itself can go nowhere. (A <base> without href changes no address.)
_FRAME_HEAD = '<!DOCTYPE html><base target="_blank">'

# Fields of a mail that have a place of their own on the page.
_SHOWN = frozenset({"from", "to", "cc", "bcc", "reply_to", "subject", "html", "text", "headers", "tags"})


class Inbox:
    """Server-rendered pages. Everything in a mail is hostile: escaped, or shown in a frame where no script runs."""

    def __init__(self, state: State) -> None:
        self._state = state
        loader = PackageLoader(__package__, package_path="templates", ext=".html")
        self._environment = Environment(autoescape=True, loader=loader)

    def response(self, request: Request) -> Response:
        """The page for a path: the list at /, a mail at /inbox/{id}."""
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"Method not allowed", "text/plain", {"Allow": "GET, HEAD"})
        if request.path == "/":
            return self._list(request)
        if request.path == "/inbox/style.css":
            style = self._environment.get_template("style.css").render()
            return Response(200, style.encode(), "text/css; charset=utf-8", {"X-Content-Type-Options": "nosniff"})
        email = self._state.find(request.path.removeprefix("/inbox/"))
        if email is None:
            return self._page("missing", 404, _mail_policy())
        return self._mail(email)

    def _list(self, request: Request) -> Response:
        to = request.query.get("to", "").strip()
        emails, has_more = self._state.newest(PAGE_SIZE, request.query.get("before"), to or None)
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; img-src data:; "
            "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        return self._page(
            "list",
            200,
            policy,
            nonce=nonce,
            mails=[_summary(email) for email in emails],
            to=to,
            is_first="before" not in request.query,
            older=emails[-1].id if has_more else None,
        )

    def _mail(self, email: Email) -> Response:
        rest = {name: value for name, value in email.fields.items() if name not in _SHOWN}
        return self._page(
            "mail",
            200,
            _mail_policy(),
            mail={
                **_summary(email),
                "cc": ", ".join(email.cc),
                "bcc": ", ".join(email.bcc),
                "reply_to": ", ".join(email.reply_to),
                "frame": None if email.html is None else _FRAME_HEAD + email.html,
                "html": email.html,
                "text": email.text,
                "headers": _pairs(email.headers),
                "tags": _pairs(email.tags),
                "rest": json.dumps(rest, indent=2, ensure_ascii=False) if rest else None,
                "idempotency_key": email.idempotency_key,
                "endpoint": f"{email.path}, number {email.index + 1}" if email.path == "/emails/batch" else email.path,
            },
        )

    def _page(self, template: str, status: int, policy: str, **values: object) -> Response:
        page = self._environment.get_template(template).render(**values)
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        return Response(status, page.encode("utf-8", "replace"), "text/html; charset=utf-8", headers)


def _mail_policy() -> str:
    """No script at all. A mail's frame inherits this, so styles may be inline, and images only come with the mail."""
    return (
        "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )


def _summary(email: Email) -> dict[str, object]:
    received = datetime.datetime.fromtimestamp(email.received_at).astimezone()
    return {
        "id": email.id,
        "from": email.sender,
        "to": ", ".join(email.to),
        "subject": email.subject,
        "iso": received.isoformat(timespec="milliseconds"),
        "time": received.strftime("%H:%M:%S"),
        "date": received.strftime("%Y-%m-%d"),
    }


def _pairs(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]
