"""The command line: `activation`. One file a command; what they share is in output.py and database.py.

Exit codes: 0 fine, 1 a finding or a refusal, 2 wrong usage, 3 the database cannot be reached or has no activation.
"""

from __future__ import annotations

import io
import sys

try:
    import click
    import rich  # noqa: F401
except ImportError as error:
    raise SystemExit(f"activation: {error}: pip install 'activation[cli]'") from None

from .. import __version__
from .demo import demo
from .doctor import doctor
from .importing import import_
from .init import init
from .preview import preview
from .report import report
from .sandbox import sandbox
from .status import status
from .why import why


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="activation")
def main() -> None:
    """Lifecycle email from PostgreSQL through Resend.

    The database is the one of --url or DATABASE_URL; without them the one of libpq's own variables (PGHOST,
    PGDATABASE, PGSERVICE and so on).

    Exit codes: 0 fine, 1 a finding or a refusal, 2 wrong usage, 3 the database cannot be reached or has no activation.
    """
    # A letter that the terminal does not have is no reason to end.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


for command in (demo, doctor, import_, init, preview, report, sandbox, status, why):
    main.add_command(command)
