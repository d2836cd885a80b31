"""How the pods that we start in a cluster get the store's server and credentials: by reference, whatever we know.

The Secret `hpo-store` goes first. Where there is none, as in many a profile of Kubeflow, it is the Secret that Kubeflow
Pipelines keeps there; its values have variables of their own, so that the two never mix. Such a pod need not be allowed
to read any Secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hpo_core.objects import pipelines, settings_of
from hpo_core.objects.pipelines import STORE_SECRET, SecretKeys

if TYPE_CHECKING:
    from hpo_core.objects.settings import S3Settings

STORE_ENVIRONMENT: Mapping[str, Any] = {"envFrom": [{"secretRef": {"name": STORE_SECRET, "optional": False}}]}
"""The fields of a container that gets the store's server and credentials from our own Secret alone."""


def tuner_environment(uri: str) -> dict[str, Any]:
    """Return `env` and `envFrom` of a tuner's container: both Secrets, since it is not known which of them there is.

    Raises:
        StoreError: We have no credentials ourselves.
    """
    settings = settings_of(uri)
    return _environment(settings.secret or SecretKeys(), _server(settings), optional=True)


def sidecar_environment(uri: str) -> Mapping[str, Any]:
    """Return those of what stands beside a trial: a Secret that is missing keeps a trial from starting, in clear words.

    Raises:
        StoreError: We have no credentials ourselves.
    """
    settings = settings_of(uri)
    if settings.secret is None:
        return STORE_ENVIRONMENT
    return _environment(settings.secret, _server(settings), optional=False)


def _server(settings: S3Settings) -> dict[str, str]:
    """The variables for pods to find the server that we have found, where that is known to be the same for them."""
    if settings.secret is None:
        return {}
    endpoint = f"{'https' if settings.secure else 'http'}://{settings.endpoint}"
    return {pipelines.ENDPOINT: endpoint, **({pipelines.REGION: settings.region} if settings.region else {})}


def _environment(keys: SecretKeys, server: Mapping[str, str], *, optional: bool) -> dict[str, Any]:
    told = {**server, pipelines.SECRET: str(keys)}
    values = [{"name": name, "value": value} for name, value in told.items()]
    references = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": keys.name, "key": key, "optional": optional}}}
        for name, key in ((pipelines.ACCESS_KEY, keys.access_key), (pipelines.SECRET_KEY, keys.secret_key))
    ]
    return {"envFrom": [{"secretRef": {"name": STORE_SECRET, "optional": True}}], "env": [*values, *references]}
