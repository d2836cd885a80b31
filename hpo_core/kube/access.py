"""Where the API server is and who we are there, as the official client finds it out.

That client is imported here, when it is used: it costs as much time as all the rest of a start.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import urllib3

from hpo_core.errors import LaunchError
from hpo_core.kube.interrupt import PlainPool, SecurePool

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token, the server's authority and its own namespace."""
KUBECONFIG = "~/.kube/config"
CONNECTIONS = 64
"""How many are kept open: one for each thread that asks, and for what ends by itself."""
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}
"""A peer that has died without a word is given up after a minute; options that this system lacks are left out."""


class Access:
    """A way to an API server.

    Args:
        load: Reads the configuration; called again when the server no longer takes the credentials.
        namespace: Where objects are that do not say it.

    Attributes:
        host: The server's address.
        pool: Connections to it.
    """

    def __init__(self, load: Callable[[], Any], namespace: str) -> None:
        self._load, self.namespace = load, namespace
        self._lock = threading.Lock()
        self._enter()

    def authorization(self) -> str:
        """Return the header of that name; "" where a certificate, or nothing, says who we are.

        Raises:
            LaunchError: The credentials can no longer be had.
        """
        with self._lock, _told("cannot renew the credentials of the Kubernetes API"):
            return self._configuration.get_api_key_with_prefix("authorization") or ""

    def renew(self, since: float) -> None:
        """Read the configuration anew, unless that was done after that time of the monotonic clock.

        Raises:
            LaunchError: It cannot be read any more.
        """
        with self._lock:
            if self._entered < since:
                self._enter()

    def _enter(self) -> None:
        self._entered = time.monotonic()
        self._configuration = self._load()
        self.host = str(self._configuration.host).rstrip("/")
        self.pool = _connections(self._configuration)


def find_access(*, context: str, namespace: str) -> Access:
    """Find the API server: see `Kube.connect`."""
    if not context and not os.environ.get("KUBECONFIG") and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return in_pod(namespace, SERVICE_ACCOUNT)
    return by_kubeconfig(context, namespace)


def in_pod(namespace: str, folder: Path) -> Access:
    """Enter as a pod's service account, whose files lie in that folder; its token is read again every minute."""

    def load() -> Any:
        from kubernetes.client import Configuration  # type: ignore[import-untyped]
        from kubernetes.config.incluster_config import InClusterConfigLoader  # type: ignore[import-untyped]

        found = Configuration()
        with _told(f"cannot enter the cluster as this pod's service account ({folder})"):
            InClusterConfigLoader(str(folder / "token"), str(folder / "ca.crt")).load_and_set(found)
        return found

    with contextlib.suppress(OSError):
        namespace = namespace or (folder / "namespace").read_text().strip()
    return Access(load, namespace or "default")


def by_kubeconfig(context: str, namespace: str) -> Access:
    """Enter as the kubeconfig says; "" for its current context."""
    path = os.environ.get("KUBECONFIG") or KUBECONFIG
    if not any(Path(part).expanduser().exists() for part in path.split(os.pathsep) if part):
        raise LaunchError(
            f"no Kubernetes cluster is known here: there is no kubeconfig at {path}; set KUBECONFIG, or run in a pod"
        )

    def load() -> Any:
        from kubernetes import config  # type: ignore[import-untyped]
        from kubernetes.client import Configuration

        found = Configuration()
        with _told(f"cannot use the kubeconfig {path}"):
            config.load_kube_config(config_file=path, context=context or None, client_configuration=found)
        return found

    return Access(load, namespace or _namespace_of(path, context) or "default")


def _namespace_of(path: str, context: str) -> str:
    from kubernetes import config

    with _told(f"cannot use the kubeconfig {path}"):
        contexts, current = config.list_kube_config_contexts(path)
    chosen = next((entry for entry in contexts if entry["name"] == context), None) if context else current
    return str(((chosen or {}).get("context") or {}).get("namespace") or "")


@contextlib.contextmanager
def _told(attempt: str) -> Iterator[None]:
    """Translate what the client raises for a configuration that is missing or broken."""
    from kubernetes.config import ConfigException, kube_config  # type: ignore[import-untyped]

    broken = (ConfigException, kube_config.yaml.YAMLError, OSError, ValueError, TypeError, KeyError, AttributeError)
    try:
        yield
    except broken as error:
        raise LaunchError(
            f"{attempt}: {' '.join(str(error).split())}; mend it, or name another by KUBECONFIG"
        ) from error


def _connections(configuration: Any) -> urllib3.PoolManager:
    """The client's own connections, which know authorities, certificates and proxies, with what we need besides."""
    from kubernetes.client.rest import RESTClientObject  # type: ignore[import-untyped]

    with _told("cannot use the certificates of the Kubernetes API"):
        pool: urllib3.PoolManager = RESTClientObject(configuration, maxsize=CONNECTIONS).pool_manager
    pool.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    pool.connection_pool_kw["socket_options"] = _socket_options()
    return pool


def _socket_options() -> list[tuple[int, int, int | bytes]]:
    alive: list[tuple[int, int, int | bytes]] = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    alive += [
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _KEEPALIVE.items()
        if hasattr(socket, name)
    ]
    return [*urllib3.connection.HTTPConnection.default_socket_options, *alive]
