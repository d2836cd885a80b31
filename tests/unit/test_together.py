"""Doing many things at once: in which order they are told, and what becomes of the others when one fails."""

from __future__ import annotations

import threading

import pytest

from hpo_core.store import together


def test_results_come_in_the_order_of_the_things() -> None:
    assert together(lambda number: number * number, range(100)) == [number * number for number in range(100)]


def test_after_a_failure_what_has_begun_is_waited_for_and_the_rest_is_left() -> None:
    begun, ended, may_end = [], [], threading.Event()

    def act(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("the first one")
        may_end.wait(10)
        ended.append(number)

    threading.Timer(0.2, may_end.set).start()
    with pytest.raises(ValueError, match="the first one"):
        together(act, range(200))
    assert sorted(ended) == sorted(begun)[1:]
    assert len(begun) < 100
