"""A local server that speaks Resend's API and sends nothing: for tests, demos and development.

    from activation.sandbox import Sandbox

    with Sandbox() as sandbox:
        resend.api_url = sandbox.url                  # or RESEND_API_URL, or activation.configure(resend_url => ...)
        ...
        sandbox.wait_for(lambda s: len(s.emails) == 3)
        sandbox.fail("drop_after", times=2)           # accept the next two requests, answer neither

Or from a shell: `activation sandbox --port 8025`. The mails can be read in a browser at the same address.

Spoken are `POST /emails` and `POST /emails/batch` with Resend's validation, errors, idempotency keys, rate limit and
User-Agent rule, and `GET /emails` and `GET /emails/{id}`. Mail to resend.dev's test addresses gets their `last_event`.
What becomes of a mail is told by the events of one webhook (`GET /webhooks`, its `/events` and `/events/{id}`), and
posted, signed, to `Settings.webhook_url`. There is a suppression list too (`/suppressions`).

For tests in other processes or languages, the same over HTTP, with JSON bodies and answers:

    GET    /_sandbox/emails?to=&limit=   the accepted emails, newest first
    GET    /_sandbox/log?limit=          the last requests, oldest first, and how many are held
    GET    /_sandbox/faults              the faults to come
    POST   /_sandbox/faults              queue one (an object with the fields of Fault), or an array of them
    DELETE /_sandbox/faults              drop them all and release what is held
    GET    /_sandbox/settings            the fields of Settings
    POST   /_sandbox/settings            change some of them
    POST   /_sandbox/events              have something told: an object with `type` and `data`, as a webhook has them
    POST   /_sandbox/release             let go of the requests that `stall` and `stall_before` hold
    POST   /_sandbox/clear               forget everything but the settings
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from .faults import KINDS, Fault
from .records import Email, LogEntry, Settings
from .state import State
from .webhooks import Pusher
from .wire import Server

__all__ = ["KINDS", "Email", "Fault", "LogEntry", "Sandbox", "Settings"]

T = TypeVar("T")


class Sandbox:
    """The server, in this process. Start it with `with` or with `start()`; all of it is thread safe.

    `stop()` closes every connection and keeps what was received; `start()` then opens the same port again. Further
    keyword arguments are the fields of `Settings`.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, **settings: Any) -> None:
        self._host = host
        self._port = port
        self._state = State(Settings())
        self._state.settings.change(**settings)
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._pusher: Pusher | None = None

    def start(self) -> Self:
        """Listen. OSError if the port is taken."""
        if self._server is None:
            self._server = Server((self._host, self._port), self._state)
            # A port that the system chose is kept, so that clients find the server again after stop() and start().
            self._port = self._server.server_address[1]
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
            self._thread.start()
            self._pusher = Pusher(self._state)
        return self

    def stop(self) -> None:
        """Refuse and close all connections."""
        if self._server is not None and self._thread is not None:
            if self._pusher is not None:
                self._pusher.stop()
            self._server.shutdown()
            self._server.server_close()
            self._server.close_connections()
            self._thread.join()
            self._server = self._thread = self._pusher = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The base URL of the API, without a slash at its end; the inbox is there too."""
        return f"http://{self._host}:{self._port}"

    @property
    def emails(self) -> list[Email]:
        """The accepted emails so far, oldest first."""
        with self._state.changed:
            return list(self._state.emails)

    @property
    def log(self) -> list[LogEntry]:
        """The requests to the API so far, oldest first; one that is still being handled completes its entry later."""
        with self._state.changed:
            return list(self._state.log)

    @property
    def held(self) -> int:
        """How many requests `stall` and `stall_before` hold at this moment."""
        return self._state.held

    @property
    def settings(self) -> Settings:
        """The settings in force; change them with `configure`."""
        return self._state.settings

    def configure(self, **changes: Any) -> None:
        """Change settings while running, for instance `configure(rate=10, latency_ms=50)`."""
        with self._state.changed:
            self._state.settings.change(**changes)

    def fail(self, kind: str, **options: Any) -> None:
        """Queue a fault for requests to come: a kind (see `KINDS`) and fields of `Fault`.

        `fail("status", status=429, headers={"retry-after": "2"})`, `fail("stall", times=None, endpoint="/emails")`.
        One request meets one fault at most, the first in the queue that fits it.
        """
        fault = Fault(kind, **options)
        with self._state.changed:
            self._state.faults.add(fault)

    def tell(self, type: str, **data: Any) -> str:
        """Have Resend tell something: an event of this type with this data. Returns its id."""
        return self._state.happen({"type": type, "data": data}).id

    def suppress(self, email: str, origin: str = "manual") -> None:
        """Put an address on the account's suppression list. origin: bounce, complaint or manual."""
        self._state.suppress(email, origin)

    def unsuppress(self, email: str) -> None:
        """Take it off again."""
        self._state.unsuppress(email)

    @property
    def suppressions(self) -> set[str]:
        """The addresses on the account's suppression list, in lower case."""
        with self._state.changed:
            return set(self._state.suppressions)

    def clear_faults(self) -> None:
        """Drop the faults to come and release what is held."""
        self._state.clear_faults()

    def release(self) -> None:
        """Let go of the requests that are held at this moment."""
        self._state.release()

    def clear(self) -> None:
        """Forget emails, log, faults and idempotency keys; release what is held; keep the settings."""
        self._state.clear()

    def wait_for(self, predicate: Callable[[Sandbox], T], timeout: float = 10) -> T:
        """Wait until the predicate is true of the sandbox and return its value; TimeoutError after `timeout` seconds.

        It is called with the sandbox locked, whenever something has changed.
        """
        with self._state.changed:
            value = self._state.changed.wait_for(lambda: predicate(self), timeout)
            if not value:
                state = self._state
                raise TimeoutError(
                    f"not so within {timeout} s: the sandbox has {len(state.emails)} emails "
                    f"from {len(state.log)} requests, {state.held} of them held"
                )
            return value
