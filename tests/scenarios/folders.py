"""A folder with a small experiment whose trainer is a shell script, and `hpo` as a user runs it there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo_core.store import ExperimentStore
from hpo_core.tuner import Place

EXPERIMENT = """
apiVersion: kubeflow.org/v1beta1
kind: Experiment
metadata: {name: small, namespace: default}
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
echo "started $KATIB_TRIAL_NAME"
echo "$KATIB_TRIAL_NAME" >> starts.txt
sleep ${TRAIN_S:-0.05}
echo "model of $1" > "$HPO_OUTPUT_DIR/model.txt"
if [ "$HPO_PHASE" = retrain ]; then echo test_loss=0.25; else echo loss=$1; fi
"""


@dataclass(frozen=True)
class Folder:
    """A user's folder: `small.yaml`, `train.sh`, and a store.

    Attributes:
        path: The folder.
        uri: The store's address; `.hpo` in the folder when it is empty.
    """

    path: Path
    uri: str = ""

    @classmethod
    def make(cls, path: Path, experiment: str = EXPERIMENT, trainer: str = TRAINER, *, uri: str = "") -> Folder:
        path.mkdir(parents=True, exist_ok=True)
        (path / "small.yaml").write_text(experiment)
        (path / "train.sh").write_text(trainer)
        return cls(path, uri)

    @property
    def place(self) -> Place:
        return Place.of(self.uri or str(self.path / ".hpo"), self.path)

    @property
    def store(self) -> ExperimentStore:
        return self.place.store("default", "small")

    def hpo(
        self, *words: str, env: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `hpo` to its end, within a minute unless more is given."""
        with self.start(*words, env=env) as process:
            out, err = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def start(
        self, *words: str, env: Mapping[str, str] | None = None, way_in: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """Start `hpo` in a session of its own, as a terminal would; `way_in` are the words before it."""
        return subprocess.Popen(
            [*way_in, sys.executable, "-m", "hpo_core.cli", *words],
            cwd=self.path,
            env={**os.environ, "HPO_STORE": self.place.uri, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def records(self, namespace: str = "default") -> list[dict[str, Any]]:
        objects = self.place.objects
        return [json.loads(objects.get(key).data) for key in objects.list(f"{namespace}/small/trials/")]

    def conditions(self) -> list[str]:
        return [record["condition"] for record in self.records()]

    def starts(self) -> list[str]:
        """Names of the workloads that were started, in order."""
        path = self.path / "starts.txt"
        return path.read_text().split() if path.exists() else []

    def status(self) -> dict[str, Any]:
        return self.store.derived_json("status.json")

    def processes(self) -> list[str]:
        """Command lines of every process that works in this folder: tuners, supervisors, trials."""
        found = []
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and str(self.path) in str((process / "cwd").readlink()):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found


def eventually(holds: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    """Wait until something holds; fails with what it was."""
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
