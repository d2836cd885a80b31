"""A real cluster as a `Machine` of the launchers' contract: a namespace of its own in the kubeconfig's cluster.

Every test's namespace goes at its end; the experiments in it go before, by our own ways, which must leave nothing. The
trainer's image has to have `python3`; `HPO_E2E_IMAGE` names one that the cluster has or can pull.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

import pytest

from hpo_core import tuner
from hpo_core.errors import LaunchError, NotFound
from hpo_core.experiment import Experiment
from hpo_core.kube import Kube
from hpo_core.launch import Job
from hpo_core.launch.cluster.launcher import ClusterLauncher
from hpo_core.lint import KUBERNETES
from hpo_core.manifest import LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID
from tests.contracts.launcher_suite import Workload, process_job
from tests.experiments import make_experiment, parameter

OURS = ("katib.kubeflow.org/", "kfp-hpo/")
"""What our labels begin with."""
KINDS = {
    "v1": ("Pod", "ConfigMap", "Secret", "Service"),
    "batch/v1": ("Job",),
    "kubeflow.org/v1": ("PyTorchJob", "TFJob", "XGBoostJob", "MPIJob"),
    "trainer.kubeflow.org/v1alpha1": ("TrainJob",),
}
"""What we make, or what is made for us, by its group and version."""
PREFIX = "hpo-test-"
GONE_S = 60.0
"""How long a cluster may take to remove what belongs to something that was removed."""
LOOK_S = 0.5

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


RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
"""Labels of a namespace of that PodSecurity level."""
USER = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
BARE = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""The security contexts of a pod, and of a container, that it lets in."""


def cluster_image() -> str:
    """The image of trainers; skips the test, and says so, where no cluster or image is named."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster: that trials run on Kubernetes is unproven")
    return os.environ.get("HPO_E2E_IMAGE", "python:3.11-slim")


def store_of(where: str) -> str:
    """Where the records of experiments in a test's namespace are kept, so that they can be removed at its end."""
    return f"s3://kfp-hpo-tests/{where}"


def end_experiments(where: str, uri: str) -> None:
    """Suspend and remove every experiment of a namespace that a store knows, as `hpo stop` and `hpo delete` do."""
    if not os.environ.get("AWS_ENDPOINT_URL"):
        return
    place = tuner.Place.of(uri, backend=KUBERNETES)
    names = {key.split("/")[1] for key in place.objects.list(f"{where}/") if key.count("/") > 1}
    for name in sorted(names):
        store = place.store(where, name)
        with suppress(NotFound):
            if tuner.request_stop(store, "a test"):
                tuner.wait_for_stop(store, place)
            tuner.delete(store, place)


def left(kube: Kube, where: str) -> list[str]:
    """Everything in a namespace that has one of our labels, as `KIND/NAME`."""
    found = []
    for version, kind in ((version, kind) for version, kinds in KINDS.items() for kind in kinds):
        try:
            kube.resource(version, kind)
        except LaunchError:  # nobody has brought that kind
            continue
        for item in kube.list(version, kind, namespace=where):
            if any(label.startswith(OURS) for label in item["metadata"].get("labels") or {}):
                found.append(f"{kind}/{item['metadata']['name']}")
    return found


def wait_for_nothing(kube: Kube, where: str, patience_s: float) -> None:
    """Wait until nothing of ours is left in a namespace; fails with what is."""
    until = time.monotonic() + patience_s
    while found := left(kube, where):
        assert time.monotonic() < until, f"left in {where} though its experiments are over: {', '.join(found)}"
        time.sleep(LOOK_S)


def is_tests(where: str) -> bool:
    """Tell whether a namespace is one that a test has made."""
    return where.startswith(PREFIX)


@contextmanager
def namespace(
    kube: Kube, labels: Mapping[str, str] | None = None, *, store: str = "", patience_s: float = GONE_S
) -> Iterator[str]:
    """A namespace that is removed at the end; its experiments are removed before, and must have left nothing.

    Args:
        kube: The cluster.
        labels: The namespace's.
        store: Where the records of those experiments are; `store_of` the namespace when it is "". Others have to be
            removed by who began them.
        patience_s: How long what they owned may take to go, in seconds.
    """
    name = f"{PREFIX}{secrets.token_hex(4)}"
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels or {})}})
    try:
        yield name
        end_experiments(name, store or store_of(name))
        wait_for_nothing(kube, name, patience_s)
    finally:
        kube.delete("v1", "Namespace", name)


@contextmanager
def cluster_machine() -> Iterator[ClusterMachine]:
    """The kubeconfig's cluster, with a namespace that lasts as long as the context."""
    image = cluster_image()
    kube = Kube.connect()
    with namespace(kube) as where:
        machine = ClusterMachine(kube, where, image)
        yield machine
        machine.launcher().sweep()


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
