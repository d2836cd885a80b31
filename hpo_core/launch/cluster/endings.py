"""How a workload's pods started and ended, read from what the API server tells of them: pure functions of documents."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

Document: TypeAlias = Mapping[str, Any]

DELETED = "its pod was deleted by somebody"
SKEW_S = 60.0
"""By how much the clocks of a node and of the API server may differ."""

_NEVER_RAN = ("StartError", "ContainerCannotRun")
_ENDED_FROM_OUTSIDE = (128 + signal.SIGTERM, 128 + signal.SIGKILL)
_NOT_THERE = ("no such file or directory", "executable file not found")
_DISRUPTIONS = {
    "PreemptionByScheduler": "it was preempted by a pod of higher priority",
    "DeletionByTaintManager": "its node was lost or drained",
    "EvictionByEvictionAPI": "it was evicted from its node",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node was short of resources",
}
"""Ends that are nobody's fault, by the reason of the pod's condition DisruptionTarget."""


@dataclass(frozen=True)
class Ending:
    """How the primary container, or the pod around it, ended.

    Attributes:
        code: The exit code; None when nobody saw one.
        reason: As in `Exited`.
        message: The cause in a sentence; "" where the code says it all.
        at: When, RFC 3339; "" when that is not told.
    """

    code: int | None
    reason: str = ""
    message: str = ""
    at: str = ""


def primary_pods(pods: Iterable[Document], labels: Mapping[str, str], container: str) -> list[Document]:
    """Choose the pods whose primary container counts, by the labels and by the container's name; the oldest first."""
    chosen = [pod for pod in pods if labels.items() <= (pod["metadata"].get("labels") or {}).items()]
    chosen = [pod for pod in chosen if any(c.get("name") == container for c in pod["spec"]["containers"])]
    return sorted(chosen, key=lambda pod: (str(pod["metadata"].get("creationTimestamp", "")), pod["metadata"]["name"]))


def started_at(pod: Document, container: str) -> str:
    """Return since when the container runs, or ran, RFC 3339; "" when it has not been started."""
    status = container_status(pod, container)
    first = (status.get("lastState") or {}).get("terminated")  # restarted: it has been running before
    state = status.get("state") or {}
    told = first or state.get("running") or state.get("terminated") or {}
    return "" if told.get("reason") in _NEVER_RAN else str(told.get("startedAt") or "")


def ending(pod: Document, container: str, *, gone: bool = False) -> Ending | None:
    """Tell how the primary container ended; None while it has not, or may be restarted.

    Args:
        pod: As it was told last.
        container: The primary container.
        gone: Whether the pod has been removed since.
    """
    status, ended = pod.get("status") or {}, _ended(pod, container, gone=gone)
    if ended is None and status.get("phase") != "Failed" and not gone:
        disrupted = disruption(pod)
        return Ending(None, "Lost", disrupted) if disrupted else None
    if ended is not None and ended.get("exitCode") == 0:
        return Ending(0, "", "", str(ended.get("finishedAt") or ""))
    if disrupted := disruption(pod):
        return Ending(None, "Lost", disrupted, str((ended or {}).get("finishedAt") or ""))
    if ended is not None:
        by_deletion = _is_by_deletion(pod, ended) and ended.get("reason") != "OOMKilled"
        return Ending(_code(ended), "Lost", DELETED, _at(ended)) if by_deletion else _terminated(ended, status)
    if gone:
        return Ending(None, "Lost", DELETED)
    reason, said = str(status.get("reason") or "PodFailed"), str(status.get("message") or "").strip()
    return Ending(None, reason, advised(reason, said or "its pod failed, and does not say why"))


def container_status(pod: Document, container: str) -> Document:
    """Return what is told of one container of a pod; empty while nothing is."""
    for status in container_statuses(pod):
        if status.get("name") == container:
            return status
    return {}


def container_statuses(pod: Document) -> list[Document]:
    """Return what is told of each container, those that come first first."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def last_exit(pod: Document, container: str) -> Document | None:
    """Return the last end of a container that was told, whether or not it has been restarted since."""
    status = container_status(pod, container)
    ended: Document | None = (status.get("state") or {}).get("terminated")
    before: Document | None = (status.get("lastState") or {}).get("terminated")
    return ended or before


def failing_exit(pod: Document, container: str) -> Ending | None:
    """Return how a container ended the last time, whether or not it is restarted; None where it has not failed."""
    ended = last_exit(pod, container)
    return _terminated(ended, pod.get("status") or {}) if ended and ended.get("exitCode") != 0 else None


def advised(reason: str, said: str) -> str:
    """Add the next step to what a node says when it ends a pod."""
    return f"{said.rstrip('. ')}; raise that limit, or let it write less" if reason == "Evicted" else said


def _ended(pod: Document, container: str, *, gone: bool) -> Document | None:
    """The end of the container that counts; None while it runs, or is between two restarts."""
    status = container_status(pod, container)
    now: Document | None = (status.get("state") or {}).get("terminated")
    before: Document | None = (status.get("lastState") or {}).get("terminated")
    over = gone or (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")
    if pod["metadata"].get("deletionTimestamp") and before and before.get("exitCode") != 0 and (now or over):
        return before  # it failed, was restarted, and was then removed for having failed
    if now is None:
        return before if over else None
    policy = pod["spec"].get("restartPolicy", "Never")
    restarts = policy == "Always" or (policy == "OnFailure" and now.get("exitCode") != 0)
    return None if restarts and not over and not pod["metadata"].get("deletionTimestamp") else now


def _terminated(ended: Document, status: Document) -> Ending:
    code, at = _code(ended), _at(ended)
    reason, said = str(ended.get("reason") or ""), " ".join(str(ended.get("message") or "").split())
    if reason == "OOMKilled":
        return Ending(code, "OutOfMemory", "the kernel ended it at its memory limit", at)
    if reason in _NEVER_RAN:
        if any(words in said for words in _NOT_THERE):
            return Ending(127, "", said, at)
        told = f"its container could not be started: {said}; mend its command or securityContext"
        return Ending(code, "CannotStart", told, at)
    if status.get("reason") in ("Evicted", "DeadlineExceeded"):
        told = str(status["reason"])
        return Ending(code, told, advised(told, str(status.get("message") or "")), at)
    return Ending(code, "", "", at)


def _is_by_deletion(pod: Document, ended: Document) -> bool:
    """Tell whether a container ended because its pod was being deleted, rather than before that."""
    until = pod["metadata"].get("deletionTimestamp")
    if not until or not _at(ended) or ended.get("reason") in _NEVER_RAN:
        return False
    slack_s = SKEW_S if _code(ended) in _ENDED_FROM_OUTSIDE else 0.0
    grace = timedelta(seconds=float(pod["metadata"].get("deletionGracePeriodSeconds") or 0) + slack_s)
    return datetime.fromisoformat(_at(ended)) >= datetime.fromisoformat(until) - grace


def disruption(pod: Document) -> str:
    """Return why a pod was, or is being, ended that is nobody's fault; "" when it is not."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            reason = str(condition.get("reason") or "")
            return _DISRUPTIONS.get(reason, f"it was disrupted ({reason})")
    return ""


def _code(ended: Document) -> int:
    return int(ended.get("exitCode", -1))


def _at(ended: Document) -> str:
    return str(ended.get("finishedAt") or "")
