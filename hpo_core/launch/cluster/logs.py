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
LOOK_AGAIN_S, LONGEST_WAIT_S = 2.0, 5.0
"""How long is waited, at first and at most, before a log that ended is asked for again, unless its container's end is
told: the container may have been restarted, or the connection cut."""
END_PATIENCE_S = 120.0
"""How long, after a container's end, an API server that is out of reach is waited for, for the last lines."""

_log = logging.getLogger(__name__)

Time = tuple[str, str]
"""Seconds and fraction of an RFC 3339 time, which sort as texts within one node's zone."""
_ZONE = re.compile(rb"(Z|[+-]\d\d:\d\d)$")
_BEGIN = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


class Reading(Protocol):
    """A log that is being read."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield it, each line behind its time, in pieces that end anywhere."""
        ...

    def close(self) -> None:
        """End it, from any thread."""
        ...


class LogSource(Protocol):
    """Where a container's log is read."""

    def __call__(self, *, follow: bool, since_time: str, tail_lines: int | None) -> Reading:
        """Begin to read it."""
        ...


class Joint:
    """Joins readings of one log that overlap: takes lines with their times, gives those that are new.

    Lines of one second are told apart by counting them: what a container prints to its two streams at once need not
    be in the order of its times.

    Attributes:
        has_gap: Whether the reading that began last lacks lines that it should have begun with.
    """

    def __init__(self) -> None:
        self.has_gap = False
        self._newest: Time = ("", "")
        self._begin: Time = ("", "")  # the first line of the newest second
        self._count = 0  # lines that were seen from it on
        self._zone = "Z"
        self._partial = b""
        self._to_skip = 0
        self._is_first = self._is_joining = False

    @property
    def since(self) -> str:
        """The second of the newest line, from which a next reading has to begin; "" before the first line."""
        return f"{self._begin[0]}{self._zone}" if self._count else ""

    def restart(self) -> None:
        """Expect a reading from `since` on."""
        self._partial, self._to_skip, self.has_gap = b"", self._count, False
        self._is_first = self._is_joining = self._count > 0

    def restart_at_tail(self) -> None:
        """Expect a reading that begins anywhere."""
        self.restart()
        self._to_skip, self._is_first = 0, False

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
        return _time_of(first) > self._newest

    def _new(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            if not _BEGIN.match(line):  # the node's own words: it has not got (all of) the log any more
                self.has_gap |= not self._count or self._is_joining
                continue
            at = _time_of(line)
            if self._is_joining and self._was_seen(at):
                continue
            self._is_joining = False
            if at[0] > self._begin[0]:
                self._begin, self._count, self._zone = at, 0, _zone_of(line)
            self._count += at[0] >= self._begin[0]
            self._newest = max(self._newest, at)
            yield line.partition(b" ")[2] + b"\n"

    def _was_seen(self, at: Time) -> bool:
        """Tell whether a line of a reading that overlaps was seen: by its place, else by its time."""
        if self._is_first:
            self._is_first = False
            if at != self._begin:  # those before it were rotated away, or this is another instance's log
                self.has_gap, self._to_skip = at > self._newest, 0
        if self._to_skip:
            self._to_skip -= 1
            self._is_joining = self._to_skip > 0
            return True
        return at <= self._newest


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
        self._reading: Reading | None = None
        self._was_cut = self._has_news = False
        self._over, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Take in that the container has ended for good, so that its log has an end. Idempotent."""
        self._over.set()

    def close(self) -> None:
        """Give nothing more, and let the thread end. Idempotent."""
        self._closed.set()
        self._over.set()
        if (reading := self._reading) is not None:
            reading.close()

    def _follow(self) -> None:
        try:
            self._read_to_the_end()
        except HpoError as error:
            _log.warning("log.ended reason=%s", error)
            self._hand_over(b"", missing=1)
        finally:
            if not self._closed.is_set():
                self._ended()

    def _read_to_the_end(self) -> None:
        wait_s, patience_s = LOOK_AGAIN_S, END_PATIENCE_S
        while not self._closed.is_set():
            self._has_news = False
            was_over = self._over.is_set()  # asked before the reading, which is then the last one
            try:
                self._read()
                if was_over:
                    self._read_tail()
                    return
                self._was_cut = False
            except NotFound:
                if self._over.is_set():
                    return  # the pod has been removed
            except TransientError as error:
                _log.info("log.reconnects reason=%s", error)
                self._was_cut = True
                patience_s -= wait_s if was_over else 0.0
                if patience_s <= 0:
                    raise
            if was_over:
                self._closed.wait(wait_s)
            else:
                self._over.wait(wait_s)
            wait_s = LOOK_AGAIN_S if self._has_news else min(2 * wait_s, LONGEST_WAIT_S)

    def _read(self) -> None:
        self._joint.restart()
        for piece in self._opened(self._source(follow=True, since_time=self._joint.since, tail_lines=None)):
            self._hand_over(self._joint.feed(piece), missing=self._gap())
        self._hand_over(self._joint.close(), missing=self._gap())

    def _gap(self) -> int:
        """What is known to be missing where a reading does not join up: after a cut, else it is another instance's."""
        missing = int(self._joint.has_gap and (self._was_cut or not self._joint.since))
        self._joint.has_gap = False
        return missing

    def _read_tail(self) -> None:
        """Read the last lines once more; those that do not join up with what was read have others before them."""
        tail = b"".join(self._opened(self._source(follow=False, since_time="", tail_lines=TAIL_LINES)))
        first = tail.partition(b"\n")[0]
        missing = 1 if first and tail.count(b"\n") >= TAIL_LINES and self._joint.is_behind(first) else 0
        self._joint.restart_at_tail()
        self._hand_over(self._joint.feed(tail) + self._joint.close(), missing=missing)

    def _opened(self, reading: Reading) -> Iterator[bytes]:
        self._reading = reading
        if self._closed.is_set():
            reading.close()
        return iter(reading)

    def _hand_over(self, data: bytes, *, missing: int = 0) -> None:
        if (data or missing) and not self._closed.is_set():
            self._has_news = True
            self._give(data, missing)


def _time_of(line: bytes) -> Time:
    seconds, _, rest = line.partition(b" ")[0].partition(b".")
    return _ZONE.sub(b"", seconds).decode(errors="replace"), _ZONE.sub(b"", rest).decode(errors="replace").ljust(9, "0")


def _zone_of(line: bytes) -> str:
    found = _ZONE.search(line.partition(b" ")[0])
    return found[1].decode() if found else "Z"
