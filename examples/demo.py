"""From a signup to an email, on a throwaway server. Run it with `make demo`.

It starts a PostgreSQL of its own with pg_cron, a sandbox in Resend's place and the example app, all on this machine
alone; signs people up over the app's API; and shows the emails as they arrive. On a terminal it stays up until Ctrl-C.
It leaves nothing behind.

ACTIVATION_PG_BIN names the bin directory of a PostgreSQL tree that has the extension. Not to be run as root, as which
PostgreSQL refuses to start.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import requests
import testing.postgresql  # type: ignore[import-untyped, unused-ignore]
import uvicorn
from alembic import command
from alembic.config import Config

from activation.sandbox import Email, Sandbox

HERE = Path(__file__).parent
APP = HERE / "fastapi_app"
# A new job of pg_cron waits for the next full minute, and a nudge for its loop's timeout.
PATIENCE = 150.0
# The timeout in demo_nudge.sql.
NUDGE_AFTER = 15
ENDINGS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
PASSWORD = "correct horse battery staple"
OPERATOR_PASSWORD = "demo"


class Failed(Exception):
    """The demo could not show what it wanted to show."""


@dataclass
class Person:
    """Someone who signs up over the app's API."""

    name: str
    project: str | None
    """The project they create at once; None: they wait to be nudged."""
    user_id: int = 0

    @property
    def email(self) -> str:
        """Their address."""
        return f"{self.name.split()[0].lower()}@demo.test"


PEOPLE = [
    Person("Ada Lovelace", "Analytical Engine"),
    Person("Edgar Codd", "A Relational Model"),
    Person("Grace Hopper", None),
    Person("Alan Turing", "Bombe"),
    Person("Barbara Liskov", "CLU"),
    Person("Annie Easley", None),
    Person("Katherine Johnson", "Trajectories"),
    Person("Ken Thompson", None),
]
LATE = PEOPLE[2]
PROGRAMMER = PEOPLE[1]


def heading(text: str) -> None:
    """A step of the demo."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"\n{bold}{text}{plain}", flush=True)


def say(text: str = "") -> None:
    """Something about the step."""
    print("\n".join(f"    {line}".rstrip() for line in text.splitlines()), flush=True)


def happened(at: float, text: str) -> None:
    """Something that happened at a time."""
    say(f"{clock(datetime.fromtimestamp(at))}  {text}")


def clock(at: datetime) -> str:
    """The time of day, to the millisecond."""
    return f"{at:%H:%M:%S.%f}"[:-3]


def cell(value: object) -> str:
    """A value as text, for a table."""
    if isinstance(value, datetime):
        return clock(value)
    return "" if value is None else str(value)


def table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows under each other, as wide as they need to be."""
    texts = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *texts, strict=True)]
    for row in [list(names), ["-" * width for width in widths], *texts]:
        say("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)))


class Cluster:
    """A throwaway PostgreSQL that only its own user can reach, through a socket in a closed directory."""

    def __init__(self, folder: str, bin_folder: Path) -> None:
        self.bin_folder = bin_folder
        self.socket_folder = f"{folder}/tmp"
        self._log = Path(folder, "Postgresql.log")
        self._hba = Path(folder, "data", "pg_hba.conf")
        self._server = testing.postgresql.Postgresql(
            auto_start=0,
            base_dir=folder,
            boot_timeout=60,
            initdb=str(bin_folder / "initdb"),
            initdb_args="-U postgres -A trust -E UTF8 --locale=C.UTF-8",
            postgres=str(bin_folder / "postgres"),
            postgres_args="-h 127.0.0.1 -F -c logging_collector=off -c track_commit_timestamp=on"
            " -c shared_preload_libraries=pg_cron -c cron.database_name=test",
        )

    def start(self) -> None:
        """Make the cluster and start it."""
        try:
            self._server.setup()
            self._server.start()
        except RuntimeError as error:
            raise Failed(f"PostgreSQL does not start: {error}") from error
        # testing.postgresql needs the TCP port, without a password, to start the server. From here on only the socket.
        self._hba.write_text("local all all trust\n", encoding="utf-8")
        with self.connect() as connection:
            connection.execute("SELECT pg_reload_conf()")

    def stop(self) -> None:
        """Shut it down at once; every connection is ended."""
        self._server.stop()

    @property
    def port(self) -> int:
        """Its port, which is also in the socket's name."""
        return int(self._server.settings["port"])

    def url(self, role: str) -> str:
        """Its address, for a role."""
        return f"postgresql://{role}@/test?host={quote(self.socket_folder)}&port={self.port}"

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection as the superuser; every statement is a transaction."""
        return psycopg.connect(self.url("postgres"), autocommit=True)

    def psql(self) -> str:
        """The command that opens it in psql, from the terminal the demo runs in."""
        command = shlex.join(
            [str(self.bin_folder / "psql"), "-h", self.socket_folder, "-p", str(self.port), "-U", "postgres", "test"]
        )
        if os.stat(os.ttyname(0)).st_uid in (0, os.getuid()):
            return command
        return f"sudo -u {shlex.quote(pwd.getpwuid(os.getuid()).pw_name)} {command}"

    def last_words(self, lines: int = 15) -> str:
        """The end of the server's log."""
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


@contextmanager
def held_back(signals: set[signal.Signals]) -> Iterator[None]:
    """Let signals wait, so that no folder, initdb or server is left that nobody knows of."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


@contextmanager
def running_app() -> Iterator[str]:
    """The example app under uvicorn, on a free port; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    os.environ["APP_URL"] = url
    os.environ["OPERATOR_PASSWORD"] = OPERATOR_PASSWORD
    server = uvicorn.Server(uvicorn.Config("fastapi_app.main:app", log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive(), 30, "the app to start")
        if not server.started:
            raise Failed("The example app did not start.")
        yield url
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def wait_for(predicate: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > end:
            raise Failed(f"Waited {timeout:.0f} s for {what}.")
        time.sleep(0.05)


class Demo:
    """What the parts of the demo share."""

    def __init__(self, cluster: Cluster, sandbox: Sandbox) -> None:
        self.cluster = cluster
        self.sandbox = sandbox
        self.database = cluster.connect()
        self.app_url = ""
        self.shown = 0
        self.welcome_ms: list[float] = []
        self.give_up_at = time.monotonic() + PATIENCE

    def server_version(self) -> str:
        """As people write it: 15.20."""
        number = self.database.info.server_version
        return f"{number // 10000}.{number % 10000}"

    def prepare(self) -> None:
        """The app's migrations make its tables and role, the extension and the loops."""
        heading("2. The app's migrations: tables, and loops")
        os.environ["DATABASE_URL"] = self.cluster.url("postgres")
        command.upgrade(Config(APP / "alembic.ini"), "head")
        os.environ["DATABASE_URL"] = self.cluster.url("example_app")
        say("users, projects, api_keys, user_actions. The app may SELECT and INSERT there, and owns nothing.")

        self.database.execute("CREATE EXTENSION pg_cron")
        loops = (APP / "loops.py").read_text(encoding="utf-8")
        nudge = (HERE / "demo_nudge.sql").read_text(encoding="utf-8")
        self.database.execute(nudge.encode())
        say(" \nWho creates a first project within five minutes of signing up gets a welcome,")
        say("and a first call of the API gets a mail, too. In fastapi_app/loops.py:\n ")
        say(loops[loops.index("FIRST_PROJECT = ") : loops.index("FIRST_API_CALL_MAIL = ")])
        say(f" \nFor this demo, who has none after {NUDGE_AFTER} seconds gets a nudge:\n ")
        say(nudge)

    def go_live(self) -> None:
        """Live mode, with the sandbox in Resend's place, and workers."""
        heading("3. Live, with the sandbox in Resend's place")
        urls = f"resend_url => '{self.sandbox.url}', public_url => '{self.app_url}/activation'"
        for statement in (
            f"SELECT activation.configure({urls})",
            "SELECT activation.set_mode('live')",
            "SELECT activation.start()",
        ):
            say(statement + ";")
            self.database.execute(statement.encode())
        self.give_up_at = time.monotonic() + PATIENCE
        say(f" \npg_cron starts jobs at full minutes: the workers will be here in about {60 - time.time() % 60:.0f} s.")
        wait_for(self._workers_run, self._patience(), "activation's workers, which pg_cron starts at a full minute")
        say("They are here.")

    def people_come(self) -> None:
        """Everybody signs up, and some create a project."""
        heading(f"4. {len(PEOPLE)} people sign up over the app's API")
        for person in PEOPLE:
            person.user_id = self._post("/signup", email=person.email, name=person.name, password=PASSWORD)["id"]
            happened(time.time(), f"{person.name} signs up")
            if person.project is not None:
                self._create_project(person, person.project)
                self._wait_for_mail(person)

        heading(f"5. Those without a project are nudged, {NUDGE_AFTER} seconds after they signed up")
        for person in PEOPLE:
            self._wait_for_mail(person)

        heading(f"6. {LATE.name} comes back")
        self._create_project(LATE, "A Compiler")
        self._wait_for_mail(LATE, 2)
        median, longest = statistics.median(self.welcome_ms), max(self.welcome_ms)
        say(f" \nFrom a project's commit to its email: median {median:.0f} ms, longest {longest:.0f} ms.")

    def a_program_calls(self) -> None:
        """With an API key that its user has made."""
        heading(f"7. {PROGRAMMER.name}'s program calls the API")
        key = self._post("/api-keys", self._log_in(PROGRAMMER), name="script")["key"]
        answer = requests.get(f"{self.app_url}/v1/projects", headers={"X-API-Key": key}, timeout=30)
        happened(time.time(), f"GET /v1/projects with a new key: HTTP {answer.status_code}")
        self._wait_for_mail(PROGRAMMER, 2)

    def somebody_leaves(self) -> None:
        """One click in a mail program: a POST to the link in the mail's header, which the app answers."""
        heading(f"8. {LATE.name} has read enough, and clicks “unsubscribe” in her mail program")
        mail = next(email for email in self.sandbox.emails if email.to == [LATE.email])
        link = mail.as_json()["headers"]["List-Unsubscribe"].strip("<>")
        answer = requests.post(link, data={"List-Unsubscribe": "One-Click"}, timeout=30)
        say(f"POST {link}: HTTP {answer.status_code}")
        self._select("SELECT name, subscribed FROM activation.preferences(%s)", str(LATE.user_id))
        left = self.database.execute("SELECT bool_or(subscribed) FROM activation.preferences(%s)", [str(LATE.user_id)])
        if answer.status_code != 200 or left.fetchone() != (False,):
            raise Failed("She should be unsubscribed, and is not.")

    def look_back(self) -> None:
        """One person's timeline, and how everything is."""
        wait_for(self._all_recorded, self._patience(), "the last outcome to be recorded")
        if len(self.sandbox.emails) != len(PEOPLE) + 2:
            raise Failed(f"There should be {len(PEOPLE) + 2} emails, and there are {len(self.sandbox.emails)}.")
        heading(f"9. {LATE.name}'s timeline: SELECT * FROM activation.why('{LATE.user_id}')")
        self._select("SELECT at, loop, event, detail FROM activation.why(%s)", str(LATE.user_id))
        heading("10. How it is: SELECT * FROM activation.status")
        self._select("SELECT component, state, detail FROM activation.status")
        dashboard = requests.get(f"{self.app_url}/activation/", auth=("demo", OPERATOR_PASSWORD), timeout=30)
        if dashboard.status_code != 200 or "first_project_nudge" not in dashboard.text:
            raise Failed(f"The dashboard answers {dashboard.status_code}.")
        say(f" \nThe same for people is the app's page /activation/: HTTP {dashboard.status_code}.")

    def really_send(self, address: str, url: str) -> None:
        """One more person, whose mail goes through Resend itself: everybody before has had theirs."""
        heading(f"11. One real mail, to {address}")
        self.database.execute("SELECT activation.set_secret('demo', %s)", [os.environ["DEMO_API_KEY"]])
        self.database.execute(
            "SELECT activation.configure(resend_url => %s, api_key => 'secret:demo', sender => %s)",
            [url, os.environ.get("DEMO_SENDER", "Acme <onboarding@resend.dev>")],
        )
        user_id = self._post("/signup", email=address, name="You", password=PASSWORD)["id"]
        token = str(self._post("/login", email=address, password=PASSWORD)["access_token"])
        self._post("/projects", token, name="A Beginning")
        row: tuple[Any, ...] | None = None

        def ended() -> bool:
            nonlocal row
            row = self.database.execute(
                "SELECT status, resend_id, last_error FROM activation.message_log"
                " WHERE user_id = %s AND loop = 'first_project'",
                [str(user_id)],
            ).fetchone()
            return row is not None and (row[0] not in ("queued", "sending") or row[2] is not None)

        wait_for(ended, 60, "Resend's answer")
        # Whoever signs up from now on is mailed in the sandbox.
        self.database.execute(
            "SELECT activation.configure(resend_url => %s, api_key => 'env:RESEND_API_KEY', sender => %s)",
            [self.sandbox.url, "Acme <hello@acme.dev>"],
        )
        assert row is not None
        status, resend_id, error = row
        if status != "sent":
            raise Failed(f"It was not sent: {status}, {error}")
        say(f"Sent, as {resend_id}. Its links lead to this machine, while the demo stays up.")

    def stay(self) -> None:
        """Keep everything up until Ctrl-C, and go on showing emails."""
        heading("All of it stays up until Ctrl-C")
        say(f"the app    {self.app_url}/start, and its API {self.app_url}/docs")
        say(f"the inbox  {self.sandbox.url}\npsql       {self.cluster.psql()}")
        say(f"dashboard  {self.app_url}/activation/, any name, password {OPERATOR_PASSWORD}\n ")
        stopped = threading.Event()
        signal.signal(signal.SIGINT, lambda *_: stopped.set())
        while not stopped.wait(0.1):
            self.show_mail()

    def show_mail(self) -> None:
        """A line for every email that has arrived since the last call."""
        emails = self.sandbox.emails
        for email in emails[self.shown :]:
            happened(email.received_at, f"  > {email.to[0]}: “{email.subject}”{self._delay(email)}")
        self.shown = len(emails)

    def diagnosis(self) -> str:
        """What may explain a failure."""
        parts = []
        try:
            with self.cluster.connect() as connection:
                for query in (
                    "SELECT component, state, detail FROM activation.status",
                    "SELECT recipient, loop, status, attempts, last_error FROM activation.message_log",
                    "SELECT command, status, return_message FROM cron.job_run_details",
                ):
                    rows = connection.execute(query.encode()).fetchall()
                    parts.append("\n".join([query, *(f"  {row}" for row in rows)]))
        except psycopg.Error as error:
            parts.append(str(error))
        return "\n\n".join([*parts, "The end of the server's log:\n" + self.cluster.last_words()])

    def _delay(self, email: Email) -> str:
        """How long after what it answers to an email arrived, by the server's clock, which is also ours."""
        row = self.database.execute(
            """
            SELECT m.loop, extract(epoch FROM pg_xact_commit_timestamp(a.xmin)), extract(epoch FROM u.created_at)
              FROM activation.message_log AS m
              JOIN users AS u ON u.id::text = m.user_id
              LEFT JOIN user_actions AS a ON a.user_id = u.id AND a.action_type = 'first_project_created'
             WHERE m.message_id::text = %s
            """,
            (email.tags.get("activation_message"),),
        ).fetchone()
        if row is None:
            return ""
        loop, acted_at, signed_up_at = row
        if loop == "first_project" and acted_at is not None:
            self.welcome_ms.append((email.received_at - float(acted_at)) * 1000)
            return f", {self.welcome_ms[-1]:.0f} ms after the project's commit"
        if loop == "first_project_nudge":
            return f", {(email.received_at - float(signed_up_at) - NUDGE_AFTER) * 1000:.0f} ms after the deadline"
        return ""

    def _create_project(self, person: Person, name: str) -> None:
        self._post("/projects", self._log_in(person), name=name)
        happened(time.time(), f"{person.name} creates a first project, “{name}”")

    def _log_in(self, person: Person) -> str:
        return str(self._post("/login", email=person.email, password=PASSWORD)["access_token"])

    def _post(self, path: str, token: str = "", **body: str) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = requests.post(self.app_url + path, json=body, headers=headers, timeout=30)
        if answer.status_code >= 300:
            raise Failed(f"The app answered {answer.status_code} to POST {path}: {answer.text}")
        return answer.json()

    def _wait_for_mail(self, person: Person, count: int = 1) -> None:
        def arrived() -> bool:
            self.show_mail()
            return sum(email.to == [person.email] for email in self.sandbox.emails) >= count

        wait_for(arrived, self._patience(), f"an email to {person.email}")

    def _patience(self) -> float:
        return max(1.0, self.give_up_at - time.monotonic())

    def _workers_run(self) -> bool:
        states = self.database.execute(
            "SELECT state FROM activation.status WHERE component IN ('detector 1', 'deliverer 1')"
        ).fetchall()
        return states == [("ok",), ("ok",)]

    def _all_recorded(self) -> bool:
        row = self.database.execute("SELECT count(*) FROM activation.message_log WHERE status <> 'sent'").fetchone()
        return row == (0,)

    def _select(self, query: str, *values: str) -> None:
        cursor = self.database.execute(query.encode(), values)
        table([column.name for column in cursor.description or ()], cursor.fetchall())


def run(stack: ExitStack, bin_folder: Path, options: argparse.Namespace) -> None:
    """The demo; what it starts is ended by the stack."""
    heading("1. A throwaway server, a sandbox, an app")
    os.environ["RESEND_API_KEY"] = "re_demo"
    with held_back(ENDINGS):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="activation-demo-", ignore_cleanup_errors=True))
        cluster = Cluster(folder, bin_folder)
        stack.callback(cluster.stop)
        cluster.start()
    sandbox = stack.enter_context(Sandbox())
    demo = Demo(cluster, sandbox)
    stack.callback(demo.database.close)
    say(f"PostgreSQL {demo.server_version()} with pg_cron, in {folder}")
    say(f"A sandbox that speaks Resend's API, with an inbox, at {sandbox.url}")
    try:
        demo.prepare()
        demo.app_url = stack.enter_context(running_app())
        demo.go_live()
        demo.people_come()
        demo.a_program_calls()
        demo.somebody_leaves()
        demo.look_back()
        if options.live:
            demo.really_send(options.live, options.resend_url)
    except (Failed, psycopg.Error, requests.RequestException) as error:
        raise Failed(f"{error}\n\n{demo.diagnosis()}") from error
    if sys.stdin.isatty() and sys.stdout.isatty():
        demo.stay()


def main() -> int:
    """Run the demo; its exit status."""
    parser = argparse.ArgumentParser(description="What the README says, before your eyes.")
    parser.add_argument("--live", metavar="ADDRESS", help="also send one real mail there, with DEMO_API_KEY")
    parser.add_argument("--resend-url", default="", metavar="URL", help="with --live: another server in Resend's place")
    options = parser.parse_args()
    if options.live and not os.environ.get("DEMO_API_KEY"):
        print("LIVE takes a key of Resend's: RESEND_API_KEY=re_… make demo LIVE=you@your.domain", file=sys.stderr)
        return 2
    bin_folder = os.environ.get("ACTIVATION_PG_BIN")
    if bin_folder is None:
        print("ACTIVATION_PG_BIN is not set. `make demo` sets it.", file=sys.stderr)
        return 2
    if os.geteuid() == 0:
        print("PostgreSQL does not run as root. `make demo` changes to another user.", file=sys.stderr)
        return 2
    # The repository may belong to somebody else, and nothing is to be left in it.
    sys.dont_write_bytecode = True
    for ending in ENDINGS:
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    with ExitStack() as stack:
        try:
            run(stack, Path(bin_folder), options)
        except Failed as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            return 1
        finally:
            # A second Ctrl-C must not leave half of it behind.
            for ending in ENDINGS:
                signal.signal(ending, signal.SIG_IGN)
    heading("Stopped, and nothing is left of it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
