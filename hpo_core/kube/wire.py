"""Sending requests and reading answers: one answer at a time, or one that goes on piece by piece."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

import urllib3

from hpo_core import __version__
from hpo_core.errors import HpoError, LaunchError, TransientError
from hpo_core.kube.access import Access
from hpo_core.kube.faults import Refusal, Refused, of_the_way
from hpo_core.kube.interrupt import Interruption, interruptible

CONNECT_S, ANSWER_S = 5.0, 30.0
"""How long the server may take to accept a connection, and to answer or to send the next piece."""
SETTLE_S = 30.0
"""For so long after it was out of reach a server may refuse what it allows: it has not read all of its rules yet."""
PIECE_BYTES = 64 << 10

_METHODS = {"create": "POST", "patch": "PATCH", "delete": "DELETE", "deletecollection": "DELETE"}


@dataclass(frozen=True)
class Request:
    """What is asked of the API server.

    Attributes:
        verb: Kubernetes's word for it; all that are not listed here read.
        path: Its path on the server.
        about: What it is about, for messages: `jobs x in namespace y`.
        query: What is added to the path.
        body: The document that goes with it; None for nothing.
        content_type: The form of that document.
    """

    verb: str
    path: str
    about: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    content_type: str = "application/json"

    @property
    def attempt(self) -> str:
        """What failed when it did."""
        return f"cannot {self.verb} {self.about}"


class Wire:
    """Sends requests; may be used by many threads at once."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._troubled_at = -SETTLE_S
        self._ahead_s = time.time() - time.monotonic()

    @property
    def server(self) -> str:
        """The API server's address."""
        return self._access.host

    def now_s(self) -> float:
        """Return the time by the server's clock, as its last answer told it; see `Kube.now_s`."""
        return self._ahead_s + time.monotonic()

    def ask(self, request: Request, interruption: Interruption | None = None) -> dict[str, Any]:
        """Send a request and return the document that is the answer.

        Args:
            request: What is asked.
            interruption: What another thread may end it by.

        Raises:
            HpoError: As `faults` translates what came instead.
        """
        response = self.open(request, interruption=interruption)
        try:
            with self.breaking(request, interruption):
                answer = json.loads(response.data)
        except ValueError:
            answer = None
        finally:
            if interruption is not None:
                interruption.let_go()
        if not isinstance(answer, dict):
            raise LaunchError(
                f"{request.attempt} at {self.server}: the answer is not Kubernetes's; check the kubeconfig's server"
            )
        return answer

    def open(
        self, request: Request, *, wait_s: float = ANSWER_S, interruption: Interruption | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and return its answer, whose body is still to be read if it can be interrupted.

        Args:
            request: What is asked.
            wait_s: How long the server may be silent before and within its answer.
            interruption: What another thread ends it by; None for a short answer, which is read at once.

        Raises:
            HpoError: As `faults` translates what came instead.
        """
        try:
            response = self._admitted(request, wait_s, interruption)
            if 200 <= response.status < 300:
                return response
            with self.breaking(request, interruption):
                body = response.data
            raise self._error(request, Refusal.read(response.status, body, response.headers.get("Retry-After") or ""))
        except HpoError:
            if interruption is not None:
                interruption.let_go()
            raise

    @contextlib.contextmanager
    def breaking(self, request: Request, interruption: Interruption | None) -> Iterator[None]:
        """Translate what happens to an answer on its way, which may be that it is interrupted.

        Raises:
            TransientError: The connection broke, or nothing came in time.
            LaunchError: The server cannot be trusted.
        """
        try:
            yield
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if interruption is None or not interruption.is_asked:
                self._troubled_at = time.monotonic()
            raise of_the_way(request.attempt, self.server, error) from error

    def _error(self, request: Request, refusal: Refusal) -> HpoError:
        """Return what is to be raised for an answer; a server that has just come back is not believed its no."""
        now = time.monotonic()
        if refusal.code >= 500:
            self._troubled_at = now
        error = refusal.error(request.attempt, request.verb)
        if now - self._troubled_at > SETTLE_S or not isinstance(error, LaunchError) or isinstance(error, Refused):
            return error
        return TransientError(f"{error} (the server was out of reach just now, so this is tried again)")

    def _admitted(self, request: Request, wait_s: float, interruption: Interruption | None) -> urllib3.BaseHTTPResponse:
        """Send a request; once more, with credentials that are read anew, when it does not take those we have."""
        began = time.monotonic()
        response = self._send(request, wait_s, interruption)
        if response.status != 401:
            return response
        response.close()
        self._access.renew(began)
        return self._send(request, wait_s, interruption)

    def _send(self, request: Request, wait_s: float, interruption: Interruption | None) -> urllib3.BaseHTTPResponse:
        url = f"{self._access.host}{request.path}"
        headers = {"Accept": "application/json", "User-Agent": f"kfp-hpo/{__version__}"}
        if authorization := self._access.authorization():
            headers["Authorization"] = authorization
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        with self.breaking(request, interruption), interruptible(interruption):
            response = self._access.pool.request(
                _METHODS.get(request.verb, "GET"),
                f"{url}?{urlencode(request.query)}" if request.query else url,
                body=None if request.body is None else json.dumps(request.body).encode(),
                headers=headers,
                preload_content=interruption is None,
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=wait_s),
            )
        with contextlib.suppress(KeyError, ValueError):
            self._ahead_s = parsedate_to_datetime(response.headers["Date"]).timestamp() - time.monotonic()
        return response


class Stream:
    """An answer that goes on; it is asked for when its first piece is.

    Iterating blocks for the next piece, which is never empty, and ends when the server has said all or `close` was
    called. One thread iterates, once; any may close.

    Args:
        wire: What it is sent over.
        request: What is asked.
        begin_s, silence_s: How long the server may take to begin, and between two pieces.
        interruption: What ends it besides `close`.
    """

    def __init__(
        self,
        wire: Wire,
        request: Request,
        *,
        begin_s: float,
        silence_s: float,
        interruption: Interruption | None = None,
    ) -> None:
        self._wire, self._request = wire, request
        self._begin_s, self._silence_s = begin_s, silence_s
        self._interruption = interruption or Interruption()

    def __iter__(self) -> Iterator[bytes]:
        """Yield what comes: see `pieces`."""
        return self.pieces()

    def pieces(self, begun: Callable[[], None] = lambda: None) -> Iterator[bytes]:
        """Ask, and yield what comes.

        Args:
            begun: Called when the server has accepted the request.

        Raises:
            NotFound: What it is about is not there.
            TransientError: The server cannot be reached, or the connection broke before the end.
            LaunchError: The server refuses.
        """
        try:
            yield from self._pieces(begun)
        except HpoError:
            if not self._interruption.is_asked:
                raise

    def close(self) -> None:
        """End it at once, or in seconds where it is just connecting. Idempotent; may come before the beginning."""
        self._interruption.ask()

    def _pieces(self, begun: Callable[[], None]) -> Iterator[bytes]:
        if self._interruption.is_asked:
            return
        response = self._wire.open(self._request, wait_s=self._begin_s, interruption=self._interruption)
        self._interruption.bound_silence(self._silence_s)
        begun()
        try:
            with self._wire.breaking(self._request, self._interruption):
                for piece in _arriving(response):
                    if self._interruption.is_asked:
                        return
                    yield piece
        finally:
            self._interruption.let_go()
            response.close()


def _arriving(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Yield what has arrived, without waiting for more: in chunks, as streams come, or until the connection ends."""
    return response.read_chunked(PIECE_BYTES) if response.chunked else iter(lambda: response.read1(PIECE_BYTES), b"")
