"""`activation report`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .database import Refused, connected, url_option, value
from .output import json_option, note, plain, print_json


@click.command()
@click.option("-o", "--output", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Write it there.")
@url_option
@json_option
def report(output: Path | None, url: str | None, as_json: bool) -> None:
    """Print the dashboard as one HTML page, or write it to a file."""
    with connected(url) as connection:
        page = str(value(connection, "SELECT activation.report()"))
    if output is not None:
        try:
            output.write_text(page, encoding="utf-8")
        except OSError as error:
            raise Refused(f"{plain(output)} cannot be written: {error.strerror}") from None
    if as_json:
        print_json({"html": page} if output is None else {"file": str(output)})
    elif output is not None:
        note(f"The report is in {output}.")
    else:
        # As it is into a pipe or a file; a terminal would obey what a name in it holds.
        click.echo(plain(page, lines=True) if sys.stdout.isatty() else page)
