"""Stores by their address, and what a directory says of files that are in its way and of a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from hpo_core.errors import Conflict, NotFound, StoreError
from hpo_core.objects import ABSENT, DirectoryStore, open_objects
from tests.scenarios.folders import eventually
from tests.small_disk import run_on_small_disk


def test_images_and_scratch_files_in_the_same_folder_are_no_objects(tmp_path: Path) -> None:
    (tmp_path / ".scratch/uid/trial").mkdir(parents=True)
    (tmp_path / ".scratch/uid/trial/experiment.yaml").write_text("")
    store = DirectoryStore(tmp_path)
    store.put("ns/name/lease", b"")
    assert store.list("") == ["ns/name/lease"]


def test_a_store_is_a_folder_by_path_or_by_file_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_objects("sub/folder").uri == str(tmp_path / "sub/folder")
    assert open_objects(f"file://{tmp_path}/x").uri == str(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []  # nothing is made before something is written


def test_a_store_of_another_kind_is_refused() -> None:
    with pytest.raises(StoreError, match=r"cannot open the store 'ftp://host/x': give a directory, as in --store"):
        open_objects("ftp://host/x")


def test_a_folder_that_cannot_be_used_is_named_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = DirectoryStore(tmp_path / "file")
    for action in (lambda: store.put("a/b", b""), lambda: store.lock("a/b", {}), lambda: store.delete("a/b")):
        with pytest.raises(StoreError, match=r"cannot use .*/file/a/b: Not a directory; choose another --store"):
            action()


def test_on_a_full_disk_a_write_can_be_tried_again_and_leaves_nothing_behind(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from hpo_core.errors import TransientError
from hpo_core.objects import ABSENT, DirectoryStore
root = Path(sys.argv[1])
store = DirectoryStore(root)
etag = store.put("ns/small", b"old")
(root / "big-file").touch()
for expect in (None, etag):
    try:
        store.put("ns/small", b"x" * 10**6, expect=expect)
    except TransientError as error:
        print(error)
try:
    store.put("ns/new", b"x" * 10**6, expect=ABSENT)
except TransientError as error:
    print(error)
print(store.get("ns/small").data, [path.name for path in (root / "ns").iterdir() if path.name != ".lock"])
try:
    (root / "big-file").write_bytes(b"x" * 10**6)
except OSError:
    pass
try:
    store.lock("ns/lease", {"by": "x" * 10000})
except TransientError as error:
    print(error)
print(store.is_locked("ns/lease"))
"""
    disk = tmp_path / "disk"
    told = run_on_small_disk(program, disk, size_kib=256).splitlines()
    cannot = f"cannot write {disk}/ns/{{}}: No space left on device; make room there"
    assert told == [cannot.format("small")] * 2 + [
        cannot.format("new"),
        "b'old' ['small']",
        cannot.format("lease"),
        "False",
    ]


def take(store: DirectoryStore) -> None:
    lock = store.lock("ns/name/lease", {})
    assert lock is not None
    lock.release()


def test_what_a_killed_process_left_half_written_is_removed_by_the_next_lock_and_not_before(tmp_path: Path) -> None:
    """The source is a pipe that gives no more than a part of the file."""
    store, models = DirectoryStore(tmp_path / "store"), tmp_path / "store/ns/name/models"
    source = tmp_path / "pipe"
    os.mkfifo(source)
    program = f"""
from pathlib import Path
from hpo_core.objects import DirectoryStore
DirectoryStore(Path({str(tmp_path / "store")!r})).put("ns/name/models/a", Path({str(source)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", program]) as writer, source.open("wb", buffering=0) as pipe:
        threading.Thread(target=feed, args=(pipe.fileno(), 3 << 20), daemon=True).start()
        eventually(lambda: any(path.stat().st_size for path in models.glob(".*")), "a part is written")
        take(store)
        assert len(list(models.iterdir())) == 1, "it is being written"
        writer.kill()
        writer.wait()
        take(store)
        assert list(models.iterdir()) == []
    assert store.list("") == ["ns/name/lease"]


def feed(pipe: int, size: int) -> None:
    with suppress(OSError):
        while size > 0:
            size -= os.write(pipe, bytes(min(size, 1 << 16)))


def test_the_last_object_of_a_folder_takes_it_along(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    keys = ["ns/name/trials/1", "ns/name/trials/2", "ns/name/models/1/deep/er", "ns/name/lease"]
    for key in keys:
        store.put(key, b"new", expect=store.put(key, b"old", expect=ABSENT))
    for key in keys:
        assert any((tmp_path / "store").iterdir())
        store.delete(key)
        store.delete(key)
    assert list((tmp_path / "store").iterdir()) == []


def test_writers_of_a_folder_that_is_removed_all_the_time_lose_nothing(tmp_path: Path) -> None:
    """Of each, the conditions hold as if it were alone, since each has a key of its own."""
    store = DirectoryStore(tmp_path / "store")

    def write(key: str) -> None:
        for _ in range(150):
            tag = store.put(key, b"1", expect=ABSENT)
            with pytest.raises(Conflict):
                store.put(key, b"2", expect=ABSENT)
            assert store.put(key, b"3", expect=tag) != tag
            assert store.get(key).data == b"3"
            store.delete(key)
            with pytest.raises(NotFound):
                store.get(key)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, [f"ns/name/{number % 2}/{number}" for number in range(6)]))
    assert list((tmp_path / "store").iterdir()) == []
