"""What the namespace of this pod tells of the object store: our own Secret, and what Kubeflow Pipelines keeps there.

Asked of the Kubernetes API, and only where the environment does not tell. What is found has the form of environment
variables: those by which the pods that we start are told the same.
"""

from __future__ import annotations

import base64
import contextlib
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpo_core.errors import HpoError, LaunchError, NotFound, SpecError, StoreError, TransientError

ENDPOINT, REGION = "HPO_PIPELINES_ENDPOINT", "HPO_PIPELINES_REGION"
SECRET = "HPO_PIPELINES_SECRET"
"""Tells the Secret that the next two are from, and its keys: `NAME/ACCESS_KEY/SECRET_KEY`."""
ACCESS_KEY, SECRET_KEY = "HPO_PIPELINES_ACCESS_KEY", "HPO_PIPELINES_SECRET_KEY"
STORE_SECRET = "hpo-store"
"""Our own Secret, with the variables that users know; it goes first."""
LAUNCHER = "kfp-launcher"
"""The ConfigMap of Kubeflow Pipelines that tells where artifacts go, and how."""

_SERVICES = ("seaweedfs.kubeflow", "minio-service.kubeflow")
"""Services of Kubeflow Pipelines' object store: from 2.15 on, and before."""
_ROOT = "minio://mlpipeline/v2/artifacts"
"""Where Kubeflow Pipelines keeps artifacts when nobody says anything else."""
_FOLDER = "kfp-hpo"
_OWNED = ("private-artifacts", "private")
"""Folders of a bucket with a folder for each namespace; what lies in the first may be removed after a while."""


@dataclass(frozen=True)
class SecretKeys:
    """Where credentials are: a Secret of the namespace, and its keys."""

    name: str = "mlpipeline-minio-artifact"
    access_key: str = "accesskey"
    secret_key: str = "secretkey"

    @classmethod
    def of(cls, text: str) -> SecretKeys:
        """Read `NAME/ACCESS_KEY/SECRET_KEY`."""
        return cls(*text.split("/"))

    def __str__(self) -> str:
        return f"{self.name}/{self.access_key}/{self.secret_key}"


def find_service() -> str:
    """Return the address of the object store that Kubeflow Pipelines brings; "" where there is none."""
    for host in _SERVICES:
        try:
            socket.getaddrinfo(host, 9000)
        except OSError:
            continue
        return f"http://{host}:9000"
    return ""


def find_root() -> str:
    """Return where this pod's namespace may keep records, beside the artifacts of pipelines; "" without Pipelines.

    Raises:
        StoreError: There is Kubeflow Pipelines, or what may be it, and it cannot be found out where.
        TransientError: The same, and it is likely to pass.
    """
    try:
        root = str(PodNamespace().launcher().get("defaultPipelineRoot") or "")
    except TransientError as error:
        raise TransientError(_nowhere(error), error.retry_after_s) from error
    except StoreError as error:
        if isinstance(error, _NoCluster | _Forbidden) and not find_service():
            return ""
        raise StoreError(_nowhere(error)) from error
    root = (root or (_ROOT if find_service() else "")).partition("?")[0].strip("/")
    scheme, _, path = root.partition("://")
    if scheme not in ("minio", "s3"):
        return ""
    bucket, *folders = path.split("/")
    if len(folders) > 1 and folders[0] in _OWNED:
        folders = ["private", folders[1]]
    return f"{scheme}://{'/'.join([bucket, *filter(None, folders), _FOLDER])}"


def _nowhere(error: HpoError) -> str:
    return f"nothing says where records are to be kept: {error}; or give --store or HPO_STORE"


class PodNamespace:
    """The namespace of this pod, as its service account sees it. What asks the cluster asks it once.

    Raises:
        StoreError: The cluster cannot be asked.
        TransientError: It cannot be asked now.
    """

    def __init__(self) -> None:
        from hpo_core.kube import Kube  # imported here: its client is dear

        try:
            self._kube = Kube.connect()
        except LaunchError as error:
            raise _NoCluster(_unasked(error)) from error
        self.name = self._kube.namespace

    def own_variables(self) -> dict[str, str]:
        """Return what our own Secret holds; nothing where there is none, or this account may not read it."""
        try:
            return self._secret(STORE_SECRET)
        except (NotFound, _Forbidden):
            return {}

    def variables(self, address: str) -> dict[str, str]:
        """Return what Kubeflow Pipelines tells of the server of an address, and of our account there.

        Args:
            address: `s3://` or `minio://`, a bucket and a prefix.

        Raises:
            StoreError: It tells no credentials, or this account may not read them.
        """
        # Imported here: only this needs YAML.
        from hpo_core.experiment import parse_yaml

        try:
            told = _provider(parse_yaml(self._providers()) or {}, address)
            credentials = dict(told.get("credentials") or {})
            keys = _keys(dict(credentials.get("secretRef") or {}))
        except (SpecError, AttributeError, TypeError, ValueError) as error:
            where = f"`providers` in the ConfigMap {LAUNCHER} of {self.name}"
            raise StoreError(f"{where} cannot be read: {error}; mend it") from error
        if credentials.get("fromEnv"):
            raise _none(f"the ConfigMap {LAUNCHER} of {self.name} says that they come from there (fromEnv): add them")
        return {**_server(told), **self._credentials(keys), SECRET: str(keys)}

    def launcher(self) -> Mapping[str, Any]:
        """Return what the ConfigMap of Kubeflow Pipelines' launcher holds; nothing where there is none.

        Raises:
            StoreError: This account may not get it.
        """
        try:
            return self._data("ConfigMap", LAUNCHER)
        except NotFound:
            return {}

    def _providers(self) -> str:
        try:
            return str(self.launcher().get("providers") or "")
        except _Forbidden:
            return ""  # what is usual may do

    def _credentials(self, keys: SecretKeys) -> dict[str, str]:
        where = f"the Secret {keys.name} of the namespace {self.name}"
        try:
            found = self._secret(keys.name)
        except NotFound as error:
            raise _none(f"there is neither {where} nor {STORE_SECRET}: create one of them") from error
        except _Forbidden as error:
            raise _none(f"{error.user or 'this account'} may not get {where}: {_grant(error.user, keys)}") from error
        told = {ACCESS_KEY: found.get(keys.access_key), SECRET_KEY: found.get(keys.secret_key)}
        if not all(told.values()):
            has = ", ".join(sorted(found)) or "nothing"
            raise _none(f"{where} has {has}, and not {keys.access_key} and {keys.secret_key}: add these")
        return {name: value for name, value in told.items() if value}

    def _secret(self, name: str) -> dict[str, str]:
        data = self._data("Secret", name)
        return {key: base64.b64decode(value).decode(errors="replace").strip() for key, value in data.items()}

    def _data(self, kind: str, name: str) -> Mapping[str, Any]:
        with _asking():
            return self._kube.get("v1", kind, name).get("data") or {}


class _NoCluster(StoreError):
    """This pod is given no way to its cluster."""


class _Forbidden(StoreError):
    def __init__(self, message: str, user: str) -> None:
        super().__init__(message)
        self.user = user


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Translate what the cluster's client raises; NotFound stays what it is, and what passes is to be tried again."""
    from hpo_core.kube import Forbidden

    try:
        yield
    except Forbidden as error:
        raise _Forbidden(str(error), error.user) from error
    except TransientError as error:
        raise TransientError(_unasked(error), error.retry_after_s) from error
    except LaunchError as error:
        raise StoreError(_unasked(error)) from error


def _unasked(error: HpoError) -> str:
    return f"the cluster cannot be asked for the object store: {error}"


def _provider(providers: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Return what the launcher is told of an address: its provider's default, and what the first match overrides."""
    scheme, _, path = address.partition("://")
    bucket, _, prefix = path.partition("/")
    # Records are told by s3:// whatever the server is.
    provider = "s3" if scheme == "s3" and "s3" in providers else "minio"
    entry = providers.get(provider) or {}
    found = dict(entry.get("default") or {})
    if provider == "s3":
        found["endpoint"] = found.get("endpoint") or "s3.amazonaws.com"
    for override in entry.get("overrides") or entry.get("Overrides") or []:
        within = str(override.get("keyPrefix") or "").strip("/")
        if override.get("bucketName") == bucket and f"{prefix.strip('/')}/".startswith(f"{within}/" if within else ""):
            return found | {name: value for name, value in override.items() if value not in ("", None)}
    return found


def _keys(given: Mapping[str, Any]) -> SecretKeys:
    usual = SecretKeys()
    return SecretKeys(
        str(given.get("secretName") or usual.name),
        str(given.get("accessKeyKey") or usual.access_key),
        str(given.get("secretKeyKey") or usual.secret_key),
    )


def _server(told: Mapping[str, Any]) -> dict[str, str]:
    endpoint, region = str(told.get("endpoint") or ""), str(told.get("region") or "")
    if endpoint and "://" not in endpoint:
        endpoint = f"{'http' if told.get('disableSSL') else 'https'}://{endpoint}"
    return {name: value for name, value in ((ENDPOINT, endpoint), (REGION, region)) if value}


def _none(what: str) -> StoreError:
    return StoreError(
        "there are no credentials for the object store in this pod's environment, AWS_ACCESS_KEY_ID and "
        f"AWS_SECRET_ACCESS_KEY or MINIO_ACCESS_KEY and MINIO_SECRET_KEY, and {what}; docs/kubernetes.md tells more"
    )


def _grant(user: str, keys: SecretKeys) -> str:
    """Say what lets an account read the Secret."""
    words = user.split(":")
    if len(words) != 4:
        return "let it, or set these variables"
    _, _, namespace, account = words
    allow = f"-n {namespace} --verb=get --resource=secrets --resource-name={keys.name}"
    bind = f"-n {namespace} --role=hpo-store --serviceaccount={namespace}:{account}"
    return f"`kubectl create role hpo-store {allow} && kubectl create rolebinding hpo-store {bind}` grants that"
