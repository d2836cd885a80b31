"""A MinIO of a test's own, which it may pause, kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

BINARY = "HPO_E2E_MINIO"
"""Environment variable: path of a `minio` executable."""
USER, PASSWORD = "tester", "tester-secret"


class MinioServer:
    """A server on a port and a folder that stay the same when it is started again.

    Attributes:
        endpoint: `127.0.0.1:PORT`.
    """

    def __init__(self, folder: Path, *, scheme: str = "http", way_in: Sequence[str] = ()) -> None:
        self.endpoint = f"127.0.0.1:{free_port()}"
        self._folder, self._scheme, self._way_in = folder, scheme, way_in
        self._process: subprocess.Popen[bytes] | None = None

    def settings(self, endpoint: str = "") -> dict[str, str]:
        """Environment variables of who uses it, at another address where one is given."""
        address = f"{self._scheme}://{endpoint or self.endpoint}"
        return {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": USER, "AWS_SECRET_ACCESS_KEY": PASSWORD}

    def start(self) -> None:
        """Start it; it is ready then."""
        command = [binary(), "server", "--quiet", "--address", self.endpoint, str(self._folder)]
        if self._scheme == "https":
            command += ["--certs-dir", str(self._folder.parent / "certs")]
        environment = {"MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": PASSWORD, "MINIO_BROWSER": "off"}
        self._process = subprocess.Popen(
            [*self._way_in, *command],
            env={**os.environ, **environment, "MINIO_UPDATE": "off"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait()

    def pause(self) -> None:
        """Let it answer nobody, as a server that is overloaded."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    @property
    def disk(self) -> Path:
        """Its folder as it sees it itself, on a disk that only it has, say; while it runs."""
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/root{self._folder}")

    def kill(self) -> None:
        """End it at once. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, "the server has ended"
            if is_ready(f"{self._scheme}://{self.endpoint}"):
                return
            time.sleep(0.05)
        raise AssertionError("the server does not come up")


@contextmanager
def minio_server(folder: Path, *, scheme: str = "http", way_in: Sequence[str] = ()) -> Iterator[MinioServer]:
    """A server that is up, with its objects below a folder; it is ended in any case.

    Args:
        folder: Made where it is missing. With `https` its neighbour `certs` holds `public.crt` and `private.key`.
        scheme: `http` or `https`.
        way_in: The words before its command, for a server in a namespace of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    server = MinioServer(folder, scheme=scheme, way_in=way_in)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def binary() -> str:
    """Path of the executable; skips the test, and says so, where there is none."""
    path = os.environ.get(BINARY, "")
    if not path:
        pytest.skip(f"{BINARY} names no minio executable: what happens when a server fails is unproven")
    return path


def shared_server(environment: Mapping[str, str] = os.environ) -> Mapping[str, str]:
    """The environment that names the S3 server for tests; skips the test, and says so, where it names none."""
    if not environment.get("AWS_ENDPOINT_URL"):
        pytest.skip("AWS_ENDPOINT_URL names no S3 server: that records can be kept in one is unproven")
    return environment


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(address: str) -> bool:
    """Tell whether a server takes requests: whoever does not say who he is is refused, once it knows who may come."""
    nobody_checked = ssl.create_default_context()
    nobody_checked.check_hostname = False
    nobody_checked.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(address, timeout=2, context=nobody_checked):
            return False
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code == 403
    except OSError:
        return False
