"""A cluster that fails under a run: its API server, its kubelet, its object store, the tuner's own pod; it completes.

HPO_E2E_FAULT is a command that takes `pause`, `resume`, `kill` or `start` and a component: apiserver, kubelet, minio.
HPO_E2E_HPO_IMAGE names the engine's image, for tuners in pods. With HPO_E2E_FULL a tuner of this machine is tried as
well, and what hangs does so for a minute; else for longer than a lease lasts.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpo_core.objects.lease import LEASE_S
from tests.e2e.cluster_runs import Place, cluster_run
from tests.scenarios.folders import eventually

pytestmark = pytest.mark.e2e

FULL = bool(os.environ.get("HPO_E2E_FULL"))
OUTAGE_S = 60 if FULL else LEASE_S + 5
Do = Callable[[str, str], None]
both = pytest.mark.parametrize("tuner", ["here", "in a pod"] if FULL else ["in a pod"])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with cluster_run(tmp_path, trials=8, seconds=3) as made:
        yield made


@pytest.fixture
def do() -> Do:
    """Makes a component fail, or come back."""
    command = os.environ.get("HPO_E2E_FAULT")
    if not command:
        pytest.skip("HPO_E2E_FAULT is no command that makes a component fail: what happens then is unproven")

    def call(action: str, component: str) -> None:
        subprocess.run([*command.split(), action, component], check=True, timeout=60, capture_output=True)

    return call


def start(place: Place, tuner: str) -> subprocess.Popen[str]:
    return place.start() if tuner == "here" else place.launch()


@both
@pytest.mark.last
@pytest.mark.parametrize("component", ["apiserver", "minio"])
def test_a_component_that_hangs_costs_time_only(do: Do, place: Place, component: str, tuner: str) -> None:
    process = start(place, tuner)
    before = place.await_over(2)
    do("pause", component)
    try:
        time.sleep(OUTAGE_S)
    finally:
        do("resume", component)
    place.finish(process, before)


@both
@pytest.mark.last
@pytest.mark.parametrize("component", ["apiserver", "minio", "kubelet"])
def test_a_component_that_is_killed_and_comes_back_costs_time_only(
    do: Do, place: Place, component: str, tuner: str
) -> None:
    process = start(place, tuner)
    before = place.await_over(2)
    do("kill", component)
    try:
        time.sleep(10)
    finally:
        do("start", component)
    place.finish(process, before)


@pytest.mark.parametrize("kind", ["Pod", "Job"])
def test_a_tuner_that_somebody_deletes_is_followed_by_another_one(place: Place, kind: str) -> None:
    """By the Job's controller, or by whoever waits."""
    process = place.launch()
    before = place.await_over(2)
    (name,) = place.tuner(kind)
    place.kube.delete({"Job": "batch/v1", "Pod": "v1"}[kind], kind, name, namespace=place.name)
    eventually(lambda: set(place.tuner(kind)) - {name}, "another tuner comes", 180.0)
    place.finish(process, before)
