"""A real MinIO that only a proxy knows the way to."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo_core.objects import ABSENT, RecordStore, open_objects
from tests.forward_proxy import forward_proxy
from tests.s3_server import MinioServer, minio_server
from tests.scenarios.folders import Folder

pytestmark = pytest.mark.e2e

NAME = "minio.invalid:9000"
"""Its address, which nobody but the proxy can resolve."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MinioServer]:
    with minio_server(tmp_path / "objects") as started:
        yield started


def use(store: RecordStore, folder: Path) -> None:
    """Do everything that can be done with a store."""
    lock = store.lock("ns/lease", {})
    assert lock is not None
    tag = store.put("ns/a", b"1", expect=ABSENT)
    store.put("ns/a", b"2", expect=tag)
    (folder / "large").write_bytes(b"x" * (6 << 20))  # more than one part
    store.put("ns/large", folder / "large")
    store.fetch("ns/large", folder / "again")
    assert (folder / "again").stat().st_size == 6 << 20
    assert store.get("ns/a").data == b"2"
    store.delete("ns/a")
    assert store.list("ns/") == ["ns/large", "ns/lease"]
    lock.release()


def test_everything_can_be_done_through_a_proxy(
    server: MinioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forward_proxy({NAME: server.endpoint}) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.endpoint}")
        use(open_objects("s3://bucket/p", server.settings(NAME)), tmp_path)
        assert {method for method, _ in proxy.asked} == {"GET", "PUT", "POST", "DELETE"}


def test_a_run_keeps_its_records_through_a_proxy(
    server: MinioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forward_proxy({NAME: server.endpoint}) as proxy:
        for name, value in {"http_proxy": proxy.endpoint, **server.settings(NAME)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        folder = Folder.make(tmp_path / "user", uri="s3://bucket/run")
        ended = folder.hpo("run", "small.yaml")
        assert ended.returncode == 0, ended.stderr
        assert folder.conditions() == ["Succeeded"] * 4


def test_a_proxy_tunnels_to_a_server_with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: that TLS works through a proxy is unproven")
    certificates = tmp_path / "certs"
    certificates.mkdir()
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test -addext subjectAltName=DNS:minio.invalid"
    )
    files = ["-keyout", str(certificates / "private.key"), "-out", str(certificates / "public.crt")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    with (
        minio_server(tmp_path / "objects", scheme="https") as started,
        forward_proxy({NAME: started.endpoint}) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.endpoint}")
        environment = {**started.settings(NAME), "AWS_CA_BUNDLE": str(certificates / "public.crt")}
        use(open_objects("s3://bucket/p", environment), tmp_path)
        assert set(proxy.asked) == {("CONNECT", NAME)}
