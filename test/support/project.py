"""The project of docs/loops-as-code.md, as files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from documents import DOCS


class Project:
    """A folder with the page's files, and commands that run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = (DOCS / "loops-as-code.md").read_text()
        for name, code in re.findall(r"^```python\n# (\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
        (folder / "app" / "__init__.py").touch()
        # As `alembic init` makes it.
        (folder / "migrations" / "script.py.mako").write_text(
            "from alembic import op\nimport sqlalchemy as sa\n${imports if imports else ''}\n"
            "revision = ${repr(up_revision)}\ndown_revision = ${repr(down_revision)}\n\n\n"
            "def upgrade():\n    ${upgrades if upgrades else 'pass'}\n\n\n"
            "def downgrade():\n    ${downgrades if downgrades else 'pass'}\n"
        )

    def use(self, url: str) -> None:
        """The database that alembic works on."""
        url = url.replace("postgresql:", "postgresql+psycopg:").replace("%", "%%")
        (self.folder / "alembic.ini").write_text(f"[alembic]\nscript_location = migrations\nsqlalchemy.url = {url}\n")

    def alembic(self, *arguments: str) -> str:
        """What the command wrote on its standard output. Raises AssertionError if it fails."""
        result = self.run("alembic.config", "--raiseerr", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def run(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a Python module there."""
        path = os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
