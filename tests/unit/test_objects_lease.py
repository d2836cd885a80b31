"""The lease: one holder, for as long as it lives and a little longer; who was thought dead and is not learns of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpo_core.errors import Conflict, TransientError
from hpo_core.objects import Blob, MemoryStore
from hpo_core.objects.lease import LEASE_S, RENEWALS, Lease

KEY = "ns/lease"
SHORT_S = 0.3
LONG_S = 60.0
"""So long that its thread renews nothing within a test."""


class Unreliable:
    """A store on the other side of a network that breaks when a test says so; counts what is asked of it."""

    def __init__(self, wrapped: MemoryStore) -> None:
        self._wrapped = wrapped
        self.is_down = False
        self.answers_to_lose = 0
        self.calls = 0

    def get(self, key: str) -> Blob:
        self._call()
        return self._wrapped.get(key)

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        self._call()
        tag = self._wrapped.put(key, data, expect=expect)
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            raise TransientError("the answer is lost")
        return tag

    def list(self, prefix: str, *, deep: bool = True) -> list[str]:
        return self._wrapped.list(prefix, deep=deep)

    def delete(self, key: str) -> None:
        self._wrapped.delete(key)

    def _call(self) -> None:
        self.calls += 1
        if self.is_down:
            raise TransientError("the server is down")


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def server(clock: ManualClock) -> MemoryStore:
    """Whose objects age only when the test says so."""
    return MemoryStore(clock)


@contextmanager
def held(objects: MemoryStore | Unreliable, lease_s: float = LONG_S) -> Iterator[Lease]:
    lease = Lease.take(objects, KEY, {"by": "me"}, lease_s=lease_s)
    assert lease is not None
    try:
        yield lease
    finally:
        lease.release()


def is_free(objects: MemoryStore) -> bool:
    return not Lease.is_held(objects.get(KEY))


def written(objects: MemoryStore) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(objects.get(KEY).data)
    return content


def write_as(objects: MemoryStore, **changes: Any) -> None:
    """Write the lease of a holder that is not this process."""
    holder = {"host": "elsewhere", "pid": 4711, "machine": "another", "started": "1", "id": "theirs"}
    objects.put(KEY, json.dumps({**holder, "leaseSeconds": LEASE_S, **changes}).encode())


def eventually(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_is_refused_while_it_is_held_and_free_when_it_is_released(server: MemoryStore) -> None:
    with held(server) as lease:
        assert not is_free(server)
        assert Lease.take(server, KEY, {"by": "another"}) is None
        lease.release()
        assert is_free(server)
    with held(server):
        assert not is_free(server)


def test_a_lease_tells_who_holds_it(server: MemoryStore) -> None:
    with held(server):
        told = written(server)
    assert (told["by"], told["pid"], told["leaseSeconds"]) == ("me", os.getpid(), LONG_S)


def test_a_lease_is_held_for_several_times_its_length_because_it_is_renewed() -> None:
    objects, lease_s = MemoryStore(), 0.6
    with held(objects, lease_s) as lease:
        until = time.monotonic() + 2.5 * lease_s
        while time.monotonic() < until:
            assert not is_free(objects)
            lease.confirm()
            time.sleep(0.02)
        assert written(objects)["renewals"] >= RENEWALS


def test_a_holder_elsewhere_that_renews_no_longer_is_replaced_after_its_time_and_not_before(
    server: MemoryStore, clock: ManualClock
) -> None:
    write_as(server, leaseSeconds=20.0)
    clock.now_s += 20.0
    assert Lease.take(server, KEY, {}) is None
    clock.now_s += 0.001
    with held(server):
        assert written(server)["by"] == "me"


def test_a_holder_elsewhere_that_released_is_replaced_at_once(server: MemoryStore) -> None:
    write_as(server, released=True)
    assert is_free(server)


TAKE_AND_TELL = """
import sys
from hpo_core.objects import MemoryStore
from hpo_core.objects.lease import Lease
objects = MemoryStore()
lease = Lease.take(objects, "ns/lease", {"by": "the other process"})
print(objects.get("ns/lease").data.decode(), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lease; its first line is what it wrote into it."""
    command = [sys.executable, "-c", TAKE_AND_TELL]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def hear(process: subprocess.Popen[str]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline().encode()


def test_a_process_of_this_machine_holds_while_it_lives_and_is_replaced_at_once_when_it_is_killed(
    server: MemoryStore, other: subprocess.Popen[str]
) -> None:
    server.put(KEY, hear(other))
    assert Lease.take(server, KEY, {"by": "me"}) is None
    os.kill(other.pid, signal.SIGKILL)
    # Also before anybody has heard of its death, while the system still keeps its number.
    eventually(lambda: is_free(server))
    assert other.returncode is None
    other.wait()
    with held(server):
        assert written(server)["by"] == "me"


def test_a_process_that_was_paused_is_not_dead(server: MemoryStore, other: subprocess.Popen[str]) -> None:
    server.put(KEY, hear(other))
    os.kill(other.pid, signal.SIGSTOP)
    assert not is_free(server)


def test_a_process_that_got_the_number_of_a_dead_holder_is_not_the_holder(
    server: MemoryStore, other: subprocess.Popen[str]
) -> None:
    content = json.loads(hear(other))
    server.put(KEY, json.dumps({**content, "started": "1"}).encode())
    assert is_free(server)


def test_a_holder_that_wakes_up_too_late_learns_who_has_the_lease_and_leaves_it_alone(server: MemoryStore) -> None:
    with held(server, SHORT_S) as lease:
        write_as(server)
        theirs = server.get(KEY).etag
        time.sleep(SHORT_S)
        with pytest.raises(Conflict, match="ns/lease was taken over by process 4711 on elsewhere, since this process"):
            lease.confirm()
        lease.release()
    assert server.get(KEY).etag == theirs


def test_a_lease_that_was_lost_stays_lost(server: MemoryStore) -> None:
    with held(server, SHORT_S) as lease:
        write_as(server)
        time.sleep(SHORT_S)
        for _ in range(2):
            with pytest.raises(Conflict, match="taken over by process 4711"):
                lease.confirm()
        write_as(server, released=True)
        with pytest.raises(Conflict, match="taken over by process 4711"):
            lease.confirm()


def test_a_lease_that_was_removed_is_lost(server: MemoryStore) -> None:
    with held(server, SHORT_S) as lease:
        server.delete(KEY)
        time.sleep(SHORT_S)
        with pytest.raises(Conflict, match="the lease ns/lease was removed, since this process was thought dead"):
            lease.confirm()
    assert server.list("") == []


def test_a_renewal_whose_answer_was_lost_is_no_loss_of_the_lease(server: MemoryStore) -> None:
    network = Unreliable(server)
    with held(network, SHORT_S) as lease:
        network.answers_to_lose = 1
        eventually(lambda: written(server)["renewals"] >= 3)
        assert network.answers_to_lose == 0
        lease.confirm()
    assert written(server)["released"]


def test_a_server_that_is_away_for_longer_than_the_lease_costs_nothing_when_nobody_took_it(server: MemoryStore) -> None:
    network = Unreliable(server)
    with held(network, SHORT_S) as lease:
        network.is_down = True
        time.sleep(1.5 * SHORT_S)
        with pytest.raises(TransientError, match="the server is down"):
            lease.confirm()
        network.is_down = False
        lease.confirm()
        before = written(server)["renewals"]
        eventually(lambda: written(server)["renewals"] > before)


def test_the_server_is_asked_for_nothing_while_the_last_renewal_is_recent(server: MemoryStore) -> None:
    network = Unreliable(server)
    with held(network) as lease:
        before = network.calls
        for _ in range(100):
            lease.confirm()
        assert network.calls == before


def test_the_server_is_asked_when_the_last_renewal_is_too_long_ago(server: MemoryStore) -> None:
    network = Unreliable(server)
    with held(network, SHORT_S) as lease:
        network.is_down = True
        time.sleep(1.5 * SHORT_S)
        before = network.calls
        network.is_down = False
        lease.confirm()
        assert network.calls > before


OURS = json.dumps({"machine": "another", "leaseSeconds": "soon", "pid": 1}).encode()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}", OURS, b'{"pid": "x", "leaseSeconds": 1}'])
def test_a_lease_that_nobody_can_read_is_held_until_the_usual_time_is_over(
    server: MemoryStore, clock: ManualClock, content: bytes
) -> None:
    server.put(KEY, content)
    clock.now_s += LEASE_S
    assert Lease.take(server, KEY, {}) is None
    clock.now_s += 0.001
    with held(server):
        assert not is_free(server)


def test_what_a_release_cannot_tell_runs_out_by_itself_and_is_free_at_once_for_who_released(
    server: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    network = Unreliable(server)
    with held(network) as lease:
        network.is_down = True
        lease.release()
        network.is_down = False
    assert "lease.unreleased key=ns/lease reason=the server is down" in caplog.text
    blob = server.get(KEY)
    assert [is_held_for_another_process(blob, age_s) for age_s in (LONG_S, LONG_S + 1)] == [True, False]
    with held(server):
        pass


def is_held_for_another_process(blob: Blob, age_s: float) -> bool:
    program = """
import sys
from hpo_core.objects import Blob
from hpo_core.objects.lease import Lease
print(Lease.is_held(Blob(sys.stdin.buffer.read(), "", float(sys.argv[1]))))
"""
    command = [sys.executable, "-c", program, str(age_s)]
    return subprocess.run(command, input=blob.data, capture_output=True, check=True).stdout == b"True\n"


def test_a_lease_whose_taking_was_not_answered_can_be_taken_again_by_the_same_process(server: MemoryStore) -> None:
    network = Unreliable(server)
    network.answers_to_lose = 1
    with pytest.raises(TransientError, match="the answer is lost"):
        Lease.take(network, KEY, {"by": "me"})
    assert server.list("") == [KEY]
    with held(network):
        assert Lease.take(network, KEY, {"by": "me"}) is None


def test_of_many_that_take_a_lease_at_once_one_gets_it_and_releasing_is_idempotent(server: MemoryStore) -> None:
    leases = [lease for lease in [Lease.take(server, KEY, {}) for _ in range(20)] if lease is not None]
    assert len(leases) == 1
    leases[0].release()
    tag = server.get(KEY).etag
    leases[0].release()
    assert server.get(KEY).etag == tag
