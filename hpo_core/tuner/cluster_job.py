"""A tuner in the background of a cluster: a Job with our image, which is started anew when its pod dies.

Its order lies in a ConfigMap that the Job owns; the store's address and credentials come to its pod from a Secret, by
reference. Whichever pod comes, the store's lease lets one of them tune.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo_core import __version__
from hpo_core.errors import Conflict, LaunchError, Problem, SpecError
from hpo_core.exit_codes import REFUSED
from hpo_core.experiment import Experiment
from hpo_core.kube import Kube
from hpo_core.launch.cluster.diagnosis import event_trouble, pod_trouble
from hpo_core.launch.cluster.dress import ISTIO, owner_reference
from hpo_core.launch.cluster.endings import Document, ending
from hpo_core.launch.cluster.sidecar import STORE_ENVIRONMENT
from hpo_core.loop import Patience, SystemClock
from hpo_core.status import RUNNING, Tally, judge
from hpo_core.store import ExperimentStore
from hpo_core.tuner.place import IMAGE_VARIABLE

LABEL_TUNER = "kfp-hpo/tuner"
"""Label of all that belongs to the tuner of an experiment; its value is the experiment's name."""
CONTAINER = "tuner"
JOB_NAME = "batch.kubernetes.io/job-name"
"""Label by which a Job's pods are known."""
ORDER_FOLDER = "/hpo/order"
ORDER = "order.json"
RESTARTS = 50
FAILURES = 2
"""So many pods that ended before one has begun to tune tell that no other will."""
KEPT_S = 24 * 3600
"""How long a Job that has ended stays, for its log."""
SUSPENDED_S = 30
"""The same, of one whose tuner has suspended the experiment."""
READY_S = 180.0
"""How long a tuner's pod may take to say, by its lease, that it runs."""
POLL_S = 0.5


@dataclass(frozen=True)
class TunerPod:
    """How a tuner's pod is to be.

    Attributes:
        image: The engine's image.
        service_account: Whose permissions it has.
        fields: Further fields of its pod's spec, such as priorityClassName, imagePullSecrets, nodeSelector,
            tolerations; `resources` are its container's.
        environment: `env` and `envFrom` of its container, by which it gets the store's server and credentials.
    """

    image: str = field(default_factory=lambda: os.environ.get(IMAGE_VARIABLE) or f"kfp-hpo/hpo-python:{__version__}")
    service_account: str = "hpo-tuner"
    fields: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=lambda: STORE_ENVIRONMENT)


def start(kube: Kube, experiment: Experiment, order: Mapping[str, Any], store: ExperimentStore, pod: TunerPod) -> None:
    """Start a tuner's Job, unless there is one that has not ended, and wait until a tuner holds the lease.

    How earlier pods of one that is there have ended tells nothing of its next one.

    Raises:
        SpecError: The tuner refuses the experiment; the message is its own.
        LaunchError: It does not come up; the message says what keeps its pod from running. One that was made here is
            removed then.
    """
    patiently = Patience(SystemClock())
    adopted = next((job for job in patiently(_jobs, kube, experiment) if not _is_over(job)), None)
    job = adopted or _create(kube, experiment, order, pod)
    name = job["metadata"]["name"]
    before = patiently(_pods, kube, adopted) if adopted else []
    ended = {pod["metadata"]["name"] for pod in before if ending(pod, CONTAINER) is not None}
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if patiently(store.is_held) and patiently(store.derived, "status.json") is not None:
            return
        job = patiently(kube.get, "batch/v1", "Job", name, namespace=experiment.namespace)
        pods = [found for found in patiently(_pods, kube, job) if found["metadata"]["name"] not in ended]
        try:
            patiently(_check, kube, job, pods)
        except (LaunchError, SpecError):
            if adopted is None:
                patiently(remove, kube, experiment)  # nobody tunes, and the next launch must not take this one up
            raise
        if _is_over(job) and (adopted is None or _is_done(experiment, job, store)):
            return  # it was done before we looked
        if _is_over(job):  # it was about to end when we found it
            job, adopted = _create(kube, experiment, order, pod), None
            name = job["metadata"]["name"]
        time.sleep(POLL_S)
    raise LaunchError(f"the tuner's Job {name} has not begun to tune within {READY_S:g} s; `kubectl describe` it")


def remove(kube: Kube, experiment: Experiment) -> None:
    """Remove every Job, pod and order of an experiment's tuners. Idempotent."""
    selector = f"{LABEL_TUNER}={experiment.name}"
    kube.delete_all("batch/v1", "Job", selector=selector, namespace=experiment.namespace)
    kube.delete_all("v1", "ConfigMap", selector=selector, namespace=experiment.namespace)


def keep_briefly(kube: Kube, experiment: Experiment) -> None:
    """Let the Jobs of tuners that suspend their experiment go soon after their end, whoever asked for that."""
    for job in _jobs(kube, experiment):
        name, changed = job["metadata"]["name"], {"spec": {"ttlSecondsAfterFinished": SUSPENDED_S}}
        kube.patch("batch/v1", "Job", name, changed, namespace=experiment.namespace)


def make_job(experiment: Experiment, name: str, pod: TunerPod) -> dict[str, Any]:
    """Write the Job of a tuner, fit for the PodSecurity level `restricted`."""
    fields = dict(pod.fields)
    container = {
        "name": CONTAINER,
        "image": pod.image,
        "command": ["python", "-m", "hpo_core.tuner", f"{ORDER_FOLDER}/{ORDER}"],
        **pod.environment,
        "env": [{"name": IMAGE_VARIABLE, "value": pod.image}, *pod.environment.get("env", ())],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": fields.pop("resources", {"requests": {"cpu": "100m", "memory": "256Mi"}}),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "order", "mountPath": ORDER_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    labels = {LABEL_TUNER: experiment.name}
    marks = {"labels": {**labels, ISTIO: "false"}, "annotations": {ISTIO: "false"}}
    spec = {
        "restartPolicy": "Never",
        "serviceAccountName": pod.service_account,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "order", "configMap": {"name": name}}, {"name": "tmp", "emptyDir": {}}],
        **fields,
    }
    refused = {"containerName": CONTAINER, "operator": "In", "values": [REFUSED]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": experiment.namespace, "labels": labels},
        "spec": {
            "backoffLimit": RESTARTS,
            "ttlSecondsAfterFinished": KEPT_S,
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": refused},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": marks, "spec": spec},
        },
    }


def _create(kube: Kube, experiment: Experiment, order: Mapping[str, Any], pod: TunerPod) -> Document:
    name = f"{experiment.name[:40].rstrip('-')}-tuner-{secrets.token_hex(3)}"
    labels = {LABEL_TUNER: experiment.name}
    where = experiment.namespace
    patiently = Patience(SystemClock())
    told = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": where, "labels": labels},
        "data": {ORDER: json.dumps(order, indent=1)},
    }
    patiently(_make, kube, told)
    job = patiently(_make, kube, make_job(experiment, name, pod))
    owner = {"metadata": {"ownerReferences": [owner_reference(job)]}}
    patiently(kube.patch, "v1", "ConfigMap", name, owner, namespace=where)
    return job


def _make(kube: Kube, manifest: Mapping[str, Any]) -> Document:
    """Create an object whose name nobody else gives: one that is there is ours, and the answer to that was lost."""
    try:
        return kube.create(manifest)
    except Conflict:
        metadata = manifest["metadata"]
        return kube.get(manifest["apiVersion"], manifest["kind"], metadata["name"], namespace=metadata["namespace"])


def _jobs(kube: Kube, experiment: Experiment) -> list[Document]:
    selector = f"{LABEL_TUNER}={experiment.name}"
    return list(kube.list("batch/v1", "Job", namespace=experiment.namespace, selector=selector))


def _pods(kube: Kube, job: Document) -> list[Document]:
    metadata = job["metadata"]
    return list(kube.list("v1", "Pod", namespace=metadata["namespace"], selector=f"{JOB_NAME}={metadata['name']}"))


def _is_over(job: Document) -> bool:
    return _has(job, "Complete") or _has(job, "Failed")


def _is_done(experiment: Experiment, job: Document, store: ExperimentStore) -> bool:
    """Tell whether a tuner that we found, and whose next pod we may have waited for, has left nothing to do."""
    return _has(job, "Complete") and judge(experiment, Tally.of(experiment.objective, store.trials())) != RUNNING


def _has(job: Document, condition: str) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(c.get("type") == condition and c.get("status") == "True" for c in conditions)


def _check(kube: Kube, job: Document, pods: list[Document]) -> None:
    """Say what keeps a tuner from running, if that will not pass by itself."""
    name = job["metadata"]["name"]
    newest = max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)
    if newest is None:
        events = kube.list("v1", "Event", namespace=job["metadata"]["namespace"])
        trouble = event_trouble(e for e in events if (e.get("involvedObject") or {}).get("name") == name)
        if trouble is not None and trouble.reason == "RefusedByAdmission":
            raise LaunchError(f"the tuner's Job {name} gets no pod: {trouble.message}")
        return
    how = ending(newest, CONTAINER)
    if how is not None and how.code == REFUSED:
        said = _last_word(newest)
        raise SpecError([Problem("", said)]) if said else LaunchError(f"the tuner {name} was refused; see its log")
    failed = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Failed"]
    if len(failed) >= FAILURES:
        raise LaunchError(f"the tuner's pods end again and again, with: {_last_word(failed[-1]) or 'no word'}")
    trouble = pod_trouble(newest, CONTAINER, now_s=kube.now_s())
    if trouble is not None and trouble.patience_s is not None:
        raise LaunchError(f"the tuner's pod {newest['metadata']['name']} does not run: {trouble.message}")


def _last_word(pod: Document) -> str:
    """What a tuner that was refused has said, by its termination message."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        if status.get("name") == CONTAINER:
            return str(((status.get("state") or {}).get("terminated") or {}).get("message") or "").strip()
    return ""
