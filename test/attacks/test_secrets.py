"""A key typed where a reference belongs shows nowhere."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from documents import blocks
from harness import Cluster, Database


@pytest.mark.parametrize("argument", ["api_key", "webhook_secret"])
def test_a_literal_key(db: Database, argument: str) -> None:
    """Refused, and repeated nowhere: not in the error, not in the server's log."""
    with pytest.raises(psycopg.Error, match=argument) as caught:
        db.sql(f"SELECT activation.configure({argument} => 're_secret_123')")
    said = caught.value.diag
    assert said.sqlstate == "22023"
    shown = " ".join(str(getattr(said, part)) for part in dir(said) if not part.startswith("_"))
    assert "re_secret_123" not in shown
    assert "re_secret_123" not in db.cluster.log


def test_a_stored_secret_and_the_log(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter is logged like a text; as docs/operations.md shows it, neither is."""
    (block,) = [block for block in blocks("operations.md") if "set_secret" in block]
    db = cluster.create_database()
    try:
        db.sql(f"ALTER DATABASE {db.name} SET log_statement = 'all'")
        db.sql(f"ALTER DATABASE {db.name} SET session_preload_libraries = 'auto_explain'")
        for setting in ("log_min_duration_statement", "auto_explain.log_min_duration"):
            db.sql(f"ALTER DATABASE {db.name} SET {setting} = 0")
        db.sql(f"ALTER DATABASE {db.name} SET auto_explain.log_nested_statements = on")
        db.close()
        db.sql("SELECT activation.set_secret('one', %s)", "re_as_a_parameter")
        assert "re_as_a_parameter" in db.cluster.log
        assert "bound parameter" not in db.value("SELECT obj_description('activation.set_secret'::regproc)")

        (tmp_path / "resend.key").write_text("re_from_a_file\n")
        monkeypatch.chdir(tmp_path)
        db.psql(block)
        assert db.value("SELECT value FROM activation.secret WHERE name = 'resend'") == "re_from_a_file"
        assert db.value("SELECT api_key FROM activation.setting") == "secret:resend"
        assert "re_from_a_file" not in db.cluster.log
    finally:
        db.drop()
