"""What a tuner asks to be allowed: just what it does, and told with the command that grants it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from hpo_core.errors import LaunchError
from hpo_core.experiment import Experiment
from hpo_core.kube import Kube, Resource
from hpo_core.launch import Job
from hpo_core.launch.cluster.launcher import ClusterLauncher
from hpo_core.launch.cluster.permissions import LAUNCHING, Wish, missing, missing_to_launch, needed
from hpo_core.loop import Patience, SystemClock
from hpo_core.manifest import LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID
from tests.contracts.launcher_suite import process_job, until_ended, until_started
from tests.experiments import make_experiment
from tests.fake_kubernetes import FakeKubernetes
from tests.fake_kubernetes.kinds import JOB, KINDS, POD, Kind

APPLY = "kubectl apply -n team -k manifests"
JOBS = Resource("batch/v1", "Job", "jobs", namespaced=True, verbs=frozenset())


def experiment(api_version: str = "batch/v1", kind: str = "Job") -> Experiment:
    template = "spec.trialTemplate"
    conditions = {f"{template}.{end}Condition": "status.ended" for end in ("success", "failure")}
    workload = {f"{template}.trialSpec.apiVersion": api_version, f"{template}.trialSpec.kind": kind}
    return make_experiment(changes={"metadata.namespace": "team", **workload, **(conditions if kind != "Job" else {})})


def test_needed_is_all_that_a_launcher_asks_and_nothing_else(fake: FakeKubernetes, kube: Kube) -> None:
    """A trial is created, followed, adopted by a second tuner and forgotten; one is stopped; all is swept."""
    first, second = ClusterLauncher(kube, experiment()), ClusterLauncher(kube, experiment())
    with closing(first), closing(second):
        for name in ("one", "two"):
            first.submit(trial(name))
        start_pod(fake, "one")
        until_started(first, "one")
        first.stop("two")
        second.submit(replace(trial("one"), begun=True))
        until_started(second, "one")
        fake.finish_pod("one-0")
        fake.finish_job("one")
        until_ended(second, "one")
        second.forget("one")
        second.sweep()
    assert asked(fake) == set(needed(JOBS))


def trial(name: str) -> Job:
    job = process_job(name, ["true"])
    labels = {LABEL_EXPERIMENT: "small", LABEL_TRIAL: name, LABEL_UID: experiment().uid}
    template = {"spec": {**job.manifest["spec"]["template"]["spec"], "restartPolicy": "Never"}}
    metadata = {"name": name, "namespace": "team", "labels": labels}
    return replace(job, manifest={**job.manifest, "metadata": metadata, "spec": {"template": template}})


def start_pod(fake: FakeKubernetes, name: str) -> None:
    fake.start_pod(f"{name}-0", owner=fake.objects.get(JOB, "team", name))
    running = {"name": "main", "state": {"running": {"startedAt": "2024-05-01T12:00:00Z"}}}
    fake.set_status(POD, f"{name}-0", {"containerStatuses": [running]})


def asked(fake: FakeKubernetes) -> set[Wish]:
    """What was done with objects, by the requests that came."""
    found = set()
    for verb, path in (request.split() for request in fake.requests):
        root, _, rest = path.partition("/namespaces/team/")
        if rest:
            plural, _, subresource = [*rest.split("/"), "", ""][:3]
            group = root.split("/")[2] if root.startswith("/apis/") else ""
            found.add(Wish(verb, plural, group, subresource))
    return found


def test_nothing_is_missing_where_all_is_allowed_and_nothing_is_created_by_asking(
    fake: FakeKubernetes, kube: Kube
) -> None:
    assert missing(kube, experiment()) == []
    assert missing_to_launch(kube, experiment()) == []
    assert asked(fake) == set()


def test_a_server_that_is_overloaded_is_asked_again(fake: FakeKubernetes, kube: Kube) -> None:
    fake.refuse(5, 429)
    assert missing(kube, experiment(), Patience(SystemClock())) == []


@pytest.mark.parametrize("wish", needed(JOBS), ids=lambda wish: f"{wish.verb} {wish.what}")
def test_each_permission_that_is_missing_is_told_with_what_grants_it(
    fake: FakeKubernetes, kube: Kube, wish: Wish
) -> None:
    deny(fake, wish)
    grant = f"`{APPLY}/base` grants that to hpo-tuner"
    assert missing(kube, experiment()) == [
        f"this account may not {wish.verb} {wish.what} in the namespace team: {grant}"
    ]


@pytest.mark.parametrize("wish", LAUNCHING, ids=lambda wish: f"{wish.verb} {wish.what}")
def test_each_permission_that_starting_a_tuner_takes_is_told(fake: FakeKubernetes, kube: Kube, wish: Wish) -> None:
    deny(fake, wish)
    (told,) = missing_to_launch(kube, experiment())
    assert told.startswith(f"this account may not {wish.verb} {wish.what} in the namespace team: `kubectl apply ")


def deny(fake: FakeKubernetes, wish: Wish) -> None:
    fake.deny(wish.verb, f"{wish.resource}/{wish.subresource}" if wish.subresource else wish.resource)


def test_what_is_missing_of_one_kind_is_told_in_one_sentence(fake: FakeKubernetes, kube: Kube) -> None:
    for wish in (Wish("create", "jobs"), Wish("delete", "jobs"), Wish("list", "pods"), Wish("get", "pods", "", "log")):
        deny(fake, wish)
    assert [told.partition(":")[0] for told in missing(kube, experiment())] == [
        "this account may not create, delete jobs.batch in the namespace team",
        "this account may not list pods in the namespace team",
        "this account may not get pods/log in the namespace team",
    ]


@pytest.mark.parametrize(
    ("api_version", "kind", "plural", "command"),
    [
        (
            "kubeflow.org/v1",
            "PyTorchJob",
            "pytorchjobs",
            f"{APPLY}/overlays/training-operator",
        ),
        (
            "trainer.kubeflow.org/v1alpha1",
            "TrainJob",
            "trainjobs",
            f"{APPLY}/overlays/trainer",
        ),
        (
            "ray.io/v1",
            "RayJob",
            "rayjobs",
            "kubectl create role hpo-tuner-rayjobs -n team "
            "--verb=create,get,list,watch,patch,delete,deletecollection --resource=rayjobs.ray.io && "
            "kubectl create rolebinding hpo-tuner-rayjobs -n team --role=hpo-tuner-rayjobs "
            "--serviceaccount=team:hpo-tuner",
        ),
    ],
)
def test_what_grants_a_kind_is_its_overlay_or_a_role_of_its_own(
    fake: FakeKubernetes, kube: Kube, api_version: str, kind: str, plural: str, command: str
) -> None:
    fake.kinds = (*KINDS, Kind(api_version, kind, plural))
    fake.deny("watch", plural)
    (told,) = missing(kube, experiment(api_version, kind))
    assert told.endswith(f": `{command}` grants that to hpo-tuner")


def test_a_kind_that_is_not_served_is_told_as_such(kube: Kube) -> None:
    with pytest.raises(LaunchError, match=r"no kind RayJob in ray\.io/v1 here"):
        missing(kube, experiment("ray.io/v1", "RayJob"))
