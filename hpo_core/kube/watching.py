"""Watching objects: what is there, then every change, for as long as its user likes, whatever happens to the server."""

from __future__ import annotations

import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from hpo_core.errors import TransientError
from hpo_core.kube.faults import WAIT_S, Gone, NotServed, Refusal
from hpo_core.kube.interrupt import Interruption
from hpo_core.kube.wire import ANSWER_S, Request, Stream, Wire

WATCH_S = 300
"""After how long, at most, the server is to end a watch, which then goes on over a new connection."""
SILENCE_S = 90.0
"""How long a watch may bring nothing; a server that is well brings a bookmark every minute."""
FIRST_WAIT_S, LONGEST_WAIT_S, LONGEST_WISH_S = 0.2, 10.0, 60.0
"""How long to wait, at most, before the first try to reconnect, before any, and where the server asks for more."""
HEALTHY_S = 5.0
"""A connection that has lasted so long has done what it should."""
BOOKMARK, ERROR = "BOOKMARK", "ERROR"

_log = logging.getLogger(__name__)

Document: TypeAlias = dict[str, Any]
Documents: TypeAlias = list[Document]


@dataclass(frozen=True)
class Listed:
    """All objects there are: what one knew of and is not among them has vanished.

    Attributes:
        items: The objects, in the order of their names.
    """

    items: tuple[Document, ...]


@dataclass(frozen=True)
class Changed:
    """One object has changed since.

    Attributes:
        type: ADDED, MODIFIED or DELETED.
        object: The object as it is now; as it was last, when it was deleted.
    """

    type: str
    object: Document


@dataclass(frozen=True)
class Listing:
    """An answer to a list.

    Attributes:
        items: The objects.
        version: What they are the state of; a watch goes on from there.
        request: How they were asked for.
    """

    items: Documents
    version: str
    request: Request


class Reach:
    """Says once that the API server is out of reach, and once that it is back, however many watch it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._lock = threading.Lock()
        self._waiting: dict[Watch, float] = {}
        self._since = 0.0

    def lost(self, watch: Watch, error: TransientError) -> None:
        """Take note that a watch cannot go on now."""
        with self._lock:
            if not self._waiting:
                self._since = time.monotonic()
                _log.warning("cluster.unreachable server=%s reason=%s", self._wire.server, error)
            self._waiting.setdefault(watch, time.monotonic())

    def back(self, watch: Watch) -> None:
        """Take note that a watch goes on."""
        with self._lock:
            waited = self._waiting.pop(watch, None) is not None
            if waited and not self._waiting:
                after_s = time.monotonic() - self._since
                _log.warning("cluster.reachable server=%s after_s=%.1f", self._wire.server, after_s)

    def lost_s(self, watch: Watch) -> float:
        """Return since how many seconds a watch cannot go on; 0 while it can."""
        with self._lock:
            since = self._waiting.get(watch)
        return 0.0 if since is None else time.monotonic() - since

    def forget(self, watch: Watch) -> None:
        """Take note that a watch has ended."""
        with self._lock:
            self._waiting.pop(watch, None)


class Watch:
    """Objects as they change.

    Iterating yields `Listed` first, then a `Changed` for each change, and `Listed` again where changes may have been
    missed. It blocks, reconnects by itself, and ends after `stop` only. One thread iterates, once; any may stop.

    Args:
        wire: What it is sent over.
        list_all: Lists the objects.
        reach: Who is told when the server cannot be reached.
    """

    def __init__(self, wire: Wire, list_all: Callable[[Interruption], Listing], reach: Reach) -> None:
        self._wire, self._list_all, self._reach = wire, list_all, reach
        self._version, self._request = "", Request("list", "", "")
        self._failures = self._relists = 0
        self._begun_at = math.inf
        self._stopped = threading.Event()
        self._interruption = Interruption()

    def __iter__(self) -> Iterator[Listed | Changed]:
        """Yield what is there and what changes.

        Raises:
            LaunchError: It is not allowed, or the kind is not served (any more).
        """
        try:
            while not self._stopped.is_set():
                yield from self._once()
        finally:
            self._reach.forget(self)

    def stop(self) -> None:
        """End it at once, or in a few seconds where it is just connecting. Idempotent."""
        self._stopped.set()
        self._interruption.ask()

    def lost_s(self) -> float:
        """Return since how many seconds it waits for the server; 0 while it goes on. From any thread."""
        return self._reach.lost_s(self)

    def _once(self) -> Iterator[Listed | Changed]:
        """List, where that is needed, and watch until the connection ends."""
        try:
            if not self._version:
                listing = self._list_all(self._interruption)
                self._version, self._request = listing.version, listing.request
                self._reach.back(self)
                yield Listed(tuple(listing.items))
            yield from self._changes()
            self._rest(0.0)
        except Gone:
            # The server answers, so it need not be spared for what failed before, unless it goes on saying this.
            self._version = ""
            self._failures, self._relists = self._relists, self._relists + 1
            self._rest(0.0)
        except TransientError as error:
            if self._failures and not self._stopped.is_set():
                self._reach.lost(self, error)
            self._rest(error.retry_after_s if self._failures or error.retry_after_s > WAIT_S else 0.0)

    def _rest(self, wished_s: float) -> None:
        """Wait before the next try: longer each time, not all at the same instant, and no less than the server wishes.

        It is short even where nothing failed, lest a server that ends every watch at once be asked without end.
        """
        longest_s = min(FIRST_WAIT_S * 2**self._failures, LONGEST_WAIT_S)
        self._failures = min(self._failures + 1, 10)
        self._stopped.wait(max(random.uniform(0.5, 1.0) * longest_s, min(wished_s, LONGEST_WISH_S)))

    def _changes(self) -> Iterator[Changed]:
        self._begun_at = math.inf
        try:
            for type_, document in self._events():
                self._version = document["metadata"]["resourceVersion"]
                self._failures = self._relists = 0
                if type_ != BOOKMARK:
                    yield Changed(type_, document)
        except NotServed as error:
            raise Gone(str(error)) from error  # to list tells for certain whether the kind is not served any more
        finally:
            if time.monotonic() - self._begun_at > HEALTHY_S:
                self._failures = self._relists = 0

    def _begun(self) -> None:
        self._begun_at = time.monotonic()
        self._reach.back(self)

    def _events(self) -> Iterator[tuple[str, Document]]:
        """Yield what the server sends over one connection, until it ends; a half line is left out: it comes again."""
        query = {
            **self._request.query,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(random.randint(WATCH_S // 2, WATCH_S)),
        }
        request = replace(self._request, verb="watch", query=query)
        stream = Stream(self._wire, request, begin_s=ANSWER_S, silence_s=SILENCE_S, interruption=self._interruption)
        rest = b""
        for piece in stream.pieces(self._begun):
            *lines, rest = (rest + piece).split(b"\n")
            yield from (_event(request, line) for line in lines if line)


def _event(request: Request, line: bytes) -> tuple[str, Document]:
    try:
        event = json.loads(line)
        type_, document = str(event["type"]), dict(event["object"])
    except (ValueError, KeyError, TypeError) as error:
        raise TransientError(f"{request.attempt}: the server sends what is no event; asking again") from error
    if type_ == ERROR:
        raise Refusal.of(document).error(request.attempt, request.verb)
    return type_, document
