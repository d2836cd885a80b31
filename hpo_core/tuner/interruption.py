"""Whether this process has been asked to end, and waiting that heeds it."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable

ALERT_S = 0.02
"""How often a waiting process looks for its own end: a pipeline's step has less than a second after it was told."""


def pause(seconds: float, should_stop: Callable[[], bool]) -> None:
    """Wait, unless told to stop."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not should_stop():
        time.sleep(min(ALERT_S, seconds))


class Interruption:
    """Whether this process has been asked to end: by SIGINT, SIGTERM, SIGHUP, a closed stdout or a vanished parent.

    A context manager; inside, the signals only set `requested`, which any thread may ask for.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, *, watch_stdout: bool = False, watch_parent: bool = False) -> None:
        self._flag = False
        self._parent = os.getppid() if watch_parent else 0
        self._stdout = select.poll() if watch_stdout else None
        self._polling = threading.Lock()
        if self._stdout is not None:
            self._stdout.register(1, 0)

    def __enter__(self) -> Interruption:
        self._before = [(number, signal.signal(number, self._on_signal)) for number in self._SIGNALS]
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:  # noqa: ARG002  the signature is the interpreter's
        self._flag = True

    @property
    def requested(self) -> bool:
        """Whether the end was asked for; stays true."""
        if self._parent and os.getppid() != self._parent:
            self._flag = True
        if self._stdout is not None:
            with self._polling:  # it refuses to be asked by two at once
                told = self._stdout.poll(0)
            if any(mask & select.POLLERR for _, mask in told):
                self._flag = True  # and never False, which might undo what a signal sets at this instant
        return self._flag
