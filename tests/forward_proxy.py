"""A proxy as HTTP_PROXY and HTTPS_PROXY name one: it forwards what is sent to it, and tunnels what it may not read."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class ForwardProxy:
    """What a proxy was asked for.

    Attributes:
        endpoint: `127.0.0.1:PORT`.
        names: Addresses of the hosts that it alone knows, by `HOST:PORT`.
        asked: Method and target of each request, in order.
        authorizations: What each told of who it is.
        refuses: Whether it lets nobody through.
    """

    endpoint: str
    names: Mapping[str, str]
    asked: list[tuple[str, str]] = field(default_factory=list)
    authorizations: set[str] = field(default_factory=set)
    refuses: bool = False


@contextmanager
def forward_proxy(names: Mapping[str, str]) -> Iterator[ForwardProxy]:
    """A proxy that serves as long as the context lasts, and knows hosts by names."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                serve(proxy, self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close = True, False

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy = ForwardProxy(f"127.0.0.1:{server.server_address[1]}", names)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


def serve(proxy: ForwardProxy, client: socket.socket) -> None:
    """Take one request of a client, and pass on whatever follows, both ways."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = client.recv(1 << 16)
        if not piece:
            return
        head += piece
    head, _, rest = head.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, version = first.split(" ")
    proxy.asked.append((method, target))
    proxy.authorizations |= {line.partition(": ")[2] for line in lines if line.lower().startswith("proxy-auth")}
    if proxy.refuses:
        client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        return
    address = target if method == "CONNECT" else urlsplit(target).netloc
    host, _, port = proxy.names[address].rpartition(":")
    with socket.create_connection((host, int(port))) as server:
        if method == "CONNECT":
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            path = target.partition(address)[2] or "/"
            kept = [line for line in lines if not line.lower().startswith(("proxy-", "connection:"))]
            server.sendall("\r\n".join([f"{method} {path} {version}", *kept, "Connection: close", "", ""]).encode())
        server.sendall(rest)
        threading.Thread(target=pass_on, args=(client, server), daemon=True).start()
        pass_on(server, client)


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until nothing does."""
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
