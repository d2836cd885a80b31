"""Trials as objects of a Kubernetes namespace: Jobs, and custom resources of any kind.

Three streams, of the workloads, of their pods and of warnings, serve the whole experiment; each running pod's log is a
fourth. What they tell is put in one queue, which `events` takes from; all decisions are made in the caller's thread.
Everything of one experiment is owned by one ConfigMap, its anchor: to delete that removes all.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias

from hpo_core.errors import Conflict, HpoError, LaunchError, NotFound
from hpo_core.experiment import Experiment
from hpo_core.gjson import Condition
from hpo_core.kube import Changed, Kube, Listed, Refused, Watch
from hpo_core.launch import LOG, METRICS, Event, Exited, Job, Output, Started, Waiting
from hpo_core.launch.cluster.diagnosis import (
    Ending,
    Trouble,
    ending,
    event_trouble,
    helper_trouble,
    is_started,
    pod_trouble,
    primary_pod,
)
from hpo_core.launch.cluster.dress import dress
from hpo_core.launch.cluster.logs import LogFollower
from hpo_core.launch.cluster.sidecar import (
    SIDECAR,
    Duty,
    Sidecar,
    grace_s,
    has_sidecar,
    is_working,
    last_word,
    sidecar_trouble,
)
from hpo_core.manifest import LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID

QUEUE_PIECES = 512
"""Pieces of output, of 64 KiB at most, that wait to be taken; then the streams wait."""
LOOK_S = 1.0
"""How often what only time decides is looked at: troubles, deadlines, ends that are not complete."""
SETTLE_S = 10.0
"""How long, after a workload's end, its pod's end and the end of its log are waited for."""
UNCLAIMED_S = 60.0
"""How long a workload may be without any pod, status or warning before it is taken for one that nobody runs."""
KEPT_WARNINGS = 10
STOPPED = "kfp-hpo/stopped"
"""Annotation of a workload that is deleted because somebody asked for its end."""

_log = logging.getLogger(__name__)

Document: TypeAlias = Mapping[str, Any]


@dataclass
class _Watched:
    """A workload that is being followed."""

    job: Job
    submitted_at: float
    document: Document | None = None
    pods: dict[str, Document] = field(default_factory=dict)
    warnings: list[Document] = field(default_factory=list)
    gone: bool = False
    started_at: float | None = None
    logs: dict[str, LogFollower] = field(default_factory=dict)
    logs_ended: set[str] = field(default_factory=set)
    ended_at: float | None = None
    stopping: bool = False
    given_up: Trouble | None = None
    trouble: Trouble | None = None
    trouble_since: float = 0.0

    def close_logs(self) -> None:
        """Give nothing more of what it prints."""
        for log in self.logs.values():
            log.close()


class ClusterLauncher:
    """Runs workloads in the namespace of an experiment.

    Args:
        kube: The API server.
        experiment: As accepted; its template says when a workload has ended, and which pod counts.
        sidecar: What keeps the workloads' outputs and reads their metrics files; None to do without.
    """

    site = ""

    def __init__(self, kube: Kube, experiment: Experiment, sidecar: Sidecar | None = None) -> None:
        self._kube, self._experiment, self._sidecar = kube, experiment, sidecar
        self._template = experiment.template
        self._success = Condition.parse(self._template.success_condition)
        self._failure = Condition.parse(self._template.failure_condition)
        self._selector = f"{LABEL_UID}={experiment.uid}"
        self._told: queue.Queue[Callable[[], str | None]] = queue.Queue(QUEUE_PIECES)
        self._watched: dict[str, _Watched] = {}
        self._pending: list[Event] = []
        self._watches: list[Watch] = []
        self._anchor: Document | None = None
        self._failed: HpoError | None = None
        self._looked_at = 0.0

    def submit(self, job: Job) -> None:
        """See `Launcher.submit`."""
        if job.name in self._watched:
            return
        anchor = self._begin()
        watched = _Watched(job, time.monotonic())
        manifest = dress(
            job.manifest,
            primary_container=job.primary_container,
            owner=anchor,
            deadline_s=job.deadline_s,
            duty=self._duty(job),
        )
        try:
            if job.begun:
                self._adopt(watched)
            else:
                self._create(manifest, watched)
        except NotFound:
            self._pending.append(Exited(job.name, None, "Lost", f"its {self._template.kind} is gone"))
            return
        except Refused as refusal:
            self._pending.append(Exited(job.name, None, _reason_of(refusal), str(refusal)))
            return
        self._watched[job.name] = watched

    def stop(self, name: str) -> None:
        """See `Launcher.stop`; the workload is deleted, and its pods get their grace.

        It is marked before, so that who else follows it does not take it for lost.
        """
        watched = self._watched.get(name)
        if watched is None or watched.stopping:
            return
        spec = self._template.trial_spec
        mark = {"metadata": {"annotations": {STOPPED: "true"}}}
        with contextlib.suppress(NotFound):
            self._kube.patch(
                str(spec["apiVersion"]), str(spec["kind"]), name, mark, namespace=self._experiment.namespace
            )
        self._end(watched)
        watched.stopping = True

    def events(self, timeout_s: float) -> list[Event]:
        """See `Launcher.events`."""
        until = time.monotonic() + timeout_s
        while True:
            events, self._pending = self._pending, []
            wait_s = 0.0 if events else max(min(until - time.monotonic(), LOOK_S), 0.0)
            touched = self._take(wait_s, events)
            now = time.monotonic()
            if now - self._looked_at >= LOOK_S:
                self._looked_at = now
                touched = set(self._watched)
            for name in touched & self._watched.keys():
                events += self._judge(self._watched[name])
            if self._failed is not None:
                raise self._failed
            if events or time.monotonic() >= until:
                return events

    def forget(self, name: str) -> None:
        """See `Launcher.forget`; a template that wants its workloads retained keeps them."""
        if not self._template.retain:
            self._delete(name)

    def sweep(self) -> None:
        """Remove everything of this experiment from the cluster, whoever created it."""
        self.close()
        kind = self._template.trial_spec
        self._kube.delete_all(str(kind["apiVersion"]), str(kind["kind"]), selector=self._selector)
        self._kube.delete("v1", "ConfigMap", self._anchor_name)

    def close(self) -> None:
        """Follow nothing any more; what runs goes on."""
        for watch in self._watches:
            watch.stop()
        for watched in self._watched.values():
            watched.close_logs()

    @property
    def _anchor_name(self) -> str:
        return f"{self._experiment.name[:50].rstrip('-')}-{self._experiment.uid[:8]}"

    def _begin(self) -> Document:
        """Make the anchor and start to watch, the first time."""
        if self._anchor is not None:
            return self._anchor
        metadata = {
            "name": self._anchor_name,
            "namespace": self._experiment.namespace,
            "labels": {LABEL_UID: self._experiment.uid, LABEL_EXPERIMENT: self._experiment.name},
        }
        anchor = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
        try:
            self._anchor = self._kube.create(anchor)
        except Conflict:
            self._anchor = self._kube.get("v1", "ConfigMap", self._anchor_name, namespace=self._experiment.namespace)
        spec = self._template.trial_spec
        self._watch(self._on_workload, str(spec["apiVersion"]), str(spec["kind"]), selector=self._selector)
        self._watch(self._on_pod, "v1", "Pod", selector=self._selector)
        self._watch(self._on_warning, "v1", "Event", field_selector="type=Warning")
        return self._anchor

    def _watch(self, take: Callable[[Listed | Changed], str | None], version: str, kind: str, **which: str) -> None:
        watch = self._kube.watch(version, kind, namespace=self._experiment.namespace, **which)
        self._watches.append(watch)

        def follow() -> None:
            try:
                for item in watch:
                    self._told.put(partial(take, item))
            except HpoError as error:
                self._told.put(partial(self._fail, error))

        threading.Thread(target=follow, name=f"watch-{kind.lower()}", daemon=True).start()

    def _create(self, manifest: Mapping[str, Any], watched: _Watched) -> None:
        """Create a workload, or find it created before."""
        try:
            watched.document = self._kube.create(manifest)
        except Conflict:
            self._adopt(watched)

    def _adopt(self, watched: _Watched) -> None:
        """Follow a workload that is there, with its pods, of which the streams may have told already."""
        name, where, spec = watched.job.name, self._experiment.namespace, self._template.trial_spec
        found = self._kube.get(str(spec["apiVersion"]), str(spec["kind"]), name, namespace=where)
        if (found["metadata"].get("labels") or {}).get(LABEL_UID) != self._experiment.uid:
            raise LaunchError(f"there is another {spec['kind']} {name}, which is not this experiment's; remove it")
        watched.document = found
        pods = self._kube.list("v1", "Pod", namespace=where, selector=f"{LABEL_TRIAL}={name}")
        watched.pods = {pod["metadata"]["name"]: pod for pod in pods}
        self._looked_at = 0.0

    def _duty(self, job: Job) -> Duty | None:
        """What a workload's sidecar has to do; None when it needs none."""
        experiment = self._experiment
        if not job.label and not experiment.metrics_file:
            return None
        if self._sidecar is None:
            if experiment.metrics_file:
                raise LaunchError(
                    f"{experiment.metrics_file} is read by a container beside the trainer, whose image is not known: "
                    "name the engine's image in HPO_IMAGE"
                )
            return None
        return Duty(
            self._sidecar,
            attempt=job.name,
            experiment=f"{experiment.namespace}/{experiment.name}",
            label=job.label,
            metrics_file=experiment.metrics_file,
            pod_labels=self._template.primary_pod_labels,
        )

    def _end(self, watched: _Watched) -> None:
        """Delete a workload; its pods get the grace of its template, though a sidecar may have far more."""
        self._delete(watched.job.name)
        if not has_sidecar(watched.document or {}):
            return
        grace = grace_s(watched.job.manifest, watched.job.primary_container)
        try:
            for pod in watched.pods:
                self._kube.delete("v1", "Pod", pod, namespace=self._experiment.namespace, grace_s=grace)
        except LaunchError as error:
            _log.warning("workload.ends_late name=%s reason=%s", watched.job.name, error)

    def _delete(self, name: str) -> None:
        spec = self._template.trial_spec
        self._kube.delete(str(spec["apiVersion"]), str(spec["kind"]), name, namespace=self._experiment.namespace)

    def _take(self, wait_s: float, events: list[Event]) -> set[str]:
        """Take all that the streams have told, after waiting for the first of it; returns whom it concerns."""
        touched: set[str] = set()
        self._output = events
        with contextlib.suppress(queue.Empty):
            touched |= {self._told.get(timeout=wait_s)() or ""} if wait_s else {self._told.get_nowait()() or ""}
            for _ in range(QUEUE_PIECES):
                touched.add(self._told.get_nowait()() or "")
        return touched

    def _fail(self, error: HpoError) -> None:
        self._failed = error

    def _on_workload(self, item: Listed | Changed) -> str | None:
        if isinstance(item, Listed):
            there = {entry["metadata"]["name"]: entry for entry in item.items}
            for name, watched in self._watched.items():
                watched.document = there.get(name, watched.document)
                watched.gone |= name not in there and _is_older(watched)
            self._looked_at = 0.0
            return None
        changed = self._watched.get(item.object["metadata"]["name"])
        if changed is None:
            return None
        changed.document, changed.gone = item.object, item.type == "DELETED"
        return changed.job.name

    def _on_pod(self, item: Listed | Changed) -> str | None:
        pods = item.items if isinstance(item, Listed) else (item.object,)
        for pod in pods:
            watched = self._watched.get(_trial_of(pod))
            if watched is not None:
                watched.pods[pod["metadata"]["name"]] = pod
        self._looked_at = 0.0 if isinstance(item, Listed) else self._looked_at
        return _trial_of(item.object) if isinstance(item, Changed) else None

    def _on_warning(self, item: Listed | Changed) -> str | None:
        warnings = item.items if isinstance(item, Listed) else (item.object,)
        for warning in warnings:
            about = str((warning.get("involvedObject") or {}).get("name") or "")
            watched = self._watched.get(about)
            if watched is not None:
                watched.warnings = [*watched.warnings, warning][-KEPT_WARNINGS:]
                self._looked_at = 0.0
        return None

    def _tell_output(self, name: str, stream: str, data: bytes, missing: int) -> None:
        self._told.put(partial(self._on_output, name, stream, data, missing))

    def _tell_log_end(self, name: str, stream: str) -> None:
        self._told.put(partial(self._on_log_end, name, stream))

    def _on_output(self, name: str, stream: str, data: bytes, missing: int) -> str | None:
        self._output.append(Output(name, data, missing, stream))
        return None

    def _on_log_end(self, name: str, stream: str) -> str:
        watched = self._watched.get(name)
        if watched is not None:
            watched.logs_ended.add(stream)
        return name

    def _judge(self, watched: _Watched) -> Iterable[Event]:
        """Tell what has become of a workload."""
        name, container = watched.job.name, watched.job.primary_container
        pod = primary_pod(list(watched.pods.values()), self._template.primary_pod_labels, container)
        if pod is not None and (since := is_started(pod, container)):
            if watched.started_at is None:
                watched.started_at = _seconds(since)
                yield Started(name, watched.started_at)
            self._follow_logs(watched, pod)
        how = ending(pod, container) if pod is not None else None
        is_over = self._is_over(watched, how)
        for stream, log in watched.logs.items():
            if how is not None and (stream != METRICS or is_over):  # a sidecar ends after the primary container
                log.finish()
        if is_over:
            if watched.ended_at is None:
                watched.ended_at = time.monotonic()
            late = time.monotonic() - watched.ended_at >= SETTLE_S
            if self._success_waits(watched, pod):
                return
            if late or ((how is not None or pod is None) and watched.logs.keys() <= watched.logs_ended):
                yield self._with_last_word(watched, pod, self._exit(watched, how))
            return
        yield from self._look_for_trouble(watched, pod, how)

    def _is_over(self, watched: _Watched, how: Ending | None) -> bool:
        if watched.gone or (watched.given_up is not None and how is not None):
            return True
        if watched.document is None or watched.stopping:
            return False
        return self._failure.holds(watched.document) is not None or self._success.holds(watched.document) is not None

    def _success_waits(self, watched: _Watched, pod: Document | None) -> bool:
        """Tell whether a kind has succeeded whose pod is still bringing its output to the store."""
        if pod is None or watched.gone or watched.given_up is not None or not is_working(pod):
            return False
        return self._failure.holds(watched.document or {}) is None

    def _with_last_word(self, watched: _Watched, pod: Document | None, exited: Exited) -> Exited:
        """Add to an end what the sidecar has said of the output, where there is one."""
        if not watched.job.label or not has_sidecar(watched.document or {}):
            return exited
        said = last_word(pod)[1] if pod is not None and exited.code == 0 and not exited.reason else ""
        return replace(exited, message=exited.message or said, has_receipt=True)

    def _exit(self, watched: _Watched, how: Ending | None) -> Exited:
        del self._watched[watched.job.name]
        watched.close_logs()
        name, document = watched.job.name, watched.document or {}
        code, at = (how.code, _seconds(how.at)) if how is not None else (None, None)
        if watched.stopping or _annotations(document).get(STOPPED):
            return Exited(name, code, "Stopped", at=at)
        if watched.given_up is not None:
            return Exited(name, code, watched.given_up.reason, watched.given_up.message, at=at)
        if how is not None and how.reason:
            return Exited(name, code, how.reason, how.message, at=at)
        failed = self._failure.holds(document)
        if failed is not None:
            if failed.reason == "DeadlineExceeded":
                return Exited(name, code, failed.reason, "", at=at)
            if code:
                return Exited(name, code, "", how.message if how else "", at=at)
            return Exited(name, code, failed.reason or "WorkloadFailed", failed.message, at=at)
        if self._success.holds(document) is not None:
            return Exited(name, 0, at=at)
        return Exited(name, code, "Lost", f"its {self._template.kind} was deleted by somebody", at=at)

    def _follow_logs(self, watched: _Watched, pod: Document) -> None:
        """Follow what the primary container prints, and the metrics file, which the sidecar prints."""
        if watched.logs:
            return
        containers = {"": watched.job.primary_container}
        if self._experiment.metrics_file and has_sidecar(pod):
            containers = {LOG: watched.job.primary_container, METRICS: SIDECAR}
        name, where = watched.job.name, self._experiment.namespace
        for stream, container in containers.items():
            watched.logs[stream] = LogFollower(
                partial(self._kube.pod_log, pod["metadata"]["name"], container, timestamps=True, namespace=where),
                partial(self._tell_output, name, stream),
                partial(self._tell_log_end, name, stream),
            )

    def _look_for_trouble(self, watched: _Watched, pod: Document | None, how: Ending | None) -> Iterable[Event]:
        if watched.stopping or watched.given_up is not None:
            return
        trouble = self._trouble(watched, pod, how)
        if trouble is None:
            watched.trouble = None
            return
        now = time.monotonic()
        if watched.trouble is None or watched.trouble.reason != trouble.reason:
            watched.trouble, watched.trouble_since = trouble, now
            if watched.started_at is None:
                yield Waiting(watched.job.name, trouble.reason, trouble.message)
        patience_s = trouble.patience_s
        if patience_s is None:
            patience_s = self._experiment.settings.pending_deadline_s
        if now - watched.trouble_since >= patience_s:
            self._end(watched)
            watched.given_up = trouble

    def _trouble(self, watched: _Watched, pod: Document | None, how: Ending | None) -> Trouble | None:
        pods = list(watched.pods.values())
        found = pod_trouble(pod, watched.job.primary_container) if pod is not None else None
        if pod is not None and self._sidecar is not None:
            found = sidecar_trouble(pod, self._sidecar, found)
        found = found or helper_trouble(pods, pod)
        if found is None and how is None and not pods:
            found = event_trouble(watched.warnings) or self._unclaimed(watched)
        return found or (self._late(watched) if how is None else None)

    def _unclaimed(self, watched: _Watched) -> Trouble | None:
        document = watched.document or {}
        if time.monotonic() - watched.submitted_at < UNCLAIMED_S or document.get("status"):
            return None
        kind = self._template.kind
        message = f"nobody has taken up the {kind} within {UNCLAIMED_S:g} s: see whether its operator runs"
        return Trouble("NotTakenUp", message, 0.0)

    def _late(self, watched: _Watched) -> Trouble | None:
        """A deadline that the workload's kind does not watch itself, or only with the time for its output."""
        deadline_s = watched.job.deadline_s
        watches = self._template.kind == "Job" and not has_sidecar(watched.document or {})
        if watches or deadline_s is None or watched.started_at is None:
            return None
        return Trouble("DeadlineExceeded", "", 0.0) if time.time() - watched.started_at >= deadline_s else None


def _annotations(document: Document) -> Mapping[str, str]:
    return (document.get("metadata") or {}).get("annotations") or {}


def _trial_of(pod: Document) -> str:
    """Name of the workload that a pod belongs to; "" for none of ours."""
    return str((pod["metadata"].get("labels") or {}).get(LABEL_TRIAL, ""))


def _is_older(watched: _Watched) -> bool:
    """Tell whether a list that does not hold a workload can be believed: it was created well before."""
    return time.monotonic() - watched.submitted_at > 2.0


def _reason_of(refusal: Refused) -> str:
    return "QuotaExceeded" if "exceeded quota" in str(refusal) else "RefusedByAdmission"


def _seconds(text: str) -> float | None:
    """Seconds since 1970 of an RFC 3339 time; None for ""."""
    return datetime.fromisoformat(text).timestamp() if text else None
