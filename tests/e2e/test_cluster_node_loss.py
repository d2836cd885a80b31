"""A node that is lost under trials: each of them is begun again on another one, and none counts as failed.

The kubelet of that node is a fake, see `tests.fake_node`; what notices its loss, and what follows from it, is the
cluster's own. KUBECONFIG names the cluster, of an account that may create nodes; there is `openssl`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo_core.manifest import LABEL_TRIAL
from tests.e2e.cluster_runs import Place, cluster_run
from tests.fake_node import TAINT, Running, fake_node
from tests.scenarios.folders import eventually

pytestmark = pytest.mark.e2e

TRIALS = 2
FOR_EVER_S = 3600.0
NOTICED_S = 240.0
"""A node that is silent is not ready after 50 s; pods without a node are collected at the next look after 40 s."""
UNREACHABLE = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with cluster_run(tmp_path, trials=TRIALS, seconds=1) as made:
        yield made


@pytest.fixture
def node(place: Place) -> Iterator[Running]:
    """A node beside the others, on which trials never end, and which they prefer."""
    with fake_node(place.name, FOR_EVER_S) as made:
        prefer(place, made.name)
        yield made


def prefer(place: Place, node: str) -> None:
    """Let trials run on that node while it is there; of one that is out of reach they are taken away after 5 s."""
    file = place.folder.path / "small.yaml"
    document = yaml.safe_load(file.read_text())
    document["spec"]["maxFailedTrialCount"] = 0
    hostname = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    preferred = [{"weight": 100, "preference": hostname}]
    document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"] |= {
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}},
        "tolerations": [
            {"key": TAINT, "value": node, "effect": "NoSchedule"},
            {**UNREACHABLE, "tolerationSeconds": 5},
        ],
    }
    file.write_text(yaml.safe_dump(document))


def await_running(place: Place, node: Running) -> None:
    """Wait until all trials run on that node."""

    def run() -> bool:
        records = place.folder.records(place.name)
        return [record["condition"] for record in records] == ["Running"] * TRIALS

    eventually(run, "all trials run", 120.0)
    pods = place.kube.list("v1", "Pod", namespace=place.name, selector=LABEL_TRIAL)
    assert [pod["spec"]["nodeName"] for pod in pods] == [node.name] * TRIALS


def check(place: Place, process: subprocess.Popen[str], outcomes: list[str]) -> None:
    """Wait for the end: every trial has succeeded, after attempts that ended so."""
    _, said = process.communicate(timeout=NOTICED_S)
    assert process.returncode == 0, said
    records: list[dict[str, Any]] = place.folder.records(place.name)
    assert [record["condition"] for record in records] == ["Succeeded"] * TRIALS
    assert [[attempt["outcome"] for attempt in record["attempts"]] for record in records] == [outcomes] * TRIALS


def test_trials_of_a_node_that_falls_silent_are_begun_again_elsewhere(place: Place, node: Running) -> None:
    """Their pods are told to end, which nobody does there, so that their Jobs start no others."""
    with place.start() as process:
        await_running(place, node)
        with node.silent():
            check(place, process, ["Lost", ""])


def test_trials_of_a_node_that_is_removed_are_begun_again_elsewhere(place: Place, node: Running) -> None:
    """Their pods are removed with it, so that their Jobs start others by themselves."""
    with place.start() as process:
        await_running(place, node)
        place.kube.delete("v1", "Node", node.name)
        check(place, process, [""])
