"""Kinds other than Job in a real cluster: those of the training operator, run by it, and others as far as they go here.

KUBECONFIG names the cluster and HPO_E2E_IMAGE an image with python3. What needs a kind that is not served, or whose
operator does not run, is skipped.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from hpo_core import loop
from hpo_core.errors import LaunchError
from hpo_core.experiment import Experiment
from hpo_core.kube import Kube
from hpo_core.launch.cluster.launcher import ClusterLauncher
from hpo_core.manifest import LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID
from hpo_core.objects import MemoryStore
from hpo_core.search import make_search
from hpo_core.store import ExperimentStore
from hpo_core.trial import Trial, TrialCondition
from tests.contracts.cluster_machine import cluster_image, namespace
from tests.experiments import REMOVED, make_experiment, parameter

pytestmark = pytest.mark.e2e

NOW = "2026-01-01T00:00:00.000Z"
OPERATED = {"PyTorchJob": "pytorch", "TFJob": "tensorflow", "XGBoostJob": "xgboost"}
"""Kinds of the training operator, and what each calls its container."""
REPLICAS = {"PyTorchJob": "pytorch", "TFJob": "tf", "XGBoostJob": "xgb", "MPIJob": "mpi"}
FIRST = {"TFJob": "Chief", "MPIJob": "Launcher"}

MASTER = "import time; time.sleep(2); print('loss=0.5', flush=True)"
WORKER = "print('loss=0.001', flush=True)"
FAILS = "import sys; print('oh', flush=True); sys.exit(3)"
WAITS = "import time; time.sleep(600)"

Manifest = dict[str, Any]


@pytest.fixture
def kube() -> Kube:
    cluster_image()
    return Kube.connect()


@pytest.fixture
def where(kube: Kube) -> Iterator[str]:
    with namespace(kube) as name:
        yield name


def need(kube: Kube, api_version: str, kind: str) -> None:
    try:
        kube.resource(api_version, kind)
    except LaunchError:
        pytest.skip(f"no kind {kind} is served: that trials of that kind run is unproven")


def replicated(kind: str, master: str = MASTER, worker: str = WORKER, **options: Any) -> Manifest:
    """A workload of the training operator with one master and one worker; options are of the replicas."""

    def replica(program: str) -> Manifest:
        container = {
            "name": OPERATED.get(kind, "main"),
            "image": cluster_image(),
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-S", "-c", program, "--lr=${trialParameters.lr}"],
        }
        pod = {"spec": {"containers": [container], "terminationGracePeriodSeconds": 1}}
        return {"replicas": 1, "template": pod, **options}

    replicas = {FIRST.get(kind, "Master"): replica(master), "Worker": replica(worker)}
    return {"apiVersion": "kubeflow.org/v1", "kind": kind, "spec": {f"{REPLICAS[kind]}ReplicaSpecs": replicas}}


def experiment_of(where: str, trial_spec: Manifest, container: str, **annotations: str) -> Experiment:
    changes = {
        "metadata.namespace": where,
        "metadata.annotations": {f"kfp-hpo/{name.replace('_', '-')}": value for name, value in annotations.items()},
        "spec.maxTrialCount": 1,
        "spec.parallelTrialCount": 1,
        "spec.maxFailedTrialCount": REMOVED,
        "spec.trialTemplate.trialSpec": trial_spec,
        "spec.trialTemplate.primaryContainerName": container,
    }
    made = make_experiment([parameter("lr", "double", min="0.01", max="0.05")], changes=changes)
    return replace(made, uid=secrets.token_hex(16))


@dataclass
class Played:
    """One trial that was run, its workload and its pods as they were last seen, and the reasons that were shown."""

    trial: Trial
    workload: Manifest
    pods: list[Manifest]
    shown: list[str]


def play(kube: Kube, experiment: Experiment, act: Callable[[Trial], None] = lambda trial: None) -> Played:
    """Run an experiment of one trial; `act` is done after each turn."""
    records = ExperimentStore(MemoryStore(), experiment.namespace, experiment.name)
    accepted = replace(records.accept(experiment, now=NOW), uid=experiment.uid)
    launcher = ClusterLauncher(kube, accepted)
    kind, version = accepted.template.kind, str(accepted.template.trial_spec["apiVersion"])
    played = Played(Trial(0, {}), {}, [], [])

    def look(run: loop.Run, changed: bool) -> None:
        trial = run.trials[0] if run.trials else None
        if trial is None or trial.condition.is_terminal:
            return
        if trial.reason not in played.shown:
            played.shown.append(trial.reason)
        if changed:
            played.workload = kube.get(version, kind, trial.name, namespace=accepted.namespace)
            selector = f"{LABEL_TRIAL}={trial.name}"
            played.pods = kube.list("v1", "Pod", namespace=accepted.namespace, selector=selector) or played.pods
        act(trial)

    with records.lease({"who": "test"}):
        loop.run(loop.Run(accepted, records, launcher, make_search(accepted)), look)
    launcher.sweep()
    (played.trial,) = records.trials()
    return played


def labels_of(document: Mapping[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = document["metadata"].get("labels") or {}
    return {name: value for name, value in labels.items() if name in (LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID)}


@pytest.mark.parametrize("kind", OPERATED)
def test_a_trial_of_several_pods_succeeds_by_its_masters_log(kube: Kube, where: str, kind: str) -> None:
    need(kube, "kubeflow.org/v1", kind)
    experiment = experiment_of(where, replicated(kind), OPERATED[kind])
    played = play(kube, experiment)
    trial = played.trial
    assert (trial.condition, trial.message) == (TrialCondition.SUCCEEDED, "")
    assert trial.observation is not None
    assert trial.observation.value(experiment.objective) == 0.5
    ours = {LABEL_EXPERIMENT: "small", LABEL_TRIAL: trial.name, LABEL_UID: experiment.uid}
    assert [labels_of(document) for document in [played.workload, *played.pods]] == [ours] * 3
    (owner,) = played.workload["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("ConfigMap", f"small-{experiment.uid[:8]}")


@pytest.mark.parametrize("kind", OPERATED)
def test_a_master_that_fails_decides_by_its_exit_code(kube: Kube, where: str, kind: str) -> None:
    need(kube, "kubeflow.org/v1", kind)
    trial = play(kube, experiment_of(where, replicated(kind, master=FAILS), OPERATED[kind])).trial
    assert (trial.condition, trial.reason) == (TrialCondition.FAILED, "ExitCode")
    assert "exit code 3; last lines: oh" in trial.message


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
def test_a_worker_that_crashes_while_the_master_waits_fails_the_trial(kube: Kube, where: str, policy: str) -> None:
    need(kube, "kubeflow.org/v1", "PyTorchJob")
    spec = replicated("PyTorchJob", master=WAITS, worker=FAILS, restartPolicy=policy)
    trial = play(kube, experiment_of(where, spec, "pytorch")).trial
    assert (trial.condition, trial.reason) == (TrialCondition.FAILED, "WorkerFailed")
    assert f"its pod {trial.name}-worker-0 ends with exit code 3" in trial.message


def test_a_master_that_is_restarted_for_ever_fails_the_trial(kube: Kube, where: str) -> None:
    """The operator sets no end to that, and Katib neither."""
    need(kube, "kubeflow.org/v1", "PyTorchJob")
    spec = replicated("PyTorchJob", master=FAILS, worker=WAITS, restartPolicy="OnFailure")
    trial = play(kube, experiment_of(where, spec, "pytorch")).trial
    assert (trial.condition, trial.reason) == (TrialCondition.FAILED, "ExitCode")
    assert "was started anew 2 times" in trial.message


def test_a_kind_without_a_deadline_of_its_own_is_ended_at_the_trials(kube: Kube, where: str) -> None:
    need(kube, "kubeflow.org/v1", "PyTorchJob")
    spec = replicated("PyTorchJob", master=WAITS)
    played = play(kube, experiment_of(where, spec, "pytorch", trial_deadline="5s"))
    assert (played.trial.condition, played.trial.reason) == (TrialCondition.FAILED, "DeadlineExceeded")


def test_a_workload_that_nobody_takes_up_is_told_and_given_up(kube: Kube, where: str) -> None:
    need(kube, "kubeflow.org/v1", "MPIJob")
    played = play(kube, experiment_of(where, replicated("MPIJob"), "main"))
    assert "NotTakenUp" in played.shown
    assert (played.trial.condition, played.trial.reason) == (TrialCondition.FAILED, "NotTakenUp")
    assert "whether the operator of that kind runs" in played.trial.message
    replicas = played.workload["spec"]["mpiReplicaSpecs"]
    assert [labels_of(replica["template"])[LABEL_TRIAL] for replica in replicas.values()] == [played.trial.name] * 2


def train_job() -> Manifest:
    trainer = {"image": cluster_image(), "command": ["python3", "--lr=${trialParameters.lr}"]}
    spec = {"runtimeRef": {"name": "torch-distributed"}, "trainer": trainer}
    return {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "spec": spec}


def test_a_train_job_has_our_environment_and_its_pods_are_found_by_their_job_set(kube: Kube, where: str) -> None:
    """No controller of that kind runs here: a pod as it would make it is created instead."""
    need(kube, "trainer.kubeflow.org/v1alpha1", "TrainJob")
    done: list[str] = []

    def act(trial: Trial) -> None:
        if not done:
            done.append(trial.name)
            labels = {
                "jobset.sigs.k8s.io/jobset-name": trial.name,
                "jobset.sigs.k8s.io/replicatedjob-name": "node",
                "batch.kubernetes.io/job-completion-index": "0",
            }
            container = {"name": "node", "image": cluster_image(), "command": ["python3", "-S", "-c", FAILS]}
            spec = {"restartPolicy": "Never", "containers": [container]}
            metadata = {"name": f"{trial.name}-node-0-0", "namespace": where, "labels": labels}
            kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        elif trial.condition is TrialCondition.RUNNING:
            kube.delete("trainer.kubeflow.org/v1alpha1", "TrainJob", trial.name, namespace=where)

    played = play(kube, experiment_of(where, train_job(), "node", trial_deadline="90s"), act)
    assert (played.trial.condition, played.trial.reason) == (TrialCondition.FAILED, "ExitCode")
    assert "exit code 3; last lines: oh" in played.trial.message
    environment = {item["name"]: item["value"] for item in played.workload["spec"]["trainer"]["env"]}
    assert environment == {"KATIB_TRIAL_NAME": played.trial.name, "HPO_PHASE": "trial"}
    assert played.workload["spec"]["activeDeadlineSeconds"] == 90


def test_a_kind_that_is_not_served_is_told_before_anything_is_created(kube: Kube, where: str) -> None:
    spec = {**replicated("PyTorchJob"), "apiVersion": "kubeflow.org/v0"}
    experiment = experiment_of(where, spec, "pytorch")
    with pytest.raises(LaunchError, match=r"no kind PyTorchJob in kubeflow\.org/v0 here: .* not installed"):
        play(kube, experiment)
    assert kube.list("v1", "ConfigMap", namespace=where, selector=f"{LABEL_UID}={experiment.uid}") == []
