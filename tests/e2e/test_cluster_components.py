"""The components and the shipped pipeline as Kubeflow Pipelines runs them: every step a pod of its compiled command.

Pipelines itself is not there; `tests/kfp_pods.py` makes the pods that it would make, in a namespace with what it brings
there: an account, a Secret, a ConfigMap. KUBECONFIG names the cluster, as an account that may create namespaces and
roles, and `kubectl` has to be there; AWS_* names the store as this machine and pods reach it, HPO_E2E_HPO_IMAGE the
engine's image and HPO_E2E_IMAGE one with `sh` for trials.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from minio import Minio
from minio.error import S3Error

from hpo_core.kube import Kube
from hpo_core.manifest import LABEL_EXPERIMENT
from hpo_core.publish import read_status
from hpo_core.status import ExperimentCondition
from hpo_core.store import ExperimentStore
from hpo_core.tuner import Handle
from hpo_core.tuner import Place as Records
from tests.contracts.cluster_machine import BARE, RESTRICTED, USER, cluster_image, end_experiments, left, namespace
from tests.kfp_pods import ROOT, Pods, component
from tests.s3_server import shared_server
from tests.scenarios.folders import EXPERIMENT, eventually

pytestmark = pytest.mark.e2e

BUCKET = "kfp-hpo-tests"
RUN_ID = "7b3f0a52-3c0e-4b7e-9f5a-0d7f1f3f9c11"
PATIENCE_S = 300.0
POD = {"securityContext": USER, "terminationGracePeriodSeconds": 1}
TRAINER = """
if [ $HPO_PHASE = retrain ]; then sleep $2; else sleep $1; fi
echo "model of $0 for $HPO_PHASE by $HOSTNAME" > $HPO_OUTPUT_DIR/model.txt
if [ $HPO_PHASE = retrain ]; then echo test_loss=0.25; else echo loss=$0; fi
"""
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "pipelines/tune_and_retrain.yaml").read_text())


def experiment(seconds: float, retrain_s: float = 0, **spec: Any) -> str:
    """An experiment's YAML whose trials take so long, and print their learning rate as their loss."""
    document = yaml.safe_load(EXPERIMENT)
    document["spec"] |= spec
    pod = document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    pod |= POD
    pod["containers"][0] |= {
        "image": cluster_image(),
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", TRAINER, "${trialParameters.lr}", str(seconds), str(retrain_s)],
        "securityContext": BARE,
    }
    return str(yaml.safe_dump(document))


@dataclass(frozen=True)
class Profile:
    """The namespace of a Kubeflow profile, for pipelines' steps.

    Attributes:
        pods: What runs steps there.
        minio: The server of records and artifacts.
    """

    pods: Pods
    minio: Minio

    @property
    def kube(self) -> Kube:
        return self.pods.kube

    @property
    def name(self) -> str:
        return self.pods.namespace

    def given(self, text: str, **more: str) -> dict[str, str]:
        """The inputs of the launch step."""
        return {"experiment_yaml": text, "namespace": self.name, "run_id": RUN_ID, **more}

    def records(self, handle: str) -> ExperimentStore:
        told = Handle.from_json(handle)
        return Records.of(told.store).store(told.namespace, told.name)

    def read(self, uri: str) -> str:
        """The text of an artifact, or of a file in one."""
        with self.minio.get_object(BUCKET, uri.removeprefix(f"minio://{BUCKET}/")) as answer:
            return answer.data.decode()

    def ours(self) -> list[str]:
        """All that is there with a label of ours."""
        return left(self.kube, self.name)

    def left_running(self) -> list[str]:
        """What is there but the one ConfigMap that owned all of the experiment's."""
        return [name for name in self.ours() if not name.startswith("ConfigMap/") or "-tuner-" in name]

    def running_trials(self) -> list[str]:
        pods = self.kube.list("v1", "Pod", namespace=self.name, selector=LABEL_EXPERIMENT)
        return [pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") == "Running"]


@pytest.fixture
def profile() -> Iterator[Profile]:
    cluster_image()
    image = os.environ.get("HPO_E2E_HPO_IMAGE")
    if not image:
        pytest.skip("HPO_E2E_HPO_IMAGE names no image of the engine: that components run as pods is unproven")
    told = shared_server()
    parts = urlsplit(told["AWS_ENDPOINT_URL"])
    keys = {"access_key": told["AWS_ACCESS_KEY_ID"], "secret_key": told["AWS_SECRET_ACCESS_KEY"]}
    minio = Minio(parts.netloc, keys["access_key"], keys["secret_key"], secure=parts.scheme == "https")
    with suppress(S3Error):  # there is one
        minio.make_bucket(BUCKET)
    kube = Kube.connect()
    with namespace(kube, RESTRICTED) as name:
        kubectl("apply", "-n", name, "-k", str(ROOT / "manifests/overlays/kubeflow-profile"))
        root = f"minio://{BUCKET}/{name}"
        for brought in what_pipelines_brings(name, root, told):
            kube.create(brought)
        pods = Pods(kube, name, image, f"{root}/steps", {"endpoint": parts.netloc, **keys})
        try:
            yield Profile(pods, minio)
        finally:
            end_experiments(name, f"{root}/kfp-hpo")
            for item in minio.list_objects(BUCKET, f"{name}/", recursive=True):
                minio.remove_object(BUCKET, str(item.object_name))


def what_pipelines_brings(where: str, root: str, store: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What Kubeflow Pipelines has in a profile's namespace: where artifacts go, and an account that may read that."""
    keys = {"accesskey": store["AWS_ACCESS_KEY_ID"], "secretkey": store["AWS_SECRET_ACCESS_KEY"]}
    server = urlsplit(store["AWS_ENDPOINT_URL"])
    secret = {"secretName": "mlpipeline-minio-artifact", "accessKeyKey": "accesskey", "secretKeyKey": "secretkey"}
    reached = {"endpoint": server.netloc, "disableSSL": server.scheme != "https"}
    providers = {"minio": {"default": {**reached, "credentials": {"fromEnv": False, "secretRef": secret}}}}
    rules = [{"apiGroups": [""], "resources": ["secrets", "configmaps"], "verbs": ["get"]}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pipeline-runner"}
    for version, kind, name, fields in (
        ("v1", "Secret", "mlpipeline-minio-artifact", {"stringData": keys}),
        ("v1", "ConfigMap", "kfp-launcher", {"data": {"defaultPipelineRoot": root, "providers": yaml.dump(providers)}}),
        ("v1", "ServiceAccount", "pipeline-runner", {}),
        ("rbac.authorization.k8s.io/v1", "Role", "pipeline-runner", {"rules": rules}),
        (
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            "pipeline-runner",
            {"roleRef": role, "subjects": [{"kind": "ServiceAccount", "name": "pipeline-runner"}]},
        ),
    ):
        yield {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": where}, **fields}


def kubectl(*words: str) -> str:
    done = subprocess.run(["kubectl", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
    return done.stdout


def test_the_shipped_pipeline_tunes_in_jobs_and_retrains_and_cleaning_up_leaves_nothing(profile: Profile) -> None:
    """Its five steps and the one for an exit handler, a pod each, with what the profile's overlay grants alone."""
    text = experiment(1)
    given = {"experiment_yaml": text, "image": cluster_image(), "namespace": profile.name}
    done = profile.pods.run_pipeline(PIPELINE, RUN_ID, given)
    assert [(name, ended.code) for name, ended in done.items() if ended.code] == [], list(done.values())[-1].log
    build, launch, wait, extract, retrain = (
        done[name]
        for name in (
            "build-trainer-image",
            "launch-experiment",
            "wait-for-experiment",
            "extract-best-parameters",
            "retrain-final-model",
        )
    )
    assert build.parameters == {"Output": cluster_image()}
    records = profile.records(launch.parameters["Output"])
    trials = [dict(trial.assignments) for trial in records.trials()]
    assert json.loads(wait.parameters["Output"])["condition"] == "Succeeded"
    assert profile.read(wait.artifacts["report"]).startswith("<!")
    assert profile.read(wait.artifacts["summary"]).startswith("#")
    best = json.loads(extract.parameters["best_parameters"])
    assert best == min(trials, key=lambda values: float(values["lr"]))
    assert extract.metadata["metrics"] == {"loss": extract.parameters["objective_value"]} == {"loss": best["lr"]}
    assert retrain.metadata["model"] == retrain.metadata["metrics"] == {"test_loss": 0.25}
    model = profile.read(f"{retrain.artifacts['model']}/model.txt")
    assert model.startswith(f"model of {best['lr']} for retrain by ")
    (kept,) = [key for key in records.outputs("retrain") if key.endswith("model.txt")]
    assert records.objects.get(kept).data.decode() == model
    cleanup = profile.pods.run("cleanup", component("cleanup_experiment"), **profile.given(text))
    assert cleanup.code == 0, cleanup.log
    eventually(lambda: profile.ours() == [], f"nothing of ours is left: {profile.ours()}", PATIENCE_S)
    assert len(records.trials()) == 4


def test_a_launch_step_that_is_tried_again_takes_up_what_it_has_launched_and_cleaning_up_suspends_it(
    profile: Profile,
) -> None:
    text, launch = experiment(60), component("launch_experiment")
    first, second = (profile.pods.run(f"launch-{n}", launch, **profile.given(text)) for n in (1, 2))
    assert (first.code, second.code) == (0, 0), first.log + second.log
    assert first.parameters == second.parameters
    records = profile.records(first.parameters["Output"])
    eventually(profile.running_trials, "a trial runs", PATIENCE_S)
    assert len([name for name in profile.ours() if name.startswith("Job/") and "-tuner-" in name]) == 1
    cleanup = profile.pods.run("cleanup", component("cleanup_experiment"), **profile.given(text))
    assert "was suspended" in str(cleanup.parameters["Output"]), cleanup.log
    eventually(lambda: profile.ours() == [], "nothing of ours is left", PATIENCE_S)
    assert [[a.outcome for a in trial.attempts] for trial in records.trials()] == [["Interrupted", ""]] * 2
    again = profile.pods.run("launch-3", launch, **profile.given(text))
    assert again.parameters == first.parameters, again.log
    eventually(profile.running_trials, "it goes on", PATIENCE_S)


def test_who_terminates_the_wait_step_suspends_the_experiment(profile: Profile) -> None:
    launch = profile.pods.run("launch", component("launch_experiment"), **profile.given(experiment(60)))
    assert launch.code == 0, launch.log
    handle = launch.parameters["Output"]
    profile.pods.start("wait", component("wait_for_experiment"), {"handle": handle})
    eventually(profile.running_trials, "a trial runs", PATIENCE_S)
    eventually(lambda: "0/4 trials done" in profile.pods.log("wait"), "somebody waits", PATIENCE_S)
    profile.kube.delete("v1", "Pod", "wait", namespace=profile.name)
    records = profile.records(handle)

    def is_suspended() -> bool:
        seen = read_status(records)
        return seen is not None and seen.verdict.condition is ExperimentCondition.SUSPENDED

    eventually(is_suspended, "it is suspended", PATIENCE_S)
    eventually(lambda: profile.left_running() == [], "no trial and no tuner is left", PATIENCE_S)


def test_a_retraining_step_that_was_killed_follows_its_training_when_it_is_tried_again(profile: Profile) -> None:
    text, retrain = experiment(0, 30, maxTrialCount=1, parallelTrialCount=1), component("retrain_final_model")
    launch = profile.pods.run("launch", component("launch_experiment"), **profile.given(text))
    assert launch.code == 0, launch.log
    handle = {"handle": launch.parameters["Output"]}
    wait = profile.pods.run("wait", component("wait_for_experiment"), **handle)
    verdict = wait.parameters["Output"]
    extract = profile.pods.run("extract", component("extract_best_parameters"), **handle, verdict=verdict)
    given = {**handle, "best_parameters": extract.parameters["best_parameters"]}
    profile.pods.start("retrain-1", retrain, given)
    eventually(profile.running_trials, "it trains", PATIENCE_S)
    (trainer,) = profile.running_trials()
    profile.pods.kill("retrain-1")
    assert profile.pods.end("retrain-1").code == signal.SIGKILL
    second = profile.pods.run("retrain-2", retrain, **given)
    assert second.code == 0, second.log
    assert profile.read(f"{second.artifacts['model']}/model.txt").endswith(f" for retrain by {trainer}\n")
    told = profile.records(handle["handle"]).derived_json("retrain.json")
    assert (told["count"], told["succeeded"]) == (1, True)


def test_an_experiment_without_a_result_has_its_report_and_the_next_step_fails_with_the_reason(
    profile: Profile,
) -> None:
    document = yaml.safe_load(experiment(0, maxFailedTrialCount=1))
    pod = document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    pod["containers"][0]["command"] = ["sh", "-c", "echo cannot train >&2; exit 7", "${trialParameters.lr}"]
    given = {"experiment_yaml": yaml.safe_dump(document), "image": cluster_image(), "namespace": profile.name}
    done = profile.pods.run_pipeline(PIPELINE, RUN_ID, given)
    wait, extract = done["wait-for-experiment"], done["extract-best-parameters"]
    assert json.loads(wait.parameters["Output"])["condition"] == "Failed"
    assert profile.read(wait.artifacts["report"]).startswith("<!")
    assert extract.code == 1
    assert "exit code 7; last lines: cannot train" in extract.log
    assert "retrain-final-model" not in done


def test_a_permission_that_is_missing_is_told_by_the_launch_step_with_what_grants_it(profile: Profile) -> None:
    kubectl("-n", profile.name, "delete", "rolebinding", "hpo-tuner")
    refused = profile.pods.run("launch", component("launch_experiment"), **profile.given(experiment(1)))
    assert refused.code == 1
    last = refused.log.rstrip().splitlines()[-1]
    account = f"system:serviceaccount:{profile.name}:pipeline-runner"
    assert f"{account} may not create, get, list, delete, deletecollection jobs.batch in the namespace" in refused.log
    assert f"kubectl apply -n {profile.name} -k manifests/overlays/kubeflow-profile" in last
    assert profile.ours() == []
