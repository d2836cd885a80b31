"""A tuner in the foreground and in the background: interruptions, a second one, its death, a changed document."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from hpo_core.publish import read_status
from hpo_core.tuner import Handle, Place
from tests.scenarios.folders import EXPERIMENT, Folder, eventually

SLOW = {"TRAIN_S": "30"}


def test_run_ends_with_the_table_the_best_assignment_and_where_everything_is(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    ended = folder.hpo("run", "small.yaml")
    assert ended.returncode == 0, ended.stderr
    assert folder.conditions() == ["Succeeded"] * 4
    best = min(record["observation"]["loss"]["min"] for record in folder.records())
    assert f"best loss={best:.6g} with lr=" in ended.stdout
    assert (tmp_path / ".hpo/default/small/report.html").exists()
    assert "4/4 trials done" in ended.stdout


def test_run_on_a_finished_experiment_shows_its_result_and_starts_nothing(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    folder.hpo("run", "small.yaml")
    again = folder.hpo("run", "small.yaml")
    assert again.returncode == 0
    assert "best loss=" in again.stdout
    assert len(folder.starts()) == 4


def test_ctrl_c_suspends_leaves_no_process_and_the_next_run_goes_on(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    process = folder.start("run", "small.yaml", env=SLOW)
    eventually(lambda: len(folder.starts()) == 2, "two trials started")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "`hpo run` or `hpo launch` goes on" in out
    assert folder.processes() == []
    assert folder.status()["verdict"]["condition"] == "Suspended"
    assert folder.hpo("run", "small.yaml").returncode == 0
    assert folder.conditions() == ["Succeeded"] * 4
    outcomes = [[attempt["outcome"] for attempt in record["attempts"]] for record in folder.records()]
    assert outcomes == [["Interrupted", ""], ["Interrupted", ""], [""], [""]]


def test_an_interrupted_experiment_asks_for_the_same_assignments_as_an_undisturbed_one(tmp_path: Path) -> None:
    undisturbed, folder = Folder.make(tmp_path / "a"), Folder.make(tmp_path / "b")
    undisturbed.hpo("run", "small.yaml")
    process = folder.start("run", "small.yaml", env=SLOW)
    eventually(lambda: len(folder.starts()) == 2, "two trials started")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    folder.hpo("run", "small.yaml")
    assert [r["assignments"] for r in folder.records()] == [r["assignments"] for r in undisturbed.records()]


def test_stop_suspends_a_launched_experiment_and_leaves_no_process(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    assert folder.hpo("launch", "small.yaml", env=SLOW).returncode == 0
    eventually(lambda: len(folder.starts()) == 2, "two trials started")
    stopped = folder.hpo("stop", "small")
    assert stopped.returncode == 0
    assert "was stopped" in stopped.stdout
    eventually(lambda: folder.processes() == [], "no process left")
    assert folder.status()["verdict"]["condition"] == "Suspended"
    waited = folder.hpo("wait", "small")
    assert waited.returncode == 130, "as `hpo run` tells a suspended experiment"
    assert "small: " in waited.stdout


def test_stop_of_what_does_not_run_says_so(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    folder.hpo("run", "small.yaml")
    assert "nothing to stop" in folder.hpo("stop", "small").stdout


def test_killing_the_process_group_of_the_launching_step_disturbs_nothing(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    step = f"{sys.executable} -m hpo_core.cli launch small.yaml && echo launched && sleep 60"
    with subprocess.Popen(
        step, shell=True, cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        while b"launched" not in process.stdout.readline():
            pass
        os.killpg(process.pid, signal.SIGKILL)
    assert folder.hpo("wait", "small").returncode == 0
    assert folder.conditions() == ["Succeeded"] * 4
    assert len(folder.starts()) == 4


def test_wait_starts_a_tuner_that_was_killed_once_more_and_nothing_is_started_twice(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    folder.hpo("launch", "small.yaml", env={"TRAIN_S": "1"})
    eventually(lambda: len(folder.starts()) == 2, "two trials started")
    os.kill(json.loads((tmp_path / ".hpo/default/small/lease").read_text())["pid"], signal.SIGKILL)
    assert folder.hpo("wait", "small").returncode == 0
    assert folder.conditions() == ["Succeeded"] * 4
    assert len(folder.starts()) == len(set(folder.starts())) == 4


def test_wait_itself_killed_and_run_again_picks_up(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    folder.hpo("launch", "small.yaml", env={"TRAIN_S": "0.5"})
    process = folder.start("wait", "small")
    eventually(lambda: len(folder.starts()) == 2, "two trials started")
    process.kill()
    process.communicate()
    assert folder.hpo("wait", "small").returncode == 0
    assert len(folder.starts()) == 4


def test_ctrl_c_on_wait_only_stops_waiting(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    folder.hpo("launch", "small.yaml", env={"TRAIN_S": "1"})
    process = folder.start("wait", "small")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "small goes on" in out
    assert folder.hpo("wait", "small").returncode == 0


def test_of_two_runs_at_once_one_runs_and_the_other_says_who_holds_it(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    both = [folder.start("run", "small.yaml", env={"TRAIN_S": "1"}) for _ in range(2)]
    told = [process.communicate(timeout=30) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    loser = next(err for process, (_, err) in zip(both, told, strict=True) if process.returncode == 2)
    assert "is being run by process" in loser
    assert len(folder.starts()) == 4


def test_launching_twice_is_one_experiment(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    for _ in range(2):
        assert folder.hpo("launch", "small.yaml", env={"TRAIN_S": "0.5"}).returncode == 0
    assert folder.hpo("wait", "small").returncode == 0
    assert len(folder.starts()) == 4


def test_a_changed_spec_is_refused_with_the_difference_and_a_raised_budget_goes_on(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    folder.hpo("run", "small.yaml")
    Folder.make(tmp_path, EXPERIMENT.replace('max: "0.05"', 'max: "0.07"'))
    refused = folder.hpo("run", "small.yaml")
    assert refused.returncode == 2
    assert "+      max: '0.07'" in refused.stderr
    Folder.make(tmp_path, EXPERIMENT.replace("maxTrialCount: 4", "maxTrialCount: 6"))
    assert folder.hpo("run", "small.yaml").returncode == 0
    assert folder.conditions() == ["Succeeded"] * 6


def test_retrain_runs_the_template_again_and_keeps_its_own_model(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    folder.hpo("run", "small.yaml")
    done = folder.hpo("retrain", "small", "--model-dir", "model")
    assert done.returncode == 0, done.stderr
    assert "test_loss=0.25" in done.stdout
    assert len(folder.starts()) == 5
    best = json.loads(folder.hpo("best", "small").stdout)
    assert (tmp_path / "model/model.txt").read_text() == f"model of {best['lr']}\n"
    assert folder.hpo("report", "small", "-o", "report.html").returncode == 0
    assert f"{tmp_path}/.hpo/default/small/models/retrain" in (tmp_path / "report.html").read_text()


def wait_step(folder: Folder) -> subprocess.Popen[bytes]:
    """The body of the wait component, as a pipeline step runs it."""
    store = str(folder.path / ".hpo")
    handle = Handle("default", "small", store, "local", "", "").to_json()
    code = "import sys; from hpo_core import steps; print(steps.wait(sys.argv[1], 'report.html', 'summary.md'))"
    return subprocess.Popen(
        [sys.executable, "-c", code, handle], cwd=folder.path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def check_suspended(folder: Folder) -> None:
    store = Place.of(str(folder.path / ".hpo")).store("default", "small")
    eventually(lambda: not store.is_held(), "the tuner has gone")
    seen = read_status(store)
    assert seen is not None
    assert seen.verdict.condition == "Suspended"
    eventually(lambda: folder.processes() == [], "no process left")


def test_a_terminated_wait_step_suspends_the_experiment(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    folder.hpo("launch", "small.yaml", env=SLOW)
    with wait_step(folder) as step:
        assert step.stdout is not None
        assert b"trials done" in step.stdout.readline()
        step.terminate()
        assert step.wait(10) == 130
    check_suspended(folder)


def test_a_wait_step_whose_stdout_is_closed_suspends_the_experiment(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    folder.hpo("launch", "small.yaml", env=SLOW)
    with wait_step(folder) as step:
        assert step.stdout is not None
        step.stdout.readline()
        step.stdout.close()
        assert step.wait(10) == 130
    check_suspended(folder)
