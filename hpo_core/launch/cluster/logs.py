"""Following what a container prints, through the log API, across broken connections, to its very end.

The API gives lines with times and takes a time, to the second, to begin from. So after a break the lines of that
second are asked for again, and those that were seen are left out. A server that is hurried leaves lines out without a
word, and one that rotates its files forgets; so after the container's end the last lines are read once more, and what
does not join up is told as missing.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from hpo_core.errors import HpoError, NotFound, TransientError

TAIL_LINES = 500
"""How many lines are read once more after the end."""
LOOK_AGAIN_S = 0.2
"""How often a log that has ended while its container seems to run is asked for again."""
LONGEST_WAIT_S = 5.0
PIECE_BYTES = 64 << 10
END_PATIENCE_S = 20.0
"""How long, after a container's end, an API server that is out of reach is waited for, for the last lines."""

_log = logging.getLogger(__name__)

Time = tuple[str, str]
"""Seconds and fraction of an RFC 3339 time, which sort as texts within one node's zone."""
_ZONE = re.compile(rb"(Z|[+-]\d\d:\d\d)$")


class LogSource(Protocol):
    """Where a container's log is read."""

    def __call__(self, *, follow: bool, since_time: str, tail_lines: int | None) -> Iterable[bytes]:
        """Yield the log, each line behind its time, in pieces that end anywhere."""
        ...


class Joint:
    """Joins readings of one log that overlap: takes lines with their times, gives those that are new."""

    def __init__(self) -> None:
        self._last: Time = ("", "")
        self._zone = "Z"
        self._repeated = 0  # lines that were seen with the last time
        self._to_skip = 0
        self._partial = b""

    @property
    def since(self) -> str:
        """The second of the last line, from which a next reading has to begin; "" before the first line."""
        return f"{self._last[0]}{self._zone}" if self._last[0] else ""

    def restart(self) -> None:
        """Expect a reading from `since` on."""
        self._to_skip, self._partial = self._repeated, b""

    def feed(self, piece: bytes) -> bytes:
        """Take in a piece of a reading; returns the new lines in it, without their times."""
        lines = (self._partial + piece).split(b"\n")
        self._partial = lines.pop()
        return b"".join(self._new(lines))

    def close(self) -> bytes:
        """Take in that the reading has ended; returns a last line without an end."""
        rest, self._partial = self._partial, b""
        return b"".join(self._new([rest]))[:-1] if rest else b""

    def is_behind(self, first: bytes) -> bool:
        """Tell whether a line lies beyond what was read, so that others may be missing before it."""
        return _time_of(first) > self._last

    def _new(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            at = _time_of(line)
            if at < self._last:
                continue
            if at > self._last:
                self._last, self._repeated, self._to_skip = at, 0, 0
                self._zone = _zone_of(line)
            elif self._to_skip:
                self._to_skip -= 1
                continue
            self._repeated += 1
            yield line.partition(b" ")[2] + b"\n"


class LogFollower:
    """Follows one container's log in a thread of its own.

    Args:
        source: Reads the log.
        give: Told each piece, and how many bytes at least are missing before it; may block.
        ended: Called once, when all that can be had has been given.
    """

    def __init__(self, source: LogSource, give: Callable[[bytes, int], None], ended: Callable[[], None]) -> None:
        self._source, self._give, self._ended = source, give, ended
        self._joint = Joint()
        self._over, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Take in that the container has ended, so that its log has an end. Idempotent."""
        self._over.set()

    def close(self) -> None:
        """Give nothing more. Idempotent."""
        self._closed.set()
        self._over.set()

    def _follow(self) -> None:
        try:
            self._read_to_the_end()
        except HpoError as error:
            _log.warning("log.ended reason=%s", error)
        finally:
            if not self._closed.is_set():
                self._ended()

    def _read_to_the_end(self) -> None:
        wait_s, patience_s = LOOK_AGAIN_S, END_PATIENCE_S
        while not self._closed.is_set():
            was_over = self._over.is_set()  # asked before the reading, which is then the last one
            try:
                self._read(follow=True, tail_lines=None)
                if was_over:
                    self._read_tail()
                    return
                wait_s = LOOK_AGAIN_S
            except NotFound:
                if self._over.is_set():
                    return  # the pod has been removed
            except TransientError as error:
                _log.info("log.reconnects reason=%s", error)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                patience_s -= wait_s if was_over else 0.0
                if patience_s <= 0:
                    return
            if was_over:
                self._closed.wait(wait_s)
            else:
                self._over.wait(wait_s)

    def _read(self, *, follow: bool, tail_lines: int | None) -> None:
        self._joint.restart()
        for piece in self._source(follow=follow, since_time=self._joint.since, tail_lines=tail_lines):
            self._hand_over(self._joint.feed(piece))
            if self._closed.is_set():
                return
        self._hand_over(self._joint.close())

    def _read_tail(self) -> None:
        """Read the last lines once more; those that do not join up with what was read have others before them."""
        tail = b"".join(self._source(follow=False, since_time="", tail_lines=TAIL_LINES))
        first = tail.partition(b"\n")[0]
        missing = 1 if first and tail.count(b"\n") >= TAIL_LINES and self._joint.is_behind(first) else 0
        self._joint.restart()
        self._hand_over(self._joint.feed(tail) + self._joint.close(), missing=missing)

    def _hand_over(self, data: bytes, *, missing: int = 0) -> None:
        if (data or missing) and not self._closed.is_set():
            self._give(data, missing)


def _time_of(line: bytes) -> Time:
    seconds, _, rest = line.partition(b" ")[0].partition(b".")
    return _ZONE.sub(b"", seconds).decode(errors="replace"), _ZONE.sub(b"", rest).decode(errors="replace").ljust(9, "0")


def _zone_of(line: bytes) -> str:
    found = _ZONE.search(line.partition(b" ")[0])
    return found[1].decode() if found else "Z"
