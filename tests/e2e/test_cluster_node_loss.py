"""A node that is lost under trials: each of them is begun again on another one, and none counts as failed.

The kubelet of that node is a fake, see `tests.fake_node`; what notices its loss, and what follows from it, is the
cluster's own. KUBECONFIG names the cluster, of an account that may create nodes; `openssl` is needed, too.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from hpo_core.manifest import LABEL_TRIAL
from tests.e2e.cluster_runs import Place, cluster_run
from tests.fake_node import TAINT, NodeProcess, fake_node
from tests.scenarios.folders import eventually

pytestmark = pytest.mark.e2e

TRIALS = 2
LONG_S = 600.0
NOTICED_S = 240.0
"""A node that is silent is not ready after 50 s; pods without a node are collected at the next look after 40 s."""
UNREACHABLE = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with cluster_run(tmp_path, trials=TRIALS, seconds=1) as made:
        yield made


@pytest.fixture
def node(place: Place) -> Iterator[NodeProcess]:
    """A node beside the others, on which trials go on and on, and which they prefer."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl: what becomes of trials whose node is lost is unproven")
    with fake_node(place.name, LONG_S) as made:
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


def nodes(place: Place, trial: str = "") -> list[str]:
    """On which nodes the pods of a trial's attempt are; those of all when none is named."""
    selector = f"{LABEL_TRIAL}={trial}" if trial else LABEL_TRIAL
    return [pod["spec"]["nodeName"] for pod in place.kube.list("v1", "Pod", namespace=place.name, selector=selector)]


@contextmanager
def started(place: Place) -> Iterator[subprocess.Popen[str]]:
    """A run whose trials all run by now; it is killed where a test ends before it does."""
    with place.start() as process:
        try:
            eventually(lambda: place.conditions() == ["Running"] * TRIALS, "all trials run", 120.0)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("removed", [False, True], ids=["silent", "silent-and-removed"])
def test_trials_of_a_lost_node_are_begun_again_elsewhere(place: Place, node: NodeProcess, removed: bool) -> None:
    """The pods of a silent node are told to end, which nobody does; those of one that is removed go with it."""
    with started(place) as process:
        assert nodes(place) == [node.name] * TRIALS
        with node.silent():
            if removed:
                place.kube.delete("v1", "Node", node.name)
            _, said = process.communicate(timeout=NOTICED_S)
    assert process.returncode == 0, said
    assert place.conditions() == ["Succeeded"] * TRIALS
    for record in place.folder.records(place.name):
        assert [attempt["outcome"] for attempt in record["attempts"]] == ["Lost", ""]
        (elsewhere,) = nodes(place, record["attempts"][-1]["name"])
        assert elsewhere != node.name
