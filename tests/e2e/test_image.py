"""The engine's image in a pod that may do least: any user, files that cannot be written, PodSecurity level restricted.

HPO_E2E_HPO_IMAGE names it, as it was built with docker/Dockerfile and the cluster can pull it; KUBECONFIG the cluster.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo_core import __version__
from hpo_core.kube import Kube
from tests.contracts.cluster_machine import RESTRICTED, namespace

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
COMPONENTS = sorted((ROOT / "components").glob("*/component.yaml"))
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Machine:
    """Where pods of the image are run."""

    kube: Kube
    name: str
    image: str

    def run(
        self, *args: str, command: Sequence[str] = (), env: Mapping[str, str] | None = None, user: int | None = None
    ) -> tuple[int, str]:
        """Run a pod to its end; returns the exit code and what it printed."""
        container: dict[str, Any] = {
            "name": "main",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": list(command),
            "args": list(args),
            "env": [{"name": name, "value": value} for name, value in (env or {}).items()],
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }
        of_pod = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        spec = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {**of_pod, **({"runAsUser": user} if user is not None else {})},
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        }
        name = f"image-{secrets.token_hex(4)}"
        metadata = {"name": name, "namespace": self.name}
        self.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        ended = self._ended(name)
        printed = b"".join(self.kube.pod_log(name, "main", follow=False, namespace=self.name)).decode()
        return int(ended["exitCode"]), printed

    def _ended(self, name: str) -> Mapping[str, Any]:
        until, pod = time.monotonic() + PATIENCE_S, {}
        while time.monotonic() < until:
            pod = self.kube.get("v1", "Pod", name, namespace=self.name)
            for status in (pod.get("status") or {}).get("containerStatuses") or []:
                if ended := status["state"].get("terminated"):
                    return dict(ended)
            time.sleep(0.2)
        pytest.fail(f"the pod {name} has not ended within {PATIENCE_S} s: {pod.get('status')}")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster: that the image runs in a pod is unproven")
    if not os.environ.get("HPO_E2E_HPO_IMAGE"):
        pytest.skip("HPO_E2E_HPO_IMAGE names no image of the engine: that it runs in a pod is unproven")
    kube = Kube.connect()
    with namespace(kube, RESTRICTED) as name:
        yield Machine(kube, name, os.environ["HPO_E2E_HPO_IMAGE"])


def anybody() -> int:
    """A user that nobody knows, as OpenShift chooses them."""
    return 1_000_000_000 + secrets.randbelow(1_000_000)


def test_it_starts_as_the_user_that_it_names(machine: Machine) -> None:
    """The kubelet refuses a pod that must not be root when the image's user is none of a number, or root."""
    assert machine.run(command=["hpo", "--version"]) == (0, f"hpo {__version__}\n")


def test_a_command_that_is_given_as_arguments_is_all_that_runs(machine: Machine) -> None:
    """So kfp's runner on Docker starts a component; a help text is printed for who gives none."""
    assert machine.run("hpo", "--version", user=anybody()) == (0, f"hpo {__version__}\n")
    code, printed = machine.run(user=anybody())
    assert code == 0
    assert "hpo run experiment.yaml" in printed


def test_anybody_may_lint_with_it(machine: Machine) -> None:
    document = (ROOT / "manifests/experiments/mnist-random.yaml").read_text()
    check = 'printf %s "$DOCUMENT" > "$HOME/experiment.yaml" && hpo lint "$HOME/experiment.yaml" --backend kubernetes'
    code, printed = machine.run(command=["sh", "-c", check], env={"DOCUMENT": document}, user=anybody())
    assert code == 0, printed
    code, printed = machine.run(
        command=["sh", "-c", check], env={"DOCUMENT": document.replace("algorithmName: random", "algorithmName: none")}
    )
    assert code == 2
    assert "spec.algorithm.algorithmName" in printed


NEEDS = """
import ast, importlib, sys
for source in sys.argv[1:]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module]
        else:
            continue
        for name in found:
            importlib.import_module(name)
            print(name)
    exec(source, {})
import hpo_core.kube, hpo_core.launch.cluster.launcher, hpo_core.objects.s3, hpo_core.tuner.background
"""


def executor(path: Path) -> Mapping[str, Any]:
    (found,) = yaml.safe_load(path.read_text())["deploymentSpec"]["executors"].values()
    return dict(found["container"])


def test_all_that_the_components_import_is_there(machine: Machine) -> None:
    sources = [executor(path)["command"][-1] for path in COMPONENTS]
    assert len(sources) == 6
    code, printed = machine.run(
        *sources, command=["python3", "-c", NEEDS], env={"_KFP_RUNTIME": "true"}, user=anybody()
    )
    assert code == 0, printed
    assert set(printed.split()) == {"kfp", "kfp.dsl", "typing", "hpo_core"}


def test_a_component_runs_in_it_as_the_launcher_of_pipelines_starts_it(machine: Machine) -> None:
    container = executor(ROOT / "components/build_trainer_image/component.yaml")
    outputs = {"outputFile": "/tmp/outputs.json", "parameters": {"Output": {"outputFile": "/tmp/Output"}}}
    given = {"context": "", "image": "team/trainer:1", "name": "", "store": ""}
    told = json.dumps({"inputs": {"parameterValues": given}, "outputs": outputs})
    args = [told if arg == "{{$}}" else arg for arg in container["args"]]
    command = ["sh", "-c", '"$@" && echo && cat /tmp/outputs.json', "launcher", *container["command"]]
    code, printed = machine.run(*args, command=command, user=anybody())
    assert code == 0, printed
    assert json.loads(printed.splitlines()[-1]) == {"parameterValues": {"Output": "team/trainer:1"}}


COMPILED = """
import importlib.util, pathlib
for name in ("hpo_core", "kfp", "kubernetes", "minio"):
    (folder,) = importlib.util.find_spec(name).submodule_search_locations
    found = list(pathlib.Path(folder).rglob("*.py"))
    assert found, name
    for path in found:
        if not pathlib.Path(importlib.util.cache_from_source(path)).exists():
            print(path)
"""


def test_nothing_is_compiled_when_it_starts(machine: Machine) -> None:
    """It could not be kept, so that every start would pay for it."""
    assert machine.run(command=["python3", "-c", COMPILED], user=anybody()) == (0, "")
