"""The fake as a test uses it: objects to look at, a kubelet's hands, and faults."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.fake_kubernetes.kinds import JOB, KINDS, NAMESPACE, POD, REVIEW, Document, Kind, Refusal
from tests.fake_kubernetes.logs import Logs
from tests.fake_kubernetes.objects import Objects
from tests.fake_kubernetes.server import Call, Server

NAMESPACE_NAME = "team"
USER = "system:serviceaccount:team:pipeline-runner"


class FakeKubernetes:
    """An API server on a port of this machine, with one namespace, `team`.

    Attributes:
        objects, logs: What it holds, to be looked at.
        kinds: What it serves; take the operator's away to find it not installed.
        tokens: Whose each bearer token is; with none, every token is the pipeline runner's.
        powerless: Who may do nothing.
        requests: Every request so far, as `VERB PATH`.
        cut_after_s: After how long each watch that begins from now on is broken off; None for never.
        bookmark_s: How often watches get bookmarks.
    """

    def __init__(self) -> None:
        self.objects, self.logs = Objects(), Logs()
        self.kinds: tuple[Kind, ...] = KINDS
        self.tokens: dict[str, str] = {}
        self.powerless: set[str] = set()
        self.requests: list[str] = []
        self.cut_after_s: float | None = None
        self.bookmark_s = 60.0
        self._lock = threading.Lock()
        self._awake = threading.Event()
        self._awake.set()
        self._refusals: list[tuple[str, Refusal]] = []
        self._denied: set[tuple[str, str]] = set()
        self._server = Server(self)
        self.port = int(self._server.server_address[1])
        self.objects.create(NAMESPACE, "", {"metadata": {"name": NAMESPACE_NAME}})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kubeconfig(self, folder: Path, *, token: str = "valid") -> Path:
        """Write a kubeconfig that leads here, and return its path."""
        path = folder / f"kubeconfig-{token}"
        path.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: fake\n"
            f"clusters: [{{name: fake, cluster: {{server: '{self.url}'}}}}]\n"
            f"users: [{{name: runner, user: {{token: '{token}'}}}}]\n"
            "contexts: [{name: fake, context: {cluster: fake, user: runner, namespace: team}}]\n"
        )
        return path

    def close(self) -> None:
        self._server.end()

    # --- faults

    def refuse(
        self, times: int, code: int, *, reason: str = "", message: str = "", verb: str = "", **details: Any
    ) -> None:
        """Refuse the next requests, or those of them with that verb, `list` or `list events`, say.

        The detail `retryAfterSeconds` becomes the header too.
        """
        refusal = Refusal(code, reason, message or f"refused with {code}", **details)
        with self._lock:
            self._refusals += [(verb, refusal)] * times

    def deny(self, verb: str, plural: str) -> None:
        """Take a permission away, `pods/log` say."""
        self._denied.add((verb, plural))

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[None]:
        """Break every connection and accept none, until the end of the block."""
        self._server.end()
        try:
            yield
        finally:
            self._server = Server(self, self.port)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Accept connections and answer nothing, and send nothing over those there are, until the end of the block."""
        self._awake.clear()
        try:
            yield
        finally:
            self._awake.set()

    # --- a kubelet's hands

    def start_pod(
        self,
        name: str,
        *,
        owner: Mapping[str, Any] | None = None,
        container: str = "main",
        namespace: str = NAMESPACE_NAME,
    ) -> Document:
        """Create a running pod, with the labels that an owner's controller gives it."""
        metadata: Document = {"name": name, "labels": {}}
        if owner is not None:
            label = "batch.kubernetes.io/job-name" if owner["kind"] == JOB.name else "training.kubeflow.org/job-name"
            template = (owner.get("spec") or {}).get("template") or {}
            metadata["labels"] = {**((template.get("metadata") or {}).get("labels") or {})}
            metadata["labels"][label] = owner["metadata"]["name"]
            reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "controller": True}
            reference |= {"name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
            metadata["ownerReferences"] = [reference]
        manifest = {
            "metadata": metadata,
            "spec": {"nodeName": "node", "containers": [{"name": container, "image": "none"}]},
        }
        self.objects.create(POD, namespace, manifest)
        running = {"name": container, "ready": True, "restartCount": 0, "state": {"running": {}}}
        return self.set_status(POD, name, {"phase": "Running", "containerStatuses": [running]}, namespace=namespace)

    def append_log(self, pod: str, data: bytes, *, container: str = "main", namespace: str = NAMESPACE_NAME) -> None:
        """Let a container print."""
        self.logs.append(namespace, pod, container, data)

    def finish_pod(
        self, pod: str, *, code: int = 0, reason: str = "", container: str = "main", namespace: str = NAMESPACE_NAME
    ) -> Document:
        """Let a pod's container end; its log ends as well."""
        reason = reason or ("Error" if code else "Completed")
        ended = {"name": container, "state": {"terminated": {"exitCode": code, "reason": reason}}}
        phase = "Failed" if code else "Succeeded"
        document = self.set_status(POD, pod, {"phase": phase, "containerStatuses": [ended]}, namespace=namespace)
        self.logs.end(namespace, pod)
        return document

    def set_status(
        self, kind: Kind, name: str, status: Mapping[str, Any], *, namespace: str = NAMESPACE_NAME
    ) -> Document:
        """Merge that into an object's status, as its controller does."""
        return self.objects.patch(kind, namespace, name, {"status": status}, status=True)

    def finish_job(
        self, name: str, *, failed: str = "", message: str = "", namespace: str = NAMESPACE_NAME
    ) -> Document:
        """Let a Job end: completed, or failed for that reason."""
        type_ = "Failed" if failed else "Complete"
        condition = {"type": type_, "status": "True", "reason": failed or "CompletionsReached", "message": message}
        return self.set_status(JOB, name, {"conditions": [condition]}, namespace=namespace)

    # --- what the server asks

    def wait(self) -> None:
        """See `server.Cluster`."""
        self._awake.wait()

    def enter(self, call: Call) -> None:
        """See `server.Cluster`."""
        with self._lock:
            self.requests.append(f"{call.verb} {call.path}")
            asked = ("", call.verb, f"{call.verb} {call.kind.plural if call.kind else ''}")
            number = next((n for n, (verb, _) in enumerate(self._refusals) if verb in asked), None)
            refusal = None if number is None else self._refusals.pop(number)[1]
        if refusal is not None:
            raise refusal
        if self.tokens and call.token not in self.tokens:
            raise Refusal(401, "Unauthorized", "Unauthorized")
        if call.kind is None or call.kind is REVIEW:
            return
        what = f"{call.kind.plural}/{call.subresource}" if call.subresource else call.kind.plural
        if not self.may(call, call.verb, what):
            place = f' in the namespace "{call.namespace}"' if call.namespace else " at the cluster scope"
            told = (
                f'{call.kind.qualified} is forbidden: User "{self._user(call)}" cannot {call.verb} resource "{what}" '
                f'in API group "{call.kind.group}"{place}'
            )
            raise Refusal(403, "Forbidden", told, kind=call.kind.plural, group=call.kind.group)

    def may(self, call: Call, verb: str, plural: str) -> bool:
        """See `server.Cluster`."""
        return self._user(call) not in self.powerless and (verb, plural) not in self._denied

    def _user(self, call: Call) -> str:
        return self.tokens.get(call.token, USER)
