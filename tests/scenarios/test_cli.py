"""The command line as a user sees it: what it prints, and what it exits with."""

import csv
import io
import json
from pathlib import Path

import pytest
import yaml

from tests.scenarios.folders import EXPERIMENT, TRAINER, Folder

FIVE_MISTAKES = """
apiVersion: kubeflow.org/v1beta1
kind: Experiment
metadata: {name: five, namespace: default}
spec:
  objective: {type: minimise, objectiveMetricName: loss}
  algorithm: {algorithmName: randm}
  maxTrialCount: 4
  paralelTrialCount: 2
  parameters:
    - {name: lr, parameterType: double, feasibleSpace: {min: "0.05", max: "0.01"}}
  trialTemplate:
    primaryContainerName: main
    trialParameters: [{name: lr, reference: lr}]
    trialSpec:
      apiVersion: batch/v1
      kind: Job
      spec:
        template:
          spec:
            containers:
              - {name: main, image: none, command: [sh, "${trialParameters.lr}", "${trialParameters.momentum}"]}
            restartPolicy: Never
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder.make(tmp_path_factory.mktemp("finished"))
    assert folder.hpo("run", "small.yaml").returncode == 0
    return folder


def test_lint_prints_all_five_mistakes_of_a_document_each_with_its_path(tmp_path: Path) -> None:
    linted = Folder.make(tmp_path, FIVE_MISTAKES).hpo("lint", "small.yaml")
    assert linted.returncode == 2
    paths = [line.split(": ")[1] for line in linted.stdout.splitlines() if line.startswith("error: ")]
    assert paths == [
        "spec.paralelTrialCount",
        "spec.parameters[0].feasibleSpace.min",
        "spec.objective.type",
        "spec.trialTemplate.trialSpec",
        "spec.algorithm.algorithmName",
    ]
    assert "did you mean parallelTrialCount?" in linted.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "this is not valid YAML"), ("", "the document is empty"), ("- 1", "must be a mapping of fields")],
    ids=["no-yaml", "empty", "list"],
)
@pytest.mark.parametrize("command", ["lint", "run", "launch", "suggest"])
def test_what_is_no_experiment_is_refused_in_one_line_and_nothing_is_left(
    tmp_path: Path, command: str, text: str, said: str
) -> None:
    folder = Folder.make(tmp_path, text)
    refused = folder.hpo(command, "small.yaml")
    assert refused.returncode == 2
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / ".hpo").exists()


def test_every_command_shows_an_example(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    listed = folder.hpo("--help").stdout
    commands = [line.split()[0] for line in listed.splitlines() if line.startswith("    ") and line[4] != " "]
    assert len(commands) >= 15
    for command in commands:
        assert "example:\n  hpo " in folder.hpo(command, "--help").stdout, command


def test_render_prints_the_manifest_with_the_values(tmp_path: Path) -> None:
    rendered = Folder.make(tmp_path).hpo("render", "small.yaml", "--set", "lr=0.02")
    manifest = yaml.safe_load(rendered.stdout)
    assert manifest["spec"]["template"]["spec"]["containers"][0]["command"] == ["sh", "train.sh", "0.02"]


def test_suggest_goes_on_behind_a_history(finished: Folder) -> None:
    (finished.path / "trials.json").write_text(finished.hpo("trials", "small", "-o", "records").stdout)
    fresh = json.loads(finished.hpo("suggest", "small.yaml", "-n", "5").stdout)["assignments"]
    behind = json.loads(finished.hpo("suggest", "small.yaml", "--history", "trials.json").stdout)["assignments"]
    assert fresh[:4] == [record["assignments"] for record in finished.records()]
    assert behind == fresh[4:]


def test_a_built_image_runs_the_command_of_a_container_here(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path, EXPERIMENT.replace('"train.sh"', '"/app/train.sh"'), "exit 1\n")
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer/train.sh").write_text(TRAINER)
    (tmp_path / "trainer/Dockerfile").write_text("FROM debian\nRUN true\nCOPY train.sh /app/\n")
    built = folder.hpo("build", "trainer")
    assert built.returncode == 0, built.stderr
    assert "RUN" in built.stderr
    ran = folder.hpo("run", "small.yaml", "--image", built.stdout.strip())
    assert ran.returncode == 0, ran.stderr


def test_an_image_that_is_not_on_this_machine_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    refused = folder.hpo("run", "small.yaml", "--image", "local/trainer@sha256:" + "0" * 64)
    assert refused.returncode == 2
    assert "hpo build" in refused.stderr
    assert not (tmp_path / ".hpo/default").exists()


def test_what_is_ours_in_the_pod_of_a_tuner_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path)
    (tmp_path / "pod.yaml").write_text("volumes: []\ncontainers: []\npriorityClassName: high\n")
    refused = folder.hpo("launch", "small.yaml", "--backend", "kubernetes", "--tuner-pod", "pod.yaml")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: pod.yaml: containers, volumes must be left to hpo"), refused.stderr
    assert not (tmp_path / ".hpo").exists()


def test_status_is_the_experiment_with_katibs_status(finished: Folder) -> None:
    status = yaml.safe_load(finished.hpo("status", "small", "-o", "yaml").stdout)
    assert status["kind"] == "Experiment"
    assert [c["type"] for c in status["status"]["conditions"]] == ["Created", "Running", "Succeeded"]
    assert status["status"]["trialsSucceeded"] == 4
    assert status["status"]["currentOptimalTrial"]["parameterAssignments"][0]["name"] == "lr"


def test_results_can_be_had_as_json_csv_and_page(finished: Folder) -> None:
    best = json.loads(finished.hpo("best", "small").stdout)
    rows = list(csv.DictReader(io.StringIO(finished.hpo("trials", "small", "-o", "csv").stdout)))
    assert len(rows) == 4
    assert str(best["lr"]) in {row["parameter.lr"] for row in rows}
    assert finished.hpo("report", "small", "-o", "out.html").returncode == 0
    assert (finished.path / "out.html").read_text().startswith("<!")
    assert "started small-" in finished.hpo("logs", "small", "3").stdout


def test_algorithms_are_listed_with_their_settings(tmp_path: Path) -> None:
    listed = Folder.make(tmp_path).hpo("algorithms").stdout
    assert "## grid\n" in listed
    assert "## random\n" in listed
    assert "| `random_state` |" in listed


def test_list_tells_what_there_is(finished: Folder) -> None:
    assert "4/4 trials done" in finished.hpo("list").stdout


def test_an_unknown_name_is_answered_with_a_near_one(finished: Folder) -> None:
    missing = finished.hpo("status", "smal")
    assert missing.returncode == 2
    assert "did you mean small?" in missing.stderr


def test_every_exit_code_is_told(tmp_path: Path) -> None:
    said = Folder.make(tmp_path).hpo("--help").stdout.partition("exit codes:\n")[2]
    assert [int(line.split()[0]) for line in said.splitlines()] == [0, 1, 2, 3, 4, 130]


def test_an_experiment_without_a_result_exits_with_three(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path, trainer="exit 1\n")
    assert folder.hpo("run", "small.yaml").returncode == 3
    assert folder.hpo("best", "small").returncode == 3


def test_a_store_that_cannot_be_written_exits_with_four(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = Folder.make(tmp_path / "user").hpo("run", "small.yaml", "--store", str(tmp_path / "file/store"))
    assert refused.returncode == 4
    assert "Not a directory" in refused.stderr
