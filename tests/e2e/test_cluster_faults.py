"""A cluster that fails under a run: its API server, its kubelet, its object store; the run completes all the same.

HPO_E2E_FAULT is a command that takes `pause`, `resume`, `kill` or `start` and a component: apiserver, kubelet, minio.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo_core.kube import Kube
from hpo_core.manifest import LABEL_TRIAL
from tests.contracts.cluster_machine import cluster_image, namespace
from tests.s3_server import shared_server
from tests.scenarios.folders import EXPERIMENT, Folder, eventually

pytestmark = pytest.mark.e2e

TRIALS = 8
OUTAGE_S = 60


@dataclass(frozen=True)
class Place:
    """A namespace, and a user's folder whose experiment runs in it."""

    kube: Kube
    name: str
    folder: Folder

    def start(self) -> subprocess.Popen[str]:
        """Begin a run, and wait until two of its trials are over."""
        process = self.folder.start("run", "small.yaml", "--backend", "kubernetes")
        eventually(lambda: len(self.over()) >= 2, "two trials over", 120.0)
        return process

    def over(self) -> dict[int, dict[str, Any]]:
        return {r["number"]: r for r in self.folder.records(self.name) if r["completed"]}

    def finish(self, process: subprocess.Popen[str], before: dict[int, dict[str, Any]]) -> str:
        """Wait for the end; no trial may be lost or started twice, and no record that was over may have changed."""
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        records = self.folder.records(self.name)
        assert [record["condition"] for record in records] == ["Succeeded"] * TRIALS
        assert [len(record["attempts"]) for record in records] == [1] * TRIALS
        assert {number: records[number - 1] for number in before} == before
        for record in records:
            selector = f"{LABEL_TRIAL}={record['attempts'][-1]['name']}"
            assert len(self.kube.list("v1", "Pod", namespace=self.name, selector=selector)) == 1
        return said


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    image = cluster_image()
    shared_server()
    if not os.environ.get("HPO_E2E_FAULT"):
        pytest.skip("HPO_E2E_FAULT is no command that makes a component fail: what happens then is unproven")
    kube = Kube.connect()
    with namespace(kube) as where:
        document = yaml.safe_load(EXPERIMENT)
        document["metadata"]["namespace"] = where
        document["spec"] |= {"maxTrialCount": TRIALS, "parallelTrialCount": 2}
        template = document["spec"]["trialTemplate"]
        template["retain"] = True
        command = ["sh", "-c", "sleep 3; echo loss=$0", "${trialParameters.lr}"]
        container = template["trialSpec"]["spec"]["template"]["spec"]["containers"][0]
        container |= {"image": image, "imagePullPolicy": "IfNotPresent", "command": command}
        uri = f"s3://kfp-hpo-tests/{secrets.token_hex(6)}"
        yield Place(kube, where, Folder.make(tmp_path / "user", yaml.safe_dump(document), uri=uri))


def do(*words: str) -> None:
    subprocess.run([*os.environ["HPO_E2E_FAULT"].split(), *words], check=True, timeout=60, capture_output=True)


@pytest.mark.parametrize("component", ["apiserver", "minio"])
def test_a_component_that_hangs_for_a_minute_costs_time_only(place: Place, component: str) -> None:
    process = place.start()
    before = place.over()
    do("pause", component)
    try:
        time.sleep(OUTAGE_S)
    finally:
        do("resume", component)
    place.finish(process, before)


@pytest.mark.parametrize("component", ["apiserver", "minio", "kubelet"])
def test_a_component_that_is_killed_and_comes_back_costs_time_only(place: Place, component: str) -> None:
    process = place.start()
    before = place.over()
    do("kill", component)
    try:
        time.sleep(10)
    finally:
        do("start", component)
    place.finish(process, before)
