"""A key typed where a reference belongs shows nowhere."""

from __future__ import annotations

import psycopg
import pytest

from harness import Database


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
