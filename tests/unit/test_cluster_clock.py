"""Deadlines of trials whose API server's clock is not ours: what the server has dated is told old by its own clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpo_core.experiment import Experiment
from hpo_core.kube import Kube
from hpo_core.launch import Exited, Job
from hpo_core.launch.cluster.launcher import ClusterLauncher
from hpo_core.manifest import LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID
from tests.contracts.launcher_suite import only_exit, process_job, until_ended, until_started
from tests.experiments import make_experiment
from tests.fake_kubernetes import FakeKubernetes
from tests.fake_kubernetes.kinds import KINDS, POD

KIND = next(kind for kind in KINDS if kind.name == "TFJob")
"""A kind that keeps no deadline itself."""
HOUR_S = 3600.0

pytestmark = pytest.mark.parametrize("ahead_s", [HOUR_S, 0.0, -HOUR_S], ids=["ahead", "equal", "behind"])


@pytest.fixture
def fake(ahead_s: float) -> Iterator[FakeKubernetes]:
    fake = FakeKubernetes()
    fake.objects.ahead_s = ahead_s
    yield fake
    fake.close()


@pytest.fixture
def experiment() -> Experiment:
    changes = {
        "metadata.namespace": "team",
        "metadata.annotations": {"kfp-hpo/pending-deadline": "1000s"},
        "spec.trialTemplate.trialSpec.apiVersion": KIND.api_version,
        "spec.trialTemplate.trialSpec.kind": KIND.name,
        "spec.trialTemplate.primaryPodLabels": {LABEL_EXPERIMENT: "small"},
    }
    return make_experiment(changes=changes)


@pytest.fixture
def launcher(
    fake: FakeKubernetes, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], ClusterLauncher]]:
    """Makes launchers, one after the other, as tuners that take over."""
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
    with ExitStack() as made:

        def make() -> ClusterLauncher:
            found = ClusterLauncher(Kube.connect(), experiment)
            made.callback(found.close)
            return found

        yield make


def trial(experiment: Experiment, deadline_s: float | None = None) -> Job:
    job = process_job("a", ["train"])
    labels = {LABEL_EXPERIMENT: "small", LABEL_TRIAL: "a", LABEL_UID: experiment.uid}
    metadata = {"name": "a", "namespace": "team", "labels": labels}
    manifest: dict[str, Any] = {**job.manifest, "apiVersion": KIND.api_version, "kind": KIND.name, "metadata": metadata}
    return replace(job, manifest=manifest, deadline_s=deadline_s)


def start_pod(fake: FakeKubernetes, ago_s: float) -> None:
    """Be the operator and the kubelet of a pod that runs since so long ago by the server's clock."""
    fake.start_pod("a-0", owner=fake.objects.get(KIND, "team", "a"))
    since = fake.objects.timestamp(ago_s)
    fake.objects.patch(POD, "team", "a-0", {"metadata": {"creationTimestamp": since}})
    state = {"running": {"startedAt": since}}
    fake.set_status(POD, "a-0", {"containerStatuses": [{"name": "main", "restartCount": 0, "state": state}]})


def test_an_adopted_trial_that_is_past_its_deadline_is_ended(
    fake: FakeKubernetes, launcher: Callable[[], ClusterLauncher], experiment: Experiment
) -> None:
    job = trial(experiment, deadline_s=600.0)
    launcher().submit(job)
    start_pod(fake, ago_s=700.0)
    second = launcher()
    second.submit(replace(job, begun=True))
    fake.objects.pod_grace_s = 0.0
    assert only_exit(until_ended(second, "a"), "a").reason == "DeadlineExceeded"


def test_an_adopted_trial_has_the_rest_of_its_time(
    fake: FakeKubernetes, launcher: Callable[[], ClusterLauncher], experiment: Experiment
) -> None:
    job = trial(experiment, deadline_s=600.0)
    launcher().submit(job)
    start_pod(fake, ago_s=500.0)
    second = launcher()
    second.submit(replace(job, begun=True))
    until_started(second, "a")
    assert not any(isinstance(event, Exited) for event in second.events(1.5))


def test_a_pod_that_is_being_removed_has_its_grace(
    fake: FakeKubernetes,
    launcher: Callable[[], ClusterLauncher],
    experiment: Experiment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hpo_core.launch.cluster.diagnosis.GONE_S", 0.0)
    trials = launcher()
    trials.submit(trial(experiment))
    start_pod(fake, ago_s=10.0)
    until_started(trials, "a")
    fake.objects.patch(POD, "team", "a-0", {"metadata": {"deletionTimestamp": fake.objects.timestamp(-100.0)}})
    assert not any(isinstance(event, Exited) for event in trials.events(1.5))
    fake.objects.patch(POD, "team", "a-0", {"metadata": {"deletionTimestamp": fake.objects.timestamp(10.0)}})
    assert only_exit(until_ended(trials, "a"), "a").reason == "Lost"


def test_a_trial_that_waits_is_given_up_after_its_time_whoever_has_waited_for_it(
    fake: FakeKubernetes, launcher: Callable[[], ClusterLauncher], experiment: Experiment
) -> None:
    """A tuner that takes over does not begin to count anew."""
    job = trial(experiment)
    first = launcher()
    first.submit(job)
    fake.start_pod("a-0", owner=fake.objects.get(KIND, "team", "a"))
    full = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    fake.set_status(POD, "a-0", {"phase": "Pending", "containerStatuses": [], "conditions": [full]})
    assert not any(isinstance(event, Exited) for event in first.events(1.5))
    fake.objects.patch(KIND, "team", "a", {"metadata": {"creationTimestamp": fake.objects.timestamp(1100.0)}})
    second = launcher()
    second.submit(job)
    assert only_exit(until_ended(second, "a"), "a").reason == "Unschedulable"
