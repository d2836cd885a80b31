"""A tuner of a real cluster that is killed before any of its store and API calls: nothing is lost or started twice.

The tuner is a process of this machine, which a new one follows at once, or the pod of a launched Job, which the cluster
replaces after its pause and which takes the lease when it has run out.

Of the kill points every HPO_E2E_KILL_STEP-th is tried, every 12th when that is not set; `make e2e-full` tries them all.
"""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo_core import tuner
from hpo_core.experiment import Experiment
from hpo_core.kube import Kube
from hpo_core.launch.cluster.endings import ending
from hpo_core.lint import KUBERNETES, load_experiment
from hpo_core.manifest import LABEL_TRIAL
from hpo_core.objects import open_objects
from hpo_core.objects.pipelines import STORE_SECRET
from hpo_core.tuner.cluster_job import CONTAINER, LABEL_TUNER
from tests.contracts.cluster_machine import cluster_image, namespace, store_of
from tests.s3_server import shared_server
from tests.scenarios.folders import EXPERIMENT, Folder, eventually

STEP = int(os.environ.get("HPO_E2E_KILL_STEP", "12"))
# All points are many tuners at once.
pytestmark = [pytest.mark.e2e, *([pytest.mark.last] if STEP == 1 else [])]

ROOT = Path(__file__).parents[2]
TRIALS = 3
AT_ONCE, FEW_AT_ONCE = 8, 5
"""How many points are tried at the same time; fewer of a selection, as those beyond the last call are tried in vain."""
PATIENCE_S = 300.0
KILLER = "killing-tuner"
"""The ConfigMap with the tuner that kills itself."""
KILLED, DONE = 137, 0
TRAINER = "echo started; sleep 1; echo $0 > ${HPO_OUTPUT_DIR:-/tmp}/model.txt; echo loss=$0"


@pytest.fixture
def where() -> Iterator[str]:
    cluster_image()
    shared_server()
    with namespace(Kube.connect()) as name:
        yield name


def folder_of(path: Path, where: str, number: int) -> Folder:
    """A folder whose experiment is called after the kill point, so that its pods can be told from the others'."""
    document = yaml.safe_load(EXPERIMENT)
    document["metadata"] = {"name": f"kill-{number}", "namespace": where, "annotations": {"kfp-hpo/seed": "1"}}
    document["spec"] |= {"maxTrialCount": TRIALS, "parallelTrialCount": 2}
    pod = document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    command = ["sh", "-c", TRAINER, "${trialParameters.lr}"]
    pod["containers"][0] |= {"image": cluster_image(), "imagePullPolicy": "IfNotPresent", "command": command}
    document["spec"]["trialTemplate"]["retain"] = True  # so that the pods can be counted at the end
    return Folder.make(path / str(number), yaml.safe_dump(document), uri=store_of(where))


def checked_assignments(kube: Kube, folder: Folder, where: str, number: int) -> str:
    """Check that no trial was lost or started twice, and return what the search has chosen."""
    store = folder.place.store(where, f"kill-{number}")
    records = store.trials()
    assert [record.condition for record in records] == ["Succeeded"] * TRIALS
    assert [len(record.attempts) for record in records] == [1] * TRIALS
    assert sorted(record.finished_seq or 0 for record in records) == list(range(1, TRIALS + 1))
    for record in records:
        pods = kube.list("v1", "Pod", namespace=where, selector=f"{LABEL_TRIAL}={record.name}")
        assert len(pods) == 1, f"trial {record.number} had {len(pods)} pods"
        log = store.log(f"{record.number:05d}").decode()
        assert log.count("started") == 1, log
    assert not store.is_held()
    return str([dict(record.assignments) for record in records])


def each_point(dies_at: Callable[[int], bool]) -> int:
    """Try kill points, several at the same time, until a tuner lives to its end; returns how many did not."""
    at_once = AT_ONCE if STEP == 1 else FEW_AT_ONCE
    numbers = itertools.count(1, STEP)
    over = threading.Event()

    def work() -> int:
        for tried in itertools.count():
            number = next(numbers)
            try:
                if over.is_set() or not dies_at(number):
                    over.set()
                    return tried
            except Exception as error:
                over.set()
                error.add_note(f"at the kill before call {number}")
                raise
        raise AssertionError("no end")

    with ThreadPoolExecutor(at_once) as pool:
        workers = [pool.submit(work) for _ in range(at_once)]
    return sum(worker.result() for worker in workers)


def test_a_tuner_killed_before_any_of_its_calls_loses_no_trial_and_starts_none_twice(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kube = Kube.connect()
    chosen = {}

    def tune(folder: Folder, calls: int) -> subprocess.CompletedProcess[str]:
        arguments = [str(folder.path / "small.yaml"), folder.uri, str(calls), "kubernetes"]
        command = [sys.executable, "-m", "tests.scenarios.killing_tuner", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    def dies_at(number: int) -> bool:
        folder = folder_of(tmp_path, where, number)
        ended = tune(folder, number)
        assert ended.returncode in (-9, DONE), ended.stderr
        if ended.returncode == -9:
            again = tune(folder, 0)
            assert again.returncode == 0, again.stderr
        chosen[number] = checked_assignments(kube, folder, where, number)
        return ended.returncode == -9

    tried = each_point(dies_at)
    with capsys.disabled():
        print(f"\nkill points of a process tried in the cluster: {tried} of those before {max(chosen)}")
    assert len(set(chosen.values())) == 1, chosen
    assert tried >= 2


def test_a_tuner_whose_pod_is_killed_before_any_of_its_calls_loses_no_trial_and_starts_none_twice(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = os.environ.get("HPO_E2E_HPO_IMAGE")
    if not image:
        pytest.skip("HPO_E2E_HPO_IMAGE names no image of the engine: that its pod may be killed is unproven")
    kube = Kube.connect()
    prepare(kube, where)
    pod = {"image": image, "fields": {"shareProcessNamespace": True}}
    place = ArmedPlace(store_of(where), str(tmp_path), KUBERNETES, pod)
    chosen = {}

    def dies_at(number: int) -> bool:
        folder = folder_of(tmp_path, where, number)
        store = place.store(where, f"kill-{number}")
        until = time.monotonic() + PATIENCE_S
        tuner.launch(load_experiment(str(folder.path / "small.yaml")), place)
        seen = tuner.wait(store, place, should_stop=lambda: time.monotonic() > until)
        assert seen is not None, f"it is not over: {exits(kube, where, number)}"
        eventually(lambda: completed(kube, where, number), f"Complete: {exits(kube, where, number)}", PATIENCE_S)
        chosen[number] = checked_assignments(kube, folder, where, number)
        assert len(store.output_labels()) == 1
        ended = exits(kube, where, number)
        assert ended in ([DONE], [KILLED, DONE])
        tuner.delete(store, place)
        open_objects(place.marks).delete(store.name)
        return ended != [DONE]

    tried = each_point(dies_at)
    with capsys.disabled():
        print(f"\nkill points of a pod tried in the cluster: {tried} of those before {max(chosen)}")
    assert len(set(chosen.values())) == 1, chosen
    assert tried >= 2


class ArmedPlace(tuner.Place):
    """A place whose cluster gives a tuner's Job, when it is made, the program that kills itself, as a webhook would.

    That program is no pod's first process, which no signal from within would end: the pod shares its process ids.
    """

    @property
    def marks(self) -> str:
        """Where the first pod of an experiment's tuner marks that it has killed itself."""
        return f"{self.uri}-killed"

    def kube(self, experiment: Experiment) -> Any:
        number = experiment.name.rpartition("-")[2]
        return Arming(super().kube(experiment), (number, self.marks, experiment.name))


class Arming:
    """A cluster's door that changes a tuner's Job on its way in.

    Args:
        kube: The door.
        words: What the killing program is told besides its order.
    """

    def __init__(self, kube: Kube, words: tuple[str, ...]) -> None:
        self._kube, self._words = kube, words

    def create(self, manifest: Mapping[str, Any]) -> Any:
        labels = manifest["metadata"].get("labels") or {}
        is_tuner = manifest["kind"] == "Job" and LABEL_TUNER in labels
        return self._kube.create(self._armed(manifest) if is_tuner else manifest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kube, name)

    def _armed(self, job: Mapping[str, Any]) -> Mapping[str, Any]:
        armed = copy.deepcopy(dict(job))
        pod = armed["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        order = container["command"][-1]
        container["command"] = ["python", f"/killing/{KILLER}.py", "--pod", order, *self._words]
        container["volumeMounts"].append({"name": "killing", "mountPath": "/killing", "readOnly": True})
        pod["volumes"].append({"name": "killing", "configMap": {"name": KILLER}})
        return armed


def prepare(kube: Kube, where: str) -> None:
    """Give a namespace what the pods of tuners need, and the one that kills itself."""
    command = ["kubectl", "apply", "-n", where, "-k", str(ROOT / "manifests/base")]
    subprocess.run(command, check=True, capture_output=True)
    settings = {name: value for name, value in shared_server().items() if name.startswith(("AWS_", "MINIO_"))}
    program = (ROOT / "tests/scenarios/killing_tuner.py").read_text()
    for kind, name, content in (
        ("Secret", STORE_SECRET, {"stringData": settings}),
        ("ConfigMap", KILLER, {"data": {f"{KILLER}.py": program}}),
    ):
        kube.create({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": where}, **content})


def exits(kube: Kube, where: str, number: int) -> list[int | None]:
    """The exit codes of a tuner's pods that have ended, in their order."""
    pods = list(kube.list("v1", "Pod", namespace=where, selector=f"{LABEL_TUNER}=kill-{number}"))
    pods.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    ended = [ending(pod, CONTAINER) for pod in pods]
    return [how.code for how in ended if how is not None]


def completed(kube: Kube, where: str, number: int) -> bool:
    """Tell whether a tuner's only Job is complete."""
    (job,) = kube.list("batch/v1", "Job", namespace=where, selector=f"{LABEL_TUNER}=kill-{number}")
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Complete" and c["status"] == "True" for c in conditions)
