"""A real cluster as a `Machine` of the launchers' contract: a namespace of its own in the kubeconfig's cluster.

The trainer's image has to have `python3`; `HPO_E2E_IMAGE` names one that the cluster has or can pull.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import pytest

from hpo_core.experiment import Experiment
from hpo_core.kube import Kube
from hpo_core.launch import Job
from hpo_core.launch.cluster.launcher import ClusterLauncher
from hpo_core.manifest import LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID
from tests.contracts.launcher_suite import Workload, process_job
from tests.experiments import make_experiment, parameter

TRAINER = """
import json, os, sys, time
does = json.loads(sys.argv[1])
for name, text in does["files"].items():
    with open(os.path.join(os.environ["HPO_OUTPUT_DIR"], name), "w") as file:
        file.write(text)
for line in does["lines"]:
    print(line, flush=True)
while does["endless"]:
    time.sleep(0.02)
if does["code"] < 0:
    os.kill(os.getpid(), -does["code"])
sys.exit(does["code"])
"""


def cluster_image() -> str:
    """The image of trainers; skips the test, and says so, where no cluster or image is named."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster: that trials run on Kubernetes is unproven")
    return os.environ.get("HPO_E2E_IMAGE", "python:3.11-slim")


@contextmanager
def namespace(kube: Kube, labels: Mapping[str, str] | None = None) -> Iterator[str]:
    """A namespace that is removed with all that is in it."""
    name = f"hpo-test-{secrets.token_hex(4)}"
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels or {})}})
    try:
        yield name
    finally:
        kube.delete("v1", "Namespace", name)


@contextmanager
def cluster_machine() -> Iterator[ClusterMachine]:
    """The kubeconfig's cluster, with a namespace that lasts as long as the context."""
    image = cluster_image()
    kube = Kube.connect()
    with namespace(kube) as where:
        yield ClusterMachine(kube, where, image)


class ClusterMachine:
    """Pods, with a tiny trainer in Python."""

    def __init__(self, kube: Kube, where: str, image: str) -> None:
        self.kube, self._image = kube, image
        uid = secrets.token_hex(16)
        accepted = make_experiment([parameter("lr", "double", min="0", max="1")], changes={"metadata.namespace": where})
        self.experiment: Experiment = replace(accepted, uid=uid)

    def launcher(self) -> ClusterLauncher:
        return ClusterLauncher(self.kube, self.experiment)

    def job(self, name: str, workload: Workload) -> Job:
        """The job of a workload; a shell is the first process, which no signal that is sent by itself would end."""
        does = json.dumps(asdict(workload))
        shell = ["sh", "-c", 'trap "kill $!" TERM; python3 -S -c "$0" "$1" & wait $!', TRAINER, does]
        return self.dressed(name, ["/nowhere/trainer"] if workload.missing_command else shell)

    def dressed(self, name: str, command: list[str], *, deadline_s: float | None = None, **options: Any) -> Job:
        """A job in the experiment's namespace, with the labels that the renderer gives it."""
        job = process_job(
            name,
            command,
            deadline_s=deadline_s,
            image=self._image,
            imagePullPolicy="IfNotPresent",
            **options,
        )
        labels = {LABEL_EXPERIMENT: "small", LABEL_TRIAL: job.name, LABEL_UID: self.experiment.uid}
        metadata = {"name": job.name, "namespace": self.experiment.namespace, "labels": labels}
        manifest: dict[str, Any] = {**job.manifest, "metadata": metadata}
        manifest["spec"]["template"]["spec"] |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1}
        return replace(job, manifest=manifest)

    def starts(self, name: str) -> int:
        """How many pods the workload has had, as far as the cluster tells."""
        where = self.experiment.namespace
        return len(self.kube.list("v1", "Pod", namespace=where, selector=f"{LABEL_TRIAL}={name}"))
