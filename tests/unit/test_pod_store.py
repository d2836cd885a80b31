"""How the pods that we start get the store's credentials: by reference, and as we ourselves have found them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from hpo_core.launch.cluster.diagnosis import Trouble
from hpo_core.launch.cluster.sidecar import Sidecar, sidecar_trouble
from hpo_core.objects.settings import S3Settings
from hpo_core.tuner.cluster_job import TunerPod, make_job
from hpo_core.tuner.pod_store import STORE_ENVIRONMENT, sidecar_environment, tuner_environment
from tests.experiments import make_experiment

URI = "minio://mlpipeline/private/team/kfp-hpo"
FOUND = {
    "HPO_PIPELINES_SECRET": "theirs/a/b",
    "HPO_PIPELINES_ENDPOINT": "https://server:9000",
    "HPO_PIPELINES_REGION": "here",
    "HPO_PIPELINES_ACCESS_KEY": "account",
    "HPO_PIPELINES_SECRET_KEY": "hunter2",
}
GIVEN = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hunter2"}
SECRETS = {
    "hpo-store": {"MINIO_ENDPOINT": "ours:9000", "MINIO_ACCESS_KEY": "us", "MINIO_SECRET_KEY": "our word"},
    "mlpipeline-minio-artifact": {"accesskey": "minio", "secretkey": "minio123"},
    "theirs": {"a": "account", "b": "hunter2"},
}


def tell(monkeypatch: pytest.MonkeyPatch, told: Mapping[str, str]) -> None:
    for name in {*GIVEN, *FOUND, "KUBERNETES_SERVICE_HOST", "MINIO_ENDPOINT", "AWS_REGION"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)


def started(fields: Mapping[str, Any], *there: str) -> dict[str, str]:
    """What a kubelet makes of a container's fields where these Secrets are; KeyError where it would not start it."""
    made: dict[str, str] = {}
    for source in fields["envFrom"]:
        name, optional = source["secretRef"]["name"], source["secretRef"]["optional"]
        made |= SECRETS[name] if name in there else {} if optional else {}[name]
    for variable in fields.get("env", ()):
        if "value" in variable:
            made[variable["name"]] = variable["value"]
            continue
        reference = variable["valueFrom"]["secretKeyRef"]
        if reference["name"] in there:
            made[variable["name"]] = SECRETS[reference["name"]][reference["key"]]
        elif not reference["optional"]:
            raise KeyError(reference["name"])
    return {**made, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize("make", [tuner_environment, sidecar_environment])
@pytest.mark.parametrize("told", [GIVEN, FOUND])
def test_no_credential_is_told_by_value(monkeypatch: pytest.MonkeyPatch, make: Any, told: Mapping[str, str]) -> None:
    tell(monkeypatch, told)
    assert "hunter2" not in json.dumps(make(URI))


@pytest.mark.parametrize("make", [tuner_environment, sidecar_environment])
def test_pods_find_what_we_have_found(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    """Server, region, account and Secret, so that a tuner gives its sidecars the same again."""
    tell(monkeypatch, FOUND)
    assert S3Settings.of(started(make(URI), "theirs")) == S3Settings.of(FOUND)


@pytest.mark.parametrize("make", [tuner_environment, sidecar_environment])
@pytest.mark.parametrize("told", [GIVEN, FOUND])
def test_our_own_secret_goes_before_that_of_pipelines(
    monkeypatch: pytest.MonkeyPatch, make: Any, told: Mapping[str, str]
) -> None:
    tell(monkeypatch, told)
    settings = S3Settings.of(started(make(URI), *SECRETS))
    assert (settings.endpoint, settings.access_key, settings.secret) == ("ours:9000", "us", None)


def test_a_tuner_that_is_launched_from_elsewhere_takes_the_usual_secret_of_pipelines_where_it_has_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not our server's address, which may be that of a forwarded port."""
    tell(monkeypatch, GIVEN)
    told = started(tuner_environment(URI), "mlpipeline-minio-artifact")
    assert told["HPO_PIPELINES_ACCESS_KEY"] == "minio"
    assert "127.0.0.1" not in json.dumps(told)


@pytest.mark.parametrize(("told", "secret"), [(GIVEN, "hpo-store"), (FOUND, "theirs")])
def test_a_trial_does_not_start_without_the_secret_that_its_tuner_has(
    monkeypatch: pytest.MonkeyPatch, told: Mapping[str, str], secret: str
) -> None:
    """And it is told what that one is for."""
    tell(monkeypatch, told)
    environment = sidecar_environment(URI)
    with pytest.raises(KeyError, match=secret):
        started(environment)
    pod: dict[str, Any] = {"metadata": {}, "spec": {}}
    trouble = Trouble("CannotStart", f'secret "{secret}" not found', 15.0)
    found = sidecar_trouble(pod, Sidecar("image", URI, environment), trouble)
    assert found is not None
    assert found.message.endswith("credentials for what trials leave; create it in their namespace")


def test_a_tuner_s_job_has_them_beside_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, FOUND)
    for environment in (STORE_ENVIRONMENT, tuner_environment(URI)):
        job = make_job(make_experiment(), "small-tuner", TunerPod(image="engine:1", environment=environment))
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["envFrom"] == environment["envFrom"]
        assert container["env"] == [{"name": "HPO_IMAGE", "value": "engine:1"}, *environment.get("env", ())]
