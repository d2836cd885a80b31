"""In a Kubeflow profile nobody is told where the store is: pods find it by what Kubeflow Pipelines keeps there.

Pipelines itself is not there, but its ConfigMap, its Secret, a Service's name, its bucket, and an account of the store
that may do what a profile's may. KUBECONFIG names the cluster, as an account that may create namespaces and roles;
`kubectl` has to be there. AWS_* name a MinIO by an address that pods reach, as an account that may make others;
HPO_E2E_HPO_IMAGE names the engine's image and HPO_E2E_IMAGE one with `sh` for trials.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from minio import Minio, MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException, S3Error

from hpo_core.kube import Kube
from hpo_core.launch.cluster.sidecar import SIDECAR
from hpo_core.manifest import LABEL_EXPERIMENT
from hpo_core.tuner.cluster_job import LABEL_TUNER
from tests.contracts.cluster_machine import BARE, RESTRICTED, USER, cluster_image, end_experiments, namespace
from tests.kfp_pods import ROOT, Pods
from tests.s3_server import shared_server
from tests.scenarios.folders import EXPERIMENT, Folder

pytestmark = pytest.mark.e2e

BUCKET = "mlpipeline"
PATIENCE_S = 180.0
TRAINER = "echo model of $0 > $HPO_OUTPUT_DIR/model.txt; echo loss=$0; echo test_loss=0.25"
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "pipelines/tune_and_retrain.yaml").read_text())


@dataclass(frozen=True)
class Profile:
    """The namespace of a Kubeflow profile.

    Attributes:
        kube: The cluster, as its administrator.
        name: The namespace.
        image: The engine's image.
        minio: The store, as its administrator.
        word: The secret of the profile's account there.
    """

    kube: Kube
    name: str
    image: str
    minio: Minio
    word: str

    @property
    def store(self) -> str:
        """Where records are to be, which nobody is told."""
        return f"minio://{BUCKET}/private/{self.name}/kfp-hpo"

    def experiment(self) -> str:
        """The YAML of an experiment with two trials, each of which leaves a model."""
        document = yaml.safe_load(EXPERIMENT)
        document["spec"]["maxTrialCount"] = 2
        document["metadata"]["namespace"] = self.name
        pod = document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
        pod |= {"securityContext": USER, "terminationGracePeriodSeconds": 1}
        pod["containers"][0] |= {
            "image": cluster_image(),
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", TRAINER, "${trialParameters.lr}"],
            "securityContext": BARE,
        }
        return str(yaml.safe_dump(document))

    def shell(self, script: str, *, account: str = "pipeline-runner") -> tuple[int, str]:
        """Run a script in a pod of our image; returns its exit code and what it printed."""
        name = f"step-{secrets.token_hex(3)}"
        env = {"EXPERIMENT": self.experiment(), "HPO_IMAGE": self.image}
        container = {
            "name": "main",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script],
            "env": [{"name": variable, "value": value} for variable, value in env.items()],
            "securityContext": BARE,
        }
        spec = {
            "restartPolicy": "Never",
            "serviceAccountName": account,
            "securityContext": USER,
            "containers": [container],
        }
        metadata = {"name": name, "namespace": self.name}
        self.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            pod = self.kube.get("v1", "Pod", name, namespace=self.name)
            for status in pod["status"].get("containerStatuses") or []:
                if ended := (status.get("state") or {}).get("terminated"):
                    log = b"".join(self.kube.pod_log(name, "main", follow=False, namespace=self.name))
                    return int(ended["exitCode"]), log.decode()
            time.sleep(0.2)
        raise AssertionError(f"the pod {name} has not ended within {PATIENCE_S} s: {pod.get('status')}")

    def objects(self) -> list[str]:
        """The key of every object that is below the bucket's folders of this namespace."""
        folders = [f"{folder}/{self.name}/" for folder in ("private", "private-artifacts")]
        found = [item for folder in folders for item in self.minio.list_objects(BUCKET, folder, recursive=True)]
        return [str(item.object_name) for item in found]

    def read(self, key: str) -> str:
        with self.minio.get_object(BUCKET, key) as answer:
            return answer.data.decode()


REACHED = """
import socket, sys, time
for _ in range(300):
    try:
        sys.exit(socket.create_connection((sys.argv[1], 9000), 5).close())
    except OSError as error:
        print(error)
        time.sleep(0.2)
sys.exit(1)
"""
"""Waits until a service that was just made leads somewhere."""


@pytest.fixture
def profile() -> Iterator[Profile]:
    cluster_image()
    image = os.environ.get("HPO_E2E_HPO_IMAGE")
    if not image:
        pytest.skip("HPO_E2E_HPO_IMAGE names no image of the engine: that pods find the store of a profile is unproven")
    told = shared_server()
    server, secure = urlsplit(told["AWS_ENDPOINT_URL"]).netloc, told["AWS_ENDPOINT_URL"].startswith("https")
    keys = told["AWS_ACCESS_KEY_ID"], told["AWS_SECRET_ACCESS_KEY"]
    minio = Minio(server, *keys, secure=secure)
    admin = MinioAdmin(endpoint=server, credentials=StaticProvider(*keys), secure=secure)
    kube, word = Kube.connect(), secrets.token_hex(12)
    with suppress(S3Error):  # there is one
        minio.make_bucket(BUCKET)
    with namespace(kube, RESTRICTED) as name:
        try:
            admin.policy_add(name, policy=rights(name))
        except MinioAdminException as error:
            pytest.skip(f"{keys[0]} may make no accounts: that pods find the store of a profile is unproven ({error})")
        admin.user_add(name, word)
        admin.policy_set(name, user=name)
        kubectl("apply", "-n", name, "-k", str(ROOT / "manifests/overlays/kubeflow-profile"))
        made = Profile(kube, name, image, minio, word)
        for document in of_pipelines(made, server):
            kube.create({**document, "metadata": {"namespace": name, **document["metadata"]}})
        code, said = made.shell(f"exec python -c '{REACHED}' seaweedfs.{name}")
        assert code == 0, said
        yield made
        end_experiments(name, made.store)
        for key in made.objects():
            minio.remove_object(BUCKET, key)
        admin.user_remove(name)
        admin.policy_remove(name)


def rights(name: str) -> dict[str, Any]:
    """What the account of a profile may do in the bucket, from Pipelines 2.15 on."""
    own = ["artifacts/*", "shared/*", f"private-artifacts/{name}/*", f"private/{name}/*"]
    bucket = f"arn:aws:s3:::{BUCKET}"
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["s3:GetBucketLocation"], "Resource": [bucket]},
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": [bucket],
                "Condition": {"StringLike": {"s3:prefix": own}},
            },
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
                "Resource": [f"{bucket}/{folder}" for folder in own],
            },
        ],
    }


def name_of_store(server: str) -> Iterator[dict[str, Any]]:
    """A name for the store that only the cluster knows."""
    host, _, port = server.partition(":")
    numbers = {"protocol": "TCP", "port": int(port or 80)}
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "seaweedfs"},
        "spec": {"ports": [{"protocol": "TCP", "port": 9000, "targetPort": numbers["port"]}]},
    }
    yield {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "seaweedfs-1", "labels": {"kubernetes.io/service-name": "seaweedfs"}},
        "addressType": "IPv4",
        "ports": [{"name": "", **numbers}],
        "endpoints": [{"addresses": [host]}],
    }


def of_pipelines(profile: Profile, server: str) -> Iterator[dict[str, Any]]:
    """What Kubeflow Pipelines keeps in a profile's namespace, and who its steps are there."""
    yield from name_of_store(server)
    providers = {
        "minio": {
            "default": {
                "endpoint": f"seaweedfs.{profile.name}:9000",
                "disableSSL": True,
                "region": "us-east-1",
                "credentials": {
                    "fromEnv": False,
                    "secretRef": {
                        "secretName": "mlpipeline-minio-artifact",
                        "accessKeyKey": "accesskey",
                        "secretKeyKey": "secretkey",
                    },
                },
            }
        }
    }
    root = f"minio://{BUCKET}/private-artifacts/{profile.name}/v2/artifacts"
    yield {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kfp-launcher"},
        "data": {"defaultPipelineRoot": root, "providers": yaml.safe_dump(providers)},
    }
    yield {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "mlpipeline-minio-artifact"},
        "stringData": {"accesskey": profile.name, "secretkey": profile.word},
    }
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "pipeline-runner"}}
    yield {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "pipeline-runner"},
        "rules": [{"apiGroups": [""], "resources": ["secrets", "configmaps"], "verbs": ["get"]}],
    }
    yield {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "pipeline-runner"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pipeline-runner"},
        "subjects": [{"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": profile.name}],
    }


def kubectl(*words: str) -> None:
    done = subprocess.run(["kubectl", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"


def test_a_step_that_is_told_nothing_launches_a_tuner_whose_trials_outputs_are_kept(profile: Profile) -> None:
    """The step may read the Secret, the tuner and the trials may not; all come to the same records."""
    code, log = profile.shell('echo "$EXPERIMENT" | hpo launch - --backend kubernetes && hpo wait small')
    assert (code, "2/2 trials done" in log) == (0, True), log
    assert profile.shell("hpo list")[1].split("\n")[1].split()[:2] == [profile.name, "small"]
    keys = profile.objects()
    assert [key for key in keys if not key.startswith(f"private/{profile.name}/kfp-hpo/")] == []
    records = [json.loads(profile.read(key)) for key in keys if f"/{profile.name}/small/trials/" in key]
    assert [record["condition"] for record in records] == ["Succeeded"] * 2
    best = min(record["assignments"]["lr"] for record in records)
    (model,) = [key for key in keys if key.endswith("/model.txt")]
    assert profile.read(model) == f"model of {best}\n"


def test_the_pods_of_a_tuner_and_of_its_trials_hold_no_credential_but_by_reference(profile: Profile) -> None:
    code, log = profile.shell('echo "$EXPERIMENT" | hpo launch - --backend kubernetes')
    assert code == 0, log
    pods = profile.kube.list("v1", "Pod", namespace=profile.name)
    jobs = profile.kube.list("batch/v1", "Job", namespace=profile.name)
    code, log = profile.shell("hpo wait small")
    assert code == 0, log
    assert any("-tuner-" in pod["metadata"]["name"] for pod in pods)
    assert any(LABEL_EXPERIMENT in job["metadata"].get("labels", {}) and SIDECAR in str(job) for job in jobs)
    maps = profile.kube.list("v1", "ConfigMap", namespace=profile.name)
    assert profile.word not in json.dumps([pods, jobs, maps])


def test_all_steps_of_the_shipped_pipeline_come_to_one_store_without_being_told_it(profile: Profile) -> None:
    server = urlsplit(shared_server()["AWS_ENDPOINT_URL"]).netloc
    artifacts = {"endpoint": server, "access_key": profile.name, "secret_key": profile.word}
    root = f"minio://{BUCKET}/private-artifacts/{profile.name}/v2/artifacts/tune-and-retrain/run"
    pods = Pods(profile.kube, profile.name, profile.image, root, artifacts)
    given = {"experiment_yaml": profile.experiment(), "image": cluster_image(), "namespace": profile.name}
    done = pods.run_pipeline(PIPELINE, secrets.token_hex(6), given)
    assert [(name, ended.code) for name, ended in done.items() if ended.code] == [], list(done.values())[-1].log
    handle = json.loads(done["launch-experiment"].parameters["Output"])
    assert handle["store"] == profile.store
    assert done["retrain-final-model"].metadata["model"]["test_loss"] == 0.25


def test_an_account_that_may_not_read_the_secret_is_told_what_grants_it(profile: Profile) -> None:
    code, log = profile.shell("hpo list", account="hpo-tuner")
    assert code == 4, log
    assert f"hpo-tuner may not get the Secret mlpipeline-minio-artifact of the namespace {profile.name}" in log
    assert "kubectl create rolebinding" in log


def test_a_tuner_without_any_secret_is_told_with_the_names_of_both(profile: Profile, tmp_path: Path) -> None:
    """Launched from this machine, which has credentials of its own."""
    profile.kube.delete("v1", "Secret", "mlpipeline-minio-artifact", namespace=profile.name)
    folder = Folder.make(tmp_path / "user", profile.experiment(), uri=profile.store)
    words = ("launch", "small.yaml", "--backend", "kubernetes", "--tuner-image", profile.image)
    refused = folder.hpo(*words, timeout_s=PATIENCE_S)
    profile.kube.delete_all("batch/v1", "Job", selector=LABEL_TUNER, namespace=profile.name)
    assert refused.returncode == 4, refused.stderr
    assert "no Secret hpo-store with AWS_ACCESS_KEY_ID" in refused.stderr
    assert "no Secret mlpipeline-minio-artifact with accesskey and secretkey" in refused.stderr
