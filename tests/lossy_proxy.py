"""A proxy between a client and a server that loses answers, or headers of requests, when a test asks it to."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CONDITION = re.compile(rb"(?im)^if-(none-)?match:[^\n]*\n")
"""The headers that make a write conditional."""


class LossyProxy:
    """A proxy that passes on everything as it comes, until it is told otherwise.

    A request must begin a piece of what the client sends, and its headers must lie in that piece: so it is with small
    requests, one after the other.

    Attributes:
        endpoint: `127.0.0.1:PORT`.
        requests: How many requests it has passed on, by method.
    """

    def __init__(self, server: str, *, drop: re.Pattern[bytes] | None = None) -> None:
        host, _, port = server.partition(":")
        self._server, self._drop = (host, int(port)), drop
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: dict[str, int] = {}
        self._to_lose = 0
        self._sockets: list[socket.socket] = []

    def lose_answers(self, count: int) -> None:
        """Pass on the next requests that write, and break the connection instead of passing on their answers."""
        self._to_lose = count

    def serve(self) -> None:
        """Serve until it is closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        for end in (self._listener, *self._sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._server)
        except OSError:
            client.close()
            return
        self._sockets += [client, server]
        losing = threading.Event()
        threading.Thread(target=self._pass_answers, args=(server, client, losing), daemon=True).start()
        with suppress(OSError):
            while piece := client.recv(1 << 20):
                method = piece.split(b" ", 1)[0].decode("latin-1")
                if method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
                    self.requests[method] = self.requests.get(method, 0) + 1
                if method == "PUT" and self._to_lose:
                    self._to_lose -= 1
                    losing.set()
                server.sendall(self._drop.sub(b"", piece) if self._drop else piece)
        server.close()

    def _pass_answers(self, server: socket.socket, client: socket.socket, losing: threading.Event) -> None:
        with suppress(OSError):
            while (piece := server.recv(1 << 20)) and not losing.is_set():
                client.sendall(piece)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def lossy_proxy(server: str, *, drop: re.Pattern[bytes] | None = None) -> Iterator[LossyProxy]:
    """A proxy before a server.

    Args:
        server: `HOST:PORT`.
        drop: What is taken out of every request.
    """
    proxy = LossyProxy(server, drop=drop)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
