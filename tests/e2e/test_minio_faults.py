"""A run whose S3 server fails under it, and tuners that are paused past their lease: nothing is lost or done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpo_core.errors import TransientError
from hpo_core.objects import RecordStore
from hpo_core.objects.lease import LEASE_S
from hpo_core.trial import TrialCondition
from tests.s3_server import MinioServer, minio_server
from tests.scenarios.folders import EXPERIMENT, Folder, eventually
from tests.small_disk import MOUNT, find_way_in

pytestmark = pytest.mark.e2e

TRIALS = 12
LONGER = EXPERIMENT.replace("maxTrialCount: 4", f"maxTrialCount: {TRIALS}").replace(
    "parallelTrialCount: 2", "parallelTrialCount: 3"
)
PAST_LEASE_S = LEASE_S + 3.0
"""Longer than a lease by what whole seconds of the server's clock may hide."""


@contextmanager
def server_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way_in: Sequence[str] = ()
) -> Iterator[MinioServer]:
    """A server that one test alone uses, and that the environment names."""
    with minio_server(tmp_path / "minio", way_in=way_in) as started:
        for name, value in started.settings().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        yield started


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MinioServer]:
    with server_of_its_own(tmp_path, monkeypatch) as started:
        yield started


@pytest.fixture
def small_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MinioServer]:
    """A server on a disk of its own of 512 MiB, of which a test may take up what it likes."""
    way_in = find_way_in()
    if way_in is None:
        pytest.skip("no full server here: neither root nor a user namespace may mount a tmpfs")
    mount = (*way_in, "sh", "-c", MOUNT, str(tmp_path / "minio"), "512m")
    with server_of_its_own(tmp_path, monkeypatch, mount) as started:
        yield started


@pytest.fixture
def folder(server: MinioServer, tmp_path: Path) -> Folder:  # noqa: ARG001  the server has to be there
    return Folder.make(tmp_path / "user", LONGER, uri="s3://faults/run")


def over(folder: Folder) -> dict[int, dict[str, Any]]:
    """The records of trials that are over, by number."""
    return {r["number"]: r for r in folder.records() if TrialCondition(r["condition"]).is_terminal}


def over_when(folder: Folder, enough: int) -> dict[int, dict[str, Any]]:
    """Wait until that many trials are over; returns their records."""
    eventually(lambda: len(over(folder)) >= enough, f"{enough} trials over")
    return over(folder)


def check_undisturbed(folder: Folder, ended_before: dict[int, dict[str, Any]]) -> None:
    """No trial is lost, none was started twice, and no record that was over has changed."""
    records = folder.records()
    assert [record["condition"] for record in records] == ["Succeeded"] * TRIALS
    assert [len(record["attempts"]) for record in records] == [1] * TRIALS
    assert len(folder.starts()) == len(set(folder.starts())) == TRIALS
    assert sorted(record["finishedSeq"] for record in records) == list(range(1, TRIALS + 1))
    assert {number: records[number - 1] for number in ended_before} == ended_before
    assert len(folder.store.output_labels()) == 1
    assert folder.processes() == []


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run that has to succeed; returns what it said of its troubles."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"{TRIALS}/{TRIALS} trials done" in out
    assert "Traceback" not in err
    return err


def test_a_server_that_is_killed_and_comes_back_again_and_again_costs_time_only(
    server: MinioServer, folder: Folder
) -> None:
    process = folder.start("run", "small.yaml", env={"TRAIN_S": "1.5"})
    ended: dict[int, dict[str, Any]] = {}
    for enough in (1, 4, 7):
        ended |= over_when(folder, enough)
        server.kill()
        time.sleep(3)
        server.start()
    said = finish(process)
    assert "nobody accepts connections there" in said or "the connection broke" in said
    check_undisturbed(folder, ended)


def test_a_server_that_is_paused_for_a_minute_costs_that_minute_only(server: MinioServer, folder: Folder) -> None:
    """Longer than the lease, which nobody takes meanwhile; what the server had in its hands it does at its waking."""
    process = folder.start("run", "small.yaml", env={"TRAIN_S": "2"})
    ended = over_when(folder, 2)
    server.pause()
    time.sleep(60)
    server.resume()
    said = finish(process)
    assert "it does not answer in time" in said
    check_undisturbed(folder, ended)


def test_a_server_that_is_full_until_somebody_makes_room_costs_that_time_only(
    small_server: MinioServer, tmp_path: Path
) -> None:
    """It is full for longer than the lease, which cannot be renewed then, and than trials whose ends wait for it."""
    folder = Folder.make(tmp_path / "user", LONGER, uri="s3://faults/run")
    process = folder.start("run", "small.yaml", env={"TRAIN_S": "1.5"})
    ended = over_when(folder, 2)
    ballast = small_server.disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        write_without_end(ballast)
    objects = folder.place.objects
    eventually(lambda: is_full(objects), "the server is full")
    ended |= over(folder)
    time.sleep(PAST_LEASE_S)
    assert is_full(objects)
    assert len(over(folder)) < TRIALS
    ballast.unlink()
    said = finish(process)
    assert "the server's disk or quota is full; make room there" in said
    check_undisturbed(folder, ended)


def write_without_end(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def is_full(objects: RecordStore) -> bool:
    try:
        objects.put("full", b"")
    except TransientError:
        return True
    return False


def test_commands_meet_a_server_that_is_gone_with_one_line_and_their_own_exit_code(
    server: MinioServer, folder: Folder
) -> None:
    server.kill()
    for words in (("run", "small.yaml"), ("list",), ("status", "small"), ("wait", "small"), ("stop", "small")):
        refused = folder.hpo(*words)
        assert refused.returncode == 4, words
        said = [line for line in refused.stderr.splitlines() if not line.startswith("warning:")]
        assert len(said) == 1, said
        assert "s3://faults/run at http://127.0.0.1" in said[0]
        assert "nobody accepts connections there" in said[0]


def test_a_tuner_that_was_paused_past_its_lease_gives_way_to_the_one_that_took_over(folder: Folder) -> None:
    """The second one follows the trials of the first, which ends without touching them or any record."""
    first = folder.start("run", "small.yaml", env={"TRAIN_S": "25"})
    eventually(lambda: len(folder.starts()) == 3, "three trials started")
    os.kill(first.pid, signal.SIGSTOP)
    try:
        early = folder.hpo("run", "small.yaml")
        assert early.returncode == 2, "the lease has not run out"
        assert f"is being run by process {first.pid} on " in early.stderr
        time.sleep(PAST_LEASE_S)
        second = folder.start("run", "small.yaml", env={"TRAIN_S": "0.2"})
        eventually(lambda: folder.store.holder().get("pid") == second.pid, "the second one holds the lease")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 2
    assert f"process {second.pid} on " in said
    finish(second)
    check_undisturbed(folder, {})


def test_a_tuner_of_another_machine_starts_anew_what_it_cannot_follow_and_the_first_one_ends_its_own(
    folder: Folder, tmp_path: Path
) -> None:
    """Another folder for scratch files stands for another machine."""
    first = folder.start("run", "small.yaml", env={"TRAIN_S": "60"})
    eventually(lambda: len(folder.starts()) == 3, "three trials started")
    os.kill(first.pid, signal.SIGSTOP)
    try:
        time.sleep(PAST_LEASE_S)
        elsewhere = {"TRAIN_S": "0.2", "XDG_STATE_HOME": str(tmp_path / "another-machine")}
        second = folder.start("run", "small.yaml", env=elsewhere)
        finish(second)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    first.communicate(timeout=60)
    assert first.returncode == 2
    records = folder.records()
    outcomes = [[attempt["outcome"] for attempt in record["attempts"]] for record in records]
    assert outcomes == [["Interrupted", ""]] * 3 + [[""]] * (TRIALS - 3)
    assert [record["condition"] for record in records] == ["Succeeded"] * TRIALS
    assert len(folder.starts()) == len(set(folder.starts())) == TRIALS + 3
    eventually(lambda: folder.processes() == [], "the first one's trials have ended")
