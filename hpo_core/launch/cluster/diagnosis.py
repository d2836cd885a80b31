"""Why a workload in a cluster does not run, or does not end: from what the API server tells of it to a cause in words.

Pure functions over documents. What only waits may pass by itself; how long that is borne is told with it, and
`followed` sees to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from hpo_core.launch.cluster.endings import (
    Document,
    Ending,
    container_status,
    container_statuses,
    disruption,
    ending,
    failing_exit,
    last_exit,
)

RESTARTS = 2
"""A container that was started anew so often, by whom no end is set, is taken for broken."""
BRIEF_S, PULLING_S, GONE_S = 15.0, 40.0, 30.0
"""How long is borne what seldom passes; a pull that fails; a pod that should be gone and is not."""

_PULLING = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ErrImageNeverPull")
_UNUSABLE_IMAGE = ("InvalidImageName", "ImageInspectError")
_CONFIGURATION = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


@dataclass(frozen=True)
class Trouble:
    """What keeps a workload from running, or from ending.

    Attributes:
        reason: In one word, in CamelCase.
        message: In a sentence, with the next step.
        patience_s: How long it may last before the trial is given up; None for as long as the user allows.
        ending: How the trial has ended if it is given up; None where the trouble itself is the end.
    """

    reason: str
    message: str
    patience_s: float | None = None
    ending: Ending | None = None


def pod_trouble(pod: Document, container: str, *, now_s: float) -> Trouble | None:
    """Tell what keeps a pod that is there from running, or from ending; None when nothing does.

    Args:
        pod: As it was told last.
        container: The primary container.
        now_s: The time by the API server's clock, in seconds since 1970, to tell whether a pod should be gone.
    """
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return None
    if pod["metadata"].get("deletionTimestamp"):
        return _undead(pod, container, now_s)
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            said = str(condition.get("message") or "").rstrip(". ")
            return Trouble("Unschedulable", f"no node can take its pod: {said}; let it ask for less, or add nodes")
    for status in container_statuses(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        trouble = _waiting_trouble(
            str(status.get("name")), str(waiting.get("reason") or ""), str(waiting.get("message") or "")
        )
        if trouble is not None:
            return trouble
    return _stranger(pod, container)


def _undead(pod: Document, container: str, now_s: float) -> Trouble | None:
    """A pod whose node does not say that it has ended, as one that is out of reach."""
    if now_s < datetime.fromisoformat(str(pod["metadata"]["deletionTimestamp"])).timestamp():
        return None
    how = ending(pod, container) or Ending(None, "Lost", "its pod is to be removed, and its node does not do so")
    return Trouble("Lost", how.message or "its pod is not removed", GONE_S, how)


def _waiting_trouble(container: str, reason: str, said: str) -> Trouble | None:
    said = " ".join(said.split())
    if reason in _PULLING:
        return Trouble(
            "ImagePullFailed",
            f"the image of the container {container!r} cannot be pulled: {said}; check its name, the registry and "
            "imagePullSecrets",
            PULLING_S,
        )
    if reason in _UNUSABLE_IMAGE:
        told = f"the image of the container {container!r} cannot be used: {said}; write NAME:TAG in lower case"
        return Trouble("InvalidImage", told, 0.0)
    if reason in _CONFIGURATION:
        told = f"the container {container!r} cannot be started: {said}; {_remedy(said)}"
        return Trouble("CannotStart", told, BRIEF_S)
    return None


def _remedy(said: str) -> str:
    if "runAsNonRoot" in said or "non-numeric user" in said:
        return "set securityContext.runAsUser to a number above 0, or take an image that has such a user"
    if "not found" in said or "couldn't find key" in said:
        return "create it in the trial's namespace, or correct its name"
    return "mend what it says in the template"


def _stranger(pod: Document, container: str) -> Trouble | None:
    """A container that goes on after the primary one has ended, most likely one that somebody injected."""
    how = ending(pod, container)
    if how is None or how.code is None:
        return None
    ours = {c["name"] for c in (pod["spec"].get("initContainers") or []) if c.get("restartPolicy") == "Always"}
    running = [s for s in container_statuses(pod) if (s.get("state") or {}).get("running")]
    names = ", ".join(repr(status["name"]) for status in running if status["name"] not in ours)
    if not names:
        return None
    told = f"the primary container has ended, but {names} goes on in its pod, which was removed; keep it out of trials"
    return Trouble("SidecarNeverEnds", told, GONE_S, Ending(how.code, how.reason, told, how.at))


def restart_trouble(pod: Document, container: str) -> Trouble | None:
    """Tell of a primary container that fails again and again, of a kind that sets no end to that."""
    restarts, how = _restarts(pod, container), failing_exit(pod, container)
    if how is None or restarts < RESTARTS:
        return None
    told = (
        f"its container failed, was started anew {restarts} times and failed again; its template sets no backoffLimit"
    )
    return Trouble("KeepsFailing", told, 0.0, Ending(how.code, how.reason, how.message or told, how.at))


def helper_trouble(helpers: Iterable[Document], *, now_s: float) -> Trouble | None:
    """Tell of another pod of the workload that is broken, while the primary one may wait for it for ever."""
    for pod in helpers:
        name = pod["metadata"]["name"]
        if why := disruption(pod):
            told = f"its pod {name} is gone: {why}"
            return Trouble("Lost", told, 5.0, Ending(None, "Lost", told))
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            ended = last_exit(pod, str(status.get("name")))
            restarts = int(status.get("restartCount") or 0)
            if not ended or ended.get("exitCode") == 0:
                continue
            if restarts >= RESTARTS or pod["status"].get("phase") == "Failed":
                why = "out of memory" if ended.get("reason") == "OOMKilled" else f"with exit code {ended['exitCode']}"
                times = f"after {restarts} restarts" if restarts else "and is not restarted"
                told = f"its pod {name} ends {why} {times}; see `kubectl logs {name}`"
                return Trouble("WorkerFailed", told, 5.0)
        trouble = pod_trouble(pod, "", now_s=now_s)
        if trouble is not None:
            return Trouble(trouble.reason, f"in its pod {name}: {trouble.message}", trouble.patience_s)
    return None


def event_trouble(warnings: Iterable[Document]) -> Trouble | None:
    """Tell from a workload's warnings why it has no pod; None when they say nothing of that. The last one counts."""
    found = None
    for event in warnings:
        if str(event.get("reason") or "").startswith("FailedCreate"):
            found = refusal_trouble(" ".join(str(event.get("message") or "").split()), "its pod")
    return found


def refusal_trouble(said: str, what: str) -> Trouble:
    """Tell why something cannot be created."""
    if "exceeded quota" in said:
        told = f"the namespace's quota has no room for {what}: {said}; let trials ask for less, or raise the quota"
        return Trouble("QuotaExceeded", told)
    if "violates PodSecurity" in said:
        told = (
            f"the namespace's PodSecurity level refuses {what}: {said}; give the template's pod the securityContext "
            "that it asks for"
        )
        return Trouble("RefusedByAdmission", told, 10.0)
    told = f"{what} cannot be created: {said}; mend the template, or ask who runs the cluster"
    return Trouble("RefusedByAdmission", told, 25.0)


def volume_trouble(pod: Document, warnings: Iterable[Document]) -> Trouble | None:
    """Tell from a pod's warnings why its node does not start it: only these name a volume that is missing."""
    status = pod.get("status") or {}
    if status.get("phase") != "Pending" or any("running" in (s.get("state") or {}) for s in container_statuses(pod)):
        return None
    found = None
    for event in warnings:
        reason, said = str(event.get("reason") or ""), " ".join(str(event.get("message") or "").split())
        if reason in ("FailedMount", "FailedAttachVolume"):
            missing = "not found" in said or "references non-existent" in said
            told = f"a volume cannot be mounted: {said}; create what it names in the trial's namespace, or correct it"
            found = Trouble("CannotMount", told, GONE_S if missing else None)
        elif reason == "FailedCreatePodSandBox":
            found = Trouble("CannotStart", f"its node cannot prepare its pod: {said}; ask who runs the cluster")
    return found


def suspension(document: Document, kind: str) -> Trouble | None:
    """Tell of a workload that somebody holds back, as queues do."""
    for condition in (document.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "Suspended" and condition.get("status") == "True":
            return Trouble("Suspended", f"its {kind} is suspended, as a queue does until there is room")
    return None


def _restarts(pod: Document, container: str) -> int:
    return int(container_status(pod, container).get("restartCount") or 0)
