"""Whether a process has been asked to end."""

from __future__ import annotations

import select
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hpo_core.tuner import Interruption

TOGETHER_S = 0.2


class Touchy:
    """Like the interpreter's own poll object it cannot bear two at once; here they are sure to meet, if they may."""

    def __init__(self) -> None:
        self._inside = threading.Barrier(2)

    def register(self, descriptor: int, mask: int) -> None:
        pass

    def poll(self, timeout: int) -> list[tuple[int, int]]:  # noqa: ARG002  as the interpreter has it
        try:
            self._inside.wait(TOGETHER_S)
        except threading.BrokenBarrierError:
            return []
        raise RuntimeError("concurrent poll() invocation")


def test_two_threads_may_ask_at_once_whether_stdout_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "poll", Touchy)
    interruption = Interruption(watch_stdout=True)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(lambda: interruption.requested) for _ in range(2)]
    assert [once.result() for once in asked] == [False, False]
