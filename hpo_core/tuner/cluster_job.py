"""A tuner in the background of a cluster: a Job with our image, which is started anew when its pod dies.

Its order lies in a ConfigMap that the Job owns; the store's address and credentials come to its pod from a Secret, by
reference. Whichever pod comes, the store's lease lets one of them tune.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import Any

from hpo_core import __version__
from hpo_core.errors import Conflict, HpoError, LaunchError, NotFound, Problem, SpecError, TransientError
from hpo_core.exit_codes import REFUSED
from hpo_core.experiment import Experiment
from hpo_core.kube import Kube
from hpo_core.launch.cluster.diagnosis import Trouble, event_trouble, pod_trouble
from hpo_core.launch.cluster.dress import ISTIO, owner_reference
from hpo_core.launch.cluster.endings import Document, ending
from hpo_core.loop import Patience, SystemClock
from hpo_core.objects.lease import LEASE_S
from hpo_core.status import RUNNING, Tally, judge
from hpo_core.store import ExperimentStore
from hpo_core.tuner.background import runs_the_same
from hpo_core.tuner.interruption import pause
from hpo_core.tuner.place import IMAGE_VARIABLE
from hpo_core.tuner.pod_store import STORE_ENVIRONMENT

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
ADOPTED_S = 45.0
"""The same, of a Job that has been there for longer: its next pod comes within 20 s after few ends, and a cluster that
has lost a node knows that within a minute of the last sign of life, which a free lease is 20 s after."""
SETTLE_S = LEASE_S + 10.0
"""How long the lease may be held without a record of what was told: by one who is about to write it, or who was killed
before that and whose lease runs out."""
POLL_S = 0.5

_log = logging.getLogger(__name__)


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


def start(
    kube: Kube,
    experiment: Experiment,
    order: Mapping[str, Any],
    store: ExperimentStore,
    pod: TunerPod,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Start a tuner's Job, unless one that is there comes to tune, and wait until a tuner of the experiment does.

    A Job that is there may have lost its pod with a node, or pause after many ends of it, for minutes; so it is waited
    for only as long as its next pod usually takes, and then another takes its place. The lease lets one of them tune.

    Args:
        kube: The cluster.
        experiment: What is to be tuned.
        order: What a new tuner is told.
        store: The experiment's records.
        pod: How a new tuner's pod is to be.
        should_stop: Asked several times a second; true ends the waiting, and a Job that was made here stays.

    Raises:
        SpecError: The tuner refuses the experiment; the message is its own.
        Conflict: Somebody else holds the lease, for another spec or budget.
        LaunchError: It does not come up; the message says what keeps its pod from running.
        TransientError: The cluster or the store was out of reach for minutes.
        A Job that was made here is removed before any of them is raised.
    """
    starting = _Starting(kube, experiment, store, should_stop)
    while (found := starting.find()) is not None:
        if starting.adopt(found):
            return
    starting.create(order, pod)


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


class _Outcome(Enum):
    """What has become of a Job that was waited for: a tuner tunes; it is over, or gone; neither in time."""

    BEGUN, OVER, LATE = range(3)


class _Starting:
    """A tuner that is being started."""

    def __init__(
        self, kube: Kube, experiment: Experiment, store: ExperimentStore, should_stop: Callable[[], bool]
    ) -> None:
        self._kube, self._experiment, self._store, self._should_stop = kube, experiment, store, should_stop
        self._patiently = Patience(SystemClock(), gave_up=should_stop)
        self._job: Document = {}
        self._trouble: Trouble | None = None
        self._trouble_since = 0.0
        self._strange_since: float | None = None

    def find(self) -> Document | None:
        """Return the newest Job that may still come to tune."""
        living = [job for job in self._patiently(_jobs, self._kube, self._experiment) if not _is_over(job)]
        return max(living, key=_created, default=None)

    def adopt(self, found: Document) -> bool:
        """Wait for a Job that somebody else made; false, and it is over or removed, when another is needed.

        How its earlier pods have ended tells nothing of its next one.
        """
        name = found["metadata"]["name"]
        before = self._patiently(_pods, self._kube, found)
        ended = {pod["metadata"]["name"] for pod in before if ending(pod, CONTAINER) is not None}
        age_s = self._kube.now_s() - datetime.fromisoformat(_created(found)).timestamp()
        try:
            outcome = self._follow(found, max(ADOPTED_S, READY_S - age_s), ended)
            why = self._why_late()
        except (LaunchError, SpecError) as error:  # it need not be so for what is asked now
            outcome, why = _Outcome.LATE, str(error)
        if outcome is _Outcome.OVER:
            return self._patiently(_is_done, self._experiment, self._job, self._store)
        if outcome is _Outcome.LATE:
            _log.warning("tuner.replaced job=%s reason=%s", name, why)
            self._patiently(_remove_job, self._kube, name, self._experiment.namespace)
        return outcome is _Outcome.BEGUN

    def create(self, order: Mapping[str, Any], pod: TunerPod) -> None:
        """Make a Job and wait for it; it is removed when that fails, lest it tunes later, or is adopted."""
        if self._has_begun():
            return  # by the Job of somebody who looked at the same time
        name = f"{self._experiment.name[:40].rstrip('-')}-tuner-{secrets.token_hex(3)}"
        try:
            job = self._submit(name, order, pod)
            outcome = self._follow(job, READY_S, set())
            if outcome is _Outcome.LATE:
                why = self._why_late()
                raise LaunchError(f"the tuner's Job {name} has not begun to tune within {READY_S:g} s: {why}")
            if outcome is _Outcome.OVER and not _has(self._job, "Complete"):
                raise LaunchError(f"the tuner's Job {name} has failed, or was removed, before it began to tune")
        except HpoError:
            with contextlib.suppress(TransientError):  # what has failed says more
                self._patiently(_remove_job, self._kube, name, self._experiment.namespace)
            raise

    def _submit(self, name: str, order: Mapping[str, Any], pod: TunerPod) -> Document:
        where = self._experiment.namespace
        told = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": where, "labels": {LABEL_TUNER: self._experiment.name}},
            "data": {ORDER: json.dumps(order, indent=1)},
        }
        self._patiently(_make, self._kube, told)
        job = self._patiently(_make, self._kube, make_job(self._experiment, name, pod))
        owner = {"metadata": {"ownerReferences": [owner_reference(job)]}}
        with contextlib.suppress(NotFound):  # it was removed meanwhile, and so was the Job
            self._patiently(self._kube.patch, "v1", "ConfigMap", name, owner, namespace=where)
        return job

    def _follow(self, job: Document, seconds: float, ended: set[str]) -> _Outcome:
        """Look at a Job, but not at its pods that had ended, until a tuner tunes; being told to stop is as good.

        Raises:
            SpecError, Conflict, LaunchError: As `start`.
        """
        self._job, self._trouble = job, None
        until = time.monotonic() + seconds
        while time.monotonic() < until or self._strange_since is not None:
            if self._should_stop() or self._has_begun():
                return _Outcome.BEGUN
            try:
                name, where = job["metadata"]["name"], job["metadata"]["namespace"]
                self._job = self._patiently(self._kube.get, "batch/v1", "Job", name, namespace=where)
            except NotFound:
                return _Outcome.OVER
            pods = [pod for pod in self._patiently(_pods, self._kube, job) if pod["metadata"]["name"] not in ended]
            self._bear(self._patiently(_find_trouble, self._kube, self._job, pods))
            if _is_over(self._job):
                return _Outcome.OVER
            pause(POLL_S, self._should_stop)
        return _Outcome.BEGUN if self._patiently(self._store.is_held) else _Outcome.LATE

    def _has_begun(self) -> bool:
        """Tell whether a tuner of this very experiment holds the lease, and its status can be read.

        Raises:
            Conflict: Somebody holds it who does not tune what is asked, and not because he has just taken it.
        """
        held = self._patiently(self._store.is_held)
        if not held or self._patiently(runs_the_same, self._store, self._experiment):
            self._strange_since = None
            return held and self._patiently(self._store.derived, "status.json") is not None
        now = time.monotonic()
        self._strange_since = self._strange_since or now
        if now - self._strange_since >= SETTLE_S:
            raise self._patiently(self._store.refusal)
        return False

    def _bear(self, trouble: Trouble | None) -> None:
        """Take in what keeps the tuner from running now.

        Raises:
            LaunchError: It has for longer than such a thing takes to pass.
        """
        now = time.monotonic()
        if trouble is None or self._trouble is None or trouble.reason != self._trouble.reason:
            self._trouble_since = now
        self._trouble = trouble
        patience_s = None if trouble is None else trouble.patience_s
        if trouble is not None and patience_s is not None and now - self._trouble_since >= patience_s:
            raise LaunchError(trouble.message)

    def _why_late(self) -> str:
        told = "see `kubectl get events`, and whether its node answers"
        return told if self._trouble is None else self._trouble.message


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


def _remove_job(kube: Kube, name: str, namespace: str) -> None:
    """Remove one Job, its pods and its order, which it does not own before both are made. Idempotent."""
    kube.delete("batch/v1", "Job", name, namespace=namespace)
    kube.delete("v1", "ConfigMap", name, namespace=namespace)


def _created(document: Document) -> str:
    return str(document["metadata"]["creationTimestamp"])


def _is_over(job: Document) -> bool:
    return bool(job["metadata"].get("deletionTimestamp")) or _has(job, "Complete") or _has(job, "Failed")


def _is_done(experiment: Experiment, job: Document, store: ExperimentStore) -> bool:
    """Tell whether a tuner that we found, and whose next pod we may have waited for, has left nothing to do."""
    return _has(job, "Complete") and judge(experiment, Tally.of(experiment.objective, store.trials())) != RUNNING


def _has(job: Document, condition: str) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(c.get("type") == condition and c.get("status") == "True" for c in conditions)


def _find_trouble(kube: Kube, job: Document, pods: list[Document]) -> Trouble | None:
    """Tell what keeps a tuner from running now.

    Raises:
        SpecError: It has refused the experiment.
        LaunchError: Its pods end again and again, whatever is waited for.
    """
    name = job["metadata"]["name"]
    newest = max(pods, key=_created, default=None)
    if newest is None:
        events = kube.list("v1", "Event", namespace=job["metadata"]["namespace"])
        trouble = event_trouble(e for e in events if (e.get("involvedObject") or {}).get("name") == name)
        return trouble and replace(trouble, message=f"the tuner's Job {name} gets no pod: {trouble.message}")
    how = ending(newest, CONTAINER)
    if how is not None and how.code == REFUSED:
        said = _last_word(newest)
        raise SpecError([Problem("", said)]) if said else LaunchError(f"the tuner {name} was refused; see its log")
    failed = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Failed"]
    if len(failed) >= FAILURES:
        raise LaunchError(f"the tuner's pods end again and again, with: {_last_word(failed[-1]) or 'no word'}")
    trouble = pod_trouble(newest, CONTAINER, now_s=kube.now_s())
    told = f"the tuner's pod {newest['metadata']['name']} does not run"
    return trouble and replace(trouble, message=f"{told}: {trouble.message}")


def _last_word(pod: Document) -> str:
    """What a tuner that was refused has said, by its termination message."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        if status.get("name") == CONTAINER:
            return str(((status.get("state") or {}).get("terminated") or {}).get("message") or "").strip()
    return ""
