"""Requests that another thread can end, even while the server has not begun to answer.

A log's headers come with its first line, so whoever follows a silent pod waits for them, perhaps for hours.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection


class Interruption:
    """Ends the request that it belongs to.

    Attributes:
        is_asked: It was asked for.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def ask(self) -> None:
        """End the request now, or when it has its connection. Idempotent."""
        with self._lock:
            self.is_asked = True
            if self._socket is not None:
                # The socket's own shutdown: that of TLS would hand the reader what is still to be deciphered.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def bound_silence(self, silence_s: float) -> None:
        """Let the rest of the answer be silent for so long, in seconds, before it is given up."""
        with self._lock:
            if self._socket is not None:
                self._socket.settimeout(silence_s)

    def hold(self, sock: socket.socket) -> None:
        """Take note of the connection that the request goes over."""
        with self._lock:
            self._socket = sock
        if self.is_asked:
            self.ask()

    def let_go(self) -> None:
        """Forget the connection, which may serve another request from now on."""
        with self._lock:
            self._socket = None


_asking = threading.local()


@contextlib.contextmanager
def interruptible(interruption: Interruption | None) -> Iterator[None]:
    """Let the request that this thread makes meanwhile be ended that way."""
    _asking.interruption = interruption
    try:
        yield
    finally:
        _asking.interruption = None


def _announce(sock: socket.socket) -> None:
    interruption: Interruption | None = getattr(_asking, "interruption", None)
    if interruption is not None:
        interruption.hold(sock)


class _Plain(HTTPConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        _announce(self.sock)
        return super().getresponse()


class _Secure(HTTPSConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        _announce(self.sock)
        return super().getresponse()


class PlainPool(urllib3.HTTPConnectionPool):
    """Connections without TLS."""

    ConnectionCls = _Plain


class SecurePool(urllib3.HTTPSConnectionPool):
    """Connections with TLS."""

    ConnectionCls = _Secure
