"""Where the loop's times come from: for records, and for how long something takes."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where the loop's times come from."""

    def now(self) -> str:
        """Return the time for records, RFC 3339 in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds that only ever grow."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> str:
        """See `Clock.now`; to the millisecond."""
        return time_text(time.time())

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        time.sleep(seconds)


def time_text(at: float | None) -> str:
    """A time in seconds since 1970 as RFC 3339 in UTC, to the millisecond; "" for None."""
    if at is None:
        return ""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
