"""The shipped pipeline on this machine, by kfp's local runner, with a trainer that needs no torch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.compile import ROOT
from tests.scenarios.folders import EXPERIMENT, TRAINER, Folder, eventually

DOCKERFILE = """
FROM debian:stable-slim
WORKDIR /app
COPY train.sh /app/
"""


def user_folder(path: Path, trainer: str = TRAINER) -> Folder:
    """An experiment and a trainer with its Dockerfile, as a user has them."""
    text = EXPERIMENT.replace('"train.sh"', '"/app/train.sh"')
    folder = Folder.make(path, text, trainer.replace("starts.txt", str(path / "starts.txt")))
    (path / "Dockerfile").write_text(DOCKERFILE)
    return folder


def start(folder: Folder, seconds: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.run_local", str(folder.path / "small.yaml"), str(folder.path)],
        cwd=folder.path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRAIN_S": seconds, "HPO_STORE": str(folder.path / ".hpo")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_the_pipeline_builds_tunes_and_retrains_and_shows_progress_while_trials_run(tmp_path: Path) -> None:
    folder = user_folder(tmp_path)
    lines = []
    with start(folder, "1") as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "trials done" in line:
                break
        started = len(folder.starts())
        lines += list(process.stdout)
    printed = "".join(lines)
    assert process.returncode == 0, printed
    assert started <= 2, "the first line of progress came after the second trial had ended"
    end = printed[printed.rindex("finished with status") :]
    assert "Succeeded" in end
    assert "best loss=" in end
    assert "retrained test_loss=0.25" in end
    assert [name for name in ("report.html", "models/retrain-1/model.txt", "records") if name not in end] == []
    assert len(folder.starts()) == 5
    assert not folder.processes()


def test_the_pipelines_artifacts_are_there(tmp_path: Path) -> None:
    folder = user_folder(tmp_path)
    with start(folder, "0.05") as process:
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    (run,) = (folder.path / ".hpo/.pipeline").iterdir()
    assert (run / "wait-for-experiment/report").read_text().startswith("<!")
    assert (run / "wait-for-experiment/summary").read_text().startswith("#")
    assert (run / "retrain-final-model/model/model.txt").read_text().startswith("model of ")
    told = json.loads((run / "extract-best-parameters/executor_output.json").read_text())
    assert set(told["parameterValues"]) == {"best_parameters", "objective_value"}
    assert told["artifacts"]["metrics"]["artifacts"][0]["metadata"] == {
        "loss": told["parameterValues"]["objective_value"]
    }


def test_a_command_of_the_user_arrives_as_it_was_written(tmp_path: Path) -> None:
    """kfp's local runner replaces the word in every value that it hands to a step."""
    trainer = 'import os, sys\nopen(os.environ["HPO_OUTPUT_DIR"] + "/model.txt", "w").close()\nprint("loss=1")\n'
    folder = user_folder(tmp_path, trainer)
    file = folder.path / "small.yaml"
    file.write_text(file.read_text().replace('"sh"', '"python3"'))
    with start(folder, "0") as process:
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    (name,) = (path.name for path in (folder.path / ".hpo/default").iterdir())
    recorded = (folder.path / ".hpo/default" / name / "experiment.yaml").read_text()
    assert "- python3\n" in recorded
    assert sys.executable not in recorded


def test_a_store_whose_path_the_runner_would_change_is_refused_in_words(tmp_path: Path) -> None:
    folder = user_folder(tmp_path / "my-python3")
    with start(folder, "0") as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--store: kfp's local runner replaces `python3` in paths" in printed


def test_ctrl_c_on_the_pipeline_suspends_and_leaves_no_process(tmp_path: Path) -> None:
    folder = user_folder(tmp_path)
    with start(folder, "30") as process:
        eventually(lambda: len(folder.starts()) == 2, "two trials started")
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "Experiment was stopped; `hpo run` or `hpo launch` goes on; nothing of it is left running" in printed
    eventually(lambda: not folder.processes(), "no process left")


@pytest.mark.parametrize("after_starts", [0, 2, 5], ids=["before-the-first-trial", "while-tuning", "while-retraining"])
def test_a_signal_to_the_pipeline_process_alone_ends_it_and_all_of_its_steps(tmp_path: Path, after_starts: int) -> None:
    trainer = TRAINER.replace("${TRAIN_S:-0.05}", '$([ "$HPO_PHASE" = retrain ] && echo 60 || echo $TRAIN_S)')
    folder = user_folder(tmp_path, trainer)
    with start(folder, "0.05" if after_starts == 5 else "60") as process:
        assert process.stdout is not None
        process.stdout.readline()
        eventually(lambda: len(folder.starts()) >= after_starts, f"{after_starts} workloads started")
        process.terminate()
        printed, _ = process.communicate(timeout=40)
    assert process.returncode == 130, printed
    eventually(lambda: not folder.processes(), "no process left")


def test_an_experiment_without_a_result_has_its_report_and_fails_with_the_reason(tmp_path: Path) -> None:
    folder = user_folder(tmp_path, "echo cannot train >&2; exit 7\n")
    with start(folder, "0") as process:
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 3, printed
    assert "exit code 7; last lines: cannot train" in printed
    (run,) = (folder.path / ".hpo/.pipeline").iterdir()
    assert (run / "wait-for-experiment/report").exists()
