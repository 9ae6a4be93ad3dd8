"""`activation status`."""

from __future__ import annotations

import click

from .database import connected, rows, url_option
from .output import json_option, print_json, print_table


@click.command()
@url_option
@json_option
def status(url: str | None, as_json: bool) -> None:
    """Show how the machine is: mode, provider, queue, workers, loops."""
    with connected(url) as connection:
        found = rows(connection, "SELECT component, state, detail FROM activation.status")
    if as_json:
        print_json(found)
    else:
        print_table(["component", "state", "detail"], found)
