"""A tuner's Job that is there already: what its pods that have died tell, and when another one is needed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpo_core.errors import LaunchError
from hpo_core.experiment import Experiment
from hpo_core.experiment.model import BUDGET_FIELDS
from hpo_core.kube import Kube
from hpo_core.objects import MemoryStore
from hpo_core.store import ExperimentStore
from hpo_core.trial import MetricSummary, Observation, Trial, TrialCondition
from hpo_core.tuner import cluster_job
from tests.experiments import make_experiment
from tests.fake_kubernetes import FakeKubernetes
from tests.fake_kubernetes.kinds import JOB, POD
from tests.scenarios.folders import eventually

LOSS = Observation({"loss": MetricSummary(0.5, 0.5, 0.5)})


@dataclass(frozen=True)
class Cluster:
    """A cluster with the Job `found` of a tuner, whose pods die, and the records of its experiment."""

    fake: FakeKubernetes
    kube: Kube
    store: ExperimentStore
    experiment: Experiment
    pool: ThreadPoolExecutor

    def jobs(self) -> list[str]:
        return [job["metadata"]["name"] for job in self.kube.list("batch/v1", "Job")]

    def die(self, pod: str) -> None:
        self.fake.start_pod(pod, owner=self.fake.objects.get(JOB, "team", "found"), container=cluster_job.CONTAINER)
        self.fake.finish_pod(pod, code=137, container=cluster_job.CONTAINER)

    def starting(self) -> Future[None]:
        """Begin to start a tuner, and return when it has found the Job."""
        pod = cluster_job.TunerPod(image="none")
        future = self.pool.submit(cluster_job.start, self.kube, self.experiment, {}, self.store, pod)
        eventually(lambda: self.looks() > 0, "it looks at the Job")
        return future

    def looks(self) -> int:
        return sum(request.startswith("get ") and request.endswith("/jobs/found") for request in self.fake.requests)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    fake = FakeKubernetes()
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
    monkeypatch.setattr(cluster_job, "READY_S", 20.0)
    one_trial = {f"spec.{budget}": 1 for budget in BUDGET_FIELDS}
    experiment = make_experiment(changes={"metadata.namespace": "team", **one_trial})
    kube = Kube.connect()
    kube.create(cluster_job.make_job(experiment, "found", cluster_job.TunerPod(image="none")))
    with ThreadPoolExecutor(1) as pool:
        yield Cluster(fake, kube, ExperimentStore(MemoryStore(), "team", experiment.name), experiment, pool)
    fake.close()


def test_a_tuner_whose_next_pod_did_all_that_was_left_is_not_started_again(cluster: Cluster) -> None:
    """Such a pod takes and gives back the lease between two looks, when the one that died had recorded every trial."""
    cluster.die("first")
    starting = cluster.starting()
    trial = Trial(1, {"lr": 0.02}, TrialCondition.SUCCEEDED, LOSS, finished_seq=1)
    cluster.store.record(trial)
    cluster.fake.finish_job("found")
    starting.result()
    assert cluster.jobs() == ["found"]


def test_a_tuner_that_was_about_to_end_with_trials_left_is_followed_by_another(cluster: Cluster) -> None:
    """So it is with one that was suspended, or whose budget has been raised."""
    starting = cluster.starting()
    cluster.fake.finish_job("found")
    eventually(lambda: len(cluster.jobs()) == 2, "another Job")
    with cluster.store.lease({"purpose": "tune"}):
        cluster.store.save_derived("status.json", "{}")
        starting.result()


def test_pods_that_died_before_tell_nothing_of_a_tuners_next_one(cluster: Cluster) -> None:
    for pod in ("first", "second", "third"):
        cluster.die(pod)
    starting = cluster.starting()
    looks = cluster.looks()
    eventually(lambda: cluster.looks() > looks, "it looks once more")
    with cluster.store.lease({"purpose": "tune"}):
        cluster.store.save_derived("status.json", "{}")
        starting.result()
    assert cluster.jobs() == ["found"]


def test_pods_that_end_again_and_again_before_one_tunes_are_told(cluster: Cluster) -> None:
    starting = cluster.starting()
    cluster.die("first")
    cluster.die("second")
    with pytest.raises(LaunchError, match="the tuner's pods end again and again"):
        starting.result()


def test_a_tuner_that_was_started_and_cannot_run_is_removed(cluster: Cluster) -> None:
    """Nothing else would remove it: there are no records yet; and the next launch would take it up."""
    starting = cluster.starting()
    cluster.fake.finish_job("found")
    eventually(lambda: len(cluster.jobs()) == 2, "another Job")
    (job,) = (job for job in cluster.fake.objects.list(JOB, "team") if job["metadata"]["name"] != "found")
    cluster.fake.start_pod("new", owner=job, container=cluster_job.CONTAINER)
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
    status = {"name": cluster_job.CONTAINER, "restartCount": 0, "state": waiting}
    cluster.fake.objects.patch(POD, "team", "new", {"metadata": {"labels": {"job-name": job["metadata"]["name"]}}})
    cluster.fake.set_status(POD, "new", {"phase": "Pending", "containerStatuses": [status]})
    with pytest.raises(LaunchError, match="cannot be pulled"):
        starting.result()
    assert cluster.jobs() == []


def test_a_tuner_is_started_once_by_an_overloaded_server(cluster: Cluster) -> None:
    starting = cluster.starting()
    cluster.fake.refuse(3, 429)
    cluster.fake.refuse(2, 503, verb="create")
    cluster.fake.finish_job("found")
    eventually(lambda: len(cluster.fake.objects.list(JOB, "team")) == 2, "another Job")
    with cluster.store.lease({"purpose": "tune"}):
        cluster.store.save_derived("status.json", "{}")
        starting.result()
    assert len(cluster.fake.objects.list(JOB, "team")) == 2
