"""The clock of tests moves for tests alone."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from harness import Connection, Database
from loops import APP, define

#: How far the clock of activation is from the server's.
AHEAD = "SELECT activation._now() - clock_timestamp() > interval '1 hour'"


@pytest.fixture
def teller(db: Database) -> Iterator[Connection]:
    """A role that may tell events, and nothing else."""
    db.sql(APP)
    define(db.connect())
    db.sql("DROP ROLE IF EXISTS teller; CREATE ROLE teller LOGIN; GRANT USAGE ON SCHEMA activation TO teller")
    db.sql("GRANT EXECUTE ON FUNCTION activation.track(text, text, jsonb), activation.report() TO teller")
    db.sql("INSERT INTO users (id) VALUES (1)")
    with db.connect("teller") as connection:
        yield connection
    db.sql("DROP OWNED BY teller; DROP ROLE teller")


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "2101-01-01", "294276-12-31", "4713-01-01 BC", "no time"])
def test_nobody_moves_the_clock(db: Database, teller: Connection, moment: str) -> None:
    teller.execute("SELECT set_config('activation.now', %s, false)", [moment])
    teller.execute("SELECT activation.track('1', 'evil')")
    assert db.value("SELECT bool_and(abs(extract(epoch FROM at - now())) < 60) FROM activation.event")
    teller.execute("SELECT activation.report()")
    db.sql("CALL activation.tick()")
    assert "evil" not in str(db.value("SELECT activation.report()"))


def test_who_logged_in_counts(db: Database, teller: Connection) -> None:
    """A superuser's session that has become somebody else still moves the clock: workers have, and tests run them."""
    with db.connect() as client:
        client.execute("SELECT set_config('activation.now', (now() + interval '1 day')::text, false)")
        assert client.execute(AHEAD).fetchone() == (True,)
        client.execute("GRANT USAGE ON SCHEMA activation TO teller")
        client.execute("GRANT EXECUTE ON FUNCTION activation._now(), activation._test_now() TO teller")
        client.execute("SET SESSION AUTHORIZATION teller")
        assert client.execute(AHEAD).fetchone() == (True,)
    teller.execute("SELECT set_config('activation.now', (now() + interval '1 day')::text, false)")
    assert teller.execute(AHEAD).fetchone() == (False,)


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "294276-12-31"])
def test_a_time_from_which_none_goes_on(db: Database, moment: str) -> None:
    db.sql("SELECT set_config('activation.now', %s, false)", moment)
    assert db.value(AHEAD) is False
    with pytest.raises(psycopg.errors.CheckViolation):
        db.sql("INSERT INTO activation.event (at, user_id, event, properties) VALUES ('infinity', '1', 'x', '{}')")
