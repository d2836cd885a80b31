"""What its namespace tells a pod of the store, in which order, and what is said where it does not."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hpo_core import steps
from hpo_core.cli import main
from hpo_core.errors import StoreError, TransientError
from hpo_core.exit_codes import OUT_OF_REACH
from hpo_core.objects import LOCAL_STORE, default_store, open_objects, pipelines
from hpo_core.objects.pipelines import SecretKeys
from hpo_core.objects.settings import S3Settings
from tests.fake_kubernetes import FakeKubernetes
from tests.fake_kubernetes.kinds import KINDS

IN_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
USUAL = {"accesskey": "minio", "secretkey": "minio123"}
ADDRESS = "minio://mlpipeline/private/team/kfp-hpo"
KIND = {kind.name: kind for kind in KINDS}
PROVIDERS = """
minio:
  default:
    endpoint: seaweedfs.elsewhere:9000
    region: somewhere
    disableSSL: true
    credentials: {fromEnv: false, secretRef: {secretName: theirs, accessKeyKey: a, secretKeyKey: b}}
  Overrides:
    - {bucketName: other, keyPrefix: deep/er, endpoint: "https://deeper:1"}
    - {bucketName: other, endpoint: other:9000, credentials: {secretRef: {secretName: others}}}
s3:
  default: {credentials: {secretRef: {secretName: amazon}}}
"""


@pytest.fixture(autouse=True)
def _no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubeflow Pipelines' own services have no name here."""
    monkeypatch.setattr(pipelines, "_SERVICES", ())


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    """The API server of this pod's namespace, `team`."""
    fake = FakeKubernetes()
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
    yield fake
    fake.close()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name of Kubeflow Pipelines' object store that is known here."""
    monkeypatch.setattr(pipelines, "_SERVICES", ("no such name", "localhost"))
    return "localhost:9000"


def keep(fake: FakeKubernetes, kind: str, name: str, data: Mapping[str, str]) -> None:
    """Put a Secret or a ConfigMap into the namespace."""
    told = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()} if kind == "Secret" else data
    fake.objects.create(KIND[kind], "team", {"metadata": {"name": name}, "data": dict(told)})


def settings(address: str = ADDRESS, **environment: str) -> S3Settings:
    return S3Settings.of({**IN_POD, **environment}, address)


def found(address: str = ADDRESS, **environment: str) -> tuple[Any, ...]:
    told = settings(address, **environment)
    return told.endpoint, told.secure, told.access_key, told.secret_key


# --- credentials


def test_the_usual_secret_of_pipelines_gives_the_credentials_and_their_service_the_server(
    fake: FakeKubernetes, service: str
) -> None:
    keep(fake, "Secret", "mlpipeline-minio-artifact", USUAL)
    assert found() == (service, False, "minio", "minio123")
    assert settings().secret == SecretKeys()


@pytest.mark.usefixtures("service")
def test_providers_name_server_region_secret_and_keys(fake: FakeKubernetes) -> None:
    keep(fake, "ConfigMap", "kfp-launcher", {"providers": PROVIDERS})
    keep(fake, "Secret", "theirs", {"a": "account", "b": "word\n"})
    assert found() == ("seaweedfs.elsewhere:9000", False, "account", "word")
    assert settings().region == "somewhere"
    assert settings().secret == SecretKeys("theirs", "a", "b")


@pytest.mark.parametrize(
    ("address", "endpoint", "secure", "secret"),
    [
        ("minio://mlpipeline/x", "seaweedfs.elsewhere:9000", False, "theirs/a/b"),
        ("minio://other/x", "other:9000", False, "others/accesskey/secretkey"),
        ("minio://other/deep/er/x", "deeper:1", True, "theirs/a/b"),
        ("minio://other/deep/erx", "other:9000", False, "others/accesskey/secretkey"),
        ("s3://mlpipeline/x", "s3.amazonaws.com", True, "amazon/accesskey/secretkey"),
    ],
)
def test_the_first_override_of_a_bucket_and_prefix_goes_before_the_default_of_its_provider(
    fake: FakeKubernetes, address: str, endpoint: str, secure: bool, secret: str
) -> None:
    keep(fake, "ConfigMap", "kfp-launcher", {"providers": PROVIDERS})
    for name in ("theirs", "others", "amazon"):
        keep(fake, "Secret", name, {**USUAL, "a": "x", "b": "y"})
    assert found(address)[:2] == (endpoint, secure)
    assert str(settings(address).secret) == secret


def test_records_that_are_told_by_s3_are_at_the_server_that_there_is(fake: FakeKubernetes) -> None:
    keep(fake, "ConfigMap", "kfp-launcher", {"providers": PROVIDERS.partition("s3:")[0]})
    keep(fake, "Secret", "theirs", {"a": "account", "b": "word"})
    assert found("s3://mlpipeline/x")[0] == "seaweedfs.elsewhere:9000"


def test_our_own_secret_goes_before_that_of_pipelines(fake: FakeKubernetes) -> None:
    keep(fake, "Secret", "mlpipeline-minio-artifact", USUAL)
    keep(
        fake,
        "Secret",
        "hpo-store",
        {"AWS_ENDPOINT_URL": "http://ours", "AWS_ACCESS_KEY_ID": "us", "AWS_SECRET_ACCESS_KEY": "our word"},
    )
    assert found() == ("ours", False, "us", "our word")
    assert settings().secret is None


def test_what_our_own_secret_does_not_tell_pipelines_do(fake: FakeKubernetes) -> None:
    keep(fake, "Secret", "mlpipeline-minio-artifact", USUAL)
    keep(fake, "Secret", "hpo-store", {"AWS_ENDPOINT_URL": "http://ours"})
    assert found() == ("ours", False, "minio", "minio123")


def test_the_environment_goes_before_all_and_the_cluster_is_not_asked(fake: FakeKubernetes) -> None:
    keep(fake, "Secret", "hpo-store", {"AWS_ACCESS_KEY_ID": "us", "AWS_SECRET_ACCESS_KEY": "our word"})
    told = found(AWS_ENDPOINT_URL="http://mine", AWS_ACCESS_KEY_ID="me", AWS_SECRET_ACCESS_KEY="mine")
    assert told == ("mine", False, "me", "mine")
    assert fake.requests == []


def test_an_address_in_the_environment_goes_with_credentials_of_the_namespace(fake: FakeKubernetes) -> None:
    keep(fake, "ConfigMap", "kfp-launcher", {"providers": PROVIDERS})
    keep(fake, "Secret", "theirs", {"a": "account", "b": "word"})
    assert found(MINIO_ENDPOINT="mine:9000")[::2] == ("mine:9000", "account")


def test_an_account_that_may_read_the_secret_and_not_the_config_map_takes_what_is_usual(
    fake: FakeKubernetes, service: str
) -> None:
    keep(fake, "Secret", "mlpipeline-minio-artifact", USUAL)
    fake.deny("get", "configmaps")
    assert found() == (service, False, "minio", "minio123")


def test_an_account_that_may_not_read_secrets_is_told_what_grants_it(fake: FakeKubernetes) -> None:
    keep(fake, "Secret", "mlpipeline-minio-artifact", USUAL)
    fake.deny("get", "secrets")
    with pytest.raises(
        StoreError,
        match=r"no credentials .* AWS_ACCESS_KEY_ID .* system:serviceaccount:team:pipeline-runner may not get the "
        r"Secret mlpipeline-minio-artifact of the namespace team: `kubectl create role hpo-store -n team .*"
        r"--resource-name=mlpipeline-minio-artifact && kubectl create rolebinding .*=team:pipeline-runner` grants that",
    ):
        open_objects(ADDRESS, IN_POD)


@pytest.mark.usefixtures("fake")
def test_a_namespace_without_either_secret_is_told_both_names() -> None:
    with pytest.raises(
        StoreError, match="neither the Secret mlpipeline-minio-artifact of the namespace team nor hpo-store: create one"
    ):
        settings()


def test_a_secret_with_other_keys_is_told_with_their_names_and_no_value(fake: FakeKubernetes) -> None:
    keep(fake, "Secret", "mlpipeline-minio-artifact", {"accesskey": "hidden", "password": "hunter2"})
    with pytest.raises(
        StoreError, match=r"has accesskey, password, and not accesskey and secretkey: add these"
    ) as told:
        settings()
    assert "hunter2" not in str(told.value)
    assert "hidden" not in str(told.value)


def test_credentials_that_are_to_come_from_the_environment_are_told_as_such(fake: FakeKubernetes) -> None:
    keep(fake, "ConfigMap", "kfp-launcher", {"providers": "minio: {default: {credentials: {fromEnv: true}}}"})
    with pytest.raises(StoreError, match="kfp-launcher of team says that they come from there"):
        settings()


@pytest.mark.parametrize(
    "given",
    ["[1, 2]", "a: b: c", "words", "minio: words", "minio: {default: words}", "minio: {overrides: {a: b}}"],
)
def test_providers_that_make_no_sense_are_told(fake: FakeKubernetes, given: str) -> None:
    keep(fake, "ConfigMap", "kfp-launcher", {"providers": given})
    with pytest.raises(
        StoreError, match=r"`providers` in the ConfigMap kfp-launcher of team cannot be read: .*; mend it"
    ):
        settings()


def test_a_senseless_endpoint_is_told_by_where_it_stands(fake: FakeKubernetes) -> None:
    keep(fake, "ConfigMap", "kfp-launcher", {"providers": "minio: {default: {endpoint: 'no address'}}"})
    keep(fake, "Secret", "mlpipeline-minio-artifact", USUAL)
    with pytest.raises(StoreError, match=r"^the endpoint in the ConfigMap kfp-launcher must be an address"):
        settings()


@pytest.mark.usefixtures("service")
def test_a_cluster_that_does_not_answer_now_is_asked_again_by_whoever_is_patient(fake: FakeKubernetes) -> None:
    keep(fake, "Secret", "mlpipeline-minio-artifact", USUAL)
    fake.refuse(2, 503)
    with pytest.raises(TransientError, match=r"the cluster cannot be asked for the object store: .*503"):
        settings()
    assert steps.patient(settings)().access_key == "minio"


def test_credentials_that_the_cluster_does_not_take_are_told_at_once(fake: FakeKubernetes) -> None:
    fake.refuse(2, 401)  # the client reads its credentials again once
    with pytest.raises(StoreError, match=r"the cluster cannot be asked for the object store: .*401"):
        settings()


def test_a_pod_that_is_given_no_way_to_its_cluster_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="the cluster cannot be asked for the object store"):
        settings()
    assert default_store(IN_POD) == LOCAL_STORE


# --- the usual store


@pytest.mark.parametrize(
    ("root", "store"),
    [
        ("minio://mlpipeline/private-artifacts/team/v2/artifacts", "minio://mlpipeline/private/team/kfp-hpo"),
        ("minio://mlpipeline/private/team/roots", "minio://mlpipeline/private/team/kfp-hpo"),
        ("minio://mlpipeline/v2/artifacts", "minio://mlpipeline/v2/artifacts/kfp-hpo"),
        ("minio://mlpipeline/private-artifacts", "minio://mlpipeline/private-artifacts/kfp-hpo"),
        ("s3://bucket/", "s3://bucket/kfp-hpo"),
        ("s3://bucket/a?region=b", "s3://bucket/a/kfp-hpo"),
        ("gs://bucket/a", LOCAL_STORE),
    ],
)
def test_records_go_beside_the_artifacts_where_the_namespace_may_write_and_nothing_expires(
    fake: FakeKubernetes, root: str, store: str
) -> None:
    keep(fake, "ConfigMap", "kfp-launcher", {"defaultPipelineRoot": root})
    assert default_store(IN_POD) == store


def test_a_store_that_is_told_goes_before_that(fake: FakeKubernetes) -> None:
    keep(fake, "ConfigMap", "kfp-launcher", {"defaultPipelineRoot": "s3://bucket"})
    assert default_store({**IN_POD, "HPO_STORE": "s3://mine"}) == "s3://mine"
    assert fake.requests == []


def test_elsewhere_than_in_a_pod_records_go_to_a_folder(fake: FakeKubernetes) -> None:
    keep(fake, "ConfigMap", "kfp-launcher", {"defaultPipelineRoot": "s3://bucket"})
    assert default_store({}) == default_store({"HPO_STORE": ""}) == LOCAL_STORE
    assert fake.requests == []


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("root", [None, ""])
def test_pipelines_that_do_not_tell_their_root_have_the_one_that_is_built_in(
    fake: FakeKubernetes, root: str | None
) -> None:
    if root is not None:
        keep(fake, "ConfigMap", "kfp-launcher", {"defaultPipelineRoot": root})
    assert default_store(IN_POD) == "minio://mlpipeline/v2/artifacts/kfp-hpo"


def test_in_a_pod_of_a_cluster_without_pipelines_records_go_to_a_folder(fake: FakeKubernetes) -> None:
    assert default_store(IN_POD) == LOCAL_STORE
    fake.deny("get", "configmaps")
    assert default_store(IN_POD) == LOCAL_STORE


@pytest.mark.parametrize(
    ("times", "code", "raised"), [(1, 503, TransientError), (1, 429, TransientError), (2, 401, StoreError)]
)
def test_a_folder_is_never_taken_because_the_cluster_has_given_no_answer(
    fake: FakeKubernetes, times: int, code: int, raised: type[Exception]
) -> None:
    """The bucket of Kubeflow Pipelines may be elsewhere than in the cluster, where no name tells of it."""
    keep(fake, "ConfigMap", "kfp-launcher", {"defaultPipelineRoot": "s3://bucket"})
    fake.refuse(times, code)
    with pytest.raises(raised, match=f"nothing says where records are to be kept: .*{code}.*; or give --store or HPO_"):
        default_store(IN_POD)
    assert default_store(IN_POD) == "s3://bucket/kfp-hpo"


def test_a_command_says_that_the_cluster_does_not_answer_and_that_a_store_can_be_given(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("HPO_STORE", raising=False)
    fake.refuse(1, 503)
    assert main(["list"]) == OUT_OF_REACH
    assert "503" in (said := capsys.readouterr().err)
    assert "give --store or HPO_STORE" in said


@pytest.mark.usefixtures("service")
def test_who_may_not_ask_where_pipelines_keep_theirs_is_told_what_to_do(fake: FakeKubernetes) -> None:
    fake.deny("get", "configmaps")
    with pytest.raises(
        StoreError, match=r"nothing says where .* cannot get .*kfp-launcher.*; or give --store or HPO_STORE"
    ):
        default_store(IN_POD)


# --- what a pod of ours gets


def test_a_tuner_s_pod_that_got_no_credentials_names_both_secrets_and_asks_nobody(fake: FakeKubernetes) -> None:
    with pytest.raises(
        StoreError,
        match=r"has no Secret hpo-store with AWS_.*, and no Secret theirs with a and b, .*; create one of them",
    ):
        settings(HPO_PIPELINES_SECRET="theirs/a/b")
    assert fake.requests == []
