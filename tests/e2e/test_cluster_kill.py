"""A tuner of a real cluster that is killed before any of its store and API calls: nothing is lost or started twice.

Of the kill points every HPO_E2E_KILL_STEP-th is tried, every 6th when that is not set; `make e2e-full` tries them all.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hpo_core.kube import Kube
from hpo_core.manifest import LABEL_TRIAL
from tests.contracts.cluster_machine import cluster_image, namespace
from tests.s3_server import shared_server
from tests.scenarios.folders import EXPERIMENT, Folder

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TRIALS = 3


@pytest.fixture
def where() -> Iterator[str]:
    cluster_image()
    shared_server()
    with namespace(Kube.connect()) as name:
        yield name


def folder_of(path: Path, where: str, number: int) -> Folder:
    """A folder whose experiment is called after the kill point, so that its pods can be told from the others'."""
    document = yaml.safe_load(EXPERIMENT)
    document["metadata"] = {"name": f"kill-{number}", "namespace": where}
    document["spec"] |= {"maxTrialCount": TRIALS, "parallelTrialCount": 2}
    pod = document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    command = ["sh", "-c", "echo started $KATIB_TRIAL_NAME; sleep 1; echo loss=$0", "${trialParameters.lr}"]
    pod["containers"][0] |= {"image": cluster_image(), "imagePullPolicy": "IfNotPresent", "command": command}
    document["spec"]["trialTemplate"]["retain"] = True  # so that the pods can be counted at the end
    uri = f"s3://kfp-hpo-tests/{secrets.token_hex(6)}"
    return Folder.make(path / str(number), yaml.safe_dump(document), uri=uri)


def tune(folder: Folder, calls: int) -> subprocess.CompletedProcess[str]:
    """Run a tuner that kills itself before that call, to its end."""
    arguments = [str(folder.path / "small.yaml"), folder.place.uri, str(calls), "kubernetes"]
    command = [sys.executable, "-m", "tests.scenarios.killing_tuner", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def check(kube: Kube, folder: Folder, where: str, number: int) -> None:
    records = folder.place.store(where, f"kill-{number}").trials()
    assert [record.condition for record in records] == ["Succeeded"] * TRIALS
    assert [len(record.attempts) for record in records] == [1] * TRIALS
    for record in records:
        pods = kube.list("v1", "Pod", namespace=where, selector=f"{LABEL_TRIAL}={record.name}")
        assert len(pods) == 1, f"trial {record.number} had {len(pods)} pods"
        log = folder.place.store(where, f"kill-{number}").log(f"{record.number:05d}").decode()
        assert log.count("started") == 1, log


def test_a_tuner_killed_before_any_of_its_calls_loses_no_trial_and_starts_none_twice(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kube = Kube.connect()
    step = int(os.environ.get("HPO_E2E_KILL_STEP", "6"))
    tried, number = 0, 1
    while True:
        folder = folder_of(tmp_path, where, number)
        ended = tune(folder, number)
        if ended.returncode == 0:
            break
        assert ended.returncode == -9, ended.stderr
        again = tune(folder, 0)
        assert again.returncode == 0, f"after a kill before call {number}: {again.stderr}"
        check(kube, folder, where, number)
        tried, number = tried + 1, number + step
    with capsys.disabled():
        print(f"\nkill points tried in the cluster: {tried}, every {step} of about {number} calls")
    assert tried >= 30 // step
