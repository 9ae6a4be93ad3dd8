"""Pages that people look at: the dashboard, one person's timeline, and where they choose which mail they want.

Rendered on the server from templates that escape all they are given; no script, nothing fetched from anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import quote

from liquid import Environment, PackageLoader

from .overview import shown

#: What a browser is told of these pages: they run no script, load nothing, and their address, which may hold a token,
#: is told to nobody.
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
    "Cache-Control": "no-store",
}


@cache
def _environment() -> Environment:
    return Environment(autoescape=True, loader=PackageLoader(__package__, package_path="templates", ext=".html"))


def _page(name: str, **values: object) -> str:
    return str(_environment().get_template(name).render(**values))


def dashboard(overview: Mapping[str, Any], people: str | None = None, again: int | None = None) -> str:
    """The dashboard.

    overview: what activation.overview() returns. people: where the people's pages are, as an address that a user's key
    is added to; None: nowhere. again: seconds until the browser asks for it anew, for numbers that are being counted.
    """
    return _page("dashboard", **shown(overview), people=people, again=again)


def person(user_id: str, events: Iterable[Sequence[Any]]) -> str:
    """One user's timeline. events: rows of activation.why(): at, loop, event, detail."""
    rows = [{"at": at, "loop": loop, "event": event, "detail": detail} for at, loop, event, detail in events]
    return _page("person", user_id=user_id, events=rows)


def unsubscribe(title: str, token: str) -> str:
    """What the link in a mail leads to: buttons, which post. Following the link changes nothing."""
    return _page("unsubscribe", title=title, token=quote(token, safe=""))


def unsubscribed(title: str, token: str) -> str:
    """What somebody sees who has left."""
    return _page("unsubscribed", title=title, token=quote(token, safe=""))


def preferences(title: str, token: str, topics: Iterable[Sequence[Any]], saved: bool) -> str:
    """Where somebody chooses. topics: rows of activation.preferences(): topic, name, description, subscribed."""
    rows = [
        {"topic": topic, "name": name, "description": description, "subscribed": subscribed}
        for topic, name, description, subscribed in topics
    ]
    everything = [row for row in rows if not row["topic"]]
    return _page(
        "preferences",
        title=title,
        token=quote(token, safe=""),
        saved=saved,
        topics=[row for row in rows if row["topic"]],
        everything=not everything or everything[0]["subscribed"],
        # The page is the same for a token that is none.
        known=bool(rows),
    )


def message(title: str, heading: str, text: str) -> str:
    """A page that says one thing."""
    return _page("message", title=title, heading=heading, text=text)
