"""`activation doctor`."""

from __future__ import annotations

import click

from .database import connected, rows, url_option
from .output import json_option, plain, print_json, print_table, say


@click.command()
@click.pass_context
@url_option
@json_option
def doctor(context: click.Context, url: str | None, as_json: bool) -> None:
    """Look for what is wrong with the installation, and show the commands that cure it.

    Ends with 1 if there is a problem; warnings alone end with 0.
    """
    with connected(url) as connection:
        found = rows(connection, 'SELECT "check", state, detail, cure FROM activation.doctor()')
    if as_json:
        print_json(found)
    else:
        print_table(["check", "state", "detail"], found)
        # Apart from the table, so that they can be copied, and in psql's form.
        for finding in found:
            if finding["cure"] is not None and finding["state"] != "ok":
                say(f"\n-- {plain(finding['check'])}", style="dim")
                say(plain(finding["cure"], lines=True))
    if any(finding["state"] == "problem" for finding in found):
        context.exit(1)
