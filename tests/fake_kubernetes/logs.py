"""What the fake's containers have printed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.fake_kubernetes.kinds import Document, Refusal

WAKE_S = 0.02
"""How soon a follower notices that its client has gone or that it is to be cut off."""


@dataclass
class Log:
    """What one container has printed: whole lines, each with its time."""

    lines: list[tuple[float, bytes]] = field(default_factory=list)
    half: bytes = b""
    is_over: bool = False

    def append(self, data: bytes) -> None:
        *lines, self.half = (self.half + data).split(b"\n")
        now = time.time()
        self.lines += [(now, line + b"\n") for line in lines]

    def end(self) -> None:
        if self.half:
            self.lines.append((time.time(), self.half))
        self.half, self.is_over = b"", True


class Logs:
    """All of them, by pod and container."""

    def __init__(self) -> None:
        self.grown = threading.Condition()
        self.cuts = 0
        self._found: dict[tuple[str, str, str], Log] = {}

    def log(self, namespace: str, pod: str, container: str) -> Log:
        with self.grown:
            return self._found.setdefault((namespace, pod, container), Log())

    def append(self, namespace: str, pod: str, container: str, data: bytes) -> None:
        with self.grown:
            self.log(namespace, pod, container).append(data)
            self.grown.notify_all()

    def end(self, namespace: str, pod: str) -> None:
        with self.grown:
            for key, log in self._found.items():
                if key[:2] == (namespace, pod):
                    log.end()
            self.grown.notify_all()

    def cut(self) -> None:
        """Break every connection that follows one."""
        with self.grown:
            self.cuts += 1
            self.grown.notify_all()

    def read(self, pod: Document, query: Mapping[str, str]) -> Iterator[bytes]:
        """Yield what the server sends; it begins to answer with the first piece, b"" while there is none."""
        metadata = pod["metadata"]
        if not pod["spec"].get("nodeName"):
            return  # a pod that has no node yet has an empty log, which ends at once
        log = self.log(metadata["namespace"], metadata["name"], _container(pod, query))
        limit = int(query.get("limitBytes", "-1"))
        cuts = self.cuts
        at = _beginning(log, query)
        while True:
            with self.grown:
                over, lines = log.is_over, log.lines[at:]
                at += len(lines)
                if not lines and not over and query.get("follow") == "true":
                    self.grown.wait(WAKE_S)
            if cuts != self.cuts:
                raise ConnectionAbortedError
            data = b"".join(_printed(line, query) for line in lines)
            yield data if limit < 0 else data[:limit]
            limit = limit if limit < 0 else max(limit - len(data), 0)
            if limit == 0 or (not lines and (over or query.get("follow") != "true")):
                return


def _beginning(log: Log, query: Mapping[str, str]) -> int:
    """The line from which one reads on."""
    lines = log.lines
    begin = 0
    if since := query.get("sinceTime"):
        after = datetime.fromisoformat(since).timestamp() // 1
        begin = next((number for number, (at, _) in enumerate(lines) if at >= after), len(lines))
    if tail := query.get("tailLines"):
        begin = max(begin, len(lines) - int(tail))
    return begin


def _printed(line: tuple[float, bytes], query: Mapping[str, str]) -> bytes:
    at, data = line
    if query.get("timestamps") != "true":
        return data
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S.%f}000Z ".encode() + data


def _container(pod: Document, query: Mapping[str, str]) -> str:
    """The container that is asked for.

    Raises:
        Refusal: There is none of that name, or it has not started.
    """
    name, wished = pod["metadata"]["name"], query.get("container", "")
    spec = pod["spec"]
    if wished not in {entry["name"] for entry in [*spec["containers"], *spec.get("initContainers", ())]}:
        raise Refusal(400, "BadRequest", f"container {wished} is not valid for pod {name}")
    if pod["status"].get("phase") == "Pending":
        raise Refusal(400, "BadRequest", f'container "{wished}" in pod "{name}" is waiting to start: ContainerCreating')
    return wished
