"""What an experiment has in a cluster goes with it; the check of that, at the end of every test, fails where it must.

KUBECONFIG names the cluster, AWS_* the store, and HPO_E2E_IMAGE an image with `sh` for trials.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
import yaml

from hpo_core.kube import Kube
from tests.contracts.cluster_machine import cluster_image, left, namespace, store_of
from tests.e2e.conftest import Elsewhere
from tests.s3_server import shared_server
from tests.scenarios.folders import EXPERIMENT, Folder, eventually

pytestmark = pytest.mark.e2e

PATIENCE_S = 120.0


@pytest.fixture
def kube() -> Kube:
    cluster_image()
    shared_server()
    return Kube.connect()


def folder_of(path: Path, where: str, uri: str, *, seconds: int, retain: bool = False) -> Folder:
    document = yaml.safe_load(EXPERIMENT)
    document["metadata"]["namespace"] = where
    template = document["spec"]["trialTemplate"]
    template["retain"] = retain
    pod = template["trialSpec"]["spec"]["template"]["spec"]
    pod["terminationGracePeriodSeconds"] = 1
    command = ["sh", "-c", f"sleep {seconds}; echo loss=$0", "${trialParameters.lr}"]
    pod["containers"][0] |= {"image": cluster_image(), "imagePullPolicy": "IfNotPresent", "command": command}
    return Folder.make(path, yaml.safe_dump(document), uri=uri)


def run_and_die(folder: Folder, where: str) -> None:
    """Begin an experiment, whose tuner is killed while its trials run."""
    with folder.start("run", "small.yaml", "--backend", "kubernetes", "--namespace", where) as process:
        try:
            eventually(lambda: "Running" in [r["condition"] for r in folder.records(where)], "trials run", PATIENCE_S)
        finally:
            process.kill()


def test_an_experiment_that_nobody_removes_fails_the_test_that_began_it(kube: Kube, tmp_path: Path) -> None:
    """Its records are kept where the end of the namespace does not look for them."""
    with (
        pytest.raises(
            AssertionError, match=r"left in hpo-test-\w+ though .*: Pod/small-\w+-\w+, .*ConfigMap/small-\w+, Job/"
        ),
        namespace(kube, patience_s=1.0) as where,
    ):
        run_and_die(folder_of(tmp_path, where, f"{store_of(where)}-{secrets.token_hex(4)}", seconds=60), where)


def test_an_experiment_whose_tuner_has_died_is_removed_with_its_running_trials(kube: Kube, tmp_path: Path) -> None:
    with namespace(kube) as where:
        run_and_die(folder_of(tmp_path, where, store_of(where), seconds=60), where)
        assert {name.partition("/")[0] for name in left(kube, where)} == {"ConfigMap", "Job", "Pod"}


def test_workloads_that_are_retained_go_with_their_experiment(kube: Kube, tmp_path: Path) -> None:
    with namespace(kube) as where:
        folder = folder_of(tmp_path, where, store_of(where), seconds=0, retain=True)
        done = folder.hpo("run", "small.yaml", "--backend", "kubernetes", "--namespace", where, timeout_s=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        assert len([name for name in left(kube, where) if name.startswith("Job/")]) == 4


def test_what_lies_outside_of_the_tests_namespaces_is_found(kube: Kube) -> None:
    name = f"elsewhere-{secrets.token_hex(4)}"
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    try:
        elsewhere = Elsewhere(kube)
        assert {"default", name} <= set(elsewhere.names)
        elsewhere.check()
        metadata = {"name": "small", "namespace": name, "labels": {"katib.kubeflow.org/experiment": "small"}}
        kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
        with pytest.raises(AssertionError, match=f"'{name}': .*ConfigMap/small"):
            elsewhere.check()
    finally:
        kube.delete("v1", "Namespace", name)
