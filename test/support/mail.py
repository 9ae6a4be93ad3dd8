"""What tests of mail have in common: a live database, people who sign up, a deliverer, and both sides' counts."""

from __future__ import annotations

import threading
from collections import Counter

import psycopg

from activation.sandbox import Sandbox
from harness import Connection, Database
from loops import APP, define, tick


def go_live(connection: Connection, sandbox: Sandbox) -> None:
    """The app's tables, a loop on them, and mode live with the sandbox in Resend's place."""
    connection.execute(APP)
    connection.execute(
        "SELECT activation.configure(sender => 'Acme <hello@acme.dev>',"
        " public_url => 'https://acme.dev/activation', api_key => 'env:RESEND_API_KEY',"
        " resend_url => %s)",
        [sandbox.url],
    )
    define(connection, timeout="1 hour", otherwise=True)
    connection.execute("SELECT activation.set_mode('live')")


def sign_up(app: Connection, *users: int, acts: bool = True) -> None:
    """People with an address each, who have acted already unless acts is false."""
    for user in users:
        app.execute("INSERT INTO users (id, email) VALUES (%s, %s)", [user, f"u{user}@acme.dev"])
        if acts:
            app.execute("INSERT INTO actions (user_id) VALUES (%s)", [user])


def tick_at(db: Database, instant: str) -> None:
    """Let the engine do what is due at this time."""
    db.sql("SELECT set_config('activation.now', %s, false)", instant)
    db.sql("CALL activation.tick()")
    db.sql("RESET activation.now")


def one_by_one(db: Database) -> None:
    """Each message that is queued goes in a request of its own."""
    db.sql("UPDATE activation.message SET batch_limit = 1 WHERE state = 'queued'")


def statuses(db: Database) -> dict[str, str]:
    return dict(db.sql("SELECT user_id, status FROM activation.message_log ORDER BY user_id"))


def received(sandbox: Sandbox) -> Counter[str]:
    """How many emails each address has got."""
    return Counter(address for email in sandbox.emails for address in email.to)


def last_error(db: Database, user: int) -> str:
    return str(db.value("SELECT last_error FROM activation.message_log WHERE user_id = %s::text", user))


def status(db: Database, component: str) -> tuple[str, str]:
    ((state, detail),) = db.sql("SELECT state, detail FROM activation.status WHERE component = %s", component)
    return state, detail


class Worker:
    """A worker in a session of its own, one run after the other until stop() or an error ends it."""

    def __init__(self, db: Database, slot: int = 1, kind: str = "deliver") -> None:
        self.connection = db.connect()
        self._call = f"CALL activation.{kind}({slot})"
        self.pid = self.connection.info.backend_pid
        self.error: psycopg.Error | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        stopped = "SELECT EXISTS (SELECT FROM activation.schedule WHERE stopped_at > %s)"
        try:
            started = self.connection.execute("SELECT clock_timestamp()").fetchone()
            while self.connection.execute(stopped, started).fetchone() == (False,):
                self.connection.execute(self._call.encode())
        except psycopg.Error as error:
            self.error = error

    def ended(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()


def promise(db: Database, app: Connection, *users: int) -> None:
    """Messages in the queue that nobody has claimed, by taking the key away meanwhile; one, if no users are named."""
    app.execute("SELECT activation.configure(api_key => 'env:NOT_THERE')")
    sign_up(app, *(users or (1,)))
    tick(db)
    app.execute("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")
