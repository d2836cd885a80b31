"""A tuner may be killed at any instant: no trial is lost, none is started twice, and the search goes on as before."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scenarios.folders import Folder, eventually

ROOT = Path(__file__).parents[2]


def tune(folder: Folder, calls: int) -> subprocess.CompletedProcess[str]:
    """Run a tuner that kills itself before that call, to its end."""
    arguments = [str(folder.path / "small.yaml"), folder.place.uri, str(calls)]
    command = [sys.executable, "-m", "tests.scenarios.killing_tuner", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def assignments(folder: Folder) -> list[object]:
    return [record["assignments"] for record in folder.records()]


def check_nothing_lost_or_doubled(folder: Folder, killed_before: str) -> None:
    records = folder.records()
    assert [record["condition"] for record in records] == ["Succeeded"] * 4, killed_before
    assert len(folder.starts()) == len(set(folder.starts())) == 4, killed_before
    for record in records:
        log = folder.store.log(f"{record['number']:05d}").decode()
        assert log.count("started") == 1, f"{killed_before}: trial {record['number']} printed {log!r}"
        assert len(record["attempts"]) == 1, killed_before
    assert sorted(record["finishedSeq"] for record in records) == [1, 2, 3, 4], killed_before
    assert len(folder.store.output_labels()) == 1, killed_before
    assert list((folder.place.home / ".scratch").glob("*")) == [], killed_before


def test_a_tuner_killed_before_any_of_its_calls_loses_no_trial_and_starts_none_twice(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = Folder.make(tmp_path / "undisturbed", uri=f"{uri}/undisturbed")
    assert tune(undisturbed, 0).returncode == 0
    killed = 0
    while True:
        folder = Folder.make(tmp_path / str(killed), uri=f"{uri}/{killed}")
        ended = tune(folder, killed + 1)
        if ended.returncode == 0:
            break
        assert ended.returncode == -9, ended.stderr
        killed += 1
        again = tune(folder, 0)
        assert again.returncode == 0, again.stderr
        check_nothing_lost_or_doubled(folder, f"killed before call {killed}")
        assert assignments(folder) == assignments(undisturbed), f"killed before call {killed}"
    with capsys.disabled():
        print(f"\nkill points tried on {uri}: {killed}")
    assert killed >= 40


def test_what_was_begun_in_one_folder_of_a_machine_goes_on_from_another(uri: str, tmp_path: Path) -> None:
    """The second tuner, which is started elsewhere, finds the trials that the first one has left running."""
    first = Folder.make(tmp_path / "one", uri=uri)
    second = Folder.make(tmp_path / "two", uri=uri)
    process = first.start("run", "small.yaml", env={"TRAIN_S": "2"})
    eventually(lambda: len(first.starts()) == 2, "two trials started")
    process.kill()
    process.communicate()
    ended = second.hpo("run", "small.yaml")
    assert ended.returncode == 0, ended.stderr
    assert second.conditions() == ["Succeeded"] * 4
    assert len({*first.starts(), *second.starts()}) == len(first.starts()) + len(second.starts()) == 4
    assert [len(record["attempts"]) for record in second.records()] == [1] * 4
