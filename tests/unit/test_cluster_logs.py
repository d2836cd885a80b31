"""Logs that are read through the API: whole and in order, whatever breaks; what is missing is told."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import pytest

from hpo_core.errors import NotFound, TransientError
from hpo_core.launch.cluster import logs
from hpo_core.launch.cluster.logs import Joint, LogFollower

CUT = TransientError("cut")
GONE = NotFound("gone")


def line(second: int, fraction: int, text: str) -> bytes:
    return f"2026-01-01T00:00:{second:02d}.{fraction:09d}Z {text}\n".encode()


FIRST, SECOND, THIRD = line(1, 1, "first"), line(1, 2, "second"), line(2, 1, "third")


class Script:
    """A log source that plays one reading after the other; bytes are given, errors raised, and None blocks."""

    def __init__(self, *readings: Sequence[bytes | Exception | None]) -> None:
        self._readings = list(readings)
        self._released, self.may_begin = threading.Event(), threading.Event()
        self.asked: list[tuple[bool, str, int | None]] = []

    def __call__(self, *, follow: bool, since_time: str, tail_lines: int | None) -> Script:
        self.asked.append((follow, since_time, tail_lines))
        return self

    def __iter__(self) -> Iterator[bytes]:
        self.may_begin.wait(10)
        for item in self._readings.pop(0) if self._readings else []:
            if isinstance(item, Exception):
                raise item
            if item is None:
                self._released.wait(10)
                return
            yield item

    def close(self) -> None:
        self._released.set()


def follow(source: Script) -> tuple[bytes, int]:
    """Follow a log whose container ends in the first reading, so that there is another and then that of its tail.

    Returns:
        What was given, and how much was told as missing.
    """
    given: queue.Queue[tuple[bytes, int] | None] = queue.Queue()
    follower = LogFollower(source, lambda data, missing: given.put((data, missing)), lambda: given.put(None))
    while not source.asked:
        threading.Event().wait(0.001)
    follower.finish()
    source.may_begin.set()
    pieces = list(iter(lambda: given.get(timeout=10), None))
    return b"".join(data for data, _ in pieces), sum(missing for _, missing in pieces)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(logs, "LONGEST_WAIT_S", 0.02)


def test_a_reading_that_was_cut_goes_on_where_it_was() -> None:
    source = Script([FIRST, SECOND[:9], CUT], [FIRST + SECOND, THIRD])
    assert follow(source) == (b"first\nsecond\nthird\n", 0)
    assert source.asked[1] == (True, "2026-01-01T00:00:01Z", None)


def test_lines_of_one_second_are_told_apart_though_their_times_are_in_no_order() -> None:
    mixed = line(1, 5, "out") + line(1, 3, "err") + line(1, 4, "err 2")
    assert follow(Script([mixed, CUT], [mixed + line(1, 2, "late")])) == (b"out\nerr\nerr 2\nlate\n", 0)


def test_equal_lines_at_the_same_instant_are_all_given() -> None:
    twice = line(1, 1, "same") * 2
    assert follow(Script([twice, CUT], [twice + line(1, 1, "same")])) == (b"same\n" * 3, 0)


def test_a_last_line_without_an_end_is_given_as_it_is() -> None:
    assert follow(Script([FIRST + SECOND[:-1]], [FIRST + SECOND[:-1]])) == (b"first\nsecond", 0)


def test_what_a_rotation_took_during_an_outage_is_told_as_missing() -> None:
    later = line(5, 1, "later")
    assert follow(Script([FIRST, CUT], [later], [later])) == (b"first\nlater\n", 1)


def test_another_instance_of_a_restarted_container_leaves_nothing_missing() -> None:
    source = Script([FIRST], [line(5, 1, "again")], [line(5, 1, "again")])
    source.may_begin.set()
    given: list[bytes] = []
    ended = threading.Event()
    follower = LogFollower(source, lambda data, missing: given.append(data + b"!" * missing), ended.set)
    while len(source.asked) < 2:
        threading.Event().wait(0.005)
    follower.finish()
    assert ended.wait(10)
    assert b"".join(given) == b"first\nagain\n"


def test_a_tail_that_does_not_join_up_is_told_as_incomplete() -> None:
    tail = b"".join(line(3, number, f"line {number}") for number in range(logs.TAIL_LINES))
    data, missing = follow(Script([FIRST], [FIRST], [tail]))
    assert data.startswith(b"first\nline 0\n")
    assert missing == 1


def test_words_of_the_node_are_no_output() -> None:
    unable = b"unable to retrieve container logs for containerd://0123"
    assert follow(Script([FIRST], [unable], [unable])) == (b"first\n", 0)
    data, missing = follow(Script([unable], [unable], [unable]))
    assert (data, missing > 0) == (b"", True)


def test_a_pod_that_is_gone_ends_its_log() -> None:
    assert follow(Script([FIRST, CUT], [GONE])) == (b"first\n", 0)


def test_a_server_that_stays_away_after_the_end_is_given_up_and_something_told_as_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "END_PATIENCE_S", 0.03)
    assert follow(Script([FIRST, CUT], *[[CUT]] * 10)) == (b"first\n", 1)


def test_closing_ends_a_reading_that_waits() -> None:
    source = Script([FIRST, None])
    source.may_begin.set()
    given = threading.Event()
    follower = LogFollower(source, lambda data, missing: given.set(), lambda: None)
    assert given.wait(10)
    follower.close()
    follower._thread.join(10)
    assert not follower._thread.is_alive()


def test_a_clock_that_goes_back_while_it_is_read_costs_no_line() -> None:
    joint = Joint()
    joint.restart()
    assert joint.feed(THIRD + FIRST) == b"third\nfirst\n"
