"""A plugin for pytest: loops in the tests of your own app, against a real PostgreSQL and a sandbox in Resend's place.

    def test_welcome(activation):
        activation.sql("INSERT INTO users (email) VALUES ('ada@acme.dev')")
        activation.later("3 days")
        assert activation.mail("ada@acme.dev").subject == "Ready when you are"

The fixture is there wherever `activation[testing]` is installed. Each test has a database of its own, a copy of one
that `activation_schema` has prepared: override that fixture to run your migrations (docs/loops-as-code.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from .loops import Statement

if TYPE_CHECKING:
    import psycopg

    from .sandbox import Email, Sandbox
    from .throwaway import Server

#: Takes the address of a new database, and makes the app's tables and loops there.
Prepare = Callable[[str], None]

_PREPARED = "app"
_numbers = itertools.count(1)


class Activation:
    """An app's database with the engine in it, live, and the sandbox that its mail goes to.

    The engine moves only when `tick`, `later` or `at` is called, and only its clock is moved: SQL that itself says
    now(), in a condition or a column's default, has the real time.
    """

    def __init__(self, url: str, sandbox: Sandbox) -> None:
        import psycopg

        #: The address of the database; for SQLAlchemy with psycopg, `.replace("postgresql:", "postgresql+psycopg:")`.
        self.url = url
        #: What stands in for Resend: `activation.sandbox.fail("status", status=503)`.
        self.sandbox = sandbox
        self.connection: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(url, autocommit=True)
        self._ahead = timedelta()
        # Settings that the app's migrations have made are kept, but for where mail goes.
        self.sql("SELECT activation.set_secret('testing', 're_testing')")
        self.sql(
            "SELECT activation.configure(sender => coalesce(s.sender, 'Test <test@example.com>'),"
            " public_url => coalesce(s.public_url, 'https://example.com/activation'),"
            " api_key => 'secret:testing', resend_url => %s, rate => 10000)"
            " FROM (SELECT) AS always LEFT JOIN activation.setting s ON true",
            [sandbox.url],
        )
        self.sql("SELECT activation.set_mode('live')")

    def sql(self, query: str, values: Sequence[Any] | Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run it as the superuser, in a transaction of its own, and return its rows. values: for %s and %(name)s.

        Raises psycopg.Error.
        """
        cursor = self.connection.execute(query.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def define(self, *definitions: Statement) -> None:
        """Define loops and templates. Raises psycopg.Error if the server refuses one."""
        for definition in definitions:
            self.sql(*definition.statement())

    def tick(self) -> None:
        """Let the engine do all that is due now: enroll, ask conditions, mail."""
        self._date_signals()
        self.sql("SELECT set_config('activation.now', (clock_timestamp() + %s)::text, false)", [self._ahead])
        try:
            self.sql("CALL activation.tick()")
        finally:
            self.sql("RESET activation.now")

    def later(self, by: str | timedelta) -> None:
        """Time passes, as "3 days" or "90 minutes": what is due before then is done first, then what is due then.

        Raises ValueError if it would pass backwards, psycopg.Error if it is no duration.
        """
        self.tick()
        ((ahead,),) = self.sql(
            "SELECT (n + %s + %s::text::interval) - n FROM (SELECT clock_timestamp()) x(n)", [self._ahead, str(by)]
        )
        self._move(ahead)

    def at(self, instant: str | datetime) -> None:
        """It becomes this time, as "2030-01-07 09:00 Europe/Berlin": for send windows and schedules.

        Raises ValueError if that is past, psycopg.Error if it is no time.
        """
        self.tick()
        ((ahead,),) = self.sql("SELECT %s::text::timestamptz - clock_timestamp()", [str(instant)])
        self._move(ahead)

    @property
    def now(self) -> datetime:
        """The time on the engine's clock."""
        ((now,),) = self.sql("SELECT clock_timestamp() + %s", [self._ahead])
        assert isinstance(now, datetime)
        return now

    @property
    def emails(self) -> list[Email]:
        """All that was mailed, oldest first."""
        return self.sandbox.emails

    def mails(self, to: str) -> list[Email]:
        """What one address was mailed, oldest first."""
        return [email for email in self.emails if to in email.to]

    def mail(self, to: str) -> Email:
        """The one email that an address was mailed. Raises AssertionError if it was none or several; it says why."""
        found = self.mails(to)
        if len(found) != 1:
            subjects = ", ".join(repr(email.subject) for email in found) or "none"
            raise AssertionError(
                f"{to} was to be mailed once, and was mailed {len(found)} times ({subjects})\n{self.story()}"
            )
        return found[0]

    def story(self, user_id: str | None = None) -> str:
        """What happened, of one user or of all, as activation.why() tells it: for messages of failed assertions."""
        rows = self.sql(
            "SELECT u.user_id, w.at, w.loop, w.event, w.detail"
            " FROM (SELECT DISTINCT e.user_id FROM activation.enrollment e"
            "        WHERE e.user_id = coalesce(%s, e.user_id)) u,"
            " activation.why(u.user_id) w LIMIT 100",
            [user_id],
        )
        lines = [
            f"user {who}: {at:%Y-%m-%d %H:%M:%S}  {loop}  {event}  {detail}" for who, at, loop, event, detail in rows
        ]
        return "\n".join(lines or ["nobody is enrolled in any loop"])

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _move(self, ahead: timedelta) -> None:
        if ahead < self._ahead:
            raise ValueError(f"the clock would go back by {self._ahead - ahead}")
        self._ahead = ahead
        self.tick()

    def _date_signals(self) -> None:
        """Signups and actions since the last tick bear the real time of the app's transactions."""
        if self._ahead:
            self.sql("UPDATE activation.signal SET at = at + %s WHERE at <= clock_timestamp()", [self._ahead])
            # Source 0 is the marker, which is no wake.
            self.sql(
                "UPDATE activation.wake SET at = at + %s WHERE at <= clock_timestamp() AND source_id <> 0",
                [self._ahead],
            )


@pytest.fixture(scope="session")
def activation_server() -> Iterator[Server]:
    """A throwaway PostgreSQL for the session: the one that ACTIVATION_PG_BIN or pg_config names, with the extension."""
    try:
        from .throwaway import Server
    except ImportError as error:
        pytest.fail(f"{error}: pip install 'activation[testing]'", pytrace=False)
    server = Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def activation_schema() -> Prepare:
    """What makes the app's tables and loops, given a database's address. Override it; as it is, it makes nothing."""
    return lambda url: None


@pytest.fixture(scope="session")
def activation_database(activation_server: Server, activation_schema: Prepare) -> str:
    """The name of the database that every test has a copy of: the extension, and what activation_schema makes."""
    import psycopg

    activation_server.create(_PREPARED)
    with psycopg.connect(activation_server.url(_PREPARED), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION activation CASCADE")
    activation_schema(activation_server.url(_PREPARED))
    return _PREPARED


@pytest.fixture
def activation(activation_server: Server, activation_database: str) -> Iterator[Activation]:
    """A fresh copy of the app's database, live, with a sandbox in Resend's place."""
    from .sandbox import Sandbox

    name = f"test_{next(_numbers)}"
    activation_server.create(name, copy_of=activation_database)
    try:
        with Sandbox() as sandbox:
            stage = Activation(activation_server.url(name), sandbox)
            yield stage
            stage.close()
    finally:
        activation_server.drop(name)
