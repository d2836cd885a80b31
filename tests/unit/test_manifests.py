"""What `manifests/` grants and brings, as it is written; tests/e2e/test_cluster_permissions.py asks a real server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo_core import __version__
from hpo_core.kube import Resource
from hpo_core.launch.cluster.permissions import HELPFUL, LAUNCHING, needed
from hpo_core.objects.settings import S3Settings

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
KUSTOMIZATIONS = sorted(MANIFESTS.rglob("kustomization.yaml"))
WORKLOADS = {"create", "get", "list", "watch", "patch", "delete", "deletecollection"}
BASE = {
    ("batch", "jobs"): WORKLOADS,
    ("", "pods"): {"list", "watch", "delete"},
    ("", "pods/log"): {"get"},
    ("", "events"): {"list", "watch"},
    ("", "configmaps"): {"create", "get", "patch", "delete", "deletecollection"},
}
TRAINING_OPERATOR = {("kubeflow.org", f"{kind}jobs"): WORKLOADS for kind in ("pytorch", "tf", "xgboost", "mpi")}
TRAINER = {("trainer.kubeflow.org", "trainjobs"): WORKLOADS}

Document = Mapping[str, Any]
Granted = dict[tuple[str, str], set[str]]


def documents(folder: Path) -> list[Document]:
    """All that lies in a folder of manifests, without its kustomization."""
    files = (path for path in sorted(folder.glob("*.yaml")) if path.name != "kustomization.yaml")
    return [document for path in files for document in yaml.safe_load_all(path.read_text())]


def of_kind(folder: Path, kind: str) -> list[Document]:
    return [document for document in documents(folder) if document["kind"] == kind]


def granted(folder: Path) -> Granted:
    """What the only role of a folder grants, verb by verb."""
    (role,) = of_kind(folder, "Role")
    found: Granted = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("base", BASE), ("overlays/training-operator", TRAINING_OPERATOR), ("overlays/trainer", TRAINER)],
)
def test_a_role_grants_what_is_listed_here_and_nothing_else(folder: str, expected: Granted) -> None:
    assert granted(MANIFESTS / folder) == expected


def test_the_base_grants_what_tuning_and_launching_take_and_nothing_else() -> None:
    jobs = Resource("batch/v1", "Job", "jobs", namespaced=True, verbs=frozenset())
    wishes: Granted = {}
    for wish in (*needed(jobs), *LAUNCHING, *HELPFUL):
        what = f"{wish.resource}/{wish.subresource}" if wish.subresource else wish.resource
        wishes.setdefault((wish.group, what), set()).add(wish.verb)
    assert granted(MANIFESTS / "base") == wishes


def test_no_role_names_all_of_anything_and_none_is_of_the_cluster() -> None:
    every = [document for folder in folders() for document in documents(folder)]
    assert not [document["kind"] for document in every if document["kind"].startswith("ClusterRole")]
    rules = [rule for document in every if document["kind"] == "Role" for rule in document["rules"]]
    assert len(rules) >= 5
    assert not [rule for rule in rules if any("*" in part for values in rule.values() for part in values)]


def test_a_binding_names_the_role_beside_it_and_the_tuner_alone() -> None:
    for folder in (MANIFESTS / "base", MANIFESTS / "overlays/training-operator", MANIFESTS / "overlays/trainer"):
        (role,), (binding,) = of_kind(folder, "Role"), of_kind(folder, "RoleBinding")
        assert binding["roleRef"]["kind"] == "Role"
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "hpo-tuner"}]


def folders() -> Iterator[Path]:
    yield from (path.parent for path in KUSTOMIZATIONS)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_what_a_kustomization_names_is_there_and_all_that_is_there_is_named(path: Path) -> None:
    kustomization = yaml.safe_load(path.read_text())
    named = [*kustomization.get("resources", []), *kustomization.get("components", [])]
    for generator in kustomization.get("secretGenerator", []):
        named += generator["envs"]
    places = {(path.parent / name).resolve() for name in named}
    assert all((place / "kustomization.yaml").is_file() if place.is_dir() else place.is_file() for place in places)
    assert set(path.parent.iterdir()) - {path} <= places


def test_the_namespace_of_the_standalone_overlay_keeps_pods_restricted() -> None:
    (namespace,) = of_kind(MANIFESTS / "overlays/standalone", "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    kustomization = yaml.safe_load((MANIFESTS / "overlays/standalone/kustomization.yaml").read_text())
    assert kustomization["namespace"] == namespace["metadata"]["name"]


def test_the_example_secret_has_what_the_store_reads_once_it_is_filled_in() -> None:
    lines = (MANIFESTS / "overlays/standalone/store.env").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert example["AWS_ACCESS_KEY_ID"] == example["AWS_SECRET_ACCESS_KEY"] == ""
    settings = S3Settings.of({name: value or "filled-in" for name, value in example.items()})
    assert (settings.endpoint, settings.access_key) == ("minio.example:9000", "filled-in")


# --- pods


def unfit(pod: Document) -> list[str]:
    """What in a pod's spec the PodSecurity level `restricted` would refuse."""
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    found += [f"volume {volume['name']}" for volume in pod.get("volumes", []) if "hostPath" in volume]
    of_pod = pod.get("securityContext", {})
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        own = container.get("securityContext", {})
        both = {**of_pod, **own}
        if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
            found.append(f"{container['name']} may be root")
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            found.append(f"{container['name']} may get privileges")
        if "ALL" not in own.get("capabilities", {}).get("drop", []) or own["capabilities"].get("add"):
            found.append(f"{container['name']} keeps capabilities")
        if both.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            found.append(f"{container['name']} has no seccomp profile")
    return found


def pods(value: Any) -> Iterator[Document]:
    """Every pod's spec in a document, however deep."""
    if isinstance(value, Mapping):
        if isinstance(value.get("containers"), list):
            yield value
        for part in value.values():
            yield from pods(part)
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for part in value:
            yield from pods(part)


FIT: Any = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {"name": "c", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}
    ],
}


def test_every_pod_that_the_manifests_bring_is_fit_for_the_level_restricted() -> None:
    assert unfit(FIT) == []
    for folder in {path.parent for path in MANIFESTS.rglob("*.yaml")} - {MANIFESTS / "experiments"}:
        for pod in pods(documents(folder)):
            assert unfit(pod) == [], f"{folder}: {pod}"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}, "volume host"),
        ({"securityContext": {}}, "c may be root"),
        ({"containers": [{"name": "c"}]}, "c keeps capabilities"),
    ],
)
def test_a_pod_that_is_not_fit_would_be_found(change: Document, told: str) -> None:
    assert told in unfit(next(pods([{"spec": {"template": {"spec": {**FIT, **change}}}}])))


# --- image


def test_the_images_label_tells_the_engines_version() -> None:
    text = (ROOT / "docker/Dockerfile").read_text()
    assert re.findall(r'image\.version="([^"]*)"', text) == [__version__]


def test_the_image_is_made_of_what_the_context_lets_through() -> None:
    """docker/Dockerfile.dockerignore lists what is copied, and the engine's own files are among it."""
    let_through = set(re.findall(r"^!(\S+)", (ROOT / "docker/Dockerfile.dockerignore").read_text(), re.MULTILINE))
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert {name for names in copied for name in names.split()} == let_through
    assert all((ROOT / name).exists() for name in let_through)
