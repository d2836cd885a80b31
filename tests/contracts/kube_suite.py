"""A namespace of one's own on an API server, made ready for tests: on the fake, and on the cluster of $KUBECONFIG.

The real one belongs to `make e2e`. Its pods need an image with a shell: $HPO_E2E_IMAGE, else BusyBox's.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from hpo_core.errors import TransientError
from hpo_core.kube import Kube
from hpo_core.kube.wire import Request
from tests.fake_kubernetes import FakeKubernetes

IMAGE = "HPO_E2E_IMAGE"
"""Environment variable: an image with a shell, which the cluster can pull or has."""
PATIENCE_S = 60.0


class Site(Protocol):
    """What the laws are tried on.

    Attributes:
        kube: Who may do everything, in a namespace of its own.
        stranger: Who may do nothing there.
        unknown: Whose credentials are wrong.
    """

    kube: Kube
    stranger: Kube
    unknown: Kube

    def print_in_pod(self, name: str, script: str) -> None:
        """Run a pod whose container `main` does what a script of `print TEXT`, `wait` and `fail` says, line by line."""
        ...

    def fill_quota(self) -> None:
        """Let no more Jobs be created."""
        ...


class FakeSite:
    """The fake's namespace."""

    def __init__(self, fake: FakeKubernetes, folder: Path, connect: Callable[[Path], Kube]) -> None:
        self._fake = fake
        self.kube = connect(fake.kubeconfig(folder))
        self.stranger = connect(fake.kubeconfig(folder, token="stranger"))
        self.unknown = connect(fake.kubeconfig(folder, token="wrong"))
        fake.tokens = {"valid": "admin", "stranger": "system:serviceaccount:team:default"}
        fake.powerless = {"system:serviceaccount:team:default"}

    def print_in_pod(self, name: str, script: str) -> None:
        """See `Site.print_in_pod`."""
        self._fake.start_pod(name)
        for command, _, text in (line.partition(" ") for line in script.splitlines()):
            if command == "print":
                self._fake.append_log(name, f"{text}\n".encode())
            if command == "wait":
                return
        self._fake.finish_pod(name, code=1 if "fail" in script.splitlines() else 0)

    def fill_quota(self) -> None:
        """See `Site.fill_quota`."""
        told = (
            'jobs.batch "j" is forbidden: exceeded quota: full, requested: count/jobs.batch=1, '
            "used: count/jobs.batch=0, limited: count/jobs.batch=0"
        )
        self._fake.refuse(1, 403, reason="Forbidden", message=told, verb="create")


class RealSite:
    """A namespace of its own in a cluster, removed afterwards."""

    def __init__(self, admin: Kube, folder: Path, connect: Callable[[Path], Kube]) -> None:
        self.kube = admin
        self.service_account = self._token()
        self.stranger = connect(self._kubeconfig(folder, self.service_account))
        self.unknown = connect(self._kubeconfig(folder, "wrong"))

    def print_in_pod(self, name: str, script: str) -> None:
        """See `Site.print_in_pod`."""
        commands = {"print": "echo", "wait": "exec sleep 600 #", "fail": "exit 1 #"}
        lines = (line.partition(" ") for line in script.splitlines())
        shell = "\n".join(f"{commands[command]} {text}" for command, _, text in lines)
        image = os.environ.get(IMAGE, "busybox:stable")
        container = {"name": "main", "image": image, "command": ["sh", "-c", shell], "imagePullPolicy": "IfNotPresent"}
        spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}
        self.kube.create(document("Pod", name, spec=spec))
        until(lambda: self.kube.get("v1", "Pod", name)["status"]["phase"] != "Pending")

    def fill_quota(self) -> None:
        """See `Site.fill_quota`."""
        self.kube.create(document("ResourceQuota", "full", spec={"hard": {"count/jobs.batch": "0"}}))
        until(lambda: bool(self.kube.get("v1", "ResourceQuota", "full").get("status")))

    def _token(self) -> str:
        """A token of the namespace's service account, which may do nothing."""
        until(lambda: bool(self.kube.list("v1", "ServiceAccount")))
        path = f"/api/v1/namespaces/{self.kube.namespace}/serviceaccounts/default/token"
        wish = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        return str(self.kube._wire.ask(Request("create", path, "a token", body=wish))["status"]["token"])

    def _kubeconfig(self, folder: Path, token: str) -> Path:
        config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
        context = next(entry for entry in config["contexts"] if entry["name"] == config["current-context"])["context"]
        config["users"] = [{"name": "stranger", "user": {"token": token}}]
        config["contexts"] = [
            {"name": "it", "context": {**context, "user": "stranger", "namespace": self.kube.namespace}}
        ]
        path = folder / "stranger"
        path.write_text(yaml.safe_dump({**config, "current-context": "it"}))
        return path


@contextmanager
def fake_site(folder: Path, connect: Callable[[Path], Kube]) -> Iterator[Site]:
    """A fake of one's own."""
    fake = FakeKubernetes()
    yield FakeSite(fake, folder, connect)
    fake.close()


@contextmanager
def real_site(folder: Path, connect: Callable[[Path], Kube]) -> Iterator[RealSite]:
    """A namespace of one's own."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("no KUBECONFIG: nothing is proven against a real cluster")
    config = Path(os.environ["KUBECONFIG"])
    name = f"kfp-hpo-{secrets.token_hex(4)}"
    connect(config).create(document("Namespace", name))
    admin = Kube.connect(namespace=name)
    try:
        yield RealSite(admin, folder, connect)
    finally:
        admin.delete("v1", "Namespace", name)


SITES: dict[str, Callable[[Path, Callable[[Path], Kube]], Any]] = {"fake": fake_site, "real": real_site}


def parameters() -> list[Any]:
    """Parameters of a fixture, one for each site."""
    return ["fake", pytest.param("real", marks=pytest.mark.e2e)]


def document(kind: str, name: str, *, labels: dict[str, str] | None = None, **rest: Any) -> dict[str, Any]:
    """A manifest of a core kind."""
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": labels or {}}, **rest}


def owner(of: dict[str, Any]) -> dict[str, Any]:
    """A reference to an object that owns another, and waits for its end where it is to."""
    metadata = of["metadata"]
    return {
        "apiVersion": of["apiVersion"],
        "kind": of["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "blockOwnerDeletion": True,
    }


def until(holds: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    """Wait for something to hold."""
    give_up = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < give_up, f"not within {within_s} s"
        time.sleep(0.05)


def read_log(kube: Kube, pod: str, **options: Any) -> bytes:
    """What a container printed; asked for again while the server cannot tell yet."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            return b"".join(kube.pod_log(pod, "main", **{"follow": False, **options}))
        except TransientError:
            assert time.monotonic() < give_up
            time.sleep(0.2)
