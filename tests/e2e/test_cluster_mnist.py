"""The shipped example with the shipped trainer's real image, in a real cluster: tuned, retrained, reported, removed.

It takes minutes, so only `make e2e-full` runs it, by HPO_E2E_FULL. HPO_E2E_MNIST_IMAGE names the image of
trainers/mnist as the cluster can pull it, by `make mnist-image`; KUBECONFIG the cluster, as an account that may create
namespaces and roles, and `kubectl` has to be there; AWS_* the store as this machine and pods reach it,
HPO_E2E_HPO_IMAGE the engine's image.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpo_core.kube import Kube
from hpo_core.objects.pipelines import STORE_SECRET
from tests.contracts.cluster_machine import cluster_image, left, namespace, store_of
from tests.s3_server import shared_server
from tests.scenarios.folders import Folder, eventually

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
EXPERIMENT = str(ROOT / "manifests/experiments/mnist-random.yaml")
NAME = "firstexperiment"
BASELINE = {"pod-security.kubernetes.io/enforce": "baseline"}
"""The example asks for nothing of PodSecurity, as Katib's examples do."""
PULLED_AND_TRAINED_S = 1800.0
GONE_S = 120.0


@dataclass(frozen=True)
class Place:
    """A namespace with all that a tuner needs, and a user's folder."""

    kube: Kube
    name: str
    folder: Folder

    def hpo(self, *words: str) -> str:
        done = self.folder.hpo(*words, timeout_s=PULLED_AND_TRAINED_S)
        assert done.returncode == 0, f"hpo {' '.join(words)}: {done.stderr}"
        return done.stdout


def named(variable: str, what: str) -> str:
    """The value of an environment variable; skips the test, and says what is unproven, where it has none."""
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} {what}: that the example is tuned with its real image is unproven")
    return value


@pytest.fixture
def image() -> str:
    named("HPO_E2E_FULL", "is not set, as `make e2e-full` does")
    return named("HPO_E2E_MNIST_IMAGE", "names no image of trainers/mnist")


@pytest.fixture
def place(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:  # noqa: ARG001  to be skipped
    cluster_image()
    monkeypatch.setenv("HPO_IMAGE", named("HPO_E2E_HPO_IMAGE", "names no image of the engine"))
    settings = {name: value for name, value in shared_server().items() if name.startswith(("AWS_", "MINIO_"))}
    kube = Kube.connect()
    with namespace(kube, BASELINE) as where:
        command = ["kubectl", "apply", "-n", where, "-k", str(ROOT / "manifests/base")]
        subprocess.run(command, check=True, capture_output=True)
        metadata = {"name": STORE_SECRET, "namespace": where}
        kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": settings})
        yield Place(kube, where, Folder(tmp_path, store_of(where)))


def test_the_example_is_tuned_and_retrained_with_its_real_image_and_deleted(image: str, place: Place) -> None:
    """The YAML is as it is shipped, but for its image and its namespace."""
    place.hpo("launch", EXPERIMENT, "--image", image, "--backend", "kubernetes", "--namespace", place.name)
    assert "12/12 trials done" in place.hpo("wait", NAME)
    trials = json.loads(place.hpo("trials", NAME, "-o", "json"))
    assert {trial["condition"] for trial in trials} == {"Succeeded"}
    best = json.loads(place.hpo("best", NAME))
    assert min(trials, key=lambda trial: float(trial["objective"]))["parameters"] == best
    model = place.folder.path / "model"
    retrained = place.hpo("retrain", NAME, "--model-dir", str(model))
    described = json.loads((model / "model.json").read_text())
    assert described["assignment"].items() >= best.items()
    assert described["metrics"]["test_accuracy"] > 0.8, "it has learnt nothing"
    assert (model / "model.pt").stat().st_size > 10_000
    assert f"{place.folder.uri}/{place.name}/{NAME}/models/" in retrained
    place.hpo("report", NAME, "-o", "report.html")
    page = (place.folder.path / "report.html").read_text()
    assert [trial["name"] for trial in trials if trial["name"] not in page] == []
    place.hpo("delete", NAME)
    eventually(lambda: left(place.kube, place.name) == [], "nothing of ours is left", GONE_S)
