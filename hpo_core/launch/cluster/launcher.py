"""Trials as objects of a Kubernetes namespace: Jobs, and custom resources of any kind.

Three streams, of the workloads, of their pods and of warnings, serve the whole experiment; each running pod's log is a
fourth. What they tell is put in one queue, which `events` takes from; all decisions are made in the caller's thread,
by `followed`. Everything of one experiment is owned by one ConfigMap, its anchor: to delete that removes all.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

from hpo_core.errors import Conflict, HpoError, LaunchError, NotFound, TransientError
from hpo_core.experiment import Experiment
from hpo_core.kube import Changed, Kube, Listed, Refused, Watch
from hpo_core.launch import LOG, METRICS, Event, Exited, Job, Output
from hpo_core.launch.cluster.diagnosis import refusal_trouble
from hpo_core.launch.cluster.dress import dress
from hpo_core.launch.cluster.endings import Document
from hpo_core.launch.cluster.followed import STOPPED, Followed, Rules
from hpo_core.launch.cluster.kinds import is_labelled, pod_label
from hpo_core.launch.cluster.logs import LogFollower
from hpo_core.launch.cluster.sidecar import SIDECAR, Duty, Sidecar, grace_s, has_sidecar
from hpo_core.manifest import LABEL_EXPERIMENT, LABEL_UID

QUEUE_PIECES = 512
"""Pieces of output, of 64 KiB at most, that wait to be taken; then the streams wait."""
LOOK_S = 1.0
"""How often what only time decides is looked at: troubles, deadlines, ends that are not complete."""
QUOTA_S = 5.0
"""How often the creation of a workload is tried again for which a quota has no room."""
UNREACHABLE_S = 300.0
"""How long an API server is waited for while workloads are only followed; `loop` waits as long for other work."""
WARNED, KEPT_WARNINGS = 1000, 10
"""Of how many objects warnings are remembered, and how many of each."""

_log = logging.getLogger(__name__)

Told: TypeAlias = Callable[[], str | None]
"""What a stream tells; to call it takes it in, and says whom it concerns."""


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
        self._template, self._rules = experiment.template, Rules.of(experiment, sidecar)
        self._api_version, self._kind = str(self._template.trial_spec["apiVersion"]), self._template.kind
        self._told: queue.Queue[Told] = queue.Queue(QUEUE_PIECES)
        self._closed = threading.Event()
        self._followed: dict[str, Followed] = {}
        self._refused: dict[str, tuple[Document, float]] = {}
        self._vanished: dict[str, float] = {}
        self._warnings: OrderedDict[str, list[Document]] = OrderedDict()
        self._events: list[Event] = []
        self._watches: list[Watch] = []
        self._vital: tuple[Watch, ...] = ()  # those without which no end can be told
        self._anchor: Document | None = None
        self._beginning = threading.Lock()
        self._failed: HpoError | None = None
        self._looked_at = 0.0

    def submit(self, job: Job) -> None:
        """See `Launcher.submit`."""
        if job.name in self._followed:
            return
        with self._beginning:
            anchor = self._begin()
        followed = Followed(job, self._rules, partial(self._open_logs, job), time.monotonic())
        try:
            if job.begun:
                self._adopt(followed)
            else:
                self._create(followed, anchor)
        except NotFound:
            self._events.append(Exited(job.name, None, "Lost", f"its {self._kind} is gone"))
            return
        except Refused as refusal:
            trouble = refusal_trouble(str(refusal), f"its {self._kind}")
            if trouble.patience_s is not None:
                self._events.append(Exited(job.name, None, trouble.reason, trouble.message))
                return
            followed.refused = trouble
            self._refused[job.name] = (anchor, time.monotonic())
        self._followed[job.name] = followed

    def stop(self, name: str) -> None:
        """See `Launcher.stop`; the workload is deleted, and its pods get their grace.

        It is marked before, so that who else follows it does not take it for lost.
        """
        followed = self._followed.get(name)
        if followed is None or followed.is_stopping:
            return
        if followed.document is None:
            followed.is_gone = True
        else:
            mark = {"metadata": {"annotations": {STOPPED: "true"}}}
            with contextlib.suppress(NotFound):
                self._kube.patch(self._api_version, self._kind, name, mark, namespace=self._experiment.namespace)
            self._end(followed)
        followed.is_stopping = True
        self._looked_at = 0.0

    def events(self, timeout_s: float) -> list[Event]:
        """See `Launcher.events`."""
        until = time.monotonic() + timeout_s
        while True:
            wait_s = 0.0 if self._events else max(min(until - time.monotonic(), LOOK_S), 0.0)
            touched = self._take(wait_s)
            if time.monotonic() - self._looked_at >= LOOK_S:
                self._check_reach()
                self._look_for_vanished()
                self._try_refused_again()
                self._looked_at = time.monotonic()
                touched = set(self._followed)
            for name in touched & self._followed.keys():
                self._judge(self._followed[name])
            if self._failed is not None:
                raise self._failed
            if self._events or time.monotonic() >= until:
                events, self._events = self._events, []
                return events

    def forget(self, name: str) -> None:
        """See `Launcher.forget`; a template that wants its workloads retained keeps them."""
        if not self._template.retain:
            self._delete(name)

    def sweep(self) -> None:
        """Remove everything of this experiment from the cluster, whoever created it."""
        self.close()
        where, selector = self._experiment.namespace, f"{LABEL_UID}={self._experiment.uid}"
        self._kube.delete_all(self._api_version, self._kind, selector=selector, namespace=where)
        self._kube.delete("v1", "ConfigMap", self._anchor_name, namespace=where)

    def close(self) -> None:
        """Follow nothing any more; what runs goes on. Idempotent."""
        self._closed.set()
        for watch in self._watches:
            watch.stop()
        for followed in self._followed.values():
            followed.close()

    # --- requests

    @property
    def _anchor_name(self) -> str:
        return f"{self._experiment.name[:50].rstrip('-')}-{self._experiment.uid[:8]}"

    def _begin(self) -> Document:
        """Make the anchor and start to watch, the first time; a kind that is not served is told before."""
        if self._anchor is not None:
            return self._anchor
        self._kube.resource(self._api_version, self._kind)
        where = self._experiment.namespace
        labels = {LABEL_UID: self._experiment.uid, LABEL_EXPERIMENT: self._experiment.name}
        metadata = {"name": self._anchor_name, "namespace": where, "labels": labels}
        try:
            self._anchor = self._kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
        except Conflict:
            self._anchor = self._kube.get("v1", "ConfigMap", self._anchor_name, namespace=where)
        ours = f"{LABEL_UID}={self._experiment.uid}"
        by_pod = ours if is_labelled(self._kind) else pod_label(self._kind)
        self._vital = (
            self._watch(self._on_workload, self._api_version, self._kind, selector=ours),
            self._watch(self._on_pod, "v1", "Pod", selector=by_pod),
        )
        self._watch(self._on_warning, "v1", "Event", field_selector="type=Warning")
        return self._anchor

    def _watch(self, take: Callable[[Listed | Changed], str | None], version: str, kind: str, **which: str) -> Watch:
        watch = self._kube.watch(version, kind, namespace=self._experiment.namespace, **which)
        self._watches.append(watch)

        def follow() -> None:
            try:
                for item in watch:
                    self._tell(partial(take, item))
            except HpoError as error:
                self._tell(partial(self._fail, error))

        threading.Thread(target=follow, name=f"watch-{kind.lower()}", daemon=True).start()
        return watch

    def _create(self, followed: Followed, anchor: Document) -> None:
        """Create a workload, or find it created before."""
        job = followed.job
        manifest = dress(
            job.manifest,
            primary_container=job.primary_container,
            owner=anchor,
            deadline_s=job.deadline_s,
            duty=self._duty(job),
        )
        try:
            followed.document = self._kube.create(manifest)
        except Conflict:
            self._adopt(followed)

    def _adopt(self, followed: Followed) -> None:
        """Follow a workload that is there, with its pods, of which the streams may have told already."""
        name, where = followed.job.name, self._experiment.namespace
        found = self._kube.get(self._api_version, self._kind, name, namespace=where)
        if (found["metadata"].get("labels") or {}).get(LABEL_UID) != self._experiment.uid:
            raise LaunchError(f"there is another {self._kind} {name}, which is not this experiment's; remove it")
        followed.document, followed.is_adopted = found, True
        if (found["metadata"].get("annotations") or {}).get(STOPPED):
            followed.is_stopping = followed.wants_deletion = True  # whoever marked it came to no more
        for pod in self._kube.list("v1", "Pod", namespace=where, selector=f"{pod_label(self._kind)}={name}"):
            followed.tell_pod(pod, is_streamed=False)
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

    def _end(self, followed: Followed) -> None:
        """Delete a workload; its pods get the grace of its template, though a sidecar may have far more.

        They go first: a kubelet that has begun to end a pod with the long grace does not heed a shorter one any more.
        """
        if has_sidecar(followed.document or {}):
            grace = grace_s(followed.job.manifest, followed.job.primary_container)
            try:
                for pod in followed.pod_names:
                    self._kube.delete("v1", "Pod", pod, namespace=self._experiment.namespace, grace_s=grace)
            except LaunchError as error:
                _log.warning("workload.ends_late name=%s reason=%s", followed.job.name, error)
        self._delete(followed.job.name)

    def _delete(self, name: str) -> None:
        self._kube.delete(self._api_version, self._kind, name, namespace=self._experiment.namespace)

    def _try_refused_again(self) -> None:
        """Create the workloads that a quota had no room for."""
        now = time.monotonic()
        for name, (anchor, tried_at) in list(self._refused.items()):
            followed = self._followed.get(name)
            if followed is None or followed.is_gone:
                del self._refused[name]
            elif now - tried_at >= QUOTA_S:
                self._refused[name] = (anchor, now)
                with contextlib.suppress(TransientError, Refused):
                    self._create(followed, anchor)
                    del self._refused[name]

    def _look_for_vanished(self) -> None:
        """Ask for the workloads that a list did not hold: they may have been created after it."""
        for name, since in list(self._vanished.items()):
            followed = self._followed.get(name)
            if time.monotonic() - since < LOOK_S:
                continue
            with contextlib.suppress(TransientError):
                if followed is not None and followed.document is not None:
                    try:
                        self._kube.get(self._api_version, self._kind, name, namespace=self._experiment.namespace)
                    except NotFound:
                        followed.is_gone = True
                del self._vanished[name]

    # --- what the streams tell, in their own threads

    def _tell(self, told: Told) -> None:
        """Put something in the queue; a stream waits for its place there, unless nobody takes it any more."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._told.put(told, timeout=LOOK_S)
                return

    def _open_logs(self, job: Job, pod: Document) -> dict[str, LogFollower]:
        """Follow what the primary container prints, and the metrics file, which the sidecar prints."""
        containers = {"": job.primary_container}
        if self._experiment.metrics_file and has_sidecar(pod):
            containers = {LOG: job.primary_container, METRICS: SIDECAR}
        name, where = pod["metadata"]["name"], self._experiment.namespace
        return {
            stream: LogFollower(
                partial(self._kube.pod_log, name, container, timestamps=True, namespace=where),
                partial(self._tell_output, job.name, stream),
                partial(self._tell_log_end, job.name, stream),
            )
            for stream, container in containers.items()
        }

    def _tell_output(self, name: str, stream: str, data: bytes, missing: int) -> None:
        self._tell(partial(self._on_output, name, stream, data, missing))

    def _tell_log_end(self, name: str, stream: str) -> None:
        self._tell(partial(self._on_log_end, name, stream))

    # --- taking that in, in the caller's thread

    def _check_reach(self) -> None:
        """Give up where nothing can be told of any workload any more.

        Raises:
            TransientError: Waiting has been in vain for so long.
        """
        lost_s = max((watch.lost_s() for watch in self._vital), default=0.0)
        if lost_s > UNREACHABLE_S:
            raise TransientError(
                f"the API server at {self._kube.server} has not told what becomes of trials for {lost_s:.0f} s; run "
                "the experiment again when it is within reach, and it goes on"
            )

    def _take(self, wait_s: float) -> set[str]:
        """Take all that the streams have told, after waiting for the first of it; returns whom it concerns."""
        touched: set[str] = set()
        with contextlib.suppress(queue.Empty):
            touched.add(((self._told.get(timeout=wait_s) if wait_s else self._told.get_nowait())()) or "")
            for _ in range(QUEUE_PIECES):
                touched.add(self._told.get_nowait()() or "")
        return touched

    def _fail(self, error: HpoError) -> None:
        self._failed = error

    def _on_workload(self, item: Listed | Changed) -> str | None:
        if isinstance(item, Listed):
            there = {entry["metadata"]["name"]: entry for entry in item.items}
            for name, followed in self._followed.items():
                followed.document = there.get(name, followed.document)
            self._vanished = dict.fromkeys(self._followed.keys() - there.keys(), time.monotonic())
            self._looked_at = 0.0
            return None
        name = str(item.object["metadata"]["name"])
        self._vanished.pop(name, None)
        if name in self._followed:
            self._followed[name].document = item.object
            self._followed[name].is_gone = item.type == "DELETED"
        return name

    def _on_pod(self, item: Listed | Changed) -> str | None:
        if isinstance(item, Changed):
            name = self._workload_of(item.object)
            if name in self._followed:
                self._followed[name].tell_pod(item.object, gone=item.type == "DELETED")
            return name
        pods: dict[str, list[Document]] = {name: [] for name in self._followed}
        for pod in item.items:
            pods.get(self._workload_of(pod), []).append(pod)
        for name, followed in self._followed.items():
            followed.tell_all_pods(pods[name])
        self._looked_at = 0.0
        return None

    def _workload_of(self, pod: Document) -> str:
        """Name of the workload that a pod belongs to; "" for none of ours."""
        return str((pod["metadata"].get("labels") or {}).get(pod_label(self._kind), ""))

    def _on_warning(self, item: Listed | Changed) -> str | None:
        about = ""
        for warning in item.items if isinstance(item, Listed) else (item.object,):
            about = str((warning.get("involvedObject") or {}).get("name") or "")
            self._warnings[about] = [*self._warnings.pop(about, []), warning][-KEPT_WARNINGS:]
            if len(self._warnings) > WARNED:
                self._warnings.popitem(last=False)
        return about

    def _on_output(self, name: str, stream: str, data: bytes, missing: int) -> None:
        followed = self._followed.get(name)
        if followed is not None:
            followed.tell_log_piece(time.monotonic())
            self._events.append(Output(name, data, missing, stream))

    def _on_log_end(self, name: str, stream: str) -> str:
        followed = self._followed.get(name)
        if followed is not None:
            followed.tell_log_end(stream, time.monotonic())
        return name

    def _judge(self, followed: Followed) -> None:
        """See what has become of a workload, and do what follows from that."""
        self._events += followed.judge(self._warnings_of, time.monotonic(), self._kube.now_s())
        if followed.wants_deletion:
            with contextlib.suppress(TransientError):  # then it is tried again at the next look
                self._end(followed)
                followed.wants_deletion = False
        if followed.is_over:
            del self._followed[followed.job.name]

    def _warnings_of(self, name: str) -> Iterable[Mapping[str, Any]]:
        return self._warnings.get(name, ())
