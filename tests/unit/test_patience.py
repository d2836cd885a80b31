"""Trying again what fails transiently: how long, and how long at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from hpo_core.errors import TransientError
from hpo_core.loop import Patience


@dataclass
class ManualClock:
    """Time passes when somebody sleeps."""

    seconds: float = 0.0
    sleeps: list[float] = field(default_factory=list)

    def now(self) -> str:
        return ""

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.seconds += seconds


def failing(times: int, retry_after_s: float) -> Callable[[], str]:
    left = [True] * times

    def action() -> str:
        if left:
            left.pop()
            raise TransientError("overloaded", retry_after_s)
        return "done"

    return action


def test_what_fails_is_tried_again_when_the_server_wishes() -> None:
    clock = ManualClock()
    assert Patience(clock)(failing(3, 20.0)) == "done"
    assert clock.seconds == 60.0


def test_a_server_that_wishes_an_hour_is_waited_for_no_longer_than_patience() -> None:
    clock = ManualClock()
    with pytest.raises(TransientError, match="overloaded"):
        Patience(clock, patience_s=300.0)(failing(2, 3600.0))
    assert clock.seconds == 300.0


def test_who_gives_up_waits_no_longer() -> None:
    clock = ManualClock()
    patiently = Patience(clock, gave_up=lambda: clock.seconds >= 5.0)
    with pytest.raises(TransientError, match="overloaded"):
        patiently(failing(2, 60.0))
    assert clock.seconds == 5.0
