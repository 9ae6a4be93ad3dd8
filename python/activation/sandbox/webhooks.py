"""Brings events to the app, as Resend does: signed POSTs, one after the other, each until it is taken."""

from __future__ import annotations

import threading
import time

import requests

from .events import Event, signed
from .state import State

# Seconds from one try of an event to the next. Resend goes on for a day; here the next event is to come.
RETRIES = (0.2, 1, 3)


class Pusher:
    """A thread that posts what has happened since it started to `Settings.webhook_url`, if there is one."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, within one request's time."""
        self._stopping.set()
        with self._state.changed:
            self._state.changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        session = requests.Session()
        session.trust_env = False
        while not self._stopping.is_set():
            with self._state.changed:
                self._state.changed.wait_for(lambda: self._stopping.is_set() or self._state.unpushed())
                events = self._state.take_unpushed()
            for event in events:
                self._push(session, event)

    def _push(self, session: requests.Session, event: Event) -> None:
        for wait in (*RETRIES, None):
            url, secret = self._state.settings.webhook_url, self._state.settings.webhook_secret
            if url is None or secret is None or self._stopping.is_set():
                return
            body, headers = signed(event, secret, time.time())
            try:
                if session.post(url, body, headers=headers, timeout=15, allow_redirects=False).ok:
                    return
            except requests.RequestException:
                pass
            if wait is not None:
                self._stopping.wait(wait)
