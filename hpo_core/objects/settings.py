"""Where an S3 server is and who we are there, from environment variables.

AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_CA_BUNDLE;
or MINIO_ENDPOINT, MINIO_ACCESS_KEY, MINIO_SECRET_KEY, MINIO_SECURE; in a pod without either the server that Kubeflow
Pipelines brings.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from hpo_core.errors import StoreError

AMAZON = "https://s3.amazonaws.com"
PIPELINES_SERVICES = ("seaweedfs.kubeflow", "minio-service.kubeflow")
"""Services of Kubeflow Pipelines' object store: from 2.15 on, and before."""
SINGLE_WRITER = "HPO_SINGLE_WRITER"
"""Set to `yes` by a user who vouches that no second tuner runs, for a server without conditional writes."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MINIO_ENDPOINT")
_KEYS = (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"))
_ROLE_VARIABLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
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
    """

    endpoint: str
    secure: bool = False
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""
    ca_file: str = ""
    single_writer: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> S3Settings:
        """Read the settings.

        Raises:
            StoreError: The address makes no sense, or there are no credentials.
        """
        # A Secret made from a file often ends in a line break.
        told = {name: value.strip() for name, value in environment.items()}
        name = next((name for name in _ENDPOINTS if told.get(name)), "")
        endpoint, secure = _endpoint(name, told)
        access_key, secret_key = _credentials(told, endpoint, of_minio=name == "MINIO_ENDPOINT")
        return cls(
            endpoint,
            secure,
            access_key,
            secret_key,
            told.get("AWS_SESSION_TOKEN", "") if access_key == told.get("AWS_ACCESS_KEY_ID") else "",
            told.get("AWS_REGION") or told.get("AWS_DEFAULT_REGION", ""),
            told.get("AWS_CA_BUNDLE") or told.get("SSL_CERT_FILE", ""),
            _flag(SINGLE_WRITER, told),
        )


def _endpoint(name: str, told: Mapping[str, str]) -> tuple[str, bool]:
    given = told.get(name) or _of_pipelines(told) or AMAZON
    scheme = "https" if _flag("MINIO_SECURE", told) else "http"
    try:
        parts = urlsplit(given if "://" in given else f"{scheme}://{given}")
        rest = parts.path.strip("/") or parts.query or parts.fragment
        known = parts.scheme in ("http", "https") and _HOST.fullmatch(parts.netloc) and parts.port != 0
    except ValueError:
        known, rest = None, ""
    if not known or rest:
        hidden = "…@" if "@" in given else ""  # whatever stands before it may be a password
        raise StoreError(
            f"{name} must be an address such as http://minio-service.kubeflow:9000, with neither path nor password, "
            f"got {hidden + given.rpartition('@')[2]!r}"
        )
    return parts.netloc, parts.scheme == "https"


def _of_pipelines(told: Mapping[str, str]) -> str:
    """Address of the object store that Kubeflow Pipelines brings; "" outside of a cluster, or where there is none."""
    if "KUBERNETES_SERVICE_HOST" not in told:
        return ""
    for host in PIPELINES_SERVICES:
        try:
            socket.getaddrinfo(host, 9000)
        except OSError:
            continue
        return f"http://{host}:9000"
    return ""


def _credentials(told: Mapping[str, str], endpoint: str, *, of_minio: bool) -> tuple[str, str]:
    for key, secret in reversed(_KEYS) if of_minio else _KEYS:
        if told.get(key) and told.get(secret):
            return told[key], told[secret]
    if any(told.get(name) for name in _ROLE_VARIABLES):
        return "", ""
    pairs = " or ".join(f"{key} and {secret}" for key, secret in _KEYS)
    raise StoreError(
        f"there are no credentials for the object store at {endpoint}: set {pairs}; Kubeflow Pipelines keeps them as "
        "accesskey and secretkey in the Secret mlpipeline-minio-artifact of your namespace"
    )


def _flag(name: str, told: Mapping[str, str]) -> bool:
    given = told.get(name, "")
    if given.lower() not in _FLAGS:
        raise StoreError(f"{name} must be yes or no, got {given!r}")
    return _FLAGS[given.lower()]
