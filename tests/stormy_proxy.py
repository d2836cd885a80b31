"""A proxy before a real API server that makes the weather: it refuses, cuts streams, breaks answers off, loses them.

It speaks plain HTTP on this machine, and enters the server as the kubeconfig says: who comes through it needs nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar

import urllib3

from hpo_core.kube.access import by_kubeconfig
from hpo_core.kube.interrupt import Interruption, interruptible

REFUSALS = ((429, "1"), (429, ""), (500, ""), (503, "2"))
"""Statuses of refusals, and what they say in Retry-After; one after the other."""
_PASSED_ON = ("Content-Type", "Accept")
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Weather:
    """What becomes of requests.

    Attributes:
        refused: The share of all requests that is refused, and does not reach the server.
        broken: The share of short answers in whose middle the connection is reset.
        streams_s: After how many seconds watches and followed logs are cut off; None for never.
        loses_creates: Whether the answer to each object's first creation is lost.
    """

    refused: float = 0.0
    broken: float = 0.0
    streams_s: float | None = None
    loses_creates: bool = False


class StormyProxy:
    """A proxy whose weather may change at any time.

    Attributes:
        weather: Of the requests that begin from now on.
        requests: How many have come, by method.
        troubles: How many went wrong, by what happened: `refused`, `broken`, `cut`, `lost`.
    """

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self.requests: Counter[str] = Counter()
        self.troubles: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.chance = random.Random(0)
        self.refusals = cycle(REFUSALS)
        self.created: set[bytes] = set()
        self.streams: set[Interruption] = set()
        self.access = by_kubeconfig("", "")
        handler = type("BoundHandler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def kubeconfig(self, folder: Path) -> Path:
        """Write a kubeconfig that leads here, and return its path."""
        cluster = {"server": f"http://127.0.0.1:{self._server.server_address[1]}"}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "storm", "cluster": cluster}],
            "users": [{"name": "anybody", "user": {}}],
            "contexts": [{"name": "storm", "context": {"cluster": "storm", "user": "anybody"}}],
            "current-context": "storm",
        }
        path = folder / "stormy-kubeconfig"
        path.write_text(json.dumps(document))
        return path

    def close(self) -> None:
        """Serve nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        with self.lock:
            for stream in self.streams:
                stream.ask()

    def happens(self, what: str, share: float) -> bool:
        """Draw whether something happens, and count it if so."""
        with self.lock:
            if self.chance.random() >= share:
                return False
            self.troubles[what] += 1
            return True


class _Handler(BaseHTTPRequestHandler):
    """Passes the requests of one connection on."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: ClassVar[StormyProxy]

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy, weather = self.proxy, self.proxy.weather
        with proxy.lock:
            proxy.requests[self.command] += 1
        if proxy.happens("refused", weather.refused):
            with proxy.lock:
                code, retry_after = next(proxy.refusals)
            self._send(code, {"Retry-After": retry_after} if retry_after else {}, b"it is stormy")
            return
        interruption = Interruption()
        with suppress(urllib3.exceptions.HTTPError, OSError):
            answer = self._ask(body, interruption)
            if "watch=1" in self.path or "follow=true" in self.path:
                self._stream(answer, interruption, weather.streams_s)
                return
            data, headers = answer.read(), {"Content-Type": answer.headers.get("Content-Type", "")}
            answer.release_conn()
            if self._is_lost(body):
                self._reset()
            elif proxy.happens("broken", weather.broken if len(data) > 1 else 0.0):
                self._send(answer.status, headers, data, sent=len(data) // 2)
                self._reset()
            else:
                self._send(answer.status, headers, data)
            return
        self._reset()

    def _ask(self, body: bytes, interruption: Interruption) -> urllib3.BaseHTTPResponse:
        headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
        access = self.proxy.access
        if authorization := access.authorization():
            headers["Authorization"] = authorization
        with interruptible(interruption):
            return access.pool.request(
                self.command,
                f"{access.host}{self.path}",
                body=body or None,
                headers=headers,
                preload_content=False,
                retries=False,
                timeout=urllib3.Timeout(connect=5.0, read=600.0),
            )

    def _stream(self, answer: urllib3.BaseHTTPResponse, interruption: Interruption, cut_s: float | None) -> None:
        """Pass on what comes as it comes; what is cut off has no end."""
        with self.proxy.lock:
            self.proxy.streams.add(interruption)
        timer = threading.Timer(cut_s if cut_s is not None else 1e6, interruption.ask)
        timer.daemon = True
        timer.start()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for piece in answer.read_chunked() if answer.chunked else [answer.read()]:
                if piece:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if not interruption.is_asked:
                self.wfile.write(b"0\r\n\r\n")
        except (urllib3.exceptions.HTTPError, OSError):
            interruption.ask()
        finally:
            timer.cancel()
            answer.close()
            with self.proxy.lock:
                self.proxy.streams.discard(interruption)
                self.proxy.troubles["cut"] += interruption.is_asked
            if interruption.is_asked:
                self._reset()

    def _is_lost(self, body: bytes) -> bool:
        if self.command != "POST" or not self.proxy.weather.loses_creates:
            return False
        digest = hashlib.sha256(self.path.encode() + body).digest()
        with self.proxy.lock:
            is_first = digest not in self.proxy.created
            self.proxy.created.add(digest)
            self.proxy.troubles["lost"] += is_first
        return is_first

    def _send(self, code: int, headers: dict[str, str], data: bytes, *, sent: int | None = None) -> None:
        with suppress(OSError):
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[:sent])

    def _reset(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def shutdown_request(self, request: Any) -> None:
        """Close without a farewell, so that what is to be reset is."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error."""


@contextmanager
def stormy_proxy(weather: Weather) -> Iterator[StormyProxy]:
    """A proxy before the kubeconfig's API server."""
    proxy = StormyProxy(weather)
    try:
        yield proxy
    finally:
        proxy.close()
