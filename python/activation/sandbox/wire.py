"""The HTTP server: reads requests, writes answers, and breaks connections when a fault says so."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .api import Answer, Api
from .control import Control
from .inbox import Inbox
from .messages import Request, Response
from .state import State

MAX_BODY = 64 * 1024 * 1024


class Server(socketserver.ThreadingTCPServer):
    """One thread a connection. Closing it ends the open connections too."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], state: State) -> None:
        self.state = state
        self.api = Api(state)
        self.control = Control(state)
        self.inbox = Inbox(state)
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        # Noted before its thread runs, so that none escapes close_connections.
        with self._connections_lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._connections_lock:
                self._connections.discard(request)

    def close_connections(self) -> None:
        """Hang up on every client."""
        with self._connections_lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of ours; anything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def _dispatch(self) -> None:
        at = time.time()
        body = self._read_body()
        if body is None:
            return
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(at, self.command, unquote(parts.path), query, headers, body, self._hung_up)
        if request.path == "/" or request.path.startswith("/inbox/"):
            self._write(self.server.inbox.response(request))
        elif request.path.startswith("/_sandbox/"):
            self._write(self.server.control.response(request))
        else:
            self._deliver(self.server.api.answer(request))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_HEAD = _dispatch

    def _read_body(self) -> bytes | None:
        """The body; None if the request ends here, because it is unreadable or the client is gone."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers:
            self._refuse(411, "Length Required")
        elif not length.isascii() or not length.isdigit():
            self._refuse(400, "Bad Request")
        elif len(length) > 12 or int(length) > MAX_BODY:
            self._refuse(413, "Payload Too Large")
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                return body
            self.close_connection = True
        return None

    def _refuse(self, status: int, text: str) -> None:
        # The body was not read, so that the connection can't be used again.
        self.close_connection = True
        self._write(Response(status, text.encode(), "text/plain"))

    def _deliver(self, answer: Answer) -> None:
        """Write an answer of the API the way its fault says."""
        response, state = answer.response, self.server.state
        kind = answer.fault.kind if answer.fault else None
        if kind == "stall" and response is not None and not state.hold(self._hung_up):
            response = None
        if response is None or kind == "drop_after":
            state.finish(answer.entry, None)
            self.close_connection = True
            return
        # First the log, then the answer: who has the answer finds the log complete.
        state.finish(answer.entry, response.status)
        if kind == "partial":
            self.close_connection = True
            head, body = self._head(response), response.body
            self.wfile.write(head + body[: len(body) // 2])
        elif kind == "trickle" and answer.fault is not None:
            for byte in self._head(response) + response.body:
                self.wfile.write(bytes([byte]))
                time.sleep(answer.fault.ms / 1000)
        else:
            self._write(response)

    def _write(self, response: Response) -> None:
        body = b"" if self.command == "HEAD" else response.body
        self.wfile.write(self._head(response) + body)

    def _head(self, response: Response) -> bytes:
        try:
            reason = HTTPStatus(response.status).phrase
        except ValueError:
            reason = "Unknown"
        lines = [
            f"HTTP/1.1 {response.status} {reason}",
            f"Date: {self.date_time_string()}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            *(f"{name}: {value}" for name, value in response.headers.items()),
        ]
        if self.close_connection:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _hung_up(self) -> bool:
        """Whether the client closed the connection."""
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: the log is in the sandbox."""
