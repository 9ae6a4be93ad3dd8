"""One mail of a loop, from a user's row to the document that Resend takes. Pure."""

from __future__ import annotations

from typing import Any

from activation.errors import RenderError
from activation.mail.render import Rendered, Source, deadline, read, render, variables_of


def rendered_mail(
    action: dict[str, Any],
    loop: str,
    user_row: str,
    context: str | None,
    source: Source | None,
    unsubscribe_url: str | None = None,
) -> Rendered:
    """One mail of a loop for one user's row, in a time that is limited. Raises RenderError."""
    if source is None:
        raise RenderError(f"template {action['template']} does not exist")
    if action["subject"]:
        source = Source(action["subject"], source.html, source.text)
    until = deadline()
    variables = variables_of(
        action["personalization"],
        read(user_row, "the user's row"),
        loop,
        read(context, "the enrollment's context") if context else None,
        unsubscribe_url,
        until,
    )
    return render(source, variables, until)


def document(
    message_id: str,
    to: str,
    rendered: Rendered,
    sender: str | None,
    reply_to: str | None,
    unsubscribe_url: str | None,
) -> dict[str, Any]:
    """The mail as Resend takes it. Its tag says which message of ours it is."""
    return {
        "from": sender,
        "to": [to],
        "subject": rendered.subject,
        **({"html": rendered.html} if rendered.html is not None else {}),
        "text": rendered.text,
        **({"reply_to": reply_to} if reply_to else {}),
        **({"headers": _unsubscribe_headers(unsubscribe_url)} if unsubscribe_url else {}),
        "tags": [{"name": "activation_message", "value": message_id}],
    }


def _unsubscribe_headers(url: str) -> dict[str, str]:
    """The headers by which a mail program lets people leave with one click (RFC 2369, RFC 8058)."""
    return {"List-Unsubscribe": f"<{url}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}


def reason(error: Exception) -> str:
    """Why a mail cannot be made, for the person who looks."""
    if isinstance(error, RenderError):
        return str(error)
    said = (str(error).splitlines() or [""])[0]
    return f"the mail cannot be made from the user's row: {type(error).__name__}: {said}"
