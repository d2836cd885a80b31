"""Trainers that misbehave, through `hpo run`: each gets its verdict in words, and the others go on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.experiments import make_document, parameter
from tests.scenarios.folders import EXPERIMENT, Folder

PROGRAMS = {
    "good": "echo loss=0.5",
    "noisy": "head -c 300000 /dev/urandom; echo; echo loss=0.75",
    "silent": "echo epoch 1; echo accuracy=0.9; echo done",
    "mute": "exec >&- 2>&-; sleep 0.1",
    "crashing": "echo loss=0.1; echo about to fall; echo fallen >&2; exit 3",
    "killed": "echo loss=0.1; kill -9 $$",
    "hanging": "echo loss=0.1; exec sleep 60",
    "stubborn": "trap '' TERM; echo loss=0.1; while :; do sleep 1; done",
    "undefined": "echo loss=nan",
    "greedy": "exec python3 -S -c \"import time; hog = b'x' * (200 << 20); time.sleep(60)\"",
    "staying": "(setsid sh -c \"trap '' TERM; sleep 60\" >&- 2>&- &); (sleep 60 &); sleep 0.1; echo loss=0.25",
    "fileless": "exec python3 missing.py",
}
"""What each trainer does; the one called `absent` does not exist."""

VERDICTS = {
    "good": ("Succeeded", "TrialSucceeded"),
    "noisy": ("Succeeded", "TrialSucceeded"),
    "silent": ("MetricsUnavailable", "MetricNotFound"),
    "mute": ("MetricsUnavailable", "MetricNotFound"),
    "crashing": ("Failed", "ExitCode"),
    "killed": ("Failed", "KilledBySignal"),
    "hanging": ("Failed", "DeadlineExceeded"),
    "stubborn": ("Failed", "DeadlineExceeded"),
    "undefined": ("MetricsUnavailable", "MetricNotFinite"),
    "greedy": ("Failed", "OutOfMemory"),
    "staying": ("Succeeded", "TrialSucceeded"),
    "fileless": ("Failed", "ExitCode"),
    "absent": ("Failed", "CommandNotFound"),
}
TOO_LONG = "ran longer than its deadline and was stopped; raise it or make the trial shorter; last lines: loss=0.1"
MESSAGES = {
    "good": "",
    "silent": "no line with loss=<number> was printed (looked for ([\\w|-]+)\\s*=",
    "mute": "it printed nothing",
    "crashing": "exit code 3; last lines: loss=0.1 | about to fall | fallen",
    "killed": "was ended by SIGKILL, as when memory runs out: let it use less, or give it more; last lines: loss=0.1",
    "hanging": TOO_LONG,
    "stubborn": TOO_LONG,
    "undefined": "the trainer printed loss=nan; last lines: loss=nan",
    "greedy": "MiB, more than resources.limits.memory",
    "staying": "process(es) that it had left behind were ended",
    "fileless": "can't open file",
    "absent": "its command was not found; last lines: cannot execute './absent.sh': No such file or directory",
}
"""What each verdict says, or a part of it."""


def experiment_of(programs: list[str], **spec: Any) -> str:
    """A grid over programs of the folder, one after the other or side by side."""
    space = [parameter("program", "categorical", list=[f"./{name}.sh" for name in programs])]
    container = "spec.trialTemplate.trialSpec.spec.template.spec.containers.0"
    changes = {
        "metadata": {"name": "small", "namespace": "default", "annotations": {"kfp-hpo/trial-deadline": "2s"}},
        "spec.algorithm.algorithmName": "grid",
        "spec.maxTrialCount": len(programs),
        "spec.maxFailedTrialCount": len(programs),
        f"{container}.command": ["${trialParameters.program}"],
        f"{container}.resources": {"limits": {"memory": "100Mi"}},
        "spec.trialTemplate.trialSpec.spec.template.spec.terminationGracePeriodSeconds": 1,
        **{f"spec.{field}": value for field, value in spec.items()},
    }
    return yaml.safe_dump(make_document(space, changes=changes))


def make_folder(path: Path, experiment: str) -> Folder:
    folder = Folder.make(path, experiment)
    for name, script in PROGRAMS.items():
        program = path / f"{name}.sh"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    return folder


def by_program(folder: Folder) -> dict[str, dict[str, Any]]:
    return {record["assignments"]["program"].strip("./").removesuffix(".sh"): record for record in folder.records()}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """All trainers in one experiment, which has been run to its end."""
    folder = make_folder(tmp_path_factory.mktemp("zoo"), experiment_of(list(VERDICTS), parallelTrialCount=6))
    ended = folder.hpo("run", "small.yaml")
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "bug of ours" not in ended.stdout + ended.stderr
    assert "best loss=0.25 with program=./staying.sh" in ended.stdout
    return folder


@pytest.mark.parametrize("program", VERDICTS)
def test_each_trainer_gets_its_verdict(zoo: Folder, program: str) -> None:
    record = by_program(zoo)[program]
    assert (record["condition"], record["reason"]) == VERDICTS[program], record["message"]


@pytest.mark.parametrize("program", MESSAGES)
def test_each_verdict_says_why_in_words(zoo: Folder, program: str) -> None:
    message = by_program(zoo)[program]["message"]
    assert MESSAGES[program] in message if MESSAGES[program] else message == ""


def test_every_trial_is_over_and_every_end_is_counted_once(zoo: Folder) -> None:
    records = zoo.records()
    assert len(records) == len(VERDICTS)
    assert sorted(record["finishedSeq"] for record in records) == list(range(1, len(VERDICTS) + 1))
    assert all(record["completed"] and len(record["attempts"]) == 1 for record in records)


def test_only_those_that_succeeded_have_an_observation(zoo: Folder) -> None:
    seen = {name: record["observation"] for name, record in by_program(zoo).items() if record["observation"]}
    expected = {"good": 0.5, "noisy": 0.75, "staying": 0.25}
    assert seen == {n: {"loss": {"latest": v, "min": v, "max": v}} for n, v in expected.items()}


def test_no_process_is_left(zoo: Folder) -> None:
    assert zoo.processes() == []


def test_what_a_trainer_printed_before_it_fell_can_be_read(zoo: Folder) -> None:
    number = by_program(zoo)["crashing"]["number"]
    assert zoo.hpo("logs", "small", str(number)).stdout == "loss=0.1\nabout to fall\nfallen\n"


def test_the_report_shows_why_each_trial_did_not_succeed(zoo: Folder) -> None:
    page = (zoo.path / ".hpo/default/small/report.html").read_text()
    for condition, reason in VERDICTS.values():
        assert reason in page or condition == "Succeeded"


@pytest.mark.parametrize("program", ["crashing", "silent", "absent"])
def test_too_many_failures_end_the_experiment_as_failed(tmp_path: Path, program: str) -> None:
    """Trials without their metric count too."""
    document = yaml.safe_load(experiment_of([program], parallelTrialCount=1, maxTrialCount=9, maxFailedTrialCount=2))
    document["spec"]["parameters"].append(parameter("seed", "int", min="1", max="9"))
    template = document["spec"]["trialTemplate"]
    template["trialParameters"].append({"name": "seed", "reference": "seed"})
    template["trialSpec"]["spec"]["template"]["spec"]["containers"][0]["args"] = ["${trialParameters.seed}"]
    folder = make_folder(tmp_path, yaml.safe_dump(document))
    ended = folder.hpo("run", "small.yaml")
    assert ended.returncode == 3
    assert folder.conditions() == [VERDICTS[program][0]] * 2
    verdict = folder.status()["verdict"]
    assert (verdict["condition"], verdict["reason"]) == ("Failed", "ExperimentFailed")
    assert "max failed count has reached" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


def test_an_experiment_without_any_success_is_no_success_of_the_command(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, experiment_of(["crashing", "undefined"], maxFailedTrialCount=None))
    ended = folder.hpo("run", "small.yaml")
    assert ended.returncode == 3
    assert folder.conditions() == ["Failed", "MetricsUnavailable"]
    assert folder.status()["verdict"]["condition"] == "Succeeded"
    assert "Traceback" not in ended.stdout + ended.stderr


LOCKED = {
    "files": """
echo weights > "$HPO_OUTPUT_DIR/model.pt"; echo secret > "$HPO_OUTPUT_DIR/secret"; mkdir "$HPO_OUTPUT_DIR/more"
echo x > "$HPO_OUTPUT_DIR/more/x"; chmod 0 "$HPO_OUTPUT_DIR/secret" "$HPO_OUTPUT_DIR/more"; echo loss=$1
""",
    "folder": """
echo weights > "$HPO_OUTPUT_DIR/model.pt"; chmod 0 "$HPO_OUTPUT_DIR"; echo loss=$1
""",
}
PLAIN_USER = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all")
"""Takes root's right to read whatever it likes."""


@pytest.mark.parametrize("locked", LOCKED)
def test_an_output_that_a_trainer_has_locked_up_costs_that_output_only_and_is_removed(
    tmp_path: Path, locked: str
) -> None:
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed: what root does with an output that it may not read is unproven")
    # One by one, so that the first is among the best at its end.
    one_by_one = EXPERIMENT.replace("parallelTrialCount: 2", "parallelTrialCount: 1")
    folder = Folder.make(tmp_path, one_by_one, LOCKED[locked])
    with folder.start("run", "small.yaml", way_in=PLAIN_USER if os.getuid() == 0 else ()) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "4/4 trials done" in out
    assert folder.conditions() == ["Succeeded"] * 4
    told = folder.records()[0]["message"]
    if locked == "files":
        assert told.startswith("not kept of its output: secret (cannot be read by user ")
        assert "; more/ (cannot be read by user " in told
        (label,) = folder.store.output_labels()
        assert [key.rpartition("/")[2] for key in folder.store.outputs(label)] == ["model.pt"]
    else:
        assert told.startswith("what it left in HPO_OUTPUT_DIR is not kept: the folder ")
    assert list((tmp_path / ".hpo/.scratch").glob("*")) == []
