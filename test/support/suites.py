"""Makes tests of the files in test/sql and test/isolation/specs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from harness import Cluster, Database, programs

#: The folder of all tests.
TESTS = Path(__file__).parents[1]
CLUSTER = pytest.StashKey[Cluster]()


class ScriptFailed(Exception):
    """A file that PostgreSQL's own tools have run, and that failed."""


class Script(pytest.Item):
    """A file that is one test."""

    def runtest(self) -> None:
        raise NotImplementedError

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, ScriptFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, str(self.path.relative_to(TESTS))

    @property
    def cluster(self) -> Cluster:
        """The server that these files share."""
        stash = self.config.stash
        if CLUSTER not in stash:
            stash[CLUSTER] = cluster = Cluster(cron=True, environment={"RESEND_API_KEY": "re_test"})
            self.config.add_cleanup(cluster.destroy)
            # Out of the way of the names that the tests use.
            cluster.sql("CREATE SCHEMA tap; CREATE EXTENSION pgtap SCHEMA tap; GRANT USAGE ON SCHEMA tap TO PUBLIC")
        return stash[CLUSTER]


def prove(database: Database, path: Path) -> int:
    """Run a script for pgTAP; how many tests it held. Raises ScriptFailed if one failed or there was none: with
    no_plan() pgTAP calls a script without tests skipped, and all is well."""
    environment = {**os.environ, **database.cluster.address(), "PGUSER": "postgres", "PGDATABASE": database.name}
    command = ["pg_prove", "--verbose", "--merge", "--psql-bin", str(programs() / "psql"), str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    passed = sum(line.startswith("ok ") for line in lines)
    if result.returncode != 0 or not passed:
        told = [line for line in lines if not line.startswith("ok ")]
        raise ScriptFailed("\n".join(told if passed else ["It holds no test that passed.", *told]))
    return passed


class PgTap(Script):
    """A script for pgTAP. It rolls back what it does, so that all can share one database."""

    def runtest(self) -> None:
        prove(self.cluster, self.path)


class Isolation(Script):
    """A specification for isolationtester, in a database of its own."""

    def runtest(self) -> None:
        database = self.cluster.create_database()
        # As workers have it: compiling the statements of a round takes a hundred times as long as running them.
        database.sql(f"ALTER DATABASE {database.name} SET jit = off")
        with tempfile.TemporaryDirectory(prefix="activation-isolation-") as folder:
            command = [
                str(_isolation_regress()),
                "--use-existing",
                f"--dbname={database.name}",
                f"--host={self.cluster.socket}",
                f"--port={self.cluster.port}",
                "--user=postgres",
                f"--bindir={programs()}",
                f"--inputdir={TESTS / 'isolation'}",
                f"--outputdir={folder}",
                self.path.stem,
            ]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            output = next(Path(folder).rglob(f"{self.path.stem}.out"), None)
            if result.returncode != 0:
                raise ScriptFailed(self._explanation(Path(folder), output) or result.stdout + result.stderr)
        database.drop()

    def _explanation(self, folder: Path, output: Path | None) -> str | None:
        """The difference to what was expected, and where the new output is kept."""
        if output is None:
            return None
        kept = Path(os.environ["ACTIVATION_CACHE"], output.name)
        shutil.copy(output, kept)
        differences = next(folder.rglob("regression.diffs"), None)
        text = (differences and differences.read_text()) or output.read_text()
        return f"{text}\nThe whole output is in {kept}. Expected was test/isolation/expected/{output.name}."


def _isolation_regress() -> Path:
    libraries = subprocess.run(
        [programs() / "pg_config", "--pkglibdir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return Path(libraries, "pgxs/src/test/isolation/pg_isolation_regress")


class ScriptFile(pytest.File):
    """What collects such a file."""

    def collect(self) -> list[pytest.Item]:
        kind = PgTap if self.path.suffix == ".sql" else Isolation
        return [kind.from_parent(self, name=self.path.stem)]


def collected(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """What pytest_collect_file answers."""
    pgtap = file_path.suffix == ".sql" and file_path.parent == TESTS / "sql" and file_path.name != "setup.sql"
    if pgtap or file_path.suffix == ".spec":
        return ScriptFile.from_parent(parent, path=file_path)
    return None
