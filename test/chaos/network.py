"""The network between the engine and the provider: a relay that can fall silent, lose connections, or refuse them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time


class Network:
    """Listens on a port of its own and passes on to the provider's."""

    def __init__(self, host: str, provider_port: int) -> None:
        self._address = (host, 0)
        self._provider = (host, provider_port)
        self._flows = threading.Event()
        self._flows.set()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        #: When it let go of what it had held back.
        self.thaws: list[float] = []

    @property
    def url(self) -> str:
        return f"http://{self._address[0]}:{self._address[1]}"

    def start(self) -> None:
        """Accept connections, always on the same port."""
        listener = socket.create_server(self._address, backlog=128)
        self._address = listener.getsockname()[:2]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def refuse(self) -> None:
        """Refuse connections, and lose those that are open."""
        if self._listener is not None:
            # close() alone does not wake the thread that accepts, and the port stays open while it sleeps.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.cut()

    def freeze(self) -> None:
        """Fall silent: connections stay open, old and new ones, and nothing goes through."""
        self._flows.clear()

    def thaw(self) -> None:
        """Pass on again, also what was sent meanwhile."""
        if not self._flows.is_set():
            self.thaws.append(time.time())
        self._flows.set()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            lost, self._open = self._open, set()
        for end in lost:
            _reset(end)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._flows.wait()
        try:
            provider = socket.create_connection(self._provider, timeout=5)
        except OSError:
            _reset(client)
            return
        provider.settimeout(None)
        for end in (client, provider):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {client, provider}
        threading.Thread(target=self._pump, args=(provider, client), daemon=True).start()
        self._pump(client, provider)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                target.sendall(data)
        with self._lock:
            self._open -= {source, target}
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RD)
    end.close()
