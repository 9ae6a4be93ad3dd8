"""The suite of pgTAP fails when nothing was tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Database
from suites import TESTS, ScriptFailed, prove


@pytest.fixture
def tap(db: Database) -> Database:
    db.sql("CREATE SCHEMA tap; CREATE EXTENSION pgtap SCHEMA tap")
    return db


def script(folder: Path, *lines: str) -> Path:
    path = folder / "one.sql"
    path.write_text("\n".join([f"\\ir {TESTS}/sql/setup.sql", "SELECT no_plan();", *lines]))
    return path


END = ("SELECT * FROM finish();", "ROLLBACK;")


def test_tests_are_counted(tap: Database, tmp_path: Path) -> None:
    assert prove(tap, script(tmp_path, "SELECT ok(true);", "SELECT ok(true);", *END)) == 2


@pytest.mark.parametrize(
    "lines",
    [
        END,
        ("\\quit",),
        ("SELECT ok(true);", "\\quit"),
        ("SELECT ok(true);", "SELECT nothing();", *END),
        ("SELECT ok(true);", "SELECT ok(false);", *END),
    ],
    ids=["without a test", "ends at once", "ends too early", "breaks off", "one fails"],
)
def test_a_script_that_fails(tap: Database, tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(ScriptFailed):
        prove(tap, script(tmp_path, *lines))
