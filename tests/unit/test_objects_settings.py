"""From environment variables to an S3 server: which names there are, which one wins, what is said of bad ones."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from hpo_core.errors import StoreError
from hpo_core.objects import open_objects
from hpo_core.objects.settings import AMAZON, S3Settings

AWS = {"AWS_ACCESS_KEY_ID": "aws-key", "AWS_SECRET_ACCESS_KEY": "aws-secret"}
MINIO = {"MINIO_ACCESS_KEY": "minio-key", "MINIO_SECRET_KEY": "minio-secret"}


@pytest.mark.parametrize(
    ("environment", "endpoint", "secure"),
    [
        ({}, AMAZON.removeprefix("https://"), True),
        ({"AWS_ENDPOINT_URL": "http://s3.local:9000"}, "s3.local:9000", False),
        ({"AWS_ENDPOINT_URL": "https://s3.local/"}, "s3.local", True),
        ({"AWS_ENDPOINT_URL": "http://[::1]:9000"}, "[::1]:9000", False),
        ({"AWS_ENDPOINT_URL": "http://s3.local:9000\n"}, "s3.local:9000", False),
        ({"MINIO_ENDPOINT": "minio:9000"}, "minio:9000", False),
        ({"MINIO_ENDPOINT": "minio:9000", "MINIO_SECURE": "true"}, "minio:9000", True),
        ({"MINIO_ENDPOINT": "minio:9000", "MINIO_SECURE": "False"}, "minio:9000", False),
        ({"MINIO_ENDPOINT": "http://minio:9000", "MINIO_SECURE": "yes"}, "minio:9000", False),
        ({"AWS_ENDPOINT_URL_S3": "http://a", "AWS_ENDPOINT_URL": "http://b", "MINIO_ENDPOINT": "c"}, "a", False),
        ({"AWS_ENDPOINT_URL": "http://b", "MINIO_ENDPOINT": "c"}, "b", False),
        ({"AWS_ENDPOINT_URL": "", "MINIO_ENDPOINT": "c"}, "c", False),
    ],
)
def test_the_address_is_the_first_that_is_told(environment: Mapping[str, str], endpoint: str, secure: bool) -> None:
    settings = S3Settings.of({**AWS, **environment})
    assert (settings.endpoint, settings.secure) == (endpoint, secure)


@pytest.mark.parametrize(
    ("environment", "key", "secret"),
    [
        (AWS, "aws-key", "aws-secret"),
        (MINIO, "minio-key", "minio-secret"),
        ({**AWS, **MINIO}, "aws-key", "aws-secret"),
        ({**AWS, **MINIO, "MINIO_ENDPOINT": "minio:9000"}, "minio-key", "minio-secret"),
        ({**AWS, "MINIO_ENDPOINT": "minio:9000"}, "aws-key", "aws-secret"),
        ({**AWS, **MINIO, "AWS_ENDPOINT_URL": "http://s3", "MINIO_ENDPOINT": "minio"}, "aws-key", "aws-secret"),
        ({"AWS_ACCESS_KEY_ID": "half", **MINIO}, "minio-key", "minio-secret"),
        ({name: f" {value}\n" for name, value in AWS.items()}, "aws-key", "aws-secret"),
    ],
)
def test_the_credentials_are_those_that_belong_to_the_address(
    environment: Mapping[str, str], key: str, secret: str
) -> None:
    settings = S3Settings.of(environment)
    assert (settings.access_key, settings.secret_key) == (key, secret)


def test_a_session_token_goes_with_the_credentials_that_it_came_with() -> None:
    token = {"AWS_SESSION_TOKEN": "token"}
    assert S3Settings.of({**AWS, **token}).session_token == "token"
    assert S3Settings.of({**MINIO, **token}).session_token == ""


@pytest.mark.parametrize(
    ("environment", "region"),
    [
        ({}, ""),
        ({"AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "us-west-2"}, "eu-central-1"),
        ({"AWS_DEFAULT_REGION": "us-west-2"}, "us-west-2"),
    ],
)
def test_the_region_has_two_names(environment: Mapping[str, str], region: str) -> None:
    assert S3Settings.of({**AWS, **environment}).region == region


@pytest.mark.parametrize(
    ("environment", "file"),
    [({}, ""), ({"AWS_CA_BUNDLE": "a.pem", "SSL_CERT_FILE": "b.pem"}, "a.pem"), ({"SSL_CERT_FILE": "b.pem"}, "b.pem")],
)
def test_the_authorities_to_trust_have_two_names(environment: Mapping[str, str], file: str) -> None:
    assert S3Settings.of({**AWS, **environment}).ca_file == file


@pytest.mark.parametrize(("given", "vouches"), [("", False), ("no", False), ("0", False), ("Yes", True), ("1", True)])
def test_a_user_may_vouch_for_a_single_writer(given: str, vouches: bool) -> None:
    assert S3Settings.of({**AWS, "HPO_SINGLE_WRITER": given}).single_writer is vouches


@pytest.mark.parametrize("name", ["HPO_SINGLE_WRITER", "MINIO_SECURE"])
def test_neither_yes_nor_no_is_refused(name: str) -> None:
    with pytest.raises(StoreError, match=f"^{name} must be yes or no, got 'perhaps'$"):
        S3Settings.of({**AWS, "MINIO_ENDPOINT": "minio:9000", name: "perhaps"})


def test_without_credentials_it_is_said_what_to_set_and_where_they_may_be_found() -> None:
    with pytest.raises(
        StoreError,
        match=r"^there are no credentials for the object store at s3\.local: set AWS_ACCESS_KEY_ID and "
        r"AWS_SECRET_ACCESS_KEY or MINIO_ACCESS_KEY and MINIO_SECRET_KEY; .* Secret mlpipeline-minio-artifact",
    ):
        S3Settings.of({"AWS_ENDPOINT_URL": "http://s3.local", "AWS_ACCESS_KEY_ID": "key"})


@pytest.mark.parametrize(
    "name",
    ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"],
)
def test_a_role_needs_no_credentials(name: str) -> None:
    settings = S3Settings.of({name: "something"})
    assert (settings.access_key, settings.secret_key, settings.session_token) == ("", "", "")


@pytest.mark.parametrize(
    "given",
    [
        "ftp://host",
        "http://",
        "http://host/path",
        "http://host?query",
        "http://host:port",
        "http://host:99999",
        "http://ho st",
        "http://[::1",
        "://",
    ],
)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "MINIO_ENDPOINT"])
def test_a_senseless_address_is_refused_by_its_name(name: str, given: str) -> None:
    with pytest.raises(StoreError, match=f"^{name} must be an address such as http://minio-service.kubeflow:9000, "):
        S3Settings.of({**AWS, name: given})


def test_a_refused_address_shows_no_password() -> None:
    with pytest.raises(StoreError, match=r"with neither path nor password, got '…@host:9000'$"):
        S3Settings.of({**AWS, "AWS_ENDPOINT_URL": "http://user:hunter2@host:9000"})


def test_a_senseless_region_is_refused_when_the_store_is_opened() -> None:
    with pytest.raises(StoreError, match=r"cannot use s3://bucket/p at http://s3.local: invalid region .*AWS_REGION"):
        open_objects("s3://bucket/p", {**AWS, "AWS_ENDPOINT_URL": "http://s3.local", "AWS_REGION": "the moon"})


def test_settings_show_no_secret() -> None:
    shown = repr(S3Settings.of({**AWS, "AWS_SESSION_TOKEN": "aws-token"}))
    assert "aws-key" in shown
    assert "aws-secret" not in shown
    assert "aws-token" not in shown


def test_outside_of_a_cluster_nobody_looks_for_the_store_of_kubeflow_pipelines() -> None:
    assert S3Settings.of(AWS).endpoint == "s3.amazonaws.com"
