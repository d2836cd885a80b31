"""Where the API server is, who we are there, and what is said when that cannot be found out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpo_core.errors import LaunchError
from hpo_core.kube import Kube, access
from tests.fake_kubernetes import FakeKubernetes

CONFIG = """
apiVersion: v1
kind: Config
current-context: one
clusters:
- {name: c, cluster: {server: "http://127.0.0.1:1/"}}
users:
- {name: u, user: {token: t}}
contexts:
- {name: one, context: {cluster: c, user: u, namespace: first}}
- {name: two, context: {cluster: c, user: u}}
- {name: lost, context: {cluster: none, user: u}}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config"
    path.write_text(CONFIG)
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return path


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a pod finds."""
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    for name, content in {"token": "first", "ca.crt": "none", "namespace": "team\n"}.items():
        (folder / name).write_text(content)
    monkeypatch.setattr(access, "SERVICE_ACCOUNT", folder)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    return folder


@pytest.mark.usefixtures("config")
def test_a_namespace_that_is_given_wins_over_the_contexts_and_that_over_default() -> None:
    assert Kube.connect().namespace == "first"
    assert Kube.connect(context="two").namespace == "default"
    assert Kube.connect(namespace="mine").namespace == "mine"


@pytest.mark.usefixtures("config")
def test_the_servers_address_is_the_contexts() -> None:
    assert Kube.connect().server == "http://127.0.0.1:1"


def test_in_a_pod_one_is_its_service_account_in_its_namespace(pod: Path) -> None:
    kube = Kube.connect()
    assert (kube.server, kube.namespace) == ("https://10.0.0.1:443", "team")
    assert access.in_pod("", pod).authorization() == "bearer first"
    assert Kube.connect(namespace="mine").namespace == "mine"


@pytest.mark.usefixtures("pod", "config")
def test_a_kubeconfig_that_is_named_is_taken_even_in_a_pod() -> None:
    assert Kube.connect().server == "http://127.0.0.1:1"


def test_a_pod_without_a_token_is_told_so(pod: Path) -> None:
    (pod / "token").unlink()
    with pytest.raises(
        LaunchError, match=r"cannot enter the cluster as this pod's service account .*token file does not"
    ):
        Kube.connect()


def test_no_cluster_at_all_is_told_with_the_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(LaunchError, match=r"no kubeconfig at ~/\.kube/config; set KUBECONFIG, or run in a pod"):
        Kube.connect()


@pytest.mark.parametrize(
    ("content", "context", "told"),
    [
        (CONFIG, "missing", "Expected object with name missing in .*contexts list"),
        (CONFIG, "lost", "Expected object with name none in .*clusters list"),
        ("a: [", "", "expected the node content"),
        ("just words", "", "cannot use the kubeconfig"),
        ("", "", "file is empty"),
        ("a: b", "", "Expected key current-context"),
    ],
)
def test_a_broken_kubeconfig_is_told_in_one_line(config: Path, content: str, context: str, told: str) -> None:
    config.write_text(content)
    with pytest.raises(LaunchError, match=rf"cannot use the kubeconfig {config}.*{told}|{told}.*{config}") as caught:
        Kube.connect(context=context)
    assert "\n" not in str(caught.value)


def test_credentials_that_were_replaced_are_read_again(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fake.kubeconfig(tmp_path, token="old")
    monkeypatch.setenv("KUBECONFIG", str(path))
    fake.tokens = {"old": "me"}
    kube = Kube.connect()
    assert kube.list("v1", "Pod") == []
    fake.tokens = {"new": "me"}
    path.write_text(path.read_text().replace("old", "new"))
    assert kube.list("v1", "Pod") == []


def test_credentials_that_are_replaced_by_wrong_ones_are_told_after_one_more_try(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
    kube = Kube.connect()
    fake.tokens = {"other": "me"}
    with pytest.raises(LaunchError, match="Unauthorized; the server does not take the credentials"):
        kube.server_version()
    assert len(fake.requests) == 2


def test_a_certificate_that_cannot_be_read_is_told(config: Path) -> None:
    server = "{server: 'https://127.0.0.1:1', certificate-authority: /none.crt}"
    config.write_text(CONFIG.replace('{server: "http://127.0.0.1:1/"}', server))
    with pytest.raises(LaunchError, match=r"none\.crt"):
        Kube.connect().server_version()


def test_to_import_it_does_not_import_the_client() -> None:
    program = "import sys, hpo_core.kube; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_program_that_the_kubeconfig_names_gives_the_credentials(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the clouds do it."""
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "made"},
    }
    (tmp_path / "credential").write_text(json.dumps(credential))
    path = fake.kubeconfig(tmp_path)
    program = {"apiVersion": credential["apiVersion"], "command": "cat", "args": [str(tmp_path / "credential")]}
    path.write_text(path.read_text().replace("{token: 'valid'}", json.dumps({"exec": program})))
    monkeypatch.setenv("KUBECONFIG", str(path))
    fake.tokens = {"made": "me"}
    assert Kube.connect().list("v1", "Pod") == []
