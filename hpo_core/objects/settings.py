"""Where an S3 server is and who we are there, from environment variables.

AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_CA_BUNDLE;
or MINIO_ENDPOINT, MINIO_ACCESS_KEY, MINIO_SECRET_KEY, MINIO_SECURE; in a pod without credentials what its namespace
tells, see `pipelines`, and without an address the server that Kubeflow Pipelines brings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import urlsplit

from hpo_core.errors import StoreError
from hpo_core.objects import pipelines
from hpo_core.objects.pipelines import SecretKeys

AMAZON = "https://s3.amazonaws.com"
SINGLE_WRITER = "HPO_SINGLE_WRITER"
"""Set to `yes` by a user who vouches that no second tuner runs, for a server without conditional writes."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MINIO_ENDPOINT", pipelines.ENDPOINT)
_KEYS = (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"))
_ROLE_VARIABLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_IN_POD = "KUBERNETES_SERVICE_HOST"
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d+)?")
_FLAGS = {"": False, "no": False, "false": False, "0": False, "yes": True, "true": True, "1": True}


@dataclass(frozen=True)
class S3Settings:
    """How to reach an S3 server.

    Attributes:
        endpoint: `host`, or `host:port`.
        secure: Whether it speaks TLS.
        access_key: The name of our account there; "" when a role of Amazon's tells who we are.
        secret_key: Its secret, which appears in no message.
        session_token: Comes with temporary credentials; "" for none.
        region: The server's region; "" to ask for it.
        ca_file: Whom to trust with TLS, as a file of certificates; "" for the usual authorities.
        single_writer: Whether the user vouches that no second tuner runs.
        secret: The Secret of Kubeflow Pipelines that account and secret are from; None when it is another source.
    """

    endpoint: str
    secure: bool = False
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""
    ca_file: str = ""
    single_writer: bool = False
    secret: SecretKeys | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str], address: str = "") -> S3Settings:
        """Read the settings; in a pod that is told no credentials, the cluster is asked for them.

        Args:
            environment: What we are told.
            address: What is to be opened, `s3://BUCKET/PREFIX`: Kubeflow Pipelines may keep some at another server.

        Raises:
            StoreError: The address makes no sense, or there are no credentials.
            TransientError: The cluster cannot be asked now.
        """
        # A Secret made from a file often ends in a line break.
        told = _told_or_asked({name: value.strip() for name, value in environment.items() if value.strip()}, address)
        name = next((name for name in _ENDPOINTS if told.get(name)), "")
        endpoint, secure = _endpoint(name, told)
        access_key, secret_key = _credentials(told, of_minio=name == "MINIO_ENDPOINT") or _none(told, endpoint)
        from_secret = pipelines.SECRET in told and access_key and access_key == told.get(pipelines.ACCESS_KEY)
        return cls(
            endpoint,
            secure,
            access_key,
            secret_key,
            told.get("AWS_SESSION_TOKEN", "") if access_key == told.get("AWS_ACCESS_KEY_ID") else "",
            told.get("AWS_REGION") or told.get("AWS_DEFAULT_REGION") or told.get(pipelines.REGION, ""),
            told.get("AWS_CA_BUNDLE") or told.get("SSL_CERT_FILE", ""),
            _flag(SINGLE_WRITER, told),
            SecretKeys.of(told[pipelines.SECRET]) if from_secret else None,
        )


def _endpoint(name: str, told: Mapping[str, str]) -> tuple[str, bool]:
    given = told.get(name) or (pipelines.find_service() if _IN_POD in told else "") or AMAZON
    scheme = "https" if _flag("MINIO_SECURE", told) else "http"
    try:
        parts = urlsplit(given if "://" in given else f"{scheme}://{given}")
        rest = parts.path.strip("/") or parts.query or parts.fragment
        known = parts.scheme in ("http", "https") and _HOST.fullmatch(parts.netloc) and parts.port != 0
    except ValueError:
        known, rest = None, ""
    if not known or rest:
        hidden = "…@" if "@" in given else ""  # whatever stands before it may be a password
        name = f"the endpoint in the ConfigMap {pipelines.LAUNCHER}" if name == pipelines.ENDPOINT else name
        raise StoreError(
            f"{name} must be an address such as http://minio-service.kubeflow:9000, with neither path nor password, "
            f"got {hidden + given.rpartition('@')[2]!r}"
        )
    return parts.netloc, parts.scheme == "https"


def _credentials(told: Mapping[str, str], *, of_minio: bool) -> tuple[str, str] | None:
    """Account and secret; both are "" where a role of Amazon's tells, None is returned where nothing does."""
    for key, secret in reversed(_KEYS) if of_minio else _KEYS:
        if told.get(key) and told.get(secret):
            return told[key], told[secret]
    if any(told.get(name) for name in _ROLE_VARIABLES):
        return "", ""
    if told.get(pipelines.ACCESS_KEY) and told.get(pipelines.SECRET_KEY):
        return told[pipelines.ACCESS_KEY], told[pipelines.SECRET_KEY]
    return None


def _told_or_asked(told: Mapping[str, str], address: str) -> Mapping[str, str]:
    """What we are told; in a pod that is told no credentials, and got none by reference, with what the cluster adds."""
    if _IN_POD not in told or pipelines.SECRET in told or _credentials(told, of_minio=False):
        return told
    here = pipelines.PodNamespace()
    found = {**here.own_variables(), **told}
    return found if _credentials(found, of_minio=False) else {**here.variables(address), **found}


def _none(told: Mapping[str, str], endpoint: str) -> NoReturn:
    none = f"there are no credentials for the object store at {endpoint}"
    pairs = " or ".join(f"{key} and {secret}" for key, secret in _KEYS)
    if pipelines.SECRET in told:
        keys = SecretKeys.of(told[pipelines.SECRET])
        raise StoreError(
            f"{none}: the namespace of this pod has no Secret {pipelines.STORE_SECRET} with {pairs}, and no Secret "
            f"{keys.name} with {keys.access_key} and {keys.secret_key}, as Kubeflow Pipelines makes it; create one of "
            "them as docs/kubernetes.md shows"
        )
    raise StoreError(
        f"{none}: set {pairs}; Kubeflow Pipelines keeps them as accesskey and secretkey in the Secret "
        "mlpipeline-minio-artifact of your namespace"
    )


def _flag(name: str, told: Mapping[str, str]) -> bool:
    given = told.get(name, "")
    if given.lower() not in _FLAGS:
        raise StoreError(f"{name} must be yes or no, got {given!r}")
    return _FLAGS[given.lower()]
