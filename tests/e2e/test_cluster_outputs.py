"""What trials and the retraining leave in a real cluster reaches a real store; metrics come from a file.

KUBECONFIG names the cluster, AWS_* the store as this machine and its pods reach it, HPO_E2E_HPO_IMAGE the engine's
image and HPO_E2E_IMAGE one with `python3` for trials.
"""

from __future__ import annotations

import copy
import json
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from hpo_core import tuner
from hpo_core.errors import LaunchError
from hpo_core.kube import Kube
from hpo_core.launch.cluster.sidecar import SIDECAR
from hpo_core.manifest import LABEL_UID
from hpo_core.objects.pipelines import STORE_SECRET
from hpo_core.store import ExperimentStore
from tests.contracts.cluster_machine import BARE, RESTRICTED, USER, cluster_image, namespace, store_of
from tests.s3_server import shared_server
from tests.scenarios.folders import EXPERIMENT, Folder, eventually

pytestmark = pytest.mark.e2e

PATIENCE_S = 150.0
MODEL_BYTES = 50 << 20
DEADLINE_S, AWAY_S = 8.0, 25.0
POD = {"securityContext": USER, "terminationGracePeriodSeconds": 2}
TRAINER = """
import os, random, sys
lr, size = sys.argv[1], int(sys.argv[2])
folder = os.environ["HPO_OUTPUT_DIR"]
os.makedirs(folder + "/deep/er")
with open(folder + "/model.bin", "wb") as file:
    file.write(random.Random(lr).randbytes(size))
with open(folder + "/deep/er/notes.txt", "w") as file:
    file.write(os.environ["HPO_PHASE"] + " with " + lr)
os.symlink("/etc/passwd", folder + "/leads-out")
print("variables", *sorted(os.environ))
print("loss=" + lr)
"""
WRITES_FILE = """
import os, sys, time
print("loss=99 is only talk", flush=True)
with open("/var/log/katib/metrics.log", "a") as file:
    for factor in (3, 2, 1):
        print(f"loss={factor * float(sys.argv[1])}", file=file, flush=True)
        time.sleep(0.5)
    file.write("accuracy=0.75")
print("and this is the end")
"""
IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("loss=1", flush=True)
time.sleep(600)
"""
REPLICAS = """
import os, socket, sys, time
with open(os.environ["HPO_OUTPUT_DIR"] + "/who.txt", "w") as file:
    file.write(socket.gethostname())
print("loss=" + sys.argv[1])
time.sleep(1)
"""


@dataclass(frozen=True)
class Place:
    """A namespace with the store's Secret, and a user's folder."""

    kube: Kube
    name: str
    folder: Folder

    @property
    def store(self) -> ExperimentStore:
        return self.folder.place.store(self.name, "small")

    def hpo(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        ended = self.folder.hpo(*words, env={"HPO_NAMESPACE": self.name}, timeout_s=PATIENCE_S)
        assert ended.returncode == code, (ended.stdout, ended.stderr)
        return ended

    def run(self, *, code: int = 0) -> list[dict[str, Any]]:
        self.hpo("run", "small.yaml", "--backend", "kubernetes", "--namespace", self.name, code=code)
        return self.folder.records(self.name)

    def kept(self, label: str) -> dict[str, bytes]:
        """What is in the store of an output, by relative names."""
        keys = self.store.outputs(label)
        return {key.split("/", 4)[4]: self.store.objects.get(key).data for key in keys}

    def left(self) -> list[str]:
        """Everything of ours that is in the namespace."""
        return [
            f"{kind}/{item['metadata']['name']}"
            for kind, version in (("Job", "batch/v1"), ("Pod", "v1"))
            for item in self.kube.list(version, kind, namespace=self.name, selector=LABEL_UID)
        ]


MakePlace = Callable[..., Place]


@pytest.fixture
def make_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePlace]:
    """Makes a namespace of its own, with the Secret that it is told, and an experiment in the user's folder."""
    image, ours = cluster_image(), os.environ.get("HPO_E2E_HPO_IMAGE")
    if not ours:
        pytest.skip("HPO_E2E_HPO_IMAGE names no image of the engine: that outputs are kept in a cluster is unproven")
    settings = {name: value for name, value in shared_server().items() if name.startswith(("AWS_", "MINIO_"))}
    monkeypatch.setenv("HPO_IMAGE", ours)
    kube = Kube.connect()

    with ExitStack() as made:

        def make(
            command: list[str],
            *,
            secret: Mapping[str, str] | None = None,
            restricted: bool = True,
            change: Callable[[dict[str, Any]], None] = lambda document: None,
        ) -> Place:
            where = made.enter_context(namespace(kube, RESTRICTED if restricted else None))
            if secret is None or secret:
                told = {**settings, **(secret or {})}
                metadata = {"name": STORE_SECRET, "namespace": where}
                kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": told})
            document = experiment(image, command, restricted=restricted)
            change(document)
            uri = store_of(where)
            return Place(kube, where, Folder.make(tmp_path / where, yaml.safe_dump(document), uri=uri))

        yield make


@contextmanager
def away(seconds: float) -> Iterator[str]:
    """Another address of the store, where nobody answers at first."""
    server = urlsplit(shared_server()["AWS_ENDPOINT_URL"])
    host = server.hostname or ""
    try:
        with socket.create_server((host, 0)) as free:
            port = free.getsockname()[1]
    except OSError:
        pytest.skip(f"{host} is no address of this machine: that a store which is away is waited for is unproven")
    over = threading.Event()

    def serve() -> None:
        over.wait(seconds)
        with ExitStack() as opened:
            listener = opened.enter_context(socket.create_server((host, port), reuse_port=True))
            listener.settimeout(0.2)
            while not over.is_set():
                with suppress(TimeoutError):
                    client, _ = listener.accept()
                    store = socket.create_connection((host, server.port or 80))
                    opened.callback(store.close)
                    opened.callback(client.close)
                    for ends in ((client, store), (store, client)):
                        threading.Thread(target=pass_on, args=ends, daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://{host}:{port}"
    finally:
        over.set()
        thread.join()


def pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


def experiment(image: str, command: list[str], *, restricted: bool) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(EXPERIMENT)
    document["spec"] |= {"maxTrialCount": 3, "parallelTrialCount": 3}
    pod = document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    main = pod["containers"][0]
    main |= {"image": image, "imagePullPolicy": "IfNotPresent", "command": command}
    if restricted:
        pod |= POD
        main["securityContext"] = BARE
    return document


def python(program: str, *words: str) -> list[str]:
    return ["python3", "-c", program, "${trialParameters.lr}", *words]


def one_trial(document: dict[str, Any]) -> None:
    document["spec"] |= {"maxTrialCount": 1, "parallelTrialCount": 1}


def expected(lr: str, phase: str, size: int) -> dict[str, bytes]:
    return {
        "model.bin": random.Random(lr).randbytes(size),
        "deep/er/notes.txt": f"{phase} with {lr}".encode(),
    }


def given(record: Mapping[str, Any]) -> str:
    """The value as the trainer got it."""
    return str(record["assignments"]["lr"])


def test_of_three_trials_the_best_one_s_model_is_kept_byte_for_byte_and_the_retraining_s(
    make_place: MakePlace, tmp_path: Path
) -> None:
    place = make_place(python(TRAINER, str(MODEL_BYTES)))
    records = place.run()
    assert [record["condition"] for record in records] == ["Succeeded"] * 3
    best = min(records, key=lambda record: float(record["assignments"]["lr"]))
    label = f"{best['number']:05d}-1"
    assert place.store.output_labels() == [label]
    assert place.kept(label) == expected(given(best), "trial", MODEL_BYTES)
    assert "not kept of its output: leads-out (a link that leads out of the folder)" in best["message"]

    model = tmp_path / "model"
    told = place.hpo("retrain", "small", "--namespace", place.name, "--model-dir", str(model)).stdout
    assert "note    not kept of its output: leads-out (a link that leads out of the folder)" in told
    assert place.kept("retrain") == expected(given(best), "retrain", MODEL_BYTES)
    assert (model / "model.bin").read_bytes() == random.Random(given(best)).randbytes(MODEL_BYTES)
    assert place.store.output_labels() == [label, "retrain-1"]

    log = place.store.log(label[:5]).decode()
    variables = next(line for line in log.splitlines() if line.startswith("variables")).split()
    assert "HPO_OUTPUT_DIR" in variables
    assert not [name for name in variables if name.startswith(("AWS_", "MINIO_"))]
    eventually(lambda: not place.left(), f"nothing of ours is left: {place.left()}", PATIENCE_S)


def test_a_retraining_that_fails_leaves_the_model_of_the_one_before(make_place: MakePlace) -> None:
    fails_once_more = f"{TRAINER}\nif os.environ['HPO_PHASE'] == 'retrain' and float(lr) > 0.02: sys.exit(3)"
    place = make_place(python(fails_once_more, "10"), change=one_trial)
    place.run()
    here = replace(place.folder.place, backend="kubernetes")
    done = [tuner.retrain(place.store, here, {"lr": lr}) for lr in (0.015, 0.03)]
    assert [(once.succeeded, once.reason) for once in done] == [(True, ""), (False, "ExitCode")]
    assert place.kept("retrain") == expected("0.015", "retrain", 10)
    assert [label for label in place.store.output_labels() if "retrain" in label] == ["retrain-1"]


def test_metrics_come_from_the_file_and_the_log_is_what_was_printed(make_place: MakePlace) -> None:
    def from_file(document: dict[str, Any]) -> None:
        one_trial(document)
        document["spec"]["objective"]["additionalMetricNames"] = ["accuracy"]
        document["spec"]["metricsCollectorSpec"] = {"collector": {"kind": "File"}}

    place = make_place(python(WRITES_FILE), change=from_file)
    (record,) = place.run()
    lr = float(record["assignments"]["lr"])
    assert record["condition"] == "Succeeded"
    loss = record["observation"]["loss"]
    assert (loss["latest"], loss["min"], loss["max"]) == pytest.approx((lr, lr, 3 * lr))
    assert record["observation"]["accuracy"]["latest"] == 0.75
    assert place.store.log("00001") == b"loss=99 is only talk\nand this is the end\n"
    points = [json.loads(line)["name"] for line in place.store.metric_lines("00001").splitlines()]
    assert points == ["loss", "loss", "loss", "accuracy"]


def test_a_store_that_refuses_ends_the_trial_with_its_reason_within_a_minute(make_place: MakePlace) -> None:
    place = make_place(python(TRAINER, "10"), secret={"AWS_SECRET_ACCESS_KEY": "wrong"}, change=one_trial)
    began = time.monotonic()
    (record,) = place.run(code=3)
    assert time.monotonic() - began < 60
    assert (record["condition"], record["reason"]) == ("Failed", "OutputNotKept")
    assert "the secret key is wrong; check AWS_SECRET_ACCESS_KEY" in record["message"]
    assert place.store.output_labels() == []


def test_a_missing_secret_ends_the_trial_with_its_reason_within_a_minute(make_place: MakePlace) -> None:
    place = make_place(python(TRAINER, "10"), secret={}, change=one_trial)
    began = time.monotonic()
    (record,) = place.run(code=3)
    assert time.monotonic() - began < 60
    assert (record["condition"], record["reason"]) == ("Failed", "CannotStart")
    assert f'secret "{STORE_SECRET}" not found' in record["message"]
    assert "create it in their namespace" in record["message"]


def test_a_trial_that_fails_ends_as_such_and_leaves_nothing_in_the_store(make_place: MakePlace) -> None:
    place = make_place(python(f"{TRAINER}\nsys.exit(3)", "10"), change=one_trial)
    (record,) = place.run(code=3)
    assert (record["condition"], record["reason"]) == ("Failed", "ExitCode")
    assert place.store.output_labels() == []


def test_a_trainer_that_is_over_at_once_is_not_waited_for_in_vain(make_place: MakePlace) -> None:
    """The end of the trainer is told by a signal that a sidecar which is not ready yet would lose, with its grace."""
    place = make_place(["sh", "-c", "echo loss=$0", "${trialParameters.lr}"])
    began = time.monotonic()
    assert [record["condition"] for record in place.run()] == ["Succeeded"] * 3
    assert time.monotonic() - began < 60


def test_a_root_trainer_in_an_open_namespace_keeps_what_others_may_read_and_is_told_what_not(
    make_place: MakePlace,
) -> None:
    private = f"{TRAINER}\nos.chmod(folder + '/model.bin', 0o600)"
    place = make_place(python(private, "10"), restricted=False, change=one_trial)
    (record,) = place.run()
    assert record["condition"] == "Succeeded"
    assert "model.bin (cannot be read by user 1000: Permission denied)" in record["message"]
    assert list(place.kept("00001-1")) == ["deep/er/notes.txt"]


def test_a_deadline_ends_a_trainer_that_ignores_the_wish_by_its_own_grace(make_place: MakePlace) -> None:
    def deadline(document: dict[str, Any]) -> None:
        one_trial(document)
        document["metadata"]["annotations"] = {"kfp-hpo/trial-deadline": "5s"}

    place = make_place(python(IGNORES_SIGTERM), change=deadline)
    began = time.monotonic()
    (record,) = place.run(code=3)
    assert (record["condition"], record["reason"]) == ("Failed", "DeadlineExceeded")
    eventually(lambda: not place.left(), f"nothing of ours is left: {place.left()}", 30.0)
    assert time.monotonic() - began < 60  # and not the ten minutes that an upload would have


def test_a_store_that_is_away_at_the_trainer_s_end_is_waited_for_though_its_deadline_passes(
    make_place: MakePlace,
) -> None:
    def deadline(document: dict[str, Any]) -> None:
        one_trial(document)
        document["metadata"]["annotations"] = {"kfp-hpo/trial-deadline": f"{DEADLINE_S:g}s"}

    with away(AWAY_S) as address:
        began = time.monotonic()
        place = make_place(python(TRAINER, str(MODEL_BYTES)), secret={"AWS_ENDPOINT_URL": address}, change=deadline)
        (record,) = place.run()
    assert record["condition"] == "Succeeded"
    assert time.monotonic() - began > AWAY_S > DEADLINE_S
    assert place.kept("00001-1") == expected(given(record), "trial", MODEL_BYTES)


def test_the_sidecar_that_runs_is_the_one_that_was_told(make_place: MakePlace) -> None:
    """While it runs, its pod shows a native sidecar with the Secret by reference, and the trainer without."""
    place = make_place(["sh", "-c", "sleep 3; echo loss=$0", "${trialParameters.lr}"], change=one_trial)
    with place.folder.start("run", "small.yaml", "--backend", "kubernetes", "--namespace", place.name) as process:
        eventually(lambda: place.kube.list("v1", "Pod", namespace=place.name), "there is a pod", PATIENCE_S)
        (pod,) = place.kube.list("v1", "Pod", namespace=place.name)
        process.communicate(timeout=PATIENCE_S)
    (sidecar,) = (container for container in pod["spec"]["initContainers"] if container["name"] == SIDECAR)
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["envFrom"] == [{"secretRef": {"name": STORE_SECRET, "optional": False}}]
    assert "envFrom" not in pod["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("kind", "field", "container", "roles", "primary"),
    [
        ("PyTorchJob", "pytorchReplicaSpecs", "pytorch", {"Master": 1, "Worker": 1}, "master-0"),
        ("TFJob", "tfReplicaSpecs", "tensorflow", {"Worker": 2}, "worker-0"),
    ],
)
def test_of_a_distributed_trial_the_primary_pod_s_output_is_kept(
    make_place: MakePlace, kind: str, field: str, container: str, roles: Mapping[str, int], primary: str
) -> None:
    """Under the real training operator; workers write too, and theirs is no part of it."""

    def distributed(document: dict[str, Any]) -> None:
        one_trial(document)
        template = document["spec"]["trialTemplate"]
        pod = template["trialSpec"]["spec"]["template"]
        pod["spec"].pop("restartPolicy")
        pod["spec"]["containers"][0]["name"] = template["primaryContainerName"] = container
        specs = {
            role: {"replicas": count, "restartPolicy": "Never", "template": copy.deepcopy(pod)}
            for role, count in roles.items()
        }
        template["trialSpec"] = {"apiVersion": "kubeflow.org/v1", "kind": kind, "spec": {field: specs}}

    place = make_place(python(REPLICAS), restricted=False, change=distributed)
    try:
        place.kube.resource("kubeflow.org/v1", kind)
    except LaunchError:
        pytest.skip(f"this cluster has no {kind}: that its output is kept is unproven")
    (record,) = place.run()
    assert (record["condition"], record["message"]) == ("Succeeded", "")
    assert list(place.kept("00001-1")) == ["who.txt"]
    assert place.kept("00001-1")["who.txt"].decode().endswith(primary)


def test_with_keep_models_0_there_is_no_sidecar(make_place: MakePlace) -> None:
    def nothing_kept(document: dict[str, Any]) -> None:
        one_trial(document)
        document["metadata"]["annotations"] = {"kfp-hpo/keep-models": "0"}
        document["spec"]["trialTemplate"]["retain"] = True

    place = make_place(python(TRAINER, "10"), secret={}, change=nothing_kept)
    assert [record["condition"] for record in place.run()] == ["Succeeded"]
    (pod,) = place.kube.list("v1", "Pod", namespace=place.name)
    assert "initContainers" not in pod["spec"]
