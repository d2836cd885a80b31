"""Each way in which a trial can come to grief in a real cluster has a condition and a reason, and its neighbours go on.

All trials of one namespace run beside each other, as those of one experiment. KUBECONFIG names the cluster and
HPO_E2E_IMAGE an image with python3, HPO_E2E_REGISTRY a registry that the nodes reach.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pytest

from hpo_core import loop
from hpo_core.kube import Kube
from hpo_core.launch import Event, Job
from hpo_core.launch.cluster.launcher import ClusterLauncher
from hpo_core.manifest import LABEL_TRIAL
from hpo_core.objects import MemoryStore
from hpo_core.search import make_search
from hpo_core.store import ExperimentStore
from hpo_core.trial import Trial, TrialCondition
from tests.contracts.cluster_machine import BARE, RESTRICTED, USER, cluster_image, namespace
from tests.experiments import REMOVED, make_experiment, parameter

pytestmark = [pytest.mark.e2e, pytest.mark.last]

NOW = "2026-01-01T00:00:00.000Z"
PENDING_S = 25
WITHIN_S = 60.0
EVICTED_S = 60.0 + WITHIN_S
"""A kubelet looks once a minute at what volumes hold."""
TRAINS = 'print("loss=0.5", flush=True)'
SHORTLY = f"import time; time.sleep(3); {TRAINS}"
SLEEPS = "import time; time.sleep(600)"

QUOTA = "QuotaExceeded"
HOST = "kubernetes.io/hostname"

REGISTRY = os.environ.get("HPO_E2E_REGISTRY", "")
"""A registry, as the cluster's nodes reach it."""

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """What happens to a trial, and what is to be told of it.

    Attributes:
        name: Its name in reports, and the value of the trial's one parameter.
        tells: The reason.
        words: A pattern that the message holds.
        condition: How the trial ends.
        trains: The program of its first attempt; a later one trains well.
        container, pod, job: What its first attempt's manifest has beside that.
        deadline_s: Seconds that it may run.
        act: What somebody does to it once its pod runs.
        attempts: How often it is started.
        waits: What it waits for, as is shown before it starts or ends; "" when it does not.
        within_s: How soon after its creation it has to be over, besides the time for which it may wait.
    """

    name: str
    tells: str
    words: str = ""
    condition: TrialCondition = TrialCondition.FAILED
    trains: str = TRAINS
    container: Mapping[str, Any] = field(default_factory=dict)
    pod: Mapping[str, Any] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float | None = None
    act: Callable[[Kube, str, str], None] | None = None
    attempts: int = 1
    waits: str = ""
    within_s: float = WITHIN_S

    def __str__(self) -> str:
        return self.name


def from_secret(kind: str) -> Mapping[str, Any]:
    return {"env": [{"name": "TOKEN", "valueFrom": {f"{kind}KeyRef": {"name": "not-there", "key": "token"}}}]}


def writes(volume: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"volumes": [{"name": "scratch", **volume}]}


def delete_pod(kube: Kube, where: str, name: str) -> None:
    for pod in kube.list("v1", "Pod", namespace=where, selector=f"{LABEL_TRIAL}={name}"):
        kube.delete("v1", "Pod", pod["metadata"]["name"], namespace=where)


def delete_job(kube: Kube, where: str, name: str) -> None:
    kube.delete("batch/v1", "Job", name, namespace=where)


def let_succeed(kube: Kube, where: str, name: str) -> None:
    metadata = {"name": "second", "namespace": where}
    kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"again": name}})


def preempt(kube: Kube, where: str, name: str) -> None:
    (pod,) = kube.list("v1", "Pod", namespace=where, selector=f"{LABEL_TRIAL}={name}")
    spec = {**pod["spec"], "priorityClassName": f"{where}-high"}
    for field_name in ("priority", "preemptionPolicy", "nodeName", "serviceAccountName", "volumes", "tolerations"):
        spec.pop(field_name, None)
    spec["containers"] = [
        {"name": "main", "image": pod["spec"]["containers"][0]["image"], "command": ["sleep", "5"]}
        | {"resources": pod["spec"]["containers"][0]["resources"]}
    ]
    metadata = {"name": "preemptor", "namespace": where}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


SCRATCH = {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
WRITES = "import time; open('/scratch/file', 'wb').write(bytes(8 << 20)); time.sleep(600)"
BEAT = "import time\nfor second in range(25): print(f'beat={second}', flush=True); time.sleep(1)\nprint('loss=0.1')"
LOST: dict[str, Any] = {"condition": TrialCondition.SUCCEEDED, "trains": SLEEPS, "attempts": 2}

AGAIN = Scenario("again", "")

PLAIN = (
    Scenario("succeeds", "TrialSucceeded", "^$", TrialCondition.SUCCEEDED),
    Scenario("goes-on-beside-them", "TrialSucceeded", "^$", TrialCondition.SUCCEEDED, trains=BEAT),
    Scenario("exit-code", "ExitCode", "exit code 3; last lines: oh", trains="import sys; print('oh'); sys.exit(3)"),
    Scenario("signal", "KilledBySignal", "SIGSEGV", trains="import os; os.kill(os.getpid(), 11); os._exit(139)"),
    Scenario("no-metric", "MetricNotFound", "loss=<number>", TrialCondition.METRICS_UNAVAILABLE, trains="print('hi')"),
    Scenario("command-not-found", "CommandNotFound", "/nowhere/trainer", container={"command": ["/nowhere/trainer"]}),
    Scenario("no-program", "CommandNotFound", "trainer", container={"command": ["no-such-trainer"]}),
    Scenario("not-executable", "CannotStart", "permission denied", container={"command": ["/etc/passwd"]}),
    Scenario(
        "out-of-memory",
        "OutOfMemory",
        "raise the limit",
        trains="held = [bytearray(1 << 20) for _ in range(512)]",
        container={"resources": {"limits": {"memory": "64Mi"}}},
    ),
    Scenario("deadline", "DeadlineExceeded", "deadline", trains=SLEEPS, deadline_s=4.0),
    Scenario(
        "unschedulable",
        "Unschedulable",
        "no node can take its pod.*[Ii]nsufficient memory.*pending-deadline",
        container={"resources": {"requests": {"memory": "900Gi"}}},
        waits="Unschedulable",
    ),
    Scenario(
        "root-image",
        "CannotStart",
        "runAsNonRoot.*runAsUser",
        pod={"securityContext": {"runAsNonRoot": True}},
        waits="CannotStart",
    ),
    Scenario(
        "unknown-registry",
        "ImagePullFailed",
        "no-such-host.invalid.*imagePullSecrets",
        container={"image": "no-such-host.invalid/trainer:1", "imagePullPolicy": "Always"},
        waits="ImagePullFailed",
    ),
    Scenario(
        "invalid-image", "InvalidImage", "Not/An:Image", container={"image": "Not/An:Image"}, waits="InvalidImage"
    ),
    Scenario(
        "no-secret", "CannotStart", 'secret "not-there" not found', container=from_secret("secret"), waits="CannotStart"
    ),
    Scenario(
        "no-config-map",
        "CannotStart",
        'configmap "not-there" not found',
        container=from_secret("configMap"),
        waits="CannotStart",
    ),
    Scenario(
        "no-secret-volume",
        "CannotMount",
        'secret "not-there" not found',
        container=SCRATCH,
        pod=writes({"secret": {"secretName": "not-there"}}),
        waits="CannotMount",
    ),
    Scenario(
        "volume-too-full",
        "Evicted",
        'volume "scratch" exceeds the limit.*[Rr]aise',
        trains=WRITES,
        container=SCRATCH,
        pod=writes({"emptyDir": {"sizeLimit": "1Mi"}}),
        within_s=EVICTED_S,
    ),
    Scenario(
        "disk-too-full",
        "Evicted",
        "ephemeral.*[Rr]aise",
        trains=WRITES,
        container={**SCRATCH, "resources": {"limits": {"ephemeral-storage": "1Mi"}}},
        pod=writes({"emptyDir": {}}),
        within_s=EVICTED_S,
    ),
    Scenario(
        "endless-sidecar",
        "TrialSucceeded",
        "'stranger' goes on in its pod",
        TrialCondition.SUCCEEDED,
        pod={"stranger": True},
    ),
    Scenario("pod-deleted", "TrialSucceeded", "^$", act=delete_pod, **LOST),
    Scenario("job-deleted", "TrialSucceeded", "^$", act=delete_job, **LOST),
    Scenario(
        "second-pod-succeeds",
        "TrialSucceeded",
        "^$",
        TrialCondition.SUCCEEDED,
        trains="import os, sys; print('loss=0.25', flush=True); sys.exit(not os.path.exists('/scratch/again'))",
        job={"backoffLimit": 1},
        container=SCRATCH,
        pod=writes({"configMap": {"name": "second", "optional": True}}),
        act=let_succeed,
    ),
    Scenario(
        "restarted-in-place-for-ever",
        "ExitCode",
        "exit code 3",
        trains="import sys; print('loss=0.25', flush=True); sys.exit(3)",
        pod={"restartPolicy": "OnFailure"},
    ),
)

IN_RESTRICTED = (
    Scenario("forbidden", "RefusedByAdmission", "violates PodSecurity.*securityContext", waits="RefusedByAdmission"),
    Scenario(
        "allowed",
        "TrialSucceeded",
        "^$",
        TrialCondition.SUCCEEDED,
        container={"securityContext": BARE},
        pod={"securityContext": USER},
    ),
)
"""In a namespace that enforces the restricted level of PodSecurity."""
FEW_PODS = (
    Scenario("pod-in-time", "TrialSucceeded", "^$", TrialCondition.SUCCEEDED, trains=SHORTLY, waits=QUOTA),
    Scenario(
        "pod-too-large",
        QUOTA,
        "quota has no room for its pod: .*exceeded quota.*pending-deadline",
        container={"resources": {"requests": {"memory": "2Gi"}}},
        waits=QUOTA,
    ),
)
"""In a namespace with room for so few pods that they have to wait for somebody else's."""
FEW_JOBS = (Scenario("job-in-time", "TrialSucceeded", "^$", TrialCondition.SUCCEEDED, trains=SHORTLY, waits=QUOTA),)
"""In a namespace with room for one Job, which somebody else has for a while."""
NO_JOB = (
    Scenario("job-too-late", QUOTA, "quota has no room for its Job: .*exceeded quota.*pending-deadline", waits=QUOTA),
)
"""In a namespace without room for any."""
PREEMPTED = (
    Scenario(
        "preempted",
        "TrialSucceeded",
        "^$",
        act=preempt,
        **LOST,
    ),
    Scenario("spared", "TrialSucceeded", "^$", TrialCondition.SUCCEEDED, trains=BEAT),
)
"""In a namespace where a pod of higher priority comes."""


class Altering:
    """A launcher that changes each trial's manifest as its scenario says."""

    site = ""

    def __init__(self, launcher: ClusterLauncher, image: str, scenarios: Sequence[Scenario]) -> None:
        self._launcher, self._image = launcher, image
        self._scenarios = {scenario.name: scenario for scenario in scenarios}
        self.jobs: dict[str, list[str]] = {}

    def submit(self, job: Job) -> None:
        scenario = self._scenarios[str(job.manifest["metadata"]["annotations"]["scenario"])]
        jobs = self.jobs.setdefault(scenario.name, [])
        jobs += [job.name] if job.name not in jobs else []
        first = job.name == jobs[0]
        manifest = altered(job.manifest, scenario if first else AGAIN, self._image)
        self._launcher.submit(replace(job, manifest=manifest, deadline_s=scenario.deadline_s))

    def stop(self, name: str) -> None:
        self._launcher.stop(name)

    def events(self, timeout_s: float) -> list[Event]:
        return self._launcher.events(timeout_s)

    def forget(self, name: str) -> None:
        self._launcher.forget(name)


def altered(manifest: Mapping[str, Any], scenario: Scenario, image: str) -> Manifest:
    spec = {**manifest["spec"], **scenario.job}
    pod = {**spec["template"]["spec"], "terminationGracePeriodSeconds": 1, **scenario.pod}
    command = ["python3", "-S", "-c", scenario.trains]
    main = {"image": image, "imagePullPolicy": "IfNotPresent", "command": command}
    pod["containers"] = [{**pod["containers"][0], **main, **scenario.container}]
    if pod.pop("stranger", False):
        pod["containers"].append({**main, "name": "stranger", "command": ["sleep", "600"]})
    return {**manifest, "spec": {**spec, "template": {**spec["template"], "spec": pod}}}


@dataclass
class Told:
    """What became of each scenario's trial, and the reasons that were shown while it was not over."""

    trials: dict[str, Trial]
    shown: dict[str, list[str]]


def play(kube: Kube, where: str, image: str, scenarios: Sequence[Scenario]) -> Told:
    """Run one experiment whose trials are these scenarios, all at once."""
    names = [scenario.name for scenario in scenarios]
    changes = {
        "metadata.namespace": where,
        "metadata.annotations": {"kfp-hpo/pending-deadline": f"{PENDING_S}s"},
        "spec.algorithm.algorithmName": "grid",
        "spec.parallelTrialCount": len(names),
        "spec.maxTrialCount": len(names),
        "spec.maxFailedTrialCount": REMOVED,
        "spec.trialTemplate.trialSpec.metadata": {"annotations": {"scenario": "${trialParameters.scenario}"}},
    }
    records = ExperimentStore(MemoryStore(), where, "small")
    drawn = replace(make_experiment([parameter("scenario", "categorical", list=names)], changes=changes), uid="")
    experiment = records.accept(replace(drawn, uid=secrets.token_hex(16)), now=NOW)
    direct = ClusterLauncher(kube, experiment)
    launcher = Altering(direct, image, scenarios)
    told = Told({}, {name: [] for name in names})
    acts = {scenario.name: scenario.act for scenario in scenarios if scenario.act}

    def look(run: loop.Run, changed: bool) -> None:
        for trial in run.trials if changed else []:
            name = str(trial.assignments["scenario"])
            if not trial.condition.is_terminal and trial.reason not in told.shown[name]:
                told.shown[name].append(trial.reason)
            if trial.condition is TrialCondition.RUNNING and (act := acts.pop(name, None)):
                act(kube, where, trial.name)

    with records.lease({"who": "test"}):
        loop.run(loop.Run(experiment, records, launcher, make_search(experiment)), look)
    direct.sweep()
    told.trials = {str(trial.assignments["scenario"]): trial for trial in records.trials()}
    return told


@dataclass(frozen=True)
class Scene:
    """A namespace and what happens in it.

    Attributes:
        scenarios: The trials.
        labels: The namespace's.
        objects: What is there beforehand.
    """

    scenarios: Sequence[Scenario]
    labels: Mapping[str, str] = field(default_factory=dict)
    objects: Sequence[Manifest] = ()

    def play(self, kube: Kube, image: str) -> Told:
        with namespace(kube, self.labels) as where:
            for manifest in self.objects:
                kube.create({**manifest, "metadata": {"name": "others", "namespace": where}})
            return play(kube, where, image, self.scenarios)


def quota(**hard: str) -> Manifest:
    limits = {name.replace("_", "/").replace("jobs", "jobs.batch"): amount for name, amount in hard.items()}
    return {"apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": limits}}


POD_REQUESTS = {"limits": [{"type": "Container", "defaultRequest": {"memory": "64Mi"}}]}
OTHERS_S = 6
SHORT_LIVED: Manifest = {
    "activeDeadlineSeconds": OTHERS_S,
    "restartPolicy": "Never",
    "containers": [{"name": "main", "image": "nowhere/none:1"}],
}
OTHERS_POD: Manifest = {"apiVersion": "v1", "kind": "Pod", "spec": SHORT_LIVED}
OTHERS_JOB: Manifest = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "spec": {"activeDeadlineSeconds": OTHERS_S, "ttlSecondsAfterFinished": 0, "template": {"spec": SHORT_LIVED}},
}
"""Somebody else's, which are there before a quota is, and take up room in it for a while."""
SCENES = (
    Scene(PLAIN),
    Scene(IN_RESTRICTED, RESTRICTED),
    Scene(
        FEW_PODS,
        objects=(
            OTHERS_POD,
            quota(pods="1", **{"requests.memory": "1Gi"}),
            {"apiVersion": "v1", "kind": "LimitRange", "spec": POD_REQUESTS},
        ),
    ),
    Scene(FEW_JOBS, objects=(OTHERS_JOB, quota(count_jobs="1"))),
    Scene(NO_JOB, objects=(quota(count_jobs="0"),)),
)


def play_preemption(kube: Kube, image: str) -> Told:
    """Two trials of low priority, one of which leaves no room for a pod of higher priority; nobody else's has less."""
    node = next(node for node in kube.list("v1", "Node") if not node["spec"].get("taints"))
    memory = str(int(node["status"]["allocatable"]["memory"].removesuffix("Ki")) * 6 // 10) + "Ki"
    large = {"resources": {"requests": {"memory": memory}}}
    with namespace(kube) as where, contextlib.ExitStack() as classes:
        for name, value in (("high", -5), ("low", -10)):
            metadata = {"name": f"{where}-{name}"}
            kube.create(
                {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": metadata, "value": value}
            )
            classes.callback(kube.delete, "scheduling.k8s.io/v1", "PriorityClass", f"{where}-{name}")
        low = {"priorityClassName": f"{where}-low", "nodeSelector": {HOST: node["metadata"]["labels"][HOST]}}
        preempted, spared = PREEMPTED
        return play(kube, where, image, [replace(preempted, pod=low, container=large), replace(spared, pod=low)])


@pytest.fixture(scope="module")
def stage() -> Iterator[Mapping[str, Future[Told]]]:
    """What became of each scenario, by its name; all scenes are played at the same time."""
    image, kube = cluster_image(), Kube.connect()
    with ThreadPoolExecutor() as pool:
        scenes = [(scene.scenarios, pool.submit(scene.play, kube, image)) for scene in SCENES]
        scenes.append((PREEMPTED, pool.submit(play_preemption, kube, image)))
        yield {scenario.name: told for scenarios, told in scenes for scenario in scenarios}


def took_s(trial: Trial) -> float:
    return (datetime.fromisoformat(trial.completed) - datetime.fromisoformat(trial.created)).total_seconds()


EVERY = [*(scenario for scene in SCENES for scenario in scene.scenarios), *PREEMPTED]


@pytest.mark.parametrize("scenario", EVERY, ids=str)
def test_a_trial_that_comes_to_grief_says_why(stage: Mapping[str, Future[Told]], scenario: Scenario) -> None:
    if scenario.name == "unknown-image" and not REGISTRY:
        pytest.skip("HPO_E2E_REGISTRY names no registry: what is told of a name that it does not know is unproven")
    told = stage[scenario.name].result()
    trial = told.trials[scenario.name]
    assert (trial.condition, trial.reason) == (scenario.condition, scenario.tells)
    assert re.search(scenario.words, trial.message), trial.message
    assert len(trial.attempts) == scenario.attempts
    assert took_s(trial) < scenario.within_s + (PENDING_S if scenario.waits else 0)
    if scenario.waits:
        assert scenario.waits in told.shown[scenario.name]
