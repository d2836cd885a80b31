"""The program beside a trainer: what it keeps of a folder, what it says, and how it ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from hpo_core.errors import StoreError, TransientError
from hpo_core.launch.outputs import find
from hpo_core.objects import DirectoryStore, MemoryStore
from hpo_core.sidecar.following import LINE_BYTES, Tail
from hpo_core.sidecar.order import Order
from hpo_core.sidecar.upload import Receipt, deliver
from hpo_core.store import ExperimentStore

PLACE, RECEIPT = "team/small/models/00001-1/", "team/small/uploads/small-a1.json"
PATIENCE_S = 20.0

Begin: TypeAlias = Callable[..., subprocess.Popen[bytes]]


def order(output: Path, **changes: Any) -> Order:
    given = ["--attempt=small-a1", "--experiment=team/small", "--store=unused", "--label=00001-1", f"--output={output}"]
    return replace(Order.of(given), **changes)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"weights")
    (folder / "deep" / "er" / "log.txt").write_text("x")
    return folder


def kept(store: MemoryStore, prefix: str = PLACE) -> dict[str, bytes]:
    return {key.removeprefix(prefix): store.get(key).data for key in store.list(prefix)}


class Clock:
    """Time passes when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Moody(MemoryStore):
    """A memory store that fails as `fails` says, asked with what is done and the key."""

    def __init__(self, fails: Callable[[str, str], Exception | None]) -> None:
        super().__init__()
        self._fails = fails
        self.done: list[tuple[str, str]] = []

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        self._check("put", key)
        return super().put(key, data, expect=expect)

    def delete(self, key: str) -> None:
        self._check("delete", key)
        super().delete(key)

    def list(self, prefix: str, *, deep: bool = True) -> list[str]:
        self._check("list", prefix)
        return super().list(prefix, deep=deep)

    def _check(self, what: str, key: str) -> None:
        failure = self._fails(what, key)
        if failure is not None:
            raise failure
        self.done.append((what, key))


# --- what is kept


def test_every_file_is_kept_under_its_relative_name(output: Path) -> None:
    store = MemoryStore()
    receipt = deliver(store, order(output))
    assert kept(store) == {"model.pt": b"weights", "deep/er/log.txt": b"x"}
    assert (receipt.files, receipt.size_bytes, receipt.left_out, receipt.error) == (2, 8, (), "")


def test_the_experiments_store_finds_output_and_receipt_where_they_were_put(output: Path) -> None:
    objects = MemoryStore()
    deliver(objects, order(output))
    store = ExperimentStore(objects, "team", "small")
    assert store.outputs("00001-1") == [f"{PLACE}deep/er/log.txt", f"{PLACE}model.pt"]
    assert store.derived_json("uploads/small-a1.json") == {
        "attempt": "small-a1",
        "label": "00001-1",
        "files": 2,
        "bytes": 8,
        "leftOut": [],
        "error": "",
    }


def test_an_empty_folder_has_a_receipt_too(tmp_path: Path) -> None:
    store = MemoryStore()
    assert deliver(store, order(tmp_path)).files == 0
    assert store.list("") == [RECEIPT]


def test_what_lay_there_before_is_gone_and_the_receipt_is_written_last(output: Path) -> None:
    store = Moody(lambda what, key: None)
    store.put(f"{PLACE}stale.pt", b"old")
    store.put(RECEIPT, b"{}")
    store.done.clear()
    deliver(store, order(output))
    assert store.done[0] == ("delete", RECEIPT)
    assert store.done[-1] == ("put", RECEIPT)
    assert sorted(kept(store)) == ["deep/er/log.txt", "model.pt"]


def test_links_and_what_is_no_file_are_left_out_and_told_unless_they_stay_inside(output: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the sidecar")
    (output / "best.pt").symlink_to("model.pt")
    (output / "leads-out").symlink_to("/proc/self/environ")
    (output / "climbs-out").symlink_to("../secret")
    (output / "nothing").symlink_to("absent")
    (output / "loop").symlink_to("loop")
    (output / "folder").symlink_to("deep")
    os.mkfifo(output / "pipe")
    store = MemoryStore()
    receipt = deliver(store, order(output))
    assert kept(store) == {"model.pt": b"weights", "best.pt": b"weights", "deep/er/log.txt": b"x"}
    assert receipt.error == ""
    assert sorted(receipt.left_out) == [
        "climbs-out (a link that leads out of the folder)",
        "folder (a link to a folder)",
        "leads-out (a link that leads out of the folder)",
        "loop (a link to itself)",
        "nothing (a link to nothing)",
        "pipe (no plain file)",
    ]


def test_a_name_that_no_key_can_be_is_told(output: Path) -> None:
    Path(os.fsdecode(bytes(output) + b"/caf\xe9")).write_text("x")
    assert find(output).left_out == ["caf? (its name is no UTF-8)"]


def test_what_cannot_be_read_is_told_with_who_cannot(output: Path) -> None:
    """As nobody, since root reads everything."""
    (output / "private.pt").write_bytes(b"x")
    (output / "private.pt").chmod(0)
    (output / "deep").chmod(0)
    program = f"import hpo_core.sidecar.upload as u, pathlib; print(u.find(pathlib.Path({str(output)!r})).left_out)"
    if os.getuid() == 0:
        for folder in [output, *output.parents][:-1]:
            folder.chmod(folder.stat().st_mode | 0o755)
        (output / "deep").chmod(0)
        program = f"import os; import hpo_core.sidecar.upload; os.setuid(65534); {program}"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    user = 65534 if os.getuid() == 0 else os.getuid()
    reason = f"cannot be read by user {user}: Permission denied"
    assert sorted(eval(told.stdout)) == [f"deep/ ({reason})", f"private.pt ({reason})"]


def test_of_very_many_left_out_the_first_are_named(output: Path) -> None:
    for number in range(30):
        (output / f"link{number:02}").symlink_to("absent")
    left_out = deliver(MemoryStore(), order(output)).left_out
    assert (len(left_out), left_out[0], left_out[-1]) == (21, "link00 (a link to nothing)", "and 10 more")


def test_a_folder_that_cannot_be_read_at_all_is_an_error(tmp_path: Path) -> None:
    store = MemoryStore()
    receipt = deliver(store, order(tmp_path / "absent"))
    assert "cannot be read" in receipt.error
    assert "cannot be read" in json.loads(store.get(RECEIPT).data)["error"]


# --- a store that fails


def test_a_store_that_is_away_for_a_while_is_waited_for(output: Path) -> None:
    """Each call fails until its turn; every file arrives whole, and the receipt last."""
    clock = Clock()
    store = Moody(lambda what, key: TransientError("away", 2.0) if clock.seconds < 60 else None)
    receipt = deliver(store, order(output, seconds=90.0), monotonic=clock, sleep=clock.sleep)
    assert receipt.error == ""
    assert store.done[-1] == ("put", RECEIPT)
    assert sorted(kept(store)) == ["deep/er/log.txt", "model.pt"]


def test_a_store_that_stays_away_is_given_up_within_its_time(output: Path) -> None:
    clock = Clock()
    store = Moody(lambda what, key: TransientError("nobody answers; waiting for it", 2.0))
    receipt = deliver(store, order(output, seconds=30.0), monotonic=clock, sleep=clock.sleep)
    assert receipt.error == "nobody answers; waiting for it"
    assert clock.seconds <= 30.0


def test_a_store_that_refuses_is_not_tried_again(output: Path) -> None:
    clock = Clock()
    store = Moody(lambda what, key: StoreError("the secret key is wrong"))
    receipt = deliver(store, order(output), monotonic=clock, sleep=clock.sleep)
    assert (receipt.error, clock.seconds) == ("the secret key is wrong", 0.0)


def test_a_file_that_is_refused_leaves_a_receipt_that_says_so(output: Path) -> None:
    store = Moody(lambda what, key: StoreError("too large") if key.endswith("model.pt") else None)
    assert deliver(store, order(output)).error == "too large"
    assert json.loads(store.get(RECEIPT).data)["error"] == "too large"


def test_a_note_names_the_error_before_what_was_left_out() -> None:
    receipt = Receipt("a", "b", left_out=("x (no plain file)", "y (a link to nothing)"))
    assert receipt.note == "not kept of its output: x (no plain file); y (a link to nothing)"
    assert replace(receipt, error="refused").note == "refused"


# --- the metrics file


def read(tail: Tail) -> bytes:
    return b"".join(tail.lines())


def test_lines_are_given_once_they_are_whole_and_the_last_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.log"
    tail = Tail(path, tmp_path)
    assert read(tail) == b""
    path.write_bytes(b"loss=1\nlo")
    assert read(tail) == b"loss=1\n"
    with path.open("ab") as file:
        file.write(b"ss=2\nloss=3")
    assert read(tail) == b"loss=2\n"
    assert tail.rest() == b"loss=3\n"
    assert tail.rest() == b""


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.log"
    tail = Tail(path, tmp_path)
    path.write_bytes(b"loss=1\nloss=2\nhalf")
    read(tail)
    path.write_bytes(b"loss=7\n")
    assert read(tail) == b"loss=7\n"
    path.unlink()
    assert read(tail) == b""
    path.write_bytes(b"loss=8\n")
    assert read(tail) == b"loss=8\n"


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.log"
    path.write_bytes(b"x" * (3 * LINE_BYTES))
    tail = Tail(path, tmp_path)
    pieces = list(tail.lines())
    assert max(map(len, pieces)) < 2 * LINE_BYTES
    assert len(b"".join(pieces)) > 2 * LINE_BYTES


@pytest.mark.parametrize("where", ["file", "folder"])
def test_links_are_not_followed(tmp_path: Path, where: str) -> None:
    """A trainer could let the sidecar print its own environment otherwise."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (elsewhere / "metrics.log").write_text("secret=1\n")
    if where == "file":
        (root / "metrics.log").symlink_to(elsewhere / "metrics.log")
        path = root / "metrics.log"
    else:
        (root / "deep").symlink_to(elsewhere)
        path = root / "deep" / "metrics.log"
    assert read(Tail(path, root)) == b""


def test_a_pipe_in_its_place_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.log")
    assert read(Tail(tmp_path / "metrics.log", tmp_path)) == b""


# --- the program


@pytest.fixture
def begin(tmp_path: Path, output: Path) -> Iterator[Begin]:
    """Starts the program; what still runs at the end of the test is ended."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(*words: str, store: str = "", environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        given = ["--attempt=small-a1", "--experiment=team/small", f"--store={store or tmp_path / 'store'}"]
        given += [f"--output={output}", f"--tell={tmp_path / 'told'}", *words]
        program = subprocess.Popen(
            [sys.executable, "-m", "hpo_core.sidecar", *given],
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )
        begun.append(program)
        wait_until(lambda: is_listening(program.pid))
        return program

    yield start
    for program in begun:
        program.kill()
        program.communicate()


def wait_until(holds: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def is_listening(pid: int) -> bool:
    """Tell whether a process keeps SIGTERM, as the hook after the container's start does."""
    status = Path(f"/proc/{pid}/status").read_text()
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk"))
    return bool(int(blocked.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def end(program: subprocess.Popen[bytes]) -> tuple[int, str]:
    program.send_signal(signal.SIGTERM)
    said, _ = program.communicate(timeout=PATIENCE_S)
    return program.returncode, said.decode()


def test_after_sigterm_everything_is_in_the_store(output: Path, tmp_path: Path, begin: Begin) -> None:
    large = random.Random(1).randbytes(20 << 20)
    (output / "large.bin").write_bytes(large)
    program = begin("--label=00001-1")
    (output / "late.txt").write_text("written while it waits")
    code, said = end(program)
    assert (code, said) == (0, f"hpo-sidecar: 4 files, {len(large) + 30} bytes kept under {PLACE}\n")
    store = DirectoryStore(tmp_path / "store")
    assert store.get(f"{PLACE}large.bin").data == large
    assert json.loads(store.get(RECEIPT).data)["files"] == 4
    assert (tmp_path / "told").read_text() == ""


def test_a_sigterm_that_comes_at_once_is_not_lost(begin: Begin) -> None:
    assert end(begin("--label=00001-1"))[0] == 0


def test_one_that_is_killed_leaves_no_receipt(tmp_path: Path, begin: Begin) -> None:
    program = begin("--label=00001-1")
    program.kill()
    program.wait(PATIENCE_S)
    assert DirectoryStore(tmp_path / "store").list("") == []


def test_a_store_without_credentials_is_told_in_words(tmp_path: Path, begin: Begin) -> None:
    nothing = {name: "" for name in os.environ if name.startswith(("AWS_", "MINIO_"))}
    code, said = end(begin("--label=00001-1", store="s3://bucket/prefix", environment=nothing))
    assert code == 1
    assert said.startswith("hpo-sidecar: the output is not kept: there are no credentials for the object store")
    assert (tmp_path / "told").read_text().startswith("there are no credentials")


def test_the_metrics_file_is_printed_while_it_grows_and_to_its_end(tmp_path: Path, begin: Begin) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    program = begin(f"--metrics={folder / 'metrics.log'}")
    assert program.stdout is not None
    with (folder / "metrics.log").open("w") as file:
        print("loss=0.5", file=file, flush=True)
        assert program.stdout.readline() == b"loss=0.5\n"
        file.write("loss=0.25")
    assert end(program) == (0, "loss=0.25\n")


@pytest.mark.parametrize(("shown", "count"), [("master", 3), ("worker", 0), ("", 0)])
def test_only_the_pod_with_the_wanted_labels_keeps_its_output(
    tmp_path: Path, begin: Begin, shown: str, count: int
) -> None:
    assert end(begin("--label=00001-1", "--only-if", shown, "master"))[0] == 0
    assert len(DirectoryStore(tmp_path / "store").list("")) == count


def test_it_waits_in_little_memory_even_for_an_s3_store(begin: Begin) -> None:
    """40 MB: one stands beside each of a hundred trials; measured 30 with the S3 client, on CPython 3.11."""
    credentials = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    program = begin("--label=00001-1", store="s3://bucket/prefix", environment=credentials)
    sizes = []
    until = time.monotonic() + 1.0  # its imports take 0.15 s
    while time.monotonic() < until:
        sizes.append(resident_bytes(program.pid))
        time.sleep(0.02)
    assert 10e6 < max(sizes) < 40e6


def test_a_command_line_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        Order.of(["--attempt=a"])
    assert "the following arguments are required" in capsys.readouterr().err


def test_a_metrics_file_within_the_output_is_read_there(tmp_path: Path) -> None:
    inside = order(tmp_path, metrics=tmp_path / "deep" / "metrics.log")
    assert inside.metrics_root == tmp_path
    assert order(tmp_path, metrics=Path("/hpo/metrics/m.log")).metrics_root == Path("/hpo/metrics")
