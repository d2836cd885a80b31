"""Trainers that print or use more than any tuner should have to bear, through `hpo run`, all in one experiment.

Each gets the verdict that it earned, and neither its neighbours nor the tuner's memory or disk pay for it. What they do
is scaled by `make_programs`, so that the benchmark can run the same ones in full.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo_core.launch.supervisor import KEPT_SEGMENTS, SEGMENT_BYTES
from hpo_core.metrics import KEPT_POINTS
from hpo_core.outcome import LOG_HEAD_BYTES, LOG_TAIL_BYTES
from tests.experiments import make_document, parameter
from tests.scenarios.folders import Folder
from tests.scenarios.test_bad_trainers import by_program
from tests.small_disk import run_on_small_disk

LIMIT_MIB = 160
"""Every trial's memory limit."""

NOISE = """
import sys
line = b"epoch 3, step 1200 of 9000, 0.35 s a step\\n"
block = line * 20_000
for _ in range({lines} // 20_000): sys.stdout.buffer.write(block)
print("loss=0.5")
"""
METRICS = """
import sys
lines = {lines}
for begin in range(0, lines, 10_000):
    values = [number * 7919 % 99991 / 1e5 for number in range(begin, begin + 10_000)]
    if begin == lines // 2: values[77] = -7.0
    if begin == lines // 4: values[99] = 9.5
    if begin + 10_000 == lines: values[-1] = 0.25
    sys.stdout.write("".join([f"loss={{value:.5f}}\\n" for value in values]))
"""
LONG_LINE = """
import sys
for _ in range({line_bytes} // 62_500): sys.stdout.write("loss" + "x" * 62_496)
"""
BINARY = """
import os, sys
out = sys.stdout.buffer
for _ in range({blocks}): out.write(os.urandom(1 << 20).replace(b"loss", b"LOSS"))
out.write(b"\\0" * (1 << 20) + b"\\n\\xff\\xfe\\xe2\\x82 loss=0.5 \\xe2\\x82\\n" + b"\\0\\xc3" * 1000)
for _ in range({blocks}): out.write(os.urandom(1 << 20).replace(b"loss", b"LOSS"))
"""
AFTER_THE_END = """
import os, time
print("loss=0.5", flush=True)
if not os.fork():
    os.setsid()
    while True: os.write(1, b"still here\\n" * 1000)
time.sleep(0.3)
"""
SHARING = """
import mmap, os, time
size = 96 << 20
shared = mmap.mmap(-1, size)  # as a DataLoader's shared tensors: MAP_SHARED, and used by everybody
inherited = bytearray(30 << 20)  # and as its data set: copied on write after the fork, and only read
def touch():
    for at in range(0, size, 4096): shared[at] = 1
    return sum(inherited[::4096])
touch()
ready, done = os.pipe(), os.pipe()
children = []
for _ in range(4):
    pid = os.fork()
    if not pid:
        os.close(done[1])
        touch()
        os.write(ready[1], b"1")
        os.read(done[0], 1)
        os._exit(0)
    children.append(pid)
for _ in children: os.read(ready[0], 1)
pages = sum(int(open(f"/proc/{{pid}}/statm").read().split()[1]) for pid in [os.getpid(), *children])
time.sleep(0.8)
os.close(done[1])
for pid in children: os.waitpid(pid, 0)
print(f"resident={{pages * 4096 >> 20}}\\nloss=0.5")
"""
GREEDY = """
import time
print("loss=0.1", flush=True)
hog = b"x" * (400 << 20)
time.sleep(60)
"""
FAMILY = """
import os, time
print("loss=0.1", flush=True)
for _ in range(4):
    if not os.fork():
        hog = b"x" * (60 << 20)
        time.sleep(60)
time.sleep(60)
"""
NEIGHBOUR = 'import time; time.sleep(0.3); print("loss=0.75")'


def make_programs(*, lines: int, line_bytes: int, blocks: int) -> dict[str, str]:
    """Every hostile trainer as a Python program.

    Args:
        lines: How many of them the trainers with many lines print; a multiple of 40,000.
        line_bytes: Length of one long line; a multiple of 62,500.
        blocks: MiB of random bytes before and behind the metric.
    """
    scale = {"lines": lines, "line_bytes": line_bytes, "blocks": blocks}
    programs = {
        "noise": NOISE,
        "metrics": METRICS,
        "endless_line": LONG_LINE,
        "long_line": LONG_LINE + 'print("\\nloss=0.5")',
        "binary": BINARY,
        "after_the_end": AFTER_THE_END,
        "sharing": SHARING,
        "greedy": GREEDY,
        "family": FAMILY,
    }
    return {name: text.format(**scale) for name, text in programs.items()}


VERDICTS = {
    "noise": ("Succeeded", "TrialSucceeded"),
    "metrics": ("Succeeded", "TrialSucceeded"),
    "endless_line": ("MetricsUnavailable", "MetricNotFound"),
    "long_line": ("Succeeded", "TrialSucceeded"),
    "binary": ("Succeeded", "TrialSucceeded"),
    "after_the_end": ("Succeeded", "TrialSucceeded"),
    "sharing": ("Succeeded", "TrialSucceeded"),
    "greedy": ("Failed", "OutOfMemory"),
    "family": ("Failed", "OutOfMemory"),
}


def make_folder(path: Path, programs: Mapping[str, str], *, parallel: int) -> Folder:
    """A folder whose experiment runs each of the programs once."""
    space = [parameter("program", "categorical", list=[f"{name}.py" for name in programs])]
    container = "spec.trialTemplate.trialSpec.spec.template.spec.containers.0"
    changes = {
        "metadata": {"name": "small", "namespace": "default", "annotations": {"kfp-hpo/trial-deadline": "300s"}},
        "spec.algorithm.algorithmName": "grid",
        "spec.parallelTrialCount": parallel,
        "spec.maxTrialCount": len(programs),
        "spec.maxFailedTrialCount": len(programs),
        f"{container}.command": ["python3", "-S", "${trialParameters.program}"],
        f"{container}.resources": {"limits": {"memory": f"{LIMIT_MIB}Mi"}},
    }
    folder = Folder.make(path, yaml.safe_dump(make_document(space, changes=changes)))
    for name, program in programs.items():
        (path / f"{name}.py").write_text(program)
    return folder


@dataclass
class Costs:
    """What a run of `hpo` cost at most.

    Attributes:
        memory_bytes: Resident memory of its process.
        scratch_bytes: All that lay in scratch space at once.
    """

    memory_bytes: int = 0
    scratch_bytes: int = 0

    def look(self, pid: int, store: Path) -> None:
        """Take in what there is now."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)
        self.memory_bytes = max(self.memory_bytes, peak)
        self.scratch_bytes = max(self.scratch_bytes, bytes_in(store / ".scratch"))


def bytes_in(folder: Path) -> int:
    """What the files of a folder hold; those that go meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).stat().st_size
    return total


def run_watched(folder: Path, *, timeout_s: float) -> tuple[Costs, str]:
    """Run the folder's experiment to its end; returns what that cost, and what it printed."""
    costs = Costs()
    with Folder(folder).start("run", "small.yaml") as process:
        printed: list[str] = []
        listener = threading.Thread(target=lambda: printed.extend(process.communicate()), daemon=True)
        listener.start()
        until = time.monotonic() + timeout_s
        while listener.is_alive() and time.monotonic() < until:
            costs.look(process.pid, folder / ".hpo")
            listener.join(0.05)
        if listener.is_alive():
            process.kill()
        listener.join()
    assert process.returncode == 0, "".join(printed)
    return costs, "".join(printed)


@dataclass(frozen=True)
class Zoo:
    folder: Folder
    costs: Costs
    printed: str
    records: Mapping[str, dict[str, Any]]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """All of them in one experiment, three at a time, each followed by a neighbour that does its work."""
    hostile = make_programs(lines=2_000_000, line_bytes=100_000_000, blocks=8)
    programs: dict[str, str] = {}
    for number, (name, text) in enumerate(hostile.items()):
        programs |= {name: text, f"neighbour{number}": NEIGHBOUR}
    folder = make_folder(tmp_path_factory.mktemp("hostile"), programs, parallel=3)
    costs, printed = run_watched(folder.path, timeout_s=120.0)
    records = {name.removesuffix(".py"): record for name, record in by_program(folder).items()}
    return Zoo(folder, costs, printed, records)


@pytest.mark.parametrize("program", VERDICTS)
def test_each_hostile_trainer_gets_its_verdict(zoo: Zoo, program: str) -> None:
    record = zoo.records[program]
    assert (record["condition"], record["reason"]) == VERDICTS[program], record["message"]


def test_every_neighbour_went_on(zoo: Zoo) -> None:
    neighbours = {name: record["condition"] for name, record in zoo.records.items() if name.startswith("neighbour")}
    assert set(neighbours.values()) == {"Succeeded"}
    assert len(neighbours) == len(VERDICTS)
    assert "Traceback" not in zoo.printed


def observed(zoo: Zoo, program: str) -> tuple[float, float, float]:
    """Latest, minimum and maximum of the objective."""
    loss = zoo.records[program]["observation"]["loss"]
    return loss["latest"], loss["min"], loss["max"]


@pytest.mark.parametrize("program", ["noise", "long_line", "binary", "after_the_end", "sharing"])
def test_the_one_metric_among_whatever_else_is_found(zoo: Zoo, program: str) -> None:
    assert observed(zoo, program) == (0.5, 0.5, 0.5)


def test_of_millions_of_reports_latest_minimum_and_maximum_are_right(zoo: Zoo) -> None:
    assert observed(zoo, "metrics") == (0.25, -7.0, 9.5)


@pytest.mark.parametrize("program", ["greedy", "family"])
def test_memory_over_the_limit_is_told_with_its_size(zoo: Zoo, program: str) -> None:
    message = zoo.records[program]["message"]
    assert "was stopped for its memory" in message
    used = int(message.partition("it used ")[2].split()[0])
    assert used >= LIMIT_MIB


def test_memory_that_is_shared_counts_once(zoo: Zoo) -> None:
    """The workers were resident with far more than the limit, all of them together used less."""
    log = zoo.folder.hpo("logs", "small", str(zoo.records["sharing"]["number"])).stdout
    assert int(log.split("resident=")[1].split()[0]) > 2 * LIMIT_MIB


def test_what_goes_on_after_the_end_is_ended_and_told(zoo: Zoo) -> None:
    assert "1 process(es) that it had left behind were ended" in zoo.records["after_the_end"]["message"]
    assert zoo.folder.processes() == []


def test_the_tuners_memory_and_disk_are_bounded(zoo: Zoo) -> None:
    """A tuner takes 40 MiB by itself; each of three trials may add its kept log, points and a piece that is read."""
    assert zoo.costs.memory_bytes < 100 << 20
    per_trial = (KEPT_SEGMENTS + 2) * SEGMENT_BYTES
    assert zoo.costs.scratch_bytes < 3 * per_trial
    assert not list((zoo.folder.path / ".hpo/.scratch").rglob("log.*"))
    per_record = LOG_HEAD_BYTES + LOG_TAIL_BYTES + 100 * KEPT_POINTS
    assert bytes_in(zoo.folder.path / ".hpo") < len(VERDICTS) * per_record


FILL = """
import os, sys, time
def fill():
    file = open(os.path.join(os.environ["HPO_OUTPUT_DIR"], "checkpoint"), "wb", buffering=0)
    try:
        while True: file.write(b"x" * 4096)
    except OSError:
        return file
"""
ON_FULL_DISK = {
    "recovering": FILL
    + """
print("begun", flush=True)
time.sleep(0.3)
file = fill()
print("this is lost" * 40_000)
print("loss=0.1", flush=True)
time.sleep(0.5)
file.truncate(0)
time.sleep(0.5)
print("loss=0.5")
""",
    "neighbour": NEIGHBOUR,
    "flooding": NOISE.format(lines=2_000_000),
    "later": NEIGHBOUR,
    "last": NEIGHBOUR,
}
FULL_TO_THE_END = {
    "early_words": FILL
    + """
fill()
print("loss=0.1\\n" + "this fills what waits for room" * 10_000)
""",
    "last_words": FILL
    + """
fill()
print("this is lost" * 40_000 + "\\nloss=0.25")
""",
    "later": NEIGHBOUR,
}
RUN_THERE = """
import sys
from pathlib import Path
from tests.scenarios.test_hostile_trainers import run_watched
disk = Path(sys.argv[1])
costs, printed = run_watched(disk.parents[1], timeout_s=50.0)
print(costs.scratch_bytes)
print(printed)
"""


@dataclass(frozen=True)
class FullDisk:
    records: Mapping[str, dict[str, Any]]
    scratch_bytes: int
    printed: str


def run_on_full_disk(path: Path, programs: Mapping[str, str], *, parallel: int) -> FullDisk:
    """Run an experiment whose scratch space is a disk of 32 MiB; its store is on another one."""
    folder = make_folder(path, programs, parallel=parallel)
    out = run_on_small_disk(RUN_THERE, folder.path / ".hpo/.scratch", size_kib=32 << 10)
    scratch_bytes, _, printed = out.partition("\n")
    records = {name.removesuffix(".py"): record for name, record in by_program(folder).items()}
    return FullDisk(records, int(scratch_bytes), printed)


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory: pytest.TempPathFactory) -> FullDisk:
    return run_on_full_disk(tmp_path_factory.mktemp("full"), ON_FULL_DISK, parallel=2)


def test_what_is_printed_after_a_full_disk_has_room_again_counts_and_the_loss_is_told(full_disk: FullDisk) -> None:
    record = full_disk.records["recovering"]
    assert (record["condition"], record["observation"]["loss"]["latest"]) == ("Succeeded", 0.5)
    assert "bytes of its output were lost: the disk is full" in record["message"]


def test_on_a_disk_that_stays_full_the_last_words_count_and_the_loss_of_others_is_told(tmp_path: Path) -> None:
    """One at a time, so that nobody else's end makes room; what each has left behind is gone for the next one."""
    records = run_on_full_disk(tmp_path, FULL_TO_THE_END, parallel=1).records
    lost = "bytes of its output were lost: the disk is full"
    assert records["early_words"]["reason"] == "MetricNotFound"
    assert lost in records["early_words"]["message"]
    assert records["last_words"]["observation"]["loss"]["latest"] == 0.25
    assert lost in records["last_words"]["message"]
    assert records["later"]["message"] == ""


def test_more_output_than_the_disk_has_room_for_leaves_room_for_the_others(full_disk: FullDisk) -> None:
    assert full_disk.records["flooding"]["observation"]["loss"]["latest"] == 0.5
    assert 8 << 20 < full_disk.scratch_bytes <= 32 << 20


def test_on_a_full_disk_tuner_and_neighbours_go_on(full_disk: FullDisk) -> None:
    conditions = {name: record["condition"] for name, record in full_disk.records.items()}
    assert {conditions[name] for name in ("neighbour", "later", "last")} == {"Succeeded"}
    assert "Traceback" not in full_disk.printed
