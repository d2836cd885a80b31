"""An experiment in a namespace of its own, whose tuner is here or in a pod; and what may not become of its trials."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo_core.kube import Kube
from hpo_core.manifest import LABEL_TRIAL
from hpo_core.objects.pipelines import STORE_SECRET
from hpo_core.tuner.cluster_job import LABEL_TUNER
from tests.contracts.cluster_machine import cluster_image, namespace, store_of
from tests.s3_server import shared_server
from tests.scenarios.folders import EXPERIMENT, Folder, eventually

PARALLEL = 2
ROOT = Path(__file__).parents[2]
KUBERNETES = ("--backend", "kubernetes")


@dataclass(frozen=True)
class Place:
    """A namespace, and a user's folder whose experiment runs in it."""

    kube: Kube
    name: str
    folder: Folder
    trials: int

    def start(self, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Begin a run whose tuner is here."""
        return self.folder.start("run", "small.yaml", *KUBERNETES, env=env)

    def launch(self, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Begin a run whose tuner is in a pod, and wait for it here; the environment is that of who launches it."""
        image = os.environ.get("HPO_E2E_HPO_IMAGE")
        if not image:
            pytest.skip("HPO_E2E_HPO_IMAGE names no image of the engine: that a tuner runs in a cluster is unproven")
        command = ["kubectl", "apply", "-n", self.name, "-k", str(ROOT / "manifests/base")]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        self.tell_store()
        environment = {"HPO_IMAGE": image, **(env or {})}
        launched = self.folder.hpo("launch", "small.yaml", *KUBERNETES, env=environment, timeout_s=240.0)
        assert launched.returncode == 0, launched.stderr
        return self.folder.start("wait", "small", env={"HPO_NAMESPACE": self.name})

    def tell_store(self) -> None:
        """Let pods find the store."""
        told = {name: value for name, value in shared_server().items() if name.startswith(("AWS_", "MINIO_"))}
        metadata = {"name": STORE_SECRET, "namespace": self.name}
        self.kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": told})

    def await_over(self, count: int) -> dict[int, dict[str, Any]]:
        """Wait until so many trials are over, and return all that are."""
        eventually(lambda: len(self.over()) >= count, f"{count} trials over", 180.0)
        return self.over()

    def over(self) -> dict[int, dict[str, Any]]:
        return {r["number"]: r for r in self.folder.records(self.name) if r["completed"]}

    def conditions(self) -> list[str]:
        return [record["condition"] for record in self.folder.records(self.name)]

    def tuner(self, kind: str) -> list[str]:
        """Names of the Jobs or of the pods of its tuners."""
        version = {"Job": "batch/v1", "Pod": "v1"}[kind]
        found = self.kube.list(version, kind, namespace=self.name, selector=LABEL_TUNER)
        return [item["metadata"]["name"] for item in found]

    def finish(self, process: subprocess.Popen[str], before: Mapping[int, Mapping[str, Any]]) -> str:
        """Wait for the end; no trial may be lost or started twice, and no record that was over may have changed."""
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        records = self.folder.records(self.name)
        assert [record["condition"] for record in records] == ["Succeeded"] * self.trials
        assert [len(record["attempts"]) for record in records] == [1] * self.trials
        assert {number: records[number - 1] for number in before} == before
        for record in records:
            selector = f"{LABEL_TRIAL}={record['attempts'][-1]['name']}"
            assert len(self.kube.list("v1", "Pod", namespace=self.name, selector=selector)) == 1
        return said


@contextmanager
def cluster_run(
    path: Path,
    *,
    trials: int,
    seconds: float,
    annotations: Mapping[str, str] | None = None,
    resources: Mapping[str, Any] | None = None,
) -> Iterator[Place]:
    """A place for an experiment of a few such trials, whose workloads stay, so that pods can be counted."""
    image = cluster_image()
    shared_server()
    kube = Kube.connect()
    with namespace(kube) as where:
        document = yaml.safe_load(EXPERIMENT)
        document["metadata"] |= {"namespace": where, "annotations": dict(annotations or {})}
        document["spec"] |= {"maxTrialCount": trials, "parallelTrialCount": PARALLEL}
        template = document["spec"]["trialTemplate"]
        template["retain"] = True
        pod = template["trialSpec"]["spec"]["template"]["spec"]
        pod["terminationGracePeriodSeconds"] = 1
        command = ["sh", "-c", f"sleep {seconds:g}; echo loss=$0", "${trialParameters.lr}"]
        pod["containers"][0] |= {"image": image, "imagePullPolicy": "IfNotPresent", "command": command}
        pod["containers"][0]["resources"] = dict(resources or {})
        folder = Folder.make(path / "user", yaml.safe_dump(document), uri=store_of(where))
        yield Place(kube, where, folder, trials)
