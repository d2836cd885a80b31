"""The contract of `ObjectStore`, proven of every store, with threads and, where stores are shared, with processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from hpo_core.errors import Conflict, NotFound, StoreError
from hpo_core.objects import ABSENT, RecordStore, open_objects
from tests.contracts.store_suite import (
    SHARED,
    STORES,
    all_at_once,
    hear,
    many_at_once,
    other_process,
    parameters,
    tell,
    together,
)

HOLD_LOCK = """
lock = store.lock("ns/lease", {"by": me})
print("locked" if lock else "refused", flush=True)
sys.stdin.readline()
lock and lock.release()
print("given back", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(params=parameters(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RecordStore]:
    store = STORES[request.param](tmp_path)
    yield store
    empty(store)


@pytest.fixture(params=parameters(SHARED))
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a store that other processes can open too."""
    address = SHARED[request.param](tmp_path)
    yield address
    empty(open_objects(address))


def empty(store: RecordStore) -> None:
    for key in store.list(""):
        store.delete(key)


def test_what_was_put_is_what_is_got(store: RecordStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    file = tmp_path / "file"
    file.write_bytes(content)
    given: dict[str, bytes | Path] = {"a": content, "deep/er/b.json": b"", "c": file}
    etags = {key: store.put(key, data) for key, data in given.items()}
    assert [store.get(key).data for key in given] == [content, b"", content]
    assert {key: store.get(key).etag for key in given} == etags


def test_a_file_of_several_parts_has_one_tag_by_which_it_can_be_replaced(store: RecordStore, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 25_000)  # 6.4 MB; S3's parts are of 5 MiB or more
    tag = store.put("model", file)
    assert store.get("model").etag == tag
    assert store.get("model").data == file.read_bytes()
    store.put("model", b"new", expect=tag)
    assert store.get("model").data == b"new"


def test_a_file_that_cannot_be_read_is_named_and_nothing_is_written(store: RecordStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*/gone, which is to be stored: No such file or directory"):
        store.put("a/b", tmp_path / "gone")
    assert store.list("") == []


def test_the_age_of_an_object_grows_and_is_never_told_too_high(store: RecordStore) -> None:
    """Where the clock tells whole seconds, up to 2 s may be missing: one that it cut off, one for what it may add."""
    blur_s = 2.0 if store.uri.startswith("s3:") else 0.0
    before = time.monotonic()
    store.put("a", b"1")
    after = time.monotonic()
    assert store.get("a").age_s <= time.monotonic() - before
    time.sleep(blur_s + 0.2)
    asked = time.monotonic()
    age_s = store.get("a").age_s
    # A file system dates by the kernel's tick, up to 10 ms in the past.
    assert asked - after - blur_s - 0.01 <= age_s <= time.monotonic() - before + 0.01


def test_an_object_is_fetched_into_a_file_as_it_is(store: RecordStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    store.put("models/1/weights", content)
    store.fetch("models/1/weights", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    with pytest.raises(NotFound, match="there is no"):
        store.fetch("models/1/nothing", tmp_path / "none")


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


def test_a_flat_list_holds_one_entry_for_all_that_lies_below(store: RecordStore) -> None:
    for key in ("ns/exp/lease", "ns/exp/trials/1.json", "ns/exp2", "nsx/a", "z"):
        store.put(key, b"x")
    assert store.list("", deep=False) == ["ns/", "nsx/", "z"]
    assert store.list("ns/", deep=False) == ["ns/exp/", "ns/exp2"]
    assert store.list("ns/exp", deep=False) == ["ns/exp/", "ns/exp2"]
    assert store.list("ns/exp/", deep=False) == ["ns/exp/lease", "ns/exp/trials/"]
    assert store.list("q/", deep=False) == []


def test_a_list_has_no_end_at_a_thousand(store: RecordStore) -> None:
    keys = [f"trials/{number:05d}.json" for number in range(1, 1102)]
    many_at_once(lambda key: store.put(key, b""), keys)
    assert store.list("trials/") == keys
    many_at_once(store.delete, keys)
    assert store.list("") == []


ODD_NAMES = (
    "a b",
    "a+b",
    "a%20b",
    "100%",
    "#1",
    "lr=0.1&x",
    "ü/ñ",
    "模型",
    "~t",
    "(x)'!*",
    ":;,$@",
    "a?b",
    '"',
    "[0]",
    "\\",
)


def test_keys_are_taken_as_they_are_whatever_they_would_mean_in_an_address(store: RecordStore) -> None:
    tags = {key: store.put(f"models/{key}", key.encode(), expect=ABSENT) for key in ODD_NAMES}
    assert store.list("models/") == sorted(f"models/{key}" for key in ODD_NAMES)
    for key, tag in tags.items():
        assert store.get(f"models/{key}").data == key.encode()
        store.put(f"models/{key}", b"new", expect=tag)
        assert store.list(f"models/{key}") == [f"models/{key}"]
        store.delete(f"models/{key}")
    assert store.list("models/") == []


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


def test_of_two_hundred_that_create_one_key_at_once_exactly_one_does(store: RecordStore) -> None:
    all_there = threading.Barrier(200)

    def create(number: int) -> bool:
        all_there.wait()
        try:
            store.put("ns/lease", b"%d" % number, expect=ABSENT)
        except Conflict:
            return False
        return True

    won = all_at_once([partial(create, number) for number in range(200)])
    assert won.count(True) == 1
    assert store.get("ns/lease").data == b"%d" % won.index(True)


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


def test_a_lock_that_is_held_is_confirmed(store: RecordStore) -> None:
    lock = store.lock("ns/lease", {"by": "me"})
    assert lock is not None
    lock.confirm()
    lock.release()
    lock.release()


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


def test_a_large_file_is_stored_without_being_read_into_memory(address: str, tmp_path: Path) -> None:
    """Of 200 MB, S3's client holds five parts of 5 MiB: three on their way, one read, one waiting.

    Each may be there twice, as it is read and as it is sent: 50 MiB. With what an allocator keeps, 80 MB are allowed.
    """
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(200_000_000)
    program = f"""
from pathlib import Path
def peak_kib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
store.put("small", b"x")
before = peak_kib()
store.put("large", Path({str(large)!r}))
print(peak_kib() - before, flush=True)
"""
    with other_process(address, program) as other:
        assert int(hear(other)) * 1024 < 80_000_000


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
