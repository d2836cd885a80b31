"""A tuner's Job: one that is there already is followed or replaced, and one that does not come up is removed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from hpo_core.errors import Conflict, LaunchError
from hpo_core.experiment import Experiment, with_budgets
from hpo_core.experiment.model import BUDGET_FIELDS
from hpo_core.kube import Kube
from hpo_core.objects import MemoryStore
from hpo_core.store import TUNING, ExperimentStore
from hpo_core.trial import MetricSummary, Observation, Trial, TrialCondition
from hpo_core.tuner import cluster_job
from tests.experiments import make_experiment
from tests.fake_kubernetes import FakeKubernetes
from tests.fake_kubernetes.kinds import JOB, POD
from tests.scenarios.folders import eventually

LOSS = Observation({"loss": MetricSummary(0.5, 0.5, 0.5)})
CREATED = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class Cluster:
    """A cluster with the Job `found` of a tuner, made long ago, and the records of its experiment."""

    fake: FakeKubernetes
    kube: Kube
    store: ExperimentStore
    experiment: Experiment
    pool: ThreadPoolExecutor
    stopped: Event = field(default_factory=Event)

    def jobs(self) -> list[str]:
        return [job["metadata"]["name"] for job in self.fake.objects.list(JOB, "team")]

    def left(self) -> list[str]:
        """The Jobs, and the orders."""
        return self.jobs() + [order["metadata"]["name"] for order in self.kube.list("v1", "ConfigMap")]

    def new_job(self) -> str:
        """The Job that is made besides `found`, or in its place."""
        eventually(lambda: self.jobs() not in ([], ["found"]), "another Job")
        (name,) = (name for name in self.jobs() if name != "found")
        return name

    def start_pod(self, pod: str, job: str = "found") -> None:
        owner = self.fake.objects.get(JOB, "team", job)
        self.fake.start_pod(pod, owner=owner, container=cluster_job.CONTAINER)

    def die(self, pod: str, job: str = "found") -> None:
        self.start_pod(pod, job)
        self.fake.finish_pod(pod, code=137, container=cluster_job.CONTAINER)

    def fail_pull(self, pod: str, *, fails: bool = True) -> None:
        """Let a pod's image not be pulled, or be pulled at last."""
        waiting = {"waiting": {"reason": "ErrImagePull", "message": "429 Too Many Requests"} if fails else {}}
        status = {"name": cluster_job.CONTAINER, "restartCount": 0, "state": waiting if fails else {"running": {}}}
        self.fake.set_status(POD, pod, {"phase": "Pending" if fails else "Running", "containerStatuses": [status]})

    def starting(self) -> Future[None]:
        """Begin to start a tuner, and return when it has found the Job."""
        future = self.pool.submit(
            cluster_job.start,
            self.kube,
            self.experiment,
            {},
            self.store,
            cluster_job.TunerPod(image="none"),
            should_stop=self.stopped.is_set,
        )
        eventually(lambda: self.looks() > 0, "it looks at the Job")
        return future

    def looks(self, job: str = "found") -> int:
        return sum(request.startswith("get ") and request.endswith(f"/jobs/{job}") for request in self.fake.requests)

    def look_again(self, job: str = "found") -> None:
        """Return when a whole look at a Job has been taken since."""
        looks = self.looks(job)
        eventually(lambda: self.looks(job) > looks + 1, "it looks once more")

    @contextlib.contextmanager
    def tuning(self, experiment: Experiment | None = None) -> Iterator[None]:
        """A tuner that tunes, the experiment if no other is given."""
        with self.store.lease({}):
            self.store.accept(experiment or self.experiment, now=CREATED)
            self.store.save_derived("lease", json.dumps({"purpose": TUNING}))
            self.store.save_derived("status.json", "{}")
            yield


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    fake = FakeKubernetes()
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
    monkeypatch.setattr(cluster_job, "READY_S", 20.0)
    monkeypatch.setattr(cluster_job, "ADOPTED_S", 20.0)
    monkeypatch.setattr(cluster_job, "POLL_S", 0.05)
    one_trial = {f"spec.{budget}": 1 for budget in BUDGET_FIELDS}
    experiment = make_experiment(changes={"metadata.namespace": "team", **one_trial})
    kube = Kube.connect()
    kube.create(cluster_job.make_job(experiment, "found", cluster_job.TunerPod(image="none")))
    fake.objects.patch(JOB, "team", "found", {"metadata": {"creationTimestamp": fake.objects.timestamp(3600)}})
    with ThreadPoolExecutor(1) as pool:
        cluster = Cluster(fake, kube, ExperimentStore(MemoryStore(), "team", experiment.name), experiment, pool)
        yield cluster
        cluster.stopped.set()
    fake.close()


def impatient(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    for name, value in seconds.items():
        monkeypatch.setattr(cluster_job, name, value)


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
    cluster.new_job()
    with cluster.tuning():
        starting.result()


def test_pods_that_died_before_tell_nothing_of_a_tuners_next_one(cluster: Cluster) -> None:
    for pod in ("first", "second", "third"):
        cluster.die(pod)
    starting = cluster.starting()
    cluster.look_again()
    with cluster.tuning():
        starting.result()
    assert cluster.jobs() == ["found"]


def test_a_job_that_does_not_come_to_tune_in_time_is_replaced(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only pod seems to run for minutes on a node that is lost, and it makes no other meanwhile."""
    impatient(monkeypatch, ADOPTED_S=0.2)
    cluster.start_pod("lost")
    starting = cluster.starting()
    cluster.new_job()
    with cluster.tuning():
        starting.result()
    assert "found" not in cluster.jobs()


def test_a_job_whose_tuner_holds_the_lease_is_not_replaced_though_its_status_is_late(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, ADOPTED_S=0.2)
    with cluster.tuning():
        cluster.store.objects.delete(f"team/{cluster.experiment.name}/status.json")
        cluster.starting().result()
    assert cluster.jobs() == ["found"]


def test_a_job_that_another_launch_has_just_made_gets_its_whole_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, ADOPTED_S=0.0)
    cluster.fake.objects.patch(
        JOB, "team", "found", {"metadata": {"creationTimestamp": cluster.fake.objects.timestamp()}}
    )
    starting = cluster.starting()
    cluster.look_again()
    with cluster.tuning():
        starting.result()
    assert cluster.jobs() == ["found"]


def test_a_job_that_is_removed_while_it_is_waited_for_is_followed_by_another(cluster: Cluster) -> None:
    starting = cluster.starting()
    cluster.kube.delete("batch/v1", "Job", "found")
    cluster.new_job()
    with cluster.tuning():
        starting.result()


def test_a_job_whose_pods_end_again_and_again_is_replaced_and_one_that_was_made_here_told_and_removed(
    cluster: Cluster,
) -> None:
    """Only what was asked now counts: the one that was there may have had another image."""
    starting = cluster.starting()
    for pod in ("first", "second"):
        cluster.die(pod)
    job = cluster.new_job()
    for pod in ("third", "fourth"):
        cluster.die(pod, job)
    with pytest.raises(LaunchError, match="the tuner's pods end again and again"):
        starting.result()
    assert cluster.left() == []


@pytest.mark.parametrize("change", [{"spec.objective.goal": 0.001}, {}], ids=["spec", "budget"])
def test_whoever_tunes_another_spec_or_budget_than_was_asked_is_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, change: Mapping[str, Any]
) -> None:
    """So it is when the Job that is there was ordered to."""
    impatient(monkeypatch, SETTLE_S=0.2)
    one_trial = {f"spec.{budget}": 1 for budget in BUDGET_FIELDS}
    other = make_experiment(changes={"metadata.namespace": "team", **one_trial, **change})
    starting = cluster.starting()
    with (
        cluster.tuning(other if change else with_budgets(other, {"maxTrialCount": 9})),
        pytest.raises(Conflict, match="is being run by process"),
    ):
        starting.result()
    assert cluster.jobs() == ["found"]


def test_a_tuner_that_holds_the_lease_but_has_not_recorded_its_budget_is_waited_for(cluster: Cluster) -> None:
    """The status that is there is an earlier one's."""
    with cluster.tuning(with_budgets(cluster.experiment, {"maxTrialCount": 9})):
        starting = cluster.starting()
        cluster.look_again()
        cluster.store.accept(cluster.experiment, now=CREATED)
        starting.result()


def test_whoever_read_the_experiment_from_its_record_does_not_mind_an_edit_meanwhile(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, SETTLE_S=0.0)
    recorded = cluster.store.accept(cluster.experiment, now=CREATED)
    cluster.store.save_experiment(with_budgets(recorded, {"maxTrialCount": 9}))
    with cluster.tuning():
        cluster.store.save_derived("launch.json", json.dumps({"given": [7, 7, 7]}))
        cluster_job.start(cluster.kube, recorded, {}, cluster.store, cluster_job.TunerPod(image="none"))


def test_an_image_that_cannot_be_pulled_for_an_instant_is_borne(cluster: Cluster) -> None:
    starting = cluster.starting()
    cluster.start_pod("slow")
    cluster.fail_pull("slow")
    cluster.look_again()
    cluster.fail_pull("slow", fails=False)
    with cluster.tuning():
        starting.result()
    assert cluster.jobs() == ["found"]


def test_a_tuner_that_was_started_and_cannot_run_is_told_and_removed_and_nothing_else_is(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else would remove it: there are no records yet; and the next launch would take it up."""
    monkeypatch.setattr("hpo_core.launch.cluster.diagnosis.PULLING_S", 0.2)
    starting = cluster.starting()
    cluster.fake.finish_job("found")
    cluster.start_pod("new", cluster.new_job())
    cluster.fail_pull("new")
    with pytest.raises(LaunchError, match="cannot be pulled"):
        starting.result()
    assert cluster.left() == ["found"]


def test_a_tuner_that_was_started_and_does_not_tune_in_time_is_removed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its image may take minutes to be pulled, and nobody would expect it to tune then."""
    impatient(monkeypatch, READY_S=0.5)
    starting = cluster.starting()
    cluster.fake.finish_job("found")
    with pytest.raises(LaunchError, match=r"has not begun to tune within 0\.5 s"):
        starting.result()
    assert cluster.left() == ["found"]


def test_an_order_whose_job_is_refused_is_removed(cluster: Cluster) -> None:
    starting = cluster.starting()
    cluster.fake.deny("create", "jobs")
    cluster.fake.finish_job("found")
    with pytest.raises(LaunchError, match="cannot create"):
        starting.result()
    assert cluster.left() == ["found"]


def test_a_tuner_that_was_started_and_is_removed_by_somebody_is_told(cluster: Cluster) -> None:
    starting = cluster.starting()
    cluster.fake.finish_job("found")
    cluster.kube.delete("batch/v1", "Job", cluster.new_job())
    with pytest.raises(LaunchError, match="was removed, before it began to tune"):
        starting.result()


def test_whoever_is_told_to_stop_waiting_leaves_the_tuner_that_was_started(cluster: Cluster) -> None:
    starting = cluster.starting()
    cluster.fake.finish_job("found")
    job = cluster.new_job()
    cluster.stopped.set()
    starting.result()
    assert job in cluster.jobs()


def test_a_tuner_is_started_once_by_an_overloaded_server(cluster: Cluster) -> None:
    starting = cluster.starting()
    cluster.fake.refuse(3, 429)
    cluster.fake.refuse(2, 503, verb="create")
    cluster.fake.finish_job("found")
    cluster.new_job()
    with cluster.tuning():
        starting.result()
    assert len(cluster.jobs()) == 2
