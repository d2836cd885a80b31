"""A tuner as a Job of a real cluster: it survives its pod and its Job, and leaves nothing behind.

KUBECONFIG names the cluster, AWS_* the store as this machine and its pods reach it, HPO_E2E_HPO_IMAGE the engine's
image and HPO_E2E_IMAGE one with `sh` for trials.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo_core.kube import Kube
from hpo_core.manifest import LABEL_UID
from hpo_core.objects.pipelines import STORE_SECRET
from hpo_core.tuner.cluster_job import LABEL_TUNER
from tests.contracts.cluster_machine import BARE, RESTRICTED, USER, cluster_image, namespace, store_of
from tests.s3_server import shared_server
from tests.scenarios.folders import EXPERIMENT, Folder, eventually

pytestmark = pytest.mark.e2e

PATIENCE_S = 120.0
POD = {"securityContext": USER, "terminationGracePeriodSeconds": 1}
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """A namespace with all that a tuner needs, and a user's folder."""

    kube: Kube
    name: str
    folder: Folder

    def launch(self, *words: str) -> None:
        launched = self.folder.hpo("launch", "small.yaml", "--backend", "kubernetes", "--namespace", self.name, *words)
        assert launched.returncode == 0, launched.stderr

    def wait(self) -> str:
        ended = self.folder.hpo("wait", "small", timeout_s=PATIENCE_S)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def records(self) -> list[dict[str, Any]]:
        return self.folder.records(self.name)

    def left(self) -> list[str]:
        """Everything of ours that is in the namespace."""
        found = []
        for kind, version in (("Job", "batch/v1"), ("Pod", "v1"), ("ConfigMap", "v1"), ("Secret", "v1")):
            for item in self.kube.list(version, kind, namespace=self.name):
                labels = item["metadata"].get("labels") or {}
                if LABEL_UID in labels or LABEL_TUNER in labels:
                    found.append(f"{kind}/{item['metadata']['name']}")
        return found

    def tuner_pods(self) -> list[str]:
        pods = self.kube.list("v1", "Pod", namespace=self.name)
        return [pod["metadata"]["name"] for pod in pods if "-tuner-" in pod["metadata"]["name"]]

    def tuner_jobs(self) -> list[str]:
        jobs = self.kube.list("batch/v1", "Job", namespace=self.name, selector=LABEL_TUNER)
        return [job["metadata"]["name"] for job in jobs]


def experiment(image: str, seconds: float) -> str:
    document = yaml.safe_load(EXPERIMENT)
    pod = document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    pod |= POD
    command = ["sh", "-c", f"sleep {seconds}; echo loss=$0", "${trialParameters.lr}"]
    pod["containers"][0] |= {"image": image, "imagePullPolicy": "IfNotPresent", "command": command}
    pod["containers"][0]["securityContext"] = BARE
    return yaml.safe_dump(document)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    image = cluster_image()
    ours = os.environ.get("HPO_E2E_HPO_IMAGE")
    if not ours:
        pytest.skip("HPO_E2E_HPO_IMAGE names no image of the engine: that a tuner runs in a cluster is unproven")
    settings = {name: value for name, value in shared_server().items() if name.startswith(("AWS_", "MINIO_"))}
    monkeypatch.setenv("HPO_IMAGE", ours)
    kube = Kube.connect()
    with namespace(kube, RESTRICTED) as where:
        command = ["kubectl", "apply", "-n", where, "-k", str(ROOT / "manifests/base")]
        subprocess.run(command, check=True, capture_output=True)
        kube.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": STORE_SECRET, "namespace": where},
                "stringData": settings,
            }
        )
        yield Place(kube, where, Folder.make(tmp_path / "user", experiment(image, 2), uri=store_of(where)))


def test_a_launched_experiment_tunes_in_the_cluster_and_deleting_it_leaves_nothing(place: Place) -> None:
    place.launch()
    out = place.wait()
    assert "4/4 trials done" in out
    assert [record["condition"] for record in place.records()] == ["Succeeded"] * 4
    deleted = place.folder.hpo("delete", "small")
    assert deleted.returncode == 0, deleted.stderr
    eventually(lambda: place.left() == [], "nothing of ours is left", PATIENCE_S)


def test_launching_twice_is_one_tuner(place: Place) -> None:
    place.launch()
    place.launch()
    assert len(place.tuner_jobs()) == 1
    place.wait()
    assert [len(record["attempts"]) for record in place.records()] == [1] * 4


def test_a_tuner_whose_pod_is_deleted_is_started_anew_and_follows_the_trials(place: Place) -> None:
    (place.folder.path / "small.yaml").write_text(experiment(cluster_image(), 8))
    place.launch()
    (pod,) = place.tuner_pods()
    eventually(lambda: any(r["condition"] == "Running" for r in place.records()), "a trial runs", PATIENCE_S)
    place.kube.delete("v1", "Pod", pod, namespace=place.name)
    place.wait()
    records = place.records()
    assert [record["condition"] for record in records] == ["Succeeded"] * 4
    assert [len(record["attempts"]) for record in records] == [1] * 4
    assert len(place.tuner_jobs()) == 1


def test_a_tuner_job_deleted_by_hand_is_noticed_by_wait_and_a_new_one_adopts_the_living_trials(place: Place) -> None:
    (place.folder.path / "small.yaml").write_text(experiment(cluster_image(), 25))
    place.launch()
    (job,) = place.tuner_jobs()
    eventually(lambda: any(r["condition"] == "Running" for r in place.records()), "a trial runs", PATIENCE_S)
    place.kube.delete("batch/v1", "Job", job, namespace=place.name)
    place.wait()
    assert job not in place.tuner_jobs()
    assert [record["condition"] for record in place.records()] == ["Succeeded"] * 4
    assert [len(record["attempts"]) for record in place.records()] == [1] * 4


def test_a_missing_permission_is_told_with_what_grants_it_before_anything_is_created(place: Place) -> None:
    place.kube.delete("rbac.authorization.k8s.io/v1", "Role", "hpo-tuner", namespace=place.name)
    refused = place.folder.hpo("launch", "small.yaml", "--backend", "kubernetes", "--namespace", place.name)
    assert refused.returncode == 2
    assert "kubectl apply" in refused.stderr
    assert [name for name in place.left() if "tuner" not in name] == []


def test_stopping_leaves_no_job_no_pod_and_the_next_launch_goes_on(place: Place) -> None:
    (place.folder.path / "small.yaml").write_text(experiment(cluster_image(), 60))
    place.launch()
    eventually(lambda: any(r["condition"] == "Running" for r in place.records()), "a trial runs", PATIENCE_S)
    stopped = place.folder.hpo("stop", "small", timeout_s=PATIENCE_S)
    assert "Experiment was stopped" in stopped.stdout, stopped.stderr

    def only_the_anchor() -> bool:
        return all(name.startswith("ConfigMap/small-") and "tuner" not in name for name in place.left())

    eventually(only_the_anchor, "no Job and no pod", PATIENCE_S)
    place.launch()
    eventually(lambda: any(r["condition"] == "Running" for r in place.records()), "it goes on", PATIENCE_S)
    assert place.folder.hpo("stop", "small", timeout_s=PATIENCE_S).returncode == 0


def test_a_tuner_that_cannot_run_is_told_with_the_cause(place: Place) -> None:
    missing = place.folder.hpo(
        "launch", "small.yaml", "--backend", "kubernetes", "--namespace", place.name, "--tuner-image", "no/such:image"
    )
    assert missing.returncode == 4
    assert "cannot be pulled" in missing.stderr
