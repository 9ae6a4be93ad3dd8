"""`activation preview`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import click

from .database import connected, rows, url_option
from .output import json_option, note, plain, print_json, say

# No script at all, in the page or in the frames, which inherit this. Images are the template's author's.
_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data: https:; form-action 'none'; base-uri 'none'">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ max-width: 44rem; margin: 0 auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.25rem; }}
h2 {{ font-size: 1rem; margin: 2rem 0 0; }}
h1, h2, p, pre {{ overflow-wrap: anywhere; }}
p {{ margin: 0 0 .5rem; }}
iframe {{ display: block; width: 100%; height: 42rem; box-sizing: border-box; border: 1px solid #8888; resize: both; }}
pre {{ white-space: pre-wrap; }}
.problem {{ color: #c00; color: light-dark(#b00020, #ff8a80); }}
</style>
</head>
<body>
<h1>{title}</h1>
"""
# Links open in a new tab, as in a mail program; the frame itself can go nowhere.
_FRAME_HEAD = '<!DOCTYPE html><base target="_blank">'

Mail = Mapping[str, Any]


@click.command()
@click.argument("user")
@click.argument("loop")
@click.option("--open/--no-open", "opened", default=True, help="Open the page in the browser, or only say where it is.")
@click.option("--text", "as_text", is_flag=True, help="Print the text parts instead.")
@url_option
@json_option
@click.pass_context
def preview(
    context: click.Context, user: str, loop: str, opened: bool, as_text: bool, url: str | None, as_json: bool
) -> None:
    """Show the mails of a loop as one user would get them now. Nothing is sent.

    They are written to a temporary file, which stays until you remove it. Ends with 1 if a mail cannot be rendered.
    """
    query = "SELECT step, branch, purpose, recipient, subject, html, body_text, problem FROM activation.preview(%s, %s)"
    with connected(url) as connection:
        mails = rows(connection, query, user, loop)
    if as_json:
        print_json(mails)
    elif as_text:
        say("\n\n".join(map(_as_text, mails)))
    else:
        path = _written(_page(f"Loop {loop}, user {user}", mails))
        if opened and click.launch(str(path)) != 0:
            note("No browser could be opened.")
        click.echo(path)
        for mail in mails:
            if mail["problem"] is not None:
                note(f"{_name(mail)} cannot be rendered: {mail['problem']}")
    if any(mail["problem"] is not None for mail in mails):
        context.exit(1)


def _name(mail: Mail) -> str:
    return f"step {mail['step']}, {mail['branch']}"


def _as_text(mail: Mail) -> str:
    facts = {"Step": _name(mail).removeprefix("step "), "To": mail["recipient"], "Subject": mail["subject"]}
    if mail["problem"] is not None:
        facts["Problem"] = mail["problem"]
    head = "\n".join(f"{name}: {plain(fact)}" for name, fact in facts.items())
    return f"{head}\n\n{plain(mail['body_text'], lines=True).strip()}"


def _page(title: str, mails: Sequence[Mail]) -> str:
    """All of them, one under the other."""
    parts = [_HEAD.format(title=escape(title))]
    if mails and mails[0]["purpose"] is not None:
        parts.append(f"<p>{escape(mails[0]['purpose'])}</p>\n")
    for mail in mails:
        parts.append(f"<h2>{escape(mail['subject'] or '(no subject)')}</h2>\n")
        parts.append(f"<p>{escape(_name(mail))}, to {escape(mail['recipient'] or 'nobody: there is no address')}</p>\n")
        if mail["problem"] is not None:
            parts.append(f'<p class="problem">It cannot be rendered: {escape(mail["problem"])}</p>\n')
        elif mail["html"] is not None:
            frame = escape(_FRAME_HEAD + mail["html"])
            sandbox = "allow-popups allow-popups-to-escape-sandbox"
            parts.append(f'<iframe title="{escape(_name(mail))}" sandbox="{sandbox}" srcdoc="{frame}"></iframe>\n')
        parts.append(f"<details><summary>Text</summary><pre>{escape(mail['body_text'] or '')}</pre></details>\n")
    return "".join([*parts, "</body>\n</html>\n"])


def _written(page: str) -> Path:
    """A new file that only its owner can read."""
    handle, path = tempfile.mkstemp(prefix="activation-", suffix=".html")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(page)
    return Path(path)
