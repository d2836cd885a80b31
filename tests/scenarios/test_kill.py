"""A tuner may be killed at any instant: no trial is lost, none is started twice, and the search goes on as before."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scenarios.folders import Folder


def tune(folder: Folder, calls: int) -> subprocess.CompletedProcess[str]:
    """Run a tuner that kills itself before that call, to its end."""
    program = str(Path(__file__).with_name("killing_tuner.py"))
    command = [sys.executable, program, str(folder.path / "small.yaml"), str(folder.path / ".hpo"), str(calls)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def assignments(folder: Folder) -> list[object]:
    return [record["assignments"] for record in folder.records()]


def check_nothing_lost_or_doubled(folder: Folder, killed_before: str) -> None:
    assert folder.conditions() == ["Succeeded"] * 4, killed_before
    assert len(folder.starts()) == len(set(folder.starts())) == 4, killed_before
    for record in folder.records():
        log = (folder.path / f".hpo/default/small/logs/{record['number']:05d}.log").read_text()
        assert log.count("started") == 1, f"{killed_before}: trial {record['number']} printed {log!r}"
        assert len(record["attempts"]) == 1, killed_before
    assert sorted(record["finishedSeq"] for record in folder.records()) == [1, 2, 3, 4], killed_before
    assert list((folder.path / ".hpo/.scratch").glob("*")) == [], killed_before


def test_a_tuner_killed_before_any_of_its_calls_loses_no_trial_and_starts_none_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = Folder.make(tmp_path / "undisturbed")
    assert tune(undisturbed, 0).returncode == 0
    killed = 0
    while True:
        folder = Folder.make(tmp_path / str(killed))
        ended = tune(folder, killed + 1)
        if ended.returncode == 0:
            break
        assert ended.returncode == -9, ended.stderr
        killed += 1
        assert tune(folder, 0).returncode == 0
        check_nothing_lost_or_doubled(folder, f"killed before call {killed}")
        assert assignments(folder) == assignments(undisturbed), f"killed before call {killed}"
    with capsys.disabled():
        print(f"\nkill points tried: {killed}")
    assert killed >= 40
