"""What `manifests/` grants, asked of a real API server; and an experiment that is run with nothing but that.

KUBECONFIG names the cluster, as an account that may create namespaces and roles; `kubectl` has to be there. AWS_* names
the store as this machine and pods reach it, HPO_E2E_HPO_IMAGE the engine's image.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest
import yaml

from hpo_core.experiment import Experiment
from hpo_core.kube import Kube
from hpo_core.launch.cluster.permissions import missing, missing_to_launch
from hpo_core.manifest import LABEL_EXPERIMENT
from hpo_core.tuner.cluster_job import LABEL_TUNER
from tests.contracts.cluster_machine import RESTRICTED, cluster_image, namespace
from tests.experiments import make_experiment
from tests.s3_server import shared_server
from tests.scenarios.folders import eventually
from tests.unit.test_manifests import BASE, MANIFESTS, TRAINER, TRAINING_OPERATOR, Granted

pytestmark = pytest.mark.e2e

READING = ("get", "list", "watch")
WRITING = ("create", "update", "patch", "delete", "deletecollection")
SPECIAL = ("bind", "escalate", "impersonate", "approve", "sign", "use")
OF_OPERATORS = {*TRAINING_OPERATOR, *TRAINER, ("kubeflow.org", "experiments"), ("ray.io", "rayjobs")}
"""Kinds that are asked about whether they are installed or not."""

Access: TypeAlias = tuple[str, str, str]
"""Group, resource with its subresource, verb."""


@dataclass(frozen=True)
class Place:
    """A namespace, seen by who may do everything there."""

    kube: Kube
    name: str
    folder: Path

    def apply(self, *resources: str, components: Sequence[str] = ()) -> None:
        """Apply parts of the manifests together, as a user's own kustomization does."""
        here = os.path.relpath(MANIFESTS, self.folder)
        told = {"namespace": self.name, "resources": [f"{here}/{part}" for part in resources]}
        told["components"] = [f"{here}/{part}" for part in components]
        (self.folder / "kustomization.yaml").write_text(yaml.safe_dump(told))
        kubectl("apply", "-k", str(self.folder))

    def kubeconfig(self, account: str = "hpo-tuner") -> Path:
        """Write a kubeconfig of a service account."""
        current = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        token = kubectl("-n", self.name, "create", "token", account).strip()
        current["users"] = [{"name": account, "user": {"token": token}}]
        current["contexts"][0]["context"] |= {"user": account, "namespace": self.name}
        path = self.folder / f"kubeconfig-{account}"
        path.write_text(json.dumps(current))
        return path


def kubectl(*words: str) -> str:
    done = subprocess.run(["kubectl", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    cluster_image()
    if not shutil.which("kubectl"):
        pytest.skip("there is no kubectl: what the manifests grant is unproven")
    kube = Kube.connect()
    with namespace(kube, RESTRICTED) as name:
        yield Place(kube, name, tmp_path)


# --- who may do what


@functools.cache
def served() -> frozenset[tuple[str, str]]:
    """Every resource and subresource of the server, by its group."""
    groups = json.loads(kubectl("get", "--raw", "/apis"))["groups"]
    roots = {"/api/v1": "", **{f"/apis/{g['preferredVersion']['groupVersion']}": g["name"] for g in groups}}
    listed = {group: json.loads(kubectl("get", "--raw", root))["resources"] for root, group in roots.items()}
    return frozenset((group, entry["name"]) for group, entries in listed.items() for entry in entries)


def allowed(place: Place, account: str, where: str) -> set[Access]:
    """All that an account may do in a namespace, "" for the whole cluster, beyond what every account may."""
    return _allowed(place, account, where) - _allowed(place, "nobody", where)


def _allowed(place: Place, account: str, where: str) -> set[Access]:
    def may(access: Access) -> bool:
        group, what, verb = access
        resource, _, subresource = what.partition("/")
        wish = {"group": group, "resource": resource, "subresource": subresource, "verb": verb, "namespace": where}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{place.name}", "system:authenticated"]
        user = {"user": f"system:serviceaccount:{place.name}:{account}", "groups": groups}
        return bool(place.kube.create({**review, "spec": {**user, "resourceAttributes": wish}})["status"]["allowed"])

    asked = [(*what, verb) for what, verb in itertools.product(served() | OF_OPERATORS, (*READING, *WRITING, *SPECIAL))]
    with ThreadPoolExecutor(16) as pool:
        return {access for access, is_allowed in zip(asked, pool.map(may, asked), strict=True) if is_allowed}


def accesses(*granted: Granted) -> set[Access]:
    return {(*what, verb) for part in granted for what, verbs in part.items() for verb in verbs}


@pytest.mark.parametrize(
    ("overlays", "expected"),
    [
        ((), [BASE]),
        (("overlays/training-operator",), [BASE, TRAINING_OPERATOR]),
        (("overlays/trainer",), [BASE, TRAINER]),
        (("overlays/trainer", "overlays/training-operator"), [BASE, TRAINER, TRAINING_OPERATOR]),
    ],
    ids=["base", "training-operator", "trainer", "both"],
)
def test_a_tuner_may_do_in_its_namespace_what_is_listed_and_nothing_else(
    place: Place, overlays: Sequence[str], expected: Sequence[Granted]
) -> None:
    """Every verb, of everything that the server has: no secret, no pod, no exec, no role is among it."""
    place.apply("base", *overlays)
    assert len(served()) > 50
    assert allowed(place, "hpo-tuner", place.name) == accesses(*expected)
    assert allowed(place, "default-editor", place.name) == set()


@pytest.mark.parametrize("where", ["kube-system", "default", ""], ids=["kube-system", "default", "the whole cluster"])
def test_a_tuner_may_do_nothing_elsewhere(place: Place, where: str) -> None:
    place.apply("base", "overlays/training-operator", "overlays/trainer")
    assert allowed(place, "hpo-tuner", where) == set()


@pytest.mark.parametrize("account", ["default-editor", "pipeline-runner"])
def test_in_a_profile_pipeline_steps_may_do_what_the_tuner_may(place: Place, account: str) -> None:
    place.apply("overlays/kubeflow-profile")
    assert allowed(place, account, place.name) == accesses(BASE)
    place.apply("base", "overlays/trainer", components=["components/pipeline-steps"])
    assert allowed(place, account, place.name) == accesses(BASE, TRAINER)
    assert allowed(place, account, "default") == set()


def test_the_standalone_overlay_makes_a_restricted_namespace_with_the_secret(place: Place) -> None:
    """Under another name, for `hpo` may be somebody's."""
    name = f"{place.name}-own"
    own = Place(place.kube, name, place.folder)
    try:
        own.apply("overlays/standalone")
        labels = place.kube.get("v1", "Namespace", name)["metadata"]["labels"]
        assert labels.items() >= RESTRICTED.items()
        secret = place.kube.get("v1", "Secret", "hpo-store", namespace=name)
        assert secret["data"].keys() == {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        assert allowed(own, "hpo-tuner", name) == accesses(BASE)
    finally:
        place.kube.delete("v1", "Namespace", name)


# --- what is told before anything is created


def tuned(where: str, api_version: str = "batch/v1", kind: str = "Job") -> Experiment:
    template = "spec.trialTemplate"
    changes = {f"{template}.{end}Condition": "status.ended" for end in ("success", "failure")}
    changes |= {f"{template}.trialSpec.apiVersion": api_version, f"{template}.trialSpec.kind": kind}
    return make_experiment(changes={"metadata.namespace": where, **(changes if kind != "Job" else {})})


def test_a_missing_permission_is_told_and_the_command_that_is_told_grants_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl("-n", place.name, "create", "serviceaccount", "hpo-tuner")
    admin = os.environ["KUBECONFIG"]
    monkeypatch.setenv("KUBECONFIG", str(place.kubeconfig()))
    kube = Kube.connect()
    experiment = tuned(place.name)
    told = missing(kube, experiment)
    assert len(told) == 5
    assert missing_to_launch(kube, experiment)
    who = f"system:serviceaccount:{place.name}:hpo-tuner may not "
    command = f"kubectl apply -n {place.name} -k manifests/base"
    assert all(line.startswith(who) and line.endswith(f": `{command}` grants that to hpo-tuner") for line in told)
    run(command, admin)
    assert missing(kube, experiment) == missing_to_launch(kube, experiment) == []


@pytest.mark.parametrize("account", ["hpo-tuner", "pipeline-runner"])
def test_what_is_told_for_a_kind_without_an_overlay_grants_it(
    place: Place, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A StatefulSet stands for the kind of some operator."""
    place.apply("overlays/kubeflow-profile")
    if account != "hpo-tuner":
        kubectl("-n", place.name, "create", "serviceaccount", account)
    admin = os.environ["KUBECONFIG"]
    monkeypatch.setenv("KUBECONFIG", str(place.kubeconfig(account)))
    kube = Kube.connect()
    experiment = tuned(place.name, "apps/v1", "StatefulSet")
    (told,) = missing(kube, experiment)
    assert f":{account} may not create, get, list, watch, patch, delete, deletecollection statefulsets.apps" in told
    run(told.split("`")[1], admin)
    eventually(lambda: missing(kube, experiment) == [], "the API server knows of it")


def run(command: str, kubeconfig: str) -> None:
    """Run a command as it is told to a user, in the folder of the project."""
    environment = {**os.environ, "KUBECONFIG": kubeconfig}
    done = subprocess.run(
        command, shell=True, cwd=MANIFESTS.parent, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"


# --- an experiment

EXPERIMENT = """
apiVersion: kubeflow.org/v1beta1
kind: Experiment
metadata: {name: small}
spec:
  objective: {type: minimize, objectiveMetricName: loss}
  algorithm: {algorithmName: random}
  parallelTrialCount: 2
  maxTrialCount: 3
  parameters:
    - {name: lr, parameterType: double, feasibleSpace: {min: "0.01", max: "0.05"}}
  trialTemplate:
    primaryContainerName: main
    trialParameters: [{name: lr, reference: lr}]
    trialSpec:
      apiVersion: batch/v1
      kind: Job
      spec:
        template:
          spec:
            restartPolicy: Never
            automountServiceAccountToken: false
            securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
            containers:
              - name: main
                image: IMAGE
                imagePullPolicy: IfNotPresent
                command: ["sh", "-c", "sleep 1; echo loss=$0", "${trialParameters.lr}"]
                securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"""


def user(place: Place, account: str, **environment: str) -> Callable[..., str]:
    """A user's folder with the experiment, and `hpo` as that account runs it there."""
    (place.folder / "small.yaml").write_text(EXPERIMENT.replace("IMAGE", cluster_image()))
    told = {"KUBECONFIG": str(place.kubeconfig(account)), "HPO_STORE": f"s3://hpo-test/{place.name}", **environment}

    def hpo(*words: str) -> str:
        command = [sys.executable, "-m", "hpo_core.cli", *words, "--namespace", place.name]
        environment = {**os.environ, **told}
        done = subprocess.run(command, cwd=place.folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"hpo {' '.join(words)}: {done.stderr}"
        return done.stdout

    return hpo


def test_an_experiment_runs_and_is_deleted_with_nothing_but_that(place: Place) -> None:
    shared_server()
    place.apply("base")
    hpo = user(place, "hpo-tuner", HPO_IMAGE="")
    assert "succeeded because max trial count has reached" in hpo("run", "small.yaml", "--backend", "kubernetes")
    assert ours(place) == ["ConfigMap"]
    hpo("delete", "small")
    assert ours(place) == []


def test_a_pipeline_step_launches_a_tuner_stops_it_and_deletes_it_with_nothing_but_that(place: Place) -> None:
    """The tuner's pod has the base, the step the overlay of a profile; trials have sidecars, which take their time."""
    store = shared_server()
    image = os.environ.get("HPO_E2E_HPO_IMAGE")
    if not image:
        pytest.skip("HPO_E2E_HPO_IMAGE names no image of the engine: that its pod may do enough is unproven")
    place.apply("overlays/kubeflow-profile")
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    given = [f"--from-literal={name}={store[name]}" for name in names]
    kubectl("-n", place.name, "create", "secret", "generic", "hpo-store", *given)
    kubectl("-n", place.name, "create", "serviceaccount", "pipeline-runner")
    hpo = user(place, "pipeline-runner", HPO_IMAGE=image)
    for _ in range(2):
        hpo("launch", "small.yaml", "--backend", "kubernetes")
        eventually(
            lambda: place.kube.list("v1", "Pod", namespace=place.name, selector=LABEL_EXPERIMENT), "a trial runs"
        )
        hpo("stop", "small")
        eventually(lambda: set(ours(place)) <= {"ConfigMap"}, "all but the experiment's owner has gone")
    hpo("launch", "small.yaml", "--backend", "kubernetes")
    assert "succeeded because max trial count has reached" in hpo("wait", "small")
    hpo("delete", "small")
    eventually(lambda: ours(place) == [], "all has gone")


def ours(place: Place) -> list[str]:
    """The kinds of what is there of the experiment."""
    listed = itertools.product(OURS, (LABEL_EXPERIMENT, LABEL_TUNER))
    found = [place.kube.list(*kind, namespace=place.name, selector=label) for kind, label in listed]
    return [item["kind"] for items in found for item in items if not item["metadata"].get("deletionTimestamp")]


OURS = (("batch/v1", "Job"), ("v1", "Pod"), ("v1", "ConfigMap"))
