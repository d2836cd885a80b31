"""Where an S3 server is and who we are there, from environment variables.

AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION; or MINIO_ENDPOINT,
MINIO_ACCESS_KEY, MINIO_SECRET_KEY, MINIO_SECURE; in a pod without either the server that Kubeflow Pipelines brings.
"""

from __future__ import annotations

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

_KEYS = (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"))
_ROLE_VARIABLES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")


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
        single_writer: Whether the user vouches that no second tuner runs.
    """

    endpoint: str
    secure: bool = False
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""
    single_writer: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> S3Settings:
        """Read the settings.

        Raises:
            StoreError: The address makes no sense, or there are no credentials.
        """
        endpoint, secure = _endpoint(environment)
        access_key, secret_key = _credentials(environment, endpoint)
        return cls(
            endpoint,
            secure,
            access_key,
            secret_key,
            environment.get("AWS_SESSION_TOKEN", "") if access_key == environment.get("AWS_ACCESS_KEY_ID") else "",
            environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION", ""),
            environment.get(SINGLE_WRITER, "").lower() in ("yes", "true", "1"),
        )


def _endpoint(environment: Mapping[str, str]) -> tuple[str, bool]:
    name = next((n for n in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MINIO_ENDPOINT") if environment.get(n)), "")
    given = environment.get(name) or _of_pipelines(environment) or AMAZON
    scheme = "https" if environment.get("MINIO_SECURE", "").lower() in ("yes", "true", "1") else "http"
    parts = urlsplit(given if "://" in given else f"{scheme}://{given}")
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/") or "@" in parts.netloc:
        raise StoreError(f"{name} must be an address such as http://minio-service.kubeflow:9000, got {given!r}")
    return parts.netloc, parts.scheme == "https"


def _of_pipelines(environment: Mapping[str, str]) -> str:
    """Address of the object store that Kubeflow Pipelines brings; "" outside of a cluster, or where there is none."""
    if "KUBERNETES_SERVICE_HOST" not in environment:
        return ""
    for host in PIPELINES_SERVICES:
        try:
            socket.getaddrinfo(host, 9000)
        except OSError:
            continue
        return f"http://{host}:9000"
    return ""


def _credentials(environment: Mapping[str, str], endpoint: str) -> tuple[str, str]:
    for key, secret in reversed(_KEYS) if environment.get("MINIO_ENDPOINT") else _KEYS:
        if environment.get(key) and environment.get(secret):
            return environment[key], environment[secret]
    if any(environment.get(name) for name in _ROLE_VARIABLES):
        return "", ""
    pairs = " or ".join(f"{key} and {secret}" for key, secret in _KEYS)
    raise StoreError(
        f"there are no credentials for the object store at {endpoint}: set {pairs}; Kubeflow Pipelines keeps them as "
        "accesskey and secretkey in the Secret mlpipeline-minio-artifact of your namespace"
    )
