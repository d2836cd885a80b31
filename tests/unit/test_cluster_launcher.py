"""The launcher of trials in a cluster over a fake API server: what a real cluster cannot show on one machine."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from hpo_core.errors import TransientError
from hpo_core.experiment import Experiment
from hpo_core.kube import Kube
from hpo_core.launch import Exited, Job, Output, Started, Waiting
from hpo_core.launch.cluster import diagnosis, followed, launcher
from hpo_core.launch.cluster.launcher import ClusterLauncher
from hpo_core.launch.cluster.sidecar import Sidecar
from hpo_core.manifest import LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID
from tests.contracts.launcher_suite import listen, only_exit, output, process_job, until_ended, until_started
from tests.experiments import make_experiment
from tests.fake_kubernetes import FakeKubernetes
from tests.fake_kubernetes.kinds import JOB, POD

LONG_AGO = "2026-01-01T00:00:00Z"


@pytest.fixture
def experiment() -> Experiment:
    return make_experiment(
        changes={"metadata.namespace": "team", "metadata.annotations": {"kfp-hpo/pending-deadline": "2s"}}
    )


@pytest.fixture
def trials(kube: Kube, experiment: Experiment) -> Iterator[ClusterLauncher]:
    with closing(ClusterLauncher(kube, experiment)) as made:
        yield made


def trial(experiment: Experiment, name: str, **spec: Any) -> Job:
    job = process_job(name, ["train"])
    labels = {LABEL_EXPERIMENT: "small", LABEL_TRIAL: name, LABEL_UID: experiment.uid}
    manifest: dict[str, Any] = {**job.manifest, "metadata": {"name": name, "namespace": "team", "labels": labels}}
    manifest["spec"]["template"]["spec"]["restartPolicy"] = "Never"
    manifest["spec"] |= spec
    return replace(job, manifest=manifest)


def start(fake: FakeKubernetes, name: str, pod: str = "") -> str:
    """Be the Job's controller and the kubelet: start a pod, and return its name."""
    pod = pod or f"{name}-0"
    fake.start_pod(pod, owner=fake.objects.get(JOB, "team", name))
    state = {"running": {"startedAt": LONG_AGO}}
    fake.set_status(POD, pod, {"containerStatuses": [{"name": "main", "restartCount": 0, "state": state}]})
    return pod


def finish(fake: FakeKubernetes, pod: str, code: int = 0) -> None:
    """Let a pod end as a kubelet tells it, and its log."""
    ended = {
        "exitCode": code,
        "reason": "Error" if code else "Completed",
        "startedAt": LONG_AGO,
        "finishedAt": LONG_AGO,
    }
    status = {"name": "main", "restartCount": 0, "state": {"terminated": ended}}
    fake.set_status(POD, pod, {"phase": "Failed" if code else "Succeeded", "containerStatuses": [status]})
    fake.logs.end("team", pod)


def test_a_node_that_is_lost_loses_the_trial_and_not_the_launcher(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pod stays as it was last seen to run, and the Job's controller waits for it."""
    monkeypatch.setattr(diagnosis, "GONE_S", 0.0)
    monkeypatch.setattr(followed, "SETTLE_S", 0.2)
    trials.submit(trial(experiment, "a"))
    pod = start(fake, "a")
    until_started(trials, "a")
    taint = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    fake.set_status(POD, pod, {"conditions": [taint]})
    fake.objects.patch(POD, "team", pod, {"metadata": {"deletionTimestamp": LONG_AGO}})
    exited = only_exit(until_ended(trials, "a"), "a")
    assert (exited.code, exited.reason, exited.message) == (None, "Lost", "its node was lost or drained")
    assert fake.objects.list(JOB, "team") == []


def test_a_stopped_workloads_pod_is_told_to_end_before_its_owner_goes(
    fake: FakeKubernetes, kube: Kube, experiment: Experiment
) -> None:
    """A kubelet that has begun to end it with the sidecar's long grace does not heed a shorter one."""
    with closing(ClusterLauncher(kube, experiment, Sidecar("hpo:1", "s3://bucket", {}))) as trials:
        trials.submit(replace(trial(experiment, "a"), label="00001-1"))
        pod = start(fake, "a")
        until_started(trials, "a")
        trials.stop("a")
        deleted = [request.rpartition("/")[2] for request in fake.requests if request.startswith("delete ")]
        assert deleted == [pod, "a"]


def test_what_serves_all_trials_is_begun_once_by_however_many_are_submitted_at_once(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment
) -> None:
    jobs = [trial(experiment, f"t{number}") for number in range(16)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(trials.submit, jobs))
    asked = Counter(request.replace("/", " ").split()[-1] for request in fake.requests if request.startswith("create "))
    assert asked == {"configmaps": 1, "jobs": len(jobs)}
    assert len(trials._watches) == 3


def test_a_log_that_is_cut_again_and_again_is_given_whole(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment
) -> None:
    trials.submit(trial(experiment, "a"))
    pod = start(fake, "a")
    until_started(trials, "a")
    printed = b""
    for number in range(4):
        line = b"line %d\n" % number
        fake.append_log(pod, line)
        printed += output(listen(trials, lambda taken: output(taken, "a")), "a")
        assert printed.endswith(line)
        fake.logs.cut()
    fake.append_log(pod, b"last")
    finish(fake, pod)
    fake.finish_job("a")
    events = until_ended(trials, "a")
    assert printed + output(events, "a") == b"line 0\nline 1\nline 2\nline 3\nlast"
    assert sum(event.missing for event in events if isinstance(event, Output)) == 0


def test_watches_that_are_cut_all_the_time_tell_everything(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment
) -> None:
    fake.cut_after_s = 0.05
    for name in ("a", "b", "c"):
        trials.submit(trial(experiment, name))
        pod = start(fake, name)
        fake.append_log(pod, name.encode() + b"\n")
        finish(fake, pod)
        fake.finish_job(name)
    events = until_ended(trials, "a", "b", "c")
    assert [output(events, name) for name in ("a", "b", "c")] == [b"a\n", b"b\n", b"c\n"]


def test_trials_that_end_while_the_server_is_out_of_reach_are_told_when_it_is_back(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment
) -> None:
    trials.submit(trial(experiment, "a"))
    trials.submit(trial(experiment, "b"))
    pods = [start(fake, name) for name in ("a", "b")]
    until_started(trials, "a", "b")
    with fake.unreachable():
        for pod in pods:
            fake.append_log(pod, b"loss=1\n")
            finish(fake, pod)
        fake.finish_job("a")
        fake.objects.delete(JOB, "team", "b", "Background")
        assert not any(isinstance(event, Exited) for event in trials.events(0.5))
    events = until_ended(trials, "a", "b")
    assert (only_exit(events, "a").code, output(events, "a")) == (0, b"loss=1\n")


def test_a_server_that_stays_out_of_reach_is_not_waited_for_without_end(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "UNREACHABLE_S", 0.3)
    monkeypatch.setattr(launcher, "LOOK_S", 0.05)
    trials.submit(trial(experiment, "a"))
    start(fake, "a")
    until_started(trials, "a")
    with fake.unreachable(), pytest.raises(TransientError, match="has not told what becomes of trials for"):
        trials.events(30.0)
    assert [job["metadata"]["name"] for job in fake.objects.list(JOB, "team")] == ["a"]


def test_warnings_that_cannot_be_had_end_nothing(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They help to say why a trial waits, and no more."""
    monkeypatch.setattr(launcher, "UNREACHABLE_S", 0.3)
    monkeypatch.setattr(launcher, "LOOK_S", 0.05)
    fake.refuse(1000, 503, verb="list events")
    trials.submit(trial(experiment, "a"))
    pod = start(fake, "a")
    until_started(trials, "a")
    assert trials.events(1.0) == []
    finish(fake, pod)
    fake.finish_job("a")
    assert only_exit(until_ended(trials, "a"), "a").code == 0


def test_a_workload_that_was_to_end_is_ended_by_whoever_follows_it_next(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment, kube: Kube
) -> None:
    """Who had marked it was killed before he deleted it."""
    trials.submit(trial(experiment, "a"))
    start(fake, "a")
    until_started(trials, "a")
    trials.close()
    fake.objects.patch(JOB, "team", "a", {"metadata": {"annotations": {followed.STOPPED: "true"}}})
    with closing(ClusterLauncher(kube, experiment)) as next_trials:
        next_trials.submit(replace(trial(experiment, "a"), begun=True))
        next_trials.events(1.0)
        assert fake.objects.list(JOB, "team") == []
        assert only_exit(until_ended(next_trials, "a"), "a").reason == "Stopped"


def test_a_workload_that_vanished_unseen_is_lost(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment
) -> None:
    trials.submit(trial(experiment, "a"))
    start(fake, "a")
    until_started(trials, "a")
    with fake.unreachable():
        fake.objects.delete(POD, "team", "a-0", "Background")
        fake.objects.delete(JOB, "team", "a", "Background")
        fake.objects.compact()
    assert only_exit(until_ended(trials, "a"), "a").reason == "Lost"


def test_a_list_from_before_a_creation_makes_nothing_lost(trials: ClusterLauncher, experiment: Experiment) -> None:
    trials.submit(trial(experiment, "a"))
    trials._vanished["a"] = 0.0
    assert trials.events(1.5) == []
    assert trials._vanished == {}


def test_a_job_that_is_told_complete_before_its_pod_waits_for_it(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment
) -> None:
    trials.submit(trial(experiment, "a"))
    pod = start(fake, "a")
    until_started(trials, "a")
    fake.finish_job("a")
    assert not any(isinstance(event, Exited) for event in trials.events(0.5))
    fake.append_log(pod, b"late\n")
    finish(fake, pod)
    events = until_ended(trials, "a")
    assert output(events, "a") == b"late\n"


def test_the_pods_of_a_job_that_tries_again_are_read_one_after_the_other(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment, kube: Kube
) -> None:
    job = trial(experiment, "a", backoffLimit=1)
    trials.submit(job)
    first = start(fake, "a", "a-0")
    fake.append_log(first, b"first\n")
    finish(fake, first, code=1)
    second = start(fake, "a", "a-1")
    fake.append_log(second, b"second\n")
    finish(fake, second)
    fake.finish_job("a")
    events = until_ended(trials, "a")
    assert (output(events, "a"), only_exit(events, "a").code) == (b"first\nsecond\n", 0)
    assert len([event for event in events if isinstance(event, Started)]) == 1
    with closing(ClusterLauncher(kube, experiment)) as other:
        other.submit(replace(job, begun=True))
        events = until_ended(other, "a")
    assert (output(events, "a"), only_exit(events, "a").code) == (b"first\nsecond\n", 0)


def test_a_workload_for_which_a_quota_has_no_room_is_created_when_there_is(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "QUOTA_S", 0.1)
    trials.submit(trial(experiment, "a"))
    fake.refuse(1, 403, reason="Forbidden", message='jobs "b" is forbidden: exceeded quota: limits', verb="create")
    trials.submit(trial(experiment, "b"))
    events = listen(trials, lambda taken: fake.objects.list(JOB, "team")[1:])
    start(fake, "b")
    events += until_started(trials, "b")
    assert [event.reason for event in events if isinstance(event, Waiting)][:1] == ["QuotaExceeded"]


def test_a_trial_takes_a_handful_of_requests_however_long_it_runs(
    fake: FakeKubernetes, trials: ClusterLauncher, experiment: Experiment
) -> None:
    names = [f"t{number}" for number in range(10)]
    for name in names:
        trials.submit(trial(experiment, name))
        start(fake, name)
    until_started(trials, *names)
    assert trials.events(1.5) == []
    for name in names:
        finish(fake, f"{name}-0")
        fake.finish_job(name)
    until_ended(trials, *names)
    for name in names:
        trials.forget(name)
    about = [request for request in fake.requests if "/jobs/" in request or "/log" in request or "create" in request]
    # one creation, one deletion, and its log: followed, read on after its end, and its tail
    assert len(about) <= 5 * len(names) + 1  # and the anchor


def test_no_thread_outlives_a_launcher_that_was_closed(
    fake: FakeKubernetes, kube: Kube, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even of one whose streams wait for somebody who takes what they tell."""
    monkeypatch.setattr(launcher, "QUEUE_PIECES", 2)
    before = set(threading.enumerate())
    trials = ClusterLauncher(kube, experiment)
    trials.submit(trial(experiment, "a"))
    pod = start(fake, "a")
    until_started(trials, "a")
    for number in range(20):
        fake.append_log(pod, b"%d\n" % number)
        time.sleep(0.01)
    ours = [t for t in set(threading.enumerate()) - before if t.name == "log" or t.name.startswith("watch-")]
    trials.close()
    for thread in ours:
        thread.join(10)
    assert len(ours) == 4
    assert not any(thread.is_alive() for thread in ours)
