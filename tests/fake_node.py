"""A node whose pods run nowhere: it tells the API server what a kubelet would, and serves their logs over HTTPS.

All else is real: the Job controller makes the pods, the scheduler places them here, and the API server fetches their
logs from this process. The node has a taint, so that nobody else's pods come here. Its certificate is its own: an API
server that checks those of kubelets will not read its logs.

    python -m tests.fake_node NAME NAMESPACE LIFE_S

It says `ready`, and ends, and takes its node with it, when its standard input ends.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hpo_core.errors import Conflict, NotFound, TransientError
from hpo_core.kube import Kube, Listed
from hpo_core.kube.access import find_access
from hpo_core.kube.wire import Request, Wire

TAINT = "kfp-hpo-test"
LINES_PER_S = 10
BEAT_S = 5.0
"""How often the node says that it lives."""
LEASES = "kube-node-lease"


def now_text() -> str:
    """Now, as a container's line begins with it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def own_address(server: str) -> str:
    """The address under which whoever is at that server's reaches this machine."""
    url = urlsplit(server)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((url.hostname, url.port or 443))
        return str(probe.getsockname()[0])


@dataclass
class FakePod:
    """A pod that prints numbered lines, then its last argument as its loss, and ends well unless it is stopped."""

    name: str
    loss: str
    lines: list[bytes] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    is_over: bool = False
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, life_s: float) -> None:
        """Print for so long, or until it is stopped."""
        count = max(round(life_s * LINES_PER_S), 1)
        for number in range(count):
            self._print(f"line {number} of {count}")
            if self.stop.wait(life_s / count):
                break
        else:
            self._print(f"loss={self.loss}")
        with self.changed:
            self.is_over = True
            self.changed.notify_all()

    def read(self, *, follow: bool, since: str, tail: int | None) -> Iterator[bytes]:
        """Yield its lines with their times as a kubelet does, in pieces."""
        with self.changed:
            place = max(len(self.lines) - tail, 0) if tail is not None else 0
        while True:
            with self.changed:
                while follow and place == len(self.lines) and not self.is_over:
                    self.changed.wait()
                lines, ends = self.lines[place:], self.is_over or not follow
            place += len(lines)
            if piece := b"".join(line for line in lines if line[:19].decode() >= since[:19]):
                yield piece
            if ends:
                return

    def _print(self, text: str) -> None:
        with self.changed:
            self.lines.append(f"{now_text()} {text}\n".encode())
            self.changed.notify_all()


class FakeNode:
    """The node's kubelet.

    Args:
        name: The node's name.
        where: The namespace whose pods it serves.
        life_s: How long a pod's container runs.
    """

    def __init__(self, name: str, where: str, life_s: float) -> None:
        self._name, self._where, self._life_s = name, where, life_s
        self._kube, self._wire = Kube.connect(namespace=where), Wire(find_access(context="", namespace=where))
        self._pods: dict[str, FakePod] = {}

    def serve(self, port: int) -> None:
        """Make the node, whose logs are served on that port, and run its pods in threads of their own."""
        metadata = {"name": self._name, "labels": {"kubernetes.io/hostname": self._name}}
        spec = {"taints": [{"key": TAINT, "value": self._name, "effect": "NoSchedule"}]}
        self._kube.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec})
        self._tell_node(port)
        for action in (self._beat, self._follow):
            threading.Thread(target=action, daemon=True).start()

    def remove(self) -> None:
        """Remove the node. Idempotent."""
        self._kube.delete("v1", "Node", self._name)
        self._kube.delete("coordination.k8s.io/v1", "Lease", self._name, namespace=LEASES)

    def pod(self, name: str) -> FakePod | None:
        """A pod that is here; None when it is not, or no longer."""
        return self._pods.get(name)

    def _tell_node(self, port: int) -> None:
        room = {"cpu": "1000", "memory": "1000Gi", "pods": "1000", "ephemeral-storage": "1000Gi"}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "reason": "Fake", "lastHeartbeatTime": now}
        status = {
            "capacity": room,
            "allocatable": room,
            "addresses": [{"type": "InternalIP", "address": own_address(self._kube.server)}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "conditions": [{**ready, "lastTransitionTime": now}],
        }
        self._patch_status(f"/api/v1/nodes/{self._name}", status)

    def _beat(self) -> None:
        """Renew the node's lease, which the node controller goes by."""
        which = ("coordination.k8s.io/v1", "Lease")
        while True:
            spec = {"holderIdentity": self._name, "leaseDurationSeconds": 40, "renewTime": now_text()[:-4] + "Z"}
            metadata = {"name": self._name, "namespace": LEASES}
            with contextlib.suppress(TransientError, Conflict):
                try:
                    self._kube.patch(*which, self._name, {"spec": spec}, namespace=LEASES)
                except NotFound:
                    self._kube.create({"apiVersion": which[0], "kind": which[1], "metadata": metadata, "spec": spec})
            time.sleep(BEAT_S)

    def _follow(self) -> None:
        for item in self._kube.watch("v1", "Pod", field_selector=f"spec.nodeName={self._name}"):
            if isinstance(item, Listed):
                for document in item.items:
                    self._see(document)
            elif item.type == "DELETED":
                self._pods.pop(str(item.object["metadata"]["name"]), None)
            else:
                self._see(item.object)

    def _see(self, document: dict[str, Any]) -> None:
        name = str(document["metadata"]["name"])
        known = self._pods.get(name)
        if known is None:
            container = document["spec"]["containers"][0]
            known = self._pods[name] = FakePod(name, str(container["command"][-1]))
            threading.Thread(target=self._live, args=(known, container["name"]), daemon=True).start()
        if document["metadata"].get("deletionTimestamp"):
            known.stop.set()

    def _live(self, pod: FakePod, container: str) -> None:
        begun = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._tell_pod(pod, container, "Running", {"running": {"startedAt": begun}})
        pod.run(self._life_s)
        stopped = pod.stop.is_set()
        how = {"exitCode": 143, "reason": "Error"} if stopped else {"exitCode": 0, "reason": "Completed"}
        ended = {**how, "startedAt": begun, "finishedAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        self._tell_pod(pod, container, "Failed" if stopped else "Succeeded", {"terminated": ended})
        if stopped:
            self._kube.delete("v1", "Pod", pod.name, grace_s=0)

    def _tell_pod(self, pod: FakePod, container: str, phase: str, state: dict[str, Any]) -> None:
        runs = phase == "Running"
        told = {"name": container, "image": "none", "imageID": "none", "restartCount": 0}
        conditions = [{"type": "Ready", "status": str(runs)}, {"type": "PodScheduled", "status": "True"}]
        status = {
            "phase": phase,
            "conditions": conditions,
            "containerStatuses": [{**told, "ready": runs, "started": runs, "state": state}],
        }
        self._patch_status(f"/api/v1/namespaces/{self._where}/pods/{pod.name}", status)

    def _patch_status(self, path: str, status: dict[str, Any]) -> None:
        """Tell a status, as often as it takes; what has been removed needs none."""
        form = "application/merge-patch+json"
        request = Request("patch", f"{path}/status", path, body={"status": status}, content_type=form)
        while True:
            try:
                self._wire.ask(request)
            except NotFound:
                return
            except TransientError as error:
                time.sleep(max(error.retry_after_s, 0.2))
            else:
                return


class Handler(BaseHTTPRequestHandler):
    """Answers the API server as a kubelet: `/containerLogs/NAMESPACE/POD/CONTAINER`."""

    protocol_version = "HTTP/1.1"

    def __init__(self, node: FakeNode, *arguments: Any) -> None:
        self._node = node
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Send a container's log."""
        url = urlsplit(self.path)
        words, query = url.path.split("/"), parse_qs(url.query)
        pod = self._node.pod(words[3]) if words[1] == "containerLogs" else None
        if pod is None:
            self.send_error(404)
            return
        tail = query.get("tailLines")
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        follow, since = query.get("follow") == ["true"], query.get("sinceTime", [""])[0]
        for piece in pod.read(follow=follow, since=since, tail=int(tail[0]) if tail else None):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a reader that went away."""


@contextlib.contextmanager
def log_server(node: FakeNode) -> Iterator[int]:
    """Serve a node's logs with a certificate of its own; gives the port."""
    server = _Server(("0.0.0.0", 0), partial(Handler, node))
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder) / "key", Path(folder) / "certificate"
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=fake-node"]
        subprocess.run([*words, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()


@dataclass(frozen=True)
class NodeProcess:
    """A node, and the process that is it."""

    name: str
    process: subprocess.Popen[bytes]

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, the node does nothing and says nothing, as one whose power or network is gone."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def fake_node(where: str, life_s: float) -> Iterator[NodeProcess]:
    """Run such a node in a process of its own, which ends with this one."""
    name = f"hpo-test-node-{secrets.token_hex(3)}"
    command = [sys.executable, "-m", "tests.fake_node", name, where, str(life_s)]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # so that what ends us, such as Ctrl-C, leaves it the time to remove its node
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            sys.exit("the node could not be made; its process says above what it lacks")
        yield NodeProcess(name, process)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def main(name: str, where: str, life_s: str) -> None:
    """Be a node until the standard input ends."""
    node = FakeNode(name, where, float(life_s))
    with log_server(node) as port:
        try:
            node.serve(port)
            print("ready", flush=True)
            sys.stdin.buffer.read()
        finally:
            node.remove()


if __name__ == "__main__":
    main(*sys.argv[1:])
