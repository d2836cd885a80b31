"""One experiment on whichever store: two tuners at once, and requests of whoever is not the writer."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.scenarios.folders import EXPERIMENT, TRAINER, Folder, eventually

CONTESTS = 50
GATED = TRAINER.replace("sleep ${TRAIN_S:-0.05}", "while [ ! -e go ]; do sleep 0.02; done")
"""A trainer that goes on once there is a file `go` in its folder."""


def open_gate(folder: Folder) -> None:
    (folder.path / "go").touch()


def wait_for_one(processes: list[subprocess.Popen[str]]) -> None:
    """Wait until one of them has ended."""
    eventually(lambda: any(process.poll() is not None for process in processes), "one has ended")


def gated(path: Path, uri: str) -> Folder:
    """A folder whose experiment has been launched, with two trials at the gate."""
    folder = Folder.make(path, trainer=GATED, uri=uri)
    launched = folder.hpo("launch", "small.yaml")
    assert launched.returncode == 0, launched.stderr
    eventually(lambda: len(folder.starts()) == 2, "two trials started")
    return folder


def test_of_two_tuners_that_start_at_once_exactly_one_runs_and_the_other_says_who(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fifty times over. The winner's only trial waits until the loser has been refused."""
    one_trial = EXPERIMENT.replace("maxTrialCount: 4", "maxTrialCount: 1").replace(
        "parallelTrialCount: 2", "parallelTrialCount: 1"
    )
    for contest in range(CONTESTS):
        folder = Folder.make(tmp_path / str(contest), one_trial, GATED, uri=f"{uri}/{contest}")
        both = [folder.start("run", "small.yaml") for _ in range(2)]
        wait_for_one(both)
        open_gate(folder)
        told = [process.communicate(timeout=60) for process in both]
        assert sorted(process.returncode for process in both) == [0, 2], told
        winner, loser = sorted(both, key=lambda process: process.returncode)
        assert f"is being run by process {winner.pid} on " in told[both.index(loser)][1]
        assert folder.conditions() == ["Succeeded"]
        assert len(folder.starts()) == 1
    with capsys.disabled():
        print(f"\ncontests of two tuners on {uri}: {CONTESTS}, one winner each")


def test_an_edited_budget_reaches_the_tuner_that_runs(uri: str, tmp_path: Path) -> None:
    """The first two trials wait at the gate, so that only the edit can have started more."""
    folder = gated(tmp_path / "user", uri)
    edited = folder.hpo("edit", "small", "--parallel", "5", "--max", "5")
    assert edited.returncode == 0, edited.stderr
    assert "parallelTrialCount 5, maxTrialCount 5" in edited.stdout
    eventually(lambda: len(folder.starts()) == 5, "three more started")
    open_gate(folder)
    assert folder.hpo("wait", "small").returncode == 0
    assert folder.conditions() == ["Succeeded"] * 5


def test_a_budget_raised_on_a_finished_experiment_continues_it(uri: str, tmp_path: Path) -> None:
    folder = Folder.make(tmp_path / "user", uri=uri)
    folder.hpo("run", "small.yaml")
    edited = folder.hpo("edit", "small", "--max", "6")
    assert "it runs" in edited.stdout, edited.stderr
    assert "6/6 trials done" in folder.hpo("wait", "small").stdout
    again = folder.hpo("run", "small.yaml")
    assert again.returncode == 0, "the document that was not changed does not take the edit back"
    assert folder.conditions() == ["Succeeded"] * 6


def test_a_budget_that_makes_no_sense_is_refused_and_changes_nothing(uri: str, tmp_path: Path) -> None:
    folder = Folder.make(tmp_path / "user", uri=uri)
    folder.hpo("run", "small.yaml")
    refused = folder.hpo("edit", "small", "--max", "0", "--max-failed", "-1")
    assert refused.returncode == 2
    assert [line.split(": ")[1] for line in refused.stderr.splitlines()] == [
        "spec.maxTrialCount",
        "spec.maxFailedTrialCount",
    ]
    assert folder.store.load().max_trial_count == 4


def test_a_budget_below_what_is_over_is_refused_and_changes_nothing(uri: str, tmp_path: Path) -> None:
    folder = Folder.make(tmp_path / "user", uri=uri)
    folder.hpo("run", "small.yaml")
    refused = folder.hpo("edit", "small", "--max", "3")
    assert refused.returncode == 2
    assert "spec.maxTrialCount: must be at least 4, since so many trials are over, got 3" in refused.stderr
    assert folder.store.load().max_trial_count == 4


def test_an_edit_that_the_tuner_refuses_is_told_as_refused(uri: str, tmp_path: Path) -> None:
    """Each of two makes sense, but not the second after the first; the tuner is paused, so that it sees both."""
    folder = gated(tmp_path / "user", uri)
    tuner = int(folder.store.holder()["pid"])
    os.kill(tuner, signal.SIGSTOP)
    try:
        first = folder.start("edit", "small", "--parallel", "5", "--max", "5")
        eventually(lambda: len(folder.store.inbox.requests()) == 1, "the first has been sent")
        second = folder.start("edit", "small", "--max", "3")
        eventually(lambda: len(folder.store.inbox.requests()) == 2, "the second has been sent")
    finally:
        os.kill(tuner, signal.SIGCONT)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 0
    assert "parallelTrialCount 5, maxTrialCount 5" in out
    out, said = second.communicate(timeout=60)
    assert (second.returncode, out) == (2, "")
    assert "error: spec.parallelTrialCount: must not exceed maxTrialCount 3, got 5" in said
    assert folder.store.load().max_trial_count == 5
    assert folder.hpo("stop", "small").returncode == 0


def test_one_trial_can_be_stopped_and_counts_as_killed_while_its_neighbour_goes_on(uri: str, tmp_path: Path) -> None:
    folder = gated(tmp_path / "user", uri)
    stopped = folder.hpo("stop", "small", "1")
    assert "trial 1 of small is being stopped" in stopped.stdout, stopped.stderr
    eventually(lambda: folder.conditions()[0] == "Killed", "it is killed")
    open_gate(folder)
    assert folder.hpo("wait", "small").returncode == 0
    assert folder.conditions() == ["Killed", "Succeeded", "Succeeded", "Succeeded"]
    first = folder.records()[0]
    assert (first["reason"], first["message"]) == ("TrialKilled", "the trial was stopped by hpo stop")
    assert "is over: Killed" in folder.hpo("stop", "small", "1").stdout


def left_here(folder: Folder) -> list[str]:
    """What is left on this machine of its experiments, but for the folder that their scratch files share."""
    home = folder.place.home
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.name != ".scratch"]


def test_a_running_experiment_is_not_deleted_and_a_stopped_one_leaves_nothing(uri: str, tmp_path: Path) -> None:
    folder = gated(tmp_path / "user", uri)
    refused = folder.hpo("delete", "small")
    assert refused.returncode == 2
    assert "`hpo stop small` stops it" in refused.stderr
    assert folder.hpo("stop", "small").returncode == 0
    deleted = folder.hpo("delete", "small")
    assert deleted.returncode == 0, deleted.stderr
    assert folder.place.objects.list("default/") == []
    assert left_here(folder) == []
    assert "no experiment in" in folder.hpo("list").stdout
    open_gate(folder)
    assert folder.hpo("run", "small.yaml").returncode == 0, "the same name can be begun anew"


def test_deleting_ends_what_a_killed_tuner_has_left_running(uri: str, tmp_path: Path) -> None:
    folder = Folder.make(tmp_path / "user", trainer=GATED, uri=uri)
    process = folder.start("run", "small.yaml")
    eventually(lambda: len(folder.starts()) == 2, "two trials started")
    process.kill()
    process.communicate()
    assert folder.processes() != []
    assert folder.hpo("delete", "small").returncode == 0
    assert folder.processes() == []
    assert left_here(folder) == []


def test_wait_shows_the_progress_that_run_shows(uri: str, tmp_path: Path) -> None:
    folder = Folder.make(tmp_path / "user", uri=uri)
    folder.hpo("launch", "small.yaml", env={"TRAIN_S": "3"})
    shown = folder.hpo("wait", "small").stdout.splitlines()
    progress = [line for line in shown if "trials done" in line]
    assert len(progress) >= 3
    assert progress[-1].startswith("4/4 trials done, 0 running, best loss=")


def test_readers_read_no_record_of_a_trial(uri: str, tmp_path: Path) -> None:
    """With every record of a trial gone, they tell all the same what was published."""
    folder = Folder.make(tmp_path / "user", uri=uri)
    folder.hpo("run", "small.yaml")
    objects = folder.place.objects
    for key in objects.list("default/small/trials/"):
        objects.delete(key)
    for words in (("wait", "small"), ("status", "small"), ("list",)):
        assert "4/4 trials done" in folder.hpo(*words).stdout, words
    assert folder.hpo("report", "small", "-o", "out.html").returncode == 0
    assert (folder.path / "out.html").read_text().count("data-trial=") >= 4
