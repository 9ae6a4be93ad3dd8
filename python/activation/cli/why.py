"""`activation why`."""

from __future__ import annotations

import click

from .database import connected, rows, url_option
from .output import json_option, note, print_json, print_table


@click.command()
@click.argument("user")
@click.option("--loop", metavar="LOOP", help="Only this loop.")
@url_option
@json_option
def why(user: str, loop: str | None, url: str | None, as_json: bool) -> None:
    """Tell what happened to one user, oldest first, and why a mail was or was not sent.

    USER is the user's key, as it stands in the users table.
    """
    with connected(url) as connection:
        found = rows(connection, "SELECT at, loop, event, detail FROM activation.why(%s, %s)", user, loop)
    if as_json:
        print_json(found)
    elif found:
        print_table(["at", "loop", "event", "detail"], found)
    else:
        note(f"Nothing is known of user {user}, and no loop is defined.")
