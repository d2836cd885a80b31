"""The contract of `ObjectStore`, proven of every store, with threads and, where stores are shared, with processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from hpo_core.errors import Conflict, NotFound
from hpo_core.objects import ABSENT, RecordStore, open_objects
from tests.contracts.store_suite import SHARED, STORES, all_at_once, hear, other_process, tell, together

HOLD_LOCK = """
lock = store.lock("ns/lease", {"by": me})
print("locked" if lock else "refused", flush=True)
sys.stdin.readline()
lock and lock.release()
print("given back", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RecordStore:
    return STORES[request.param](tmp_path)


@pytest.fixture(params=SHARED)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that other processes can open too."""
    return SHARED[request.param](tmp_path)


def test_what_was_put_is_what_is_got(store: RecordStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    file = tmp_path / "file"
    file.write_bytes(content)
    given: dict[str, bytes | Path] = {"a": content, "deep/er/b.json": b"", "c": file}
    etags = {key: store.put(key, data) for key, data in given.items()}
    assert [store.get(key).data for key in given] == [content, b"", content]
    assert {key: store.get(key).etag for key in given} == etags


def test_an_object_that_is_not_there_is_not_found(store: RecordStore) -> None:
    store.put("a/b", b"1")
    for key in ("x", "a/x", "a/b-not"):
        with pytest.raises(NotFound, match="there is no"):
            store.get(key)


def test_a_write_without_a_condition_replaces(store: RecordStore) -> None:
    first = store.put("a", b"1")
    assert store.put("a", b"22") != first
    assert store.get("a").data == b"22"


def test_creating_what_exists_is_a_conflict_and_changes_nothing(store: RecordStore) -> None:
    store.put("a/b", b"first", expect=ABSENT)
    with pytest.raises(Conflict, match=r"exists already|by somebody else"):
        store.put("a/b", b"second", expect=ABSENT)
    assert store.get("a/b").data == b"first"
    assert store.list("") == ["a/b"]


def test_what_was_deleted_can_be_created_again(store: RecordStore) -> None:
    store.put("a/b", b"first", expect=ABSENT)
    store.delete("a/b")
    store.put("a/b", b"second", expect=ABSENT)
    assert store.get("a/b").data == b"second"


def test_a_version_is_replaced_only_while_it_is_the_present_one(store: RecordStore) -> None:
    first = store.put("a/b", b"first")
    second = store.put("a/b", b"second", expect=first)
    with pytest.raises(Conflict, match="somebody else"):
        store.put("a/b", b"third", expect=first)
    assert store.get("a/b").data == b"second"
    assert store.get("a/b").etag == second


def test_a_version_of_what_is_gone_is_not_replaced(store: RecordStore) -> None:
    first = store.put("a/b", b"first")
    store.delete("a/b")
    with pytest.raises(Conflict, match="somebody else"):
        store.put("a/b", b"second", expect=first)
    assert store.list("a") == []


def test_a_list_is_sorted_and_holds_exactly_the_keys_that_begin_with_the_prefix(store: RecordStore) -> None:
    keys = [
        "ns/exp/lease",
        "ns/exp/trials/00002.json",
        "ns/exp/trials/00010.json",
        "ns/exp2/lease",
        "nsx/a",
        "z",
    ]
    for key in reversed(keys):
        store.put(key, b"x")
    assert store.list("") == keys
    assert store.list("ns/exp/trials/") == keys[1:3]
    assert store.list("ns/exp/trials/0001") == [keys[2]]
    assert store.list("ns/exp") == keys[:4]
    assert store.list("ns/nothing/") == store.list("q") == []


def test_objects_whose_names_begin_with_a_dot_are_listed_and_can_be_removed(store: RecordStore) -> None:
    """Trainers leave such files: Hydra writes `.hydra/config.yaml`."""
    keys = ["models/1/.hydra/config.yaml", "models/1/.state"]
    for key in keys:
        store.put(key, b"x")
    assert store.list("models/1/") == keys
    for key in keys:
        store.delete(key)
    assert store.list("models/") == []


def test_deleting_is_idempotent_and_leaves_the_neighbours(store: RecordStore) -> None:
    store.put("a/b", b"1")
    store.put("a/c", b"2")
    for key in ("a/b", "a/b", "never/was"):
        store.delete(key)
    assert store.list("") == ["a/c"]
    store.delete("a/c")
    assert store.list("") == []


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns thousands of times more often than usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restless")
def test_of_sixteen_threads_that_create_one_key_exactly_one_does(store: RecordStore) -> None:
    def create(key: str, number: int) -> bool:
        try:
            store.put(key, b"%d" % number * 5000, expect=ABSENT)
        except Conflict:
            return False
        return True

    for turn in range(10):
        key = f"trials/{turn}"
        won = all_at_once([partial(create, key, number) for number in range(16)])
        assert won.count(True) == 1
        assert store.get(key).data == b"%d" % won.index(True) * 5000


@pytest.mark.usefixtures("restless")
def test_no_conditional_update_is_lost(store: RecordStore) -> None:
    store.put("counter", b"0")

    def count_up() -> None:
        done = 0
        while done < 20:
            seen = store.get("counter")
            try:
                store.put("counter", b"%d" % (int(seen.data) + 1), expect=seen.etag)
            except Conflict:
                continue
            done += 1

    all_at_once([count_up] * 4)
    assert store.get("counter").data == b"80"


def test_a_reader_never_sees_half_of_an_object(store: RecordStore) -> None:
    whole = [letter * 300_000 for letter in (b"a", b"b")]
    store.put("big", whole[0])
    read_enough = [threading.Event(), threading.Event()]

    def write() -> int:
        writes = 0
        while not all(event.is_set() for event in read_enough):
            writes += 1
            store.put("big", whole[writes % 2])
        return writes

    def read(done: threading.Event) -> int:
        try:
            seen = [store.get("big").data for _ in range(50)]
            assert store.list("") == ["big"]
            return sum(data not in whole for data in seen)
        finally:
            done.set()

    actions: list[Callable[[], int]] = [write, *[partial(read, event) for event in read_enough]]
    writes, *halves = all_at_once(actions)
    assert writes > 0
    assert halves == [0, 0]


def test_a_folder_that_becomes_empty_disturbs_nobody_who_writes_there(store: RecordStore) -> None:
    def come_and_go(name: str) -> None:
        for turn in range(60):
            store.put(f"requests/{name}", b"x", expect=ABSENT if turn % 2 else None)
            store.delete(f"requests/{name}")

    all_at_once([partial(come_and_go, name) for name in "abcd"])
    assert store.list("") == []


def test_a_lock_is_one_at_a_time_and_names_its_owner(store: RecordStore) -> None:
    assert not store.is_locked("ns/lease")
    lock = store.lock("ns/lease", {"by": "first owner, with a long name"})
    assert lock is not None
    assert store.is_locked("ns/lease")
    assert store.lock("ns/lease", {"by": "second"}) is None
    assert json.loads(store.get("ns/lease").data)["by"] == "first owner, with a long name"
    lock.release()
    assert not store.is_locked("ns/lease")
    again = store.lock("ns/lease", {"by": "third"})
    assert again is not None
    assert json.loads(store.get("ns/lease").data)["by"] == "third"
    again.release()


def test_locks_of_different_names_do_not_know_each_other(store: RecordStore) -> None:
    first, second = store.lock("a/lease", {"by": "1"}), store.lock("b/lease", {"by": "2"})
    assert first is not None
    assert second is not None
    first.release()
    assert store.is_locked("b/lease")
    second.release()


def test_asking_whether_a_lock_is_held_never_keeps_anybody_from_taking_it(store: RecordStore) -> None:
    """Fifty ask without a pause; every attempt to take the free lock succeeds."""
    done = threading.Event()

    def ask() -> int:
        while not done.is_set():
            store.is_locked("ns/lease")
        return 0

    def take() -> int:
        taken = 0
        for _ in range(20):
            lock = store.lock("ns/lease", {"by": "me"})
            if lock is not None:
                taken += 1
                lock.release()
        done.set()
        return taken

    assert sum(all_at_once([take, *[ask] * 50])) == 20


def test_a_lock_of_another_process_is_seen_and_respected(address: str) -> None:
    store = open_objects(address)
    with other_process(address, HOLD_LOCK, "the other one") as other:
        assert hear(other) == "locked"
        assert store.is_locked("ns/lease")
        assert store.lock("ns/lease", {"by": "me"}) is None
        assert json.loads(store.get("ns/lease").data)["by"] == "the other one"
        tell(other, "give it back")
        assert hear(other) == "given back"
        assert not store.is_locked("ns/lease")
        lock = store.lock("ns/lease", {"by": "me"})
        assert lock is not None
        lock.release()


def test_a_lock_goes_with_a_process_that_is_killed(address: str) -> None:
    store = open_objects(address)
    with other_process(address, HOLD_LOCK) as other:
        assert hear(other) == "locked"
        other.kill()
        other.wait()
        assert not store.is_locked("ns/lease")
        lock = store.lock("ns/lease", {"by": "me"})
        assert lock is not None
        lock.release()


def test_a_lock_does_not_pass_to_the_children_of_its_holder(address: str) -> None:
    """A trial that outlives its tuner must not keep the next tuner out."""
    store = open_objects(address)
    program = """
import subprocess
lock = store.lock("ns/lease", {"by": "me"})
child = subprocess.Popen(["sleep", "30"])
print(child.pid, flush=True)
sys.stdin.readline()
"""
    with other_process(address, program) as other:
        child = int(hear(other))
        other.kill()
        other.wait()
        try:
            assert Path(f"/proc/{child}").exists()
            assert not store.is_locked("ns/lease")
        finally:
            os.kill(child, signal.SIGKILL)


def test_of_two_processes_that_take_a_lock_at_once_exactly_one_gets_it(address: str) -> None:
    program = """
for turn in range(40):
    wait_for_the_instant()
    lock = store.lock(f"ns/lease-{turn}", {"by": me})
    print("got it" if lock else "refused", flush=True)
"""
    told = together(address, program, 2, turns=40)
    assert [sorted(answers) for answers in told] == [["got it", "refused"]] * 40
    for turn, answers in enumerate(told):
        owner = json.loads(open_objects(address).get(f"ns/lease-{turn}").data)
        assert owner["by"] == str(answers.index("got it"))


def test_of_sixteen_processes_that_create_one_key_exactly_one_does(address: str) -> None:
    program = """
for turn in range(5):
    wait_for_the_instant()
    try:
        store.put(f"ns/trials/{turn}.json", me.encode(), expect=ABSENT)
        print("won", flush=True)
    except Conflict:
        print("lost", flush=True)
"""
    told = together(address, program, 16, turns=5)
    assert [sorted(answers) for answers in told] == [["lost"] * 15 + ["won"]] * 5
    store = open_objects(address)
    assert store.list("") == [f"ns/trials/{turn}.json" for turn in range(5)]
    for turn, answers in enumerate(told):
        assert store.get(f"ns/trials/{turn}.json").data == b"%d" % answers.index("won")


def test_no_conditional_update_of_several_processes_is_lost(address: str) -> None:
    open_objects(address).put("counter", b"0")
    program = """
wait_for_the_instant()
done = 0
while done < 10:
    seen = store.get("counter")
    try:
        store.put("counter", b"%d" % (int(seen.data) + 1), expect=seen.etag)
        done += 1
    except Conflict:
        pass
print("done", flush=True)
"""
    assert together(address, program, 3) == [["done"] * 3]
    assert open_objects(address).get("counter").data == b"30"


def test_a_writer_that_is_killed_leaves_the_old_object_or_the_new_one(address: str) -> None:
    store = open_objects(address)
    store.put("big", b"0" * 1_000_000)
    program = """
for turn in range(1, 10**6):
    store.put("big", b"%d" % (turn % 10) * 1_000_000)
    if turn == 2: print("writing", flush=True)
"""
    for _ in range(3):
        with other_process(address, program) as other:
            assert hear(other) == "writing"
            other.kill()
            other.wait()
        found = store.get("big").data
        assert len(found) == 1_000_000
        assert found == found[:1] * 1_000_000
        assert store.list("") == ["big"]
