"""Why a workload in a cluster does not run, or how it ended: from what the API server tells of it to a cause in words.

Pure functions over documents. What only waits may pass by itself; how long that is borne is the launcher's part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Document: TypeAlias = Mapping[str, Any]

WORKER_RESTARTS = 2
"""A helper's container that was started anew so often is taken for broken."""
STRANGER_S = 20.0
"""How long a pod may go on after its primary container has ended."""

_PULLING = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ErrImageNeverPull")
_UNUSABLE_IMAGE = ("InvalidImageName", "ImageInspectError")
_CONFIGURATION = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_NEVER_RAN = ("StartError", "ContainerCannotRun")
_DISRUPTIONS = {
    "PreemptionByScheduler": "it was preempted by a pod of higher priority",
    "DeletionByTaintManager": "its node was lost or drained",
    "EvictionByEvictionAPI": "it was evicted from its node",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node was short of resources",
}
"""Ends that are nobody's fault, by the reason of the pod's condition DisruptionTarget."""


@dataclass(frozen=True)
class Trouble:
    """What keeps a workload from running.

    Attributes:
        reason: In one word, in CamelCase.
        message: In a sentence, with the next step.
        patience_s: How long it may last before the trial is given up; None for as long as the user allows.
    """

    reason: str
    message: str
    patience_s: float | None = None


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


def primary_pod(pods: Sequence[Document], labels: Mapping[str, str], container: str) -> Document | None:
    """Choose the pod whose primary container decides: by the labels, else by the container's name; the newest one."""
    chosen = [pod for pod in pods if labels.items() <= (pod["metadata"].get("labels") or {}).items()]
    chosen = [pod for pod in chosen if any(c.get("name") == container for c in pod["spec"]["containers"])]
    return max(chosen, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), default=None)


def is_started(pod: Document, container: str) -> str:
    """Return since when the container runs, or ran, RFC 3339; "" when it has not been started."""
    state = _state(pod, container)
    told = state.get("running") or state.get("terminated") or {}
    return "" if told.get("reason") in _NEVER_RAN else str(told.get("startedAt") or "")


def ending(pod: Document, container: str) -> Ending | None:
    """Tell how the primary container ended; None while it has not."""
    disrupted = _disruption(pod)
    status = pod.get("status") or {}
    terminated = _state(pod, container).get("terminated")
    if disrupted and (terminated is None or terminated.get("exitCode") != 0):
        return Ending(None, "Lost", disrupted, str((terminated or {}).get("finishedAt") or ""))
    if terminated is None:
        if status.get("phase") != "Failed":
            return None
        reason = str(status.get("reason") or "PodFailed")
        return Ending(None, reason, str(status.get("message") or "its pod failed, and does not say why"))
    return _terminated(terminated, status)


def _terminated(terminated: Document, status: Document) -> Ending:
    code, at = int(terminated.get("exitCode", -1)), str(terminated.get("finishedAt") or "")
    reason, said = str(terminated.get("reason") or ""), str(terminated.get("message") or "").strip()
    if reason == "OOMKilled":
        return Ending(code, "OutOfMemory", "the kernel ended it at its memory limit", at)
    if reason in _NEVER_RAN:
        if any(words in said for words in ("no such file or directory", "executable file not found")):
            return Ending(127, "", said, at)
        return Ending(code, "CannotStart", f"its container could not be started: {said}", at)
    if status.get("reason") in ("Evicted", "DeadlineExceeded") and code != 0:
        return Ending(code, str(status["reason"]), str(status.get("message") or ""), at)
    return Ending(code, "", "", at)


def pod_trouble(pod: Document, container: str) -> Trouble | None:
    """Tell what keeps a pod that has not ended from running; None when nothing does."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return Trouble("Unschedulable", f"no node can take its pod: {condition.get('message', '')}")
    for name, state in _states(pod):
        waiting = state.get("waiting") or {}
        trouble = _waiting_trouble(name, str(waiting.get("reason") or ""), str(waiting.get("message") or ""))
        if trouble is not None:
            return trouble
    return _stranger(pod, container)


def _waiting_trouble(container: str, reason: str, said: str) -> Trouble | None:
    if reason in _PULLING:
        return Trouble(
            "ImagePullFailed",
            f"the image of the container {container!r} cannot be pulled: {said}; check its name, the registry and "
            "imagePullSecrets",
            30.0,
        )
    if reason in _UNUSABLE_IMAGE:
        return Trouble("InvalidImage", f"the image of the container {container!r} cannot be used: {said}", 0.0)
    if reason in _CONFIGURATION:
        return Trouble("CannotStart", f"the container {container!r} cannot be started: {said}", 15.0)
    return None


def _stranger(pod: Document, container: str) -> Trouble | None:
    """A container that somebody injected beside the primary one, and that goes on after its end."""
    if (pod.get("status") or {}).get("phase") not in ("Running", "Pending"):
        return None
    if not _state(pod, container).get("terminated"):
        return None
    ours = {c["name"] for c in (pod["spec"].get("initContainers") or []) if c.get("restartPolicy") == "Always"}
    going_on = [name for name, state in _states(pod) if state.get("running") and name not in ours]
    if not going_on:
        return None
    return Trouble(
        "SidecarNeverEnds",
        f"the primary container has ended, but {', '.join(map(repr, going_on))} goes on in its pod; keep it out of "
        "trials, or let it end",
        STRANGER_S,
    )


def helper_trouble(pods: Iterable[Document], primary: Document | None) -> Trouble | None:
    """Tell of another pod of the same workload that is broken, while the primary one may wait for it for ever."""
    for pod in pods:
        if primary is not None and pod["metadata"]["name"] == primary["metadata"]["name"]:
            continue
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            ended = (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get("terminated")
            restarts = int(status.get("restartCount") or 0)
            if not ended or ended.get("exitCode") == 0:
                continue
            if restarts >= WORKER_RESTARTS or pod["status"].get("phase") == "Failed":
                name, code = pod["metadata"]["name"], ended.get("exitCode")
                times = f"after {restarts} restarts" if restarts else "and is not restarted"
                return Trouble("WorkerFailed", f"the pod {name} ends with exit code {code} {times}", 5.0)
    return None


def event_trouble(events: Iterable[Document]) -> Trouble | None:
    """Tell from a workload's warnings why it has no pod; None when they say nothing of that. The last one counts."""
    found = None
    for event in events:
        reason, said = str(event.get("reason") or ""), str(event.get("message") or "")
        if not reason.startswith("FailedCreate"):
            continue
        if "exceeded quota" in said:
            found = Trouble("QuotaExceeded", f"the namespace's quota has no room for its pod: {said}")
        elif "violates PodSecurity" in said:
            found = Trouble(
                "RefusedByAdmission",
                f"its pod is refused by the namespace's PodSecurity level: {said}; give the template's pod the "
                "securityContext that it asks for",
                10.0,
            )
        else:
            found = Trouble("RefusedByAdmission", f"its pod cannot be created: {said}", 30.0)
    return found


def _disruption(pod: Document) -> str:
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            reason = str(condition.get("reason") or "")
            return _DISRUPTIONS.get(reason, f"it was disrupted ({reason})")
    return ""


def _states(pod: Document) -> list[tuple[str, Document]]:
    """Name and present state of each container, those that come first first."""
    status = pod.get("status") or {}
    listed = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    return [(str(entry.get("name")), entry.get("state") or {}) for entry in listed]


def _state(pod: Document, container: str) -> Document:
    return dict(_states(pod)).get(container, {})
