"""`activation init`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from .catalog import candidates, users_tables
from .database import Refused, connected, url_option
from .migration import IMPORTS, Plan, as_python, as_sql
from .output import json_option, note, plain, print_json, say

_MESSAGE = "activation: the first loop"


@click.command()
@click.option(
    "--alembic",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Alembic's folder: the one with alembic.ini or env.py.  [default: the current one, if it has alembic.ini]",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write SQL there.  [default: activation.sql, without Alembic]",
)
@click.option("--users", "named", metavar="TABLE", help="The users table, where the catalog does not tell.")
@url_option
@json_option
def init(alembic: Path | None, output: Path | None, named: str | None, url: str | None, as_json: bool) -> None:
    """Write a migration with a first loop, from the tables that the database has.

    It finds the users table and the tables that reference it, and writes SQL, or a revision where there is Alembic.
    It changes nothing in the database, and overwrites no file.
    """
    if alembic is not None and output is not None:
        raise click.UsageError("--alembic writes a revision and --output an SQL file: give one of them")
    if alembic is None and output is None and Path("alembic.ini").is_file():
        alembic = Path()
    with connected(url, extension=False) as connection:
        found = users_tables(connection, named)
        if not found:
            where = plain(named or f"database {connection.info.dbname}")
            raise Refused(
                f"{where}: no table with a primary key of one column and an email column\n"
                "HINT: Name the table that has them: --users app.people. Without an address there is nobody to mail."
            )
        plan = Plan(found[0], candidates(connection, found[0]))
    path = _sql(plan, output or Path("activation.sql")) if alembic is None else _revision(plan, alembic)
    if as_json:
        print_json(
            {
                "file": str(path),
                "loop": plan.loop,
                "users": {"table": plan.users.table, "key": plan.users.key, "email": plan.users.email},
                "candidates": [{"table": c.table, "column": c.column, "rows": c.rows} for c in plan.candidates],
            }
        )
        return
    say(f"Users table   {plan.users.table}, key {plain(plan.users.key)}, address {plain(plan.users.email)}")
    if len(found) > 1:
        say(f"              others: {', '.join(other.table for other in found[1:4])} (--users)")
    say(f"First value   {plan.candidates[0].table if plan.candidates else 'an event that the app tells of'}")
    if len(plan.candidates) > 1:
        say(f"              others: {', '.join(dict.fromkeys(c.table for c in plan.candidates[1:6]))}")
    say(f"Written       {plain(path)}")
    note("Read it before you run it. Afterwards, `activation doctor` says what is still missing.")
    if alembic is not None:
        note("env.py should import include_name and include_object of activation.alembic: docs/loops-as-code.md.")


def _sql(plan: Plan, path: Path) -> Path:
    try:
        # x: a file that is there is not overwritten, whoever makes it at this moment.
        with open(path, "x", encoding="utf-8") as file:
            file.write(as_sql(plan))
    except FileExistsError:
        raise Refused(f"{plain(path)} exists already\nHINT: Name another file: --output FILE.") from None
    except OSError as error:
        raise Refused(f"{plain(path)} cannot be written: {error.strerror}") from None
    return path


def _revision(plan: Plan, folder: Path) -> Path:
    try:
        from alembic.config import Config
        from alembic.script import ScriptDirectory
        from alembic.util import rev_id
    except ImportError as error:
        raise Refused(f"{error}\nHINT: pip install 'activation[alembic]', where the app's own packages are.") from None
    ini = folder / "alembic.ini" if (folder / "alembic.ini").is_file() else Path("alembic.ini")
    config = Config(str(ini) if ini.is_file() else None)
    if (folder / "env.py").is_file():
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
    elif not ini.is_file():
        raise Refused(f"{plain(folder)} has neither alembic.ini nor env.py\nHINT: `alembic init` makes both.")
    upgrade, downgrade = as_python(plan)
    try:
        # It reports on standard output, which is for what the command itself has to say.
        with contextlib.redirect_stdout(sys.stderr):
            scripts = ScriptDirectory.from_config(config)
            script = scripts.generate_revision(
                rev_id(), _MESSAGE, refresh=True, imports=IMPORTS, upgrades=upgrade, downgrades=downgrade
            )
    except Exception as error:
        # Whatever the project's own revisions and templates raise.
        raise Refused(f"Alembic could not write a revision: {plain(error, lines=True)}") from None
    if script is None:
        raise Refused(f"Alembic wrote no revision into {plain(folder)}")
    return Path(script.path)
