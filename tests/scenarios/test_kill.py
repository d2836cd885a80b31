"""A tuner may be killed at any instant: no trial is lost, none is started twice, and the search goes on as before."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

EXPERIMENT = """
apiVersion: kubeflow.org/v1beta1
kind: Experiment
metadata: {name: killed, namespace: default}
spec:
  objective: {type: minimize, objectiveMetricName: loss}
  algorithm: {algorithmName: random}
  parallelTrialCount: 2
  maxTrialCount: 4
  parameters:
    - {name: lr, parameterType: double, feasibleSpace: {min: "0.01", max: "0.05"}}
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
              - name: main
                image: none
                command: ["sh", "train.sh", "${trialParameters.lr}"]
            restartPolicy: Never
"""
TRAINER = """
echo started $KATIB_TRIAL_NAME
echo $KATIB_TRIAL_NAME >> starts.txt
sleep 0.05
echo model > $HPO_OUTPUT_DIR/model
echo loss=$1
"""


def tune(folder: Path, calls: int) -> subprocess.CompletedProcess[str]:
    program = str(Path(__file__).with_name("killing_tuner.py"))
    command = [sys.executable, program, str(folder / "killed.yaml"), str(folder / "store"), str(calls)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def prepare(folder: Path) -> Path:
    folder.mkdir()
    (folder / "killed.yaml").write_text(EXPERIMENT)
    (folder / "train.sh").write_text(TRAINER)
    return folder


def assignments(folder: Path) -> list[dict[str, float]]:
    return [record["assignments"] for record in records(folder)]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "store/default/killed/trials").glob("*.json"))]


def check_nothing_lost_or_doubled(folder: Path, n: int) -> None:
    done = records(folder)
    assert [record["condition"] for record in done] == ["Succeeded"] * 4, f"killed before call {n}: {done}"
    starts = (folder / "starts.txt").read_text().split()
    assert len(starts) == len(set(starts)) == 4, f"killed before call {n}: started {starts}"
    for record in done:
        log = (folder / f"store/default/killed/logs/{record['number']:05d}.log").read_text()
        assert log.count("started") == 1, f"killed before call {n}: trial {record['number']} printed {log!r}"
        assert len(record["attempts"]) == 1
    assert sorted(record["finishedSeq"] for record in done) == [1, 2, 3, 4]
    assert not (folder / "store/.scratch").exists() or not any((folder / "store/.scratch").iterdir())


def test_a_tuner_killed_before_any_of_its_calls_loses_no_trial_and_starts_none_twice(tmp_path: Path) -> None:
    undisturbed = prepare(tmp_path / "undisturbed")
    assert tune(undisturbed, 0).returncode == 0
    killed = 0
    for n in range(1, 500):
        folder = prepare(tmp_path / str(n))
        ended = tune(folder, n)
        if ended.returncode == 0:
            break
        assert ended.returncode == -9, ended.stderr
        killed += 1
        assert tune(folder, 0).returncode == 0
        check_nothing_lost_or_doubled(folder, n)
        assert assignments(folder) == assignments(undisturbed), f"killed before call {n}"
    print(f"kill points tried: {killed}")
    assert killed >= 40
