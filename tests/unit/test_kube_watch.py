"""A watch goes on, whatever happens to the API server, and tells everything once."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo_core.errors import LaunchError
from hpo_core.kube import Changed, Kube, Listed, Watch, watching, wire
from tests.fake_kubernetes import FakeKubernetes
from tests.fake_kubernetes.kinds import KINDS
from tests.fake_kubernetes.server import Call

SOON_S = 10.0


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    fake = FakeKubernetes()
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
    monkeypatch.setattr(watching, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(watching, "LONGEST_WAIT_S", 0.1)
    monkeypatch.setattr(watching, "LONGEST_WISH_S", 0.1)
    monkeypatch.setattr(wire, "SETTLE_S", 1.0)
    yield fake
    fake.close()


class Follower:
    """Iterates a watch in a thread of its own."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.error: Exception | None = None
        self._told: queue.Queue[Listed | Changed | None] = queue.Queue()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def next(self) -> Any:
        """What it tells next, in short: the names that it lists, or type and name of a change; None at its end."""
        told = self._told.get(timeout=SOON_S)
        if isinstance(told, Listed):
            return [item["metadata"]["name"] for item in told.items]
        return told and (told.type, told.object["metadata"]["name"])

    def is_silent(self) -> bool:
        """Whether it has told nothing more for a while."""
        time.sleep(0.3)
        return self._told.empty()

    def stop(self) -> None:
        self.watch.stop()
        self._thread.join(2)
        assert not self._thread.is_alive()

    def _follow(self) -> None:
        try:
            for told in self.watch:
                self._told.put(told)
        except LaunchError as error:
            self.error = error
        self._told.put(None)


@pytest.fixture
def follower(fake: FakeKubernetes) -> Iterator[Follower]:
    """Of all ConfigMaps; it has listed that there are none."""
    follower = Follower(Kube.connect().watch("v1", "ConfigMap"))
    assert follower.next() == []
    until_watching(fake)
    yield follower
    follower.stop()


def until_watching(fake: FakeKubernetes, times: int = 1) -> None:
    give_up = time.monotonic() + SOON_S
    while sum(request.startswith("watch") for request in fake.requests) < times:
        assert time.monotonic() < give_up
        time.sleep(0.01)


def add(fake: FakeKubernetes, name: str) -> None:
    kind = next(kind for kind in KINDS if kind.name == "ConfigMap")
    fake.objects.create(kind, "team", {"metadata": {"name": name}})


def remove(fake: FakeKubernetes, name: str) -> None:
    kind = next(kind for kind in KINDS if kind.name == "ConfigMap")
    fake.objects.delete(kind, "team", name)


def test_a_connection_that_is_cut_again_and_again_loses_nothing_and_repeats_nothing(fake: FakeKubernetes) -> None:
    fake.cut_after_s = 0.05
    follower = Follower(Kube.connect().watch("v1", "ConfigMap"))
    assert follower.next() == []
    for number in range(30):
        add(fake, f"c{number}")
        time.sleep(0.02)
    assert [follower.next() for _ in range(30)] == [("ADDED", f"c{number}") for number in range(30)]
    assert follower.is_silent()
    follower.stop()
    until_watching(fake, 3)


def test_what_changes_while_the_server_is_gone_is_told_when_it_is_back(
    fake: FakeKubernetes, follower: Follower
) -> None:
    with fake.unreachable():
        add(fake, "one")
        time.sleep(0.2)
    assert follower.next() == ("ADDED", "one")
    assert follower.is_silent()


def test_after_changes_that_the_server_forgot_all_is_listed_anew(fake: FakeKubernetes, follower: Follower) -> None:
    """So that its user finds what vanished meanwhile."""
    add(fake, "one")
    assert follower.next() == ("ADDED", "one")
    with fake.unreachable():
        remove(fake, "one")
        add(fake, "two")
        fake.objects.compact()
    assert follower.next() == ["two"]
    add(fake, "three")
    assert follower.next() == ("ADDED", "three")


def test_what_the_server_forgot_is_listed_at_once_however_long_it_was_away(
    fake: FakeKubernetes, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six failures have made the waits longer than 0.02 * 2**6 / 2 = 0.64 s; that it answers makes them short."""
    monkeypatch.setattr(watching, "LONGEST_WAIT_S", 60.0)
    asked: list[tuple[str, float]] = []
    enter = fake.enter

    def note(call: Call) -> None:
        asked.append((call.verb, time.monotonic()))
        enter(call)

    monkeypatch.setattr(fake, "enter", note)
    fake.refuse(6, 503, verb="watch")
    with fake.unreachable():
        fake.objects.compact()
    assert follower.next() == []
    (_, forgotten_at), (verb, listed_at) = asked[-3:-1] if asked[-1][0] == "watch" else asked[-2:]
    assert verb == "list"
    assert listed_at - forgotten_at < 0.5


@pytest.mark.parametrize("code", [429, 500, 503, 504])
def test_a_server_that_is_not_well_is_waited_for(fake: FakeKubernetes, code: int) -> None:
    fake.refuse(2, code, verb="list")
    fake.refuse(3, code, verb="watch")
    add(fake, "one")
    follower = Follower(Kube.connect().watch("v1", "ConfigMap"))
    assert follower.next() == ["one"]
    add(fake, "two")
    assert follower.next() == ("ADDED", "two")
    follower.stop()


def test_a_server_that_wants_to_be_left_alone_is(fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LONGEST_WISH_S", 60.0)
    fake.refuse(1, 429, verb="list", retryAfterSeconds=1.5)
    began = time.monotonic()
    follower = Follower(Kube.connect().watch("v1", "ConfigMap"))
    assert follower.next() == []
    assert time.monotonic() - began >= 1.5
    follower.stop()


def test_a_server_that_hangs_is_told_and_waited_for(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "hpo_core.kube")
    for name, seconds in {"ANSWER_S": 0.3, "SILENCE_S": 0.3, "HEALTHY_S": 0.1}.items():
        monkeypatch.setattr(watching, name, seconds)
    fake.bookmark_s = 0.05
    follower = Follower(Kube.connect().watch("v1", "ConfigMap"))
    assert follower.next() == []
    until_watching(fake)
    with fake.paused():
        add(fake, "one")
        time.sleep(1.5)
    assert follower.next() == ("ADDED", "one")
    assert follower.is_silent()
    follower.stop()
    assert [message.split()[0] for message in caplog.messages] == ["cluster.unreachable", "cluster.reachable"]


def test_an_outage_is_told_once_and_its_end_once_however_many_watch(
    fake: FakeKubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "hpo_core.kube")
    kube = Kube.connect()
    followers = [Follower(kube.watch("v1", kind)) for kind in ("ConfigMap", "Pod", "Secret")]
    assert [follower.next() for follower in followers] == [[], [], []]
    with fake.unreachable():
        time.sleep(0.5)
    until_watching(fake, 6)
    time.sleep(0.3)
    for follower in followers:
        follower.stop()
    assert [record.getMessage().split()[0] for record in caplog.records] == [
        "cluster.unreachable",
        "cluster.reachable",
    ]
    assert fake.url in caplog.messages[0]


def test_a_connection_that_is_made_again_at_once_is_no_outage(
    fake: FakeKubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "hpo_core.kube")
    fake.cut_after_s = 0.1
    follower = Follower(Kube.connect().watch("v1", "ConfigMap"))
    until_watching(fake, 2)
    follower.stop()
    assert caplog.messages == []


def test_bookmarks_keep_a_silent_watch_from_falling_behind(fake: FakeKubernetes) -> None:
    fake.bookmark_s = 0.05
    follower = Follower(Kube.connect().watch("v1", "ConfigMap", selector="it=never"))
    assert follower.next() == []
    add(fake, "other")
    time.sleep(0.2)
    before = len(fake.requests)
    with fake.unreachable():
        time.sleep(0.1)
    until_watching(fake, 2)
    assert follower.is_silent()
    assert not any(request.startswith("list") for request in fake.requests[before:])
    follower.stop()


def test_a_server_that_allows_nothing_when_it_has_just_come_back_is_asked_again(
    fake: FakeKubernetes, follower: Follower
) -> None:
    with fake.unreachable():
        time.sleep(0.1)
        fake.refuse(3, 403, message='User "me" cannot watch resource "configmaps"', verb="watch")
        add(fake, "one")
    assert follower.next() == ("ADDED", "one")


def test_a_permission_that_is_taken_away_ends_it(fake: FakeKubernetes) -> None:
    fake.deny("watch", "configmaps")
    follower = Follower(Kube.connect().watch("v1", "ConfigMap"))
    assert [follower.next(), follower.next()] == [[], None]
    assert 'cannot watch resource "configmaps"' in str(follower.error)


def test_an_operator_that_is_removed_ends_it(fake: FakeKubernetes) -> None:
    follower = Follower(Kube.connect().watch("kubeflow.org/v1", "PyTorchJob"))
    assert follower.next() == []
    with fake.unreachable():
        fake.kinds = tuple(kind for kind in KINDS if kind.group != "kubeflow.org")
    assert follower.next() is None
    assert "no kind PyTorchJob in kubeflow.org/v1 here" in str(follower.error)


def test_it_can_be_stopped_while_the_server_is_gone(fake: FakeKubernetes, follower: Follower) -> None:
    with fake.unreachable():
        time.sleep(0.2)
        follower.stop()
    assert follower.next() is None
    assert follower.error is None


def test_it_can_be_stopped_before_it_begins(fake: FakeKubernetes) -> None:
    watch = Kube.connect().watch("v1", "ConfigMap")
    watch.stop()
    assert list(watch) == []
    assert not any(request.startswith("watch") for request in fake.requests)


def test_a_server_that_ends_every_watch_at_once_is_not_asked_without_end(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a second with waits of 0.1 s to 0.2 s after the first few, which take less: about 10, not thousands."""
    monkeypatch.setattr(watching, "LONGEST_WAIT_S", 0.2)
    fake.cut_after_s = 0.0
    follower = Follower(Kube.connect().watch("v1", "ConfigMap"))
    time.sleep(1.0)
    follower.stop()
    assert 2 <= sum(request.startswith("watch") for request in fake.requests) <= 20


def test_what_is_no_event_is_asked_for_again(fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    add(fake, "one")
    lines = iter([b"<html>"])
    event = watching._event
    monkeypatch.setattr(watching, "_event", lambda request, line: event(request, next(lines, line)))
    follower = Follower(Kube.connect().watch("v1", "ConfigMap"))
    assert follower.next() == ["one"]
    add(fake, "two")
    assert follower.next() == ("ADDED", "two")
    follower.stop()
