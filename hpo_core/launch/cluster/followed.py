"""One workload as it is followed: what the streams have told of it, and what has become of it.

Nothing is asked of the API server here, and no time is taken but that which is given; the launcher does what is wished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from hpo_core.experiment import Experiment
from hpo_core.gjson import Condition
from hpo_core.launch import METRICS, Event, Exited, Job, Output, Started, Waiting
from hpo_core.launch.cluster.diagnosis import (
    Trouble,
    event_trouble,
    helper_trouble,
    pod_trouble,
    restart_trouble,
    suspension,
    volume_trouble,
)
from hpo_core.launch.cluster.endings import Document, Ending, ending, primary_pods, started_at
from hpo_core.launch.cluster.kinds import COUNTS_RESTARTS, KEEPS_DEADLINE
from hpo_core.launch.cluster.logs import LogFollower
from hpo_core.launch.cluster.sidecar import Sidecar, has_sidecar, is_working, last_word, sidecar_trouble

SETTLE_S = 10.0
"""How long, after a workload's end, the ends of its pods and the last of a lost one's log are waited for."""
UNSEEN_S = 0.5
"""How long, after the end of a workload that did not succeed, a pod is waited for of which nothing was told."""
LOG_SILENCE_S = 150.0
"""How long, after its pod's end, a log that brings nothing is waited for."""
NOT_TAKEN_UP_S, UNCLAIMED_S = 20.0, 30.0
"""When a workload is told that has neither pod, status nor warning, and how much longer that is borne."""
STOPPED = "kfp-hpo/stopped"
"""Annotation of a workload that is deleted because somebody asked for its end."""

OpenLogs = Callable[[Document], dict[str, LogFollower]]
Warnings = Callable[[str], Iterable[Document]]
"""The warnings there are about an object of that name."""


@dataclass(frozen=True)
class Rules:
    """What an experiment says of its workloads."""

    kind: str
    success: Condition
    failure: Condition
    primary_labels: Mapping[str, str]
    pending_deadline_s: float
    sidecar: Sidecar | None = None

    @classmethod
    def of(cls, experiment: Experiment, sidecar: Sidecar | None = None) -> Rules:
        """Read them."""
        template = experiment.template
        return cls(
            template.kind,
            Condition.parse(template.success_condition),
            Condition.parse(template.failure_condition),
            template.primary_pod_labels,
            experiment.settings.pending_deadline_s,
            sidecar,
        )


@dataclass
class _Pod:
    document: Document
    gone: bool = False
    is_streamed: bool = False
    how: Ending | None = None


class Followed:
    """A workload that is being followed.

    Args:
        job: What was submitted.
        rules: When it has ended, and which pods count.
        open_logs: Begins to follow what one of its pods prints; returns each stream by its name.
        now: The time, in seconds of the monotonic clock.

    Attributes:
        document: The workload as it was told last; None before it is created.
        is_gone: Whether it has been removed.
        is_stopping: Whether its end was asked for here.
        wants_deletion: Whether it is to be deleted now.
        is_over: Whether its `Exited` was given.
    """

    def __init__(self, job: Job, rules: Rules, open_logs: OpenLogs, now: float) -> None:
        self.job, self._rules, self._open_logs = job, rules, open_logs
        self.document: Document | None = None
        self.is_gone = self.is_stopping = self.wants_deletion = self.is_over = False
        self.is_adopted = False
        self.refused: Trouble | None = None
        self._pods: dict[str, _Pod] = {}
        self._submitted_at = now
        self._logs: dict[str, LogFollower] = {}
        self._logged: list[str] = []  # pods whose logs were read, or are being read
        self._read_at = now
        self._started_at: float | None = None
        self._deadline_at: float | None = None
        self._over_since: float | None = None
        self._given_up: Trouble | None = None
        self._trouble: Trouble | None = None
        self._trouble_since = now
        self._server_s = 0.0

    # --- what is told

    def tell_pod(self, pod: Document, *, gone: bool = False, is_streamed: bool = True) -> None:
        """Take in a pod as it is now; its first end counts, whatever is done to the pod afterwards."""
        known = self._pods.setdefault(pod["metadata"]["name"], _Pod(pod))
        known.document, known.gone = pod, gone
        known.is_streamed |= is_streamed
        known.how = known.how or ending(pod, self.job.primary_container, gone=gone)

    def tell_all_pods(self, pods: Iterable[Document]) -> None:
        """Take in all pods there are; one that the stream had told of and that is not among them has vanished."""
        there = {pod["metadata"]["name"]: pod for pod in pods}
        for pod in there.values():
            self.tell_pod(pod)
        for name, known in self._pods.items():
            if known.is_streamed and not known.gone and name not in there:
                self.tell_pod(known.document, gone=True)

    def tell_log_piece(self, now: float) -> None:
        """Take in that its log brings something."""
        self._read_at = now

    def tell_log_end(self, stream: str, now: float) -> None:
        """Take in that a log that is being read has ended."""
        self._logs.pop(stream, None)
        self._read_at = now

    def close(self) -> None:
        """Read no log any more."""
        for log in self._logs.values():
            log.close()

    @property
    def pod_names(self) -> list[str]:
        """Its pods that have not been removed."""
        return [name for name, pod in self._pods.items() if not pod.gone]

    # --- what becomes of it

    def judge(self, warnings: Warnings, now: float, server_s: float) -> Iterable[Event]:
        """Tell what has become of it since it was asked last.

        Args:
            warnings: What the server tells besides.
            now: The time, in seconds of the monotonic clock: how long we have waited is told by it.
            server_s: The time by the API server's clock, in seconds since 1970: how old objects are is told by it.
        """
        self._server_s = server_s
        primary = self._primary()
        yield from self._look_for_start(primary, now, server_s)
        self._follow_logs(primary, now)
        how = self._how(primary)
        if not self._has_ended(how):
            yield from self._look_for_trouble(primary, warnings, how, now)
            return
        if self._over_since is None:
            self._over_since = now
        late = self._is_late(how, now)
        if late and not self.is_gone and not self.wants_deletion and how is None:
            self.wants_deletion = True  # its pods go on though it has ended
        if self._success_waits(primary):
            return
        if late or (not self._logs and (how is not None or self._had_no_pod(primary, now))):
            self.close()
            yield from (Output(self.job.name, b"", 1, stream) for stream in self._logs)
            self.is_over = True
            yield self._with_last_word(self._verdict(how, primary), primary)

    def _primary(self) -> list[_Pod]:
        chosen = primary_pods(
            [pod.document for pod in self._pods.values()], self._rules.primary_labels, self.job.primary_container
        )
        return [self._pods[pod["metadata"]["name"]] for pod in chosen]

    def _how(self, primary: list[_Pod]) -> Ending | None:
        """How the newest of its pods ended; None while that goes on."""
        return primary[-1].how if primary else None

    def _look_for_start(self, primary: list[_Pod], now: float, server_s: float) -> Iterable[Event]:
        if self._started_at is not None:
            return
        container = self.job.primary_container
        first = next((pod.document for pod in primary if started_at(pod.document, container)), None)
        if first is None:
            return
        self._started_at = _seconds(started_at(first, container)) or 0.0
        if self.job.deadline_s is not None:
            # The node's clock need not be the server's: what the server created cannot have run for longer.
            age_s = min(server_s - self._started_at, _age_s(first, server_s))
            self._deadline_at = now + self.job.deadline_s - max(age_s, 0.0)
        yield Started(self.job.name, self._started_at)

    def _follow_logs(self, primary: list[_Pod], now: float) -> None:
        """Read the logs of its pods one after the other."""
        for pod in primary:
            name = pod.document["metadata"]["name"]
            if not self._logs and name not in self._logged and started_at(pod.document, self.job.primary_container):
                self._logged.append(name)
                self._read_at = now
                self._logs = self._open_logs(pod.document)
            if self._logs and self._logged[-1] == name and pod.how is not None:
                for stream, log in self._logs.items():
                    if stream != METRICS or pod.gone or not is_working(pod.document):  # a sidecar ends afterwards
                        log.finish()

    def _has_ended(self, how: Ending | None) -> bool:
        if self.is_gone or (self._given_up is not None and (how is not None or self._given_up.ending is not None)):
            return True
        if self.document is None or self.is_stopping:
            return False
        rules = self._rules
        return rules.failure.holds(self.document) is not None or rules.success.holds(self.document) is not None

    def _is_late(self, how: Ending | None, now: float) -> bool:
        waited_s = now - max(self._over_since or now, self._read_at if how is not None else 0.0)
        return waited_s >= (SETTLE_S if how is None or how.reason == "Lost" else LOG_SILENCE_S)

    def _had_no_pod(self, primary: list[_Pod], now: float) -> bool:
        """Tell whether a workload that is over seems to have had no pod, rather than one that is still to be told."""
        if primary or self._over_since is None:
            return False
        succeeded = self._rules.success.holds(self.document or {}) is not None
        return now - self._over_since >= (SETTLE_S if succeeded else UNSEEN_S)

    def _success_waits(self, primary: list[_Pod]) -> bool:
        """Tell whether a kind has succeeded whose pod is still bringing its output to the store."""
        if not primary or primary[-1].gone or self.is_gone or self._given_up is not None:
            return False
        return is_working(primary[-1].document) and self._rules.failure.holds(self.document or {}) is None

    def _with_last_word(self, exited: Exited, primary: list[_Pod]) -> Exited:
        """Add to an end what the sidecar has said of the output, where there is one."""
        if not self.job.label or not has_sidecar(self.document or {}):
            return exited
        said = last_word(primary[-1].document)[1] if primary and exited.code == 0 and not exited.reason else ""
        return replace(exited, message=exited.message or said, has_receipt=True)

    def _verdict(self, how: Ending | None, primary: list[_Pod]) -> Exited:
        name, document, rules = self.job.name, self.document or {}, self._rules
        code, at = (how.code, _seconds(how.at)) if how is not None else (None, None)
        if self.is_stopping or ((document.get("metadata") or {}).get("annotations") or {}).get(STOPPED):
            return Exited(name, code, "Stopped", at=at)
        if self._given_up is not None:
            return self._as_given_up(self._given_up, code, at)
        failed, succeeded = rules.failure.holds(document), rules.success.holds(document)
        if failed is not None and failed.reason == "DeadlineExceeded":
            if self._started_at is None and self._trouble is not None:
                told = f"{self._trouble.message}; its deadline came before that passed"
                return Exited(name, code, self._trouble.reason, told, at=at)
            return Exited(name, code, failed.reason, at=at)
        if failed is not None and how is not None and (how.reason or how.code):
            return Exited(name, code, how.reason, how.message, at=at)
        if failed is not None and (helper := self._helper_trouble(primary)) is not None:
            return self._as_given_up(helper, code, at)
        if failed is not None:
            return Exited(name, code, failed.reason or "WorkloadFailed", failed.message, at=at)
        if succeeded is not None:
            return Exited(name, 0, "", "" if primary else self._no_pod(), at=at)
        if how is not None and how.reason != "Lost":
            return Exited(name, code, how.reason, how.message, at=at)  # it had ended before it was removed
        told = how.message if how is not None and how.code is None else f"its {rules.kind} was deleted by somebody"
        return Exited(name, code, "Lost", told, at=at)

    def _as_given_up(self, trouble: Trouble, code: int | None, at: float | None) -> Exited:
        how = trouble.ending
        if how is None:
            return Exited(self.job.name, code, trouble.reason, trouble.message, at=at)
        return Exited(self.job.name, how.code, how.reason, how.message, at=_seconds(how.at))

    def _no_pod(self) -> str:
        wished = ", ".join(f"{key}={value}" for key, value in self._rules.primary_labels.items())
        return (
            f"no pod of it was seen with a container {self.job.primary_container!r}"
            + (f" and the labels {wished}" if wished else "")
            + ", so nothing that it printed was read; see primaryContainerName and primaryPodLabels"
        )

    # --- what keeps it from that

    def _look_for_trouble(
        self, primary: list[_Pod], warnings: Warnings, how: Ending | None, now: float
    ) -> Iterable[Event]:
        if self.is_stopping or self._given_up is not None:
            return
        trouble = self._find_trouble(primary, warnings, how, now)
        before, self._trouble = self._trouble, trouble
        if trouble is None:
            if before is not None and self._started_at is None:
                yield Waiting(self.job.name, "Starting", "what it waited for has passed, and it is being started")
            return
        if before is None or before.reason != trouble.reason:
            self._trouble_since = self._waits_since(trouble, now)
            if self._started_at is None:
                yield Waiting(self.job.name, trouble.reason, trouble.message)
        patience_s = self._rules.pending_deadline_s if trouble.patience_s is None else trouble.patience_s
        if now - self._trouble_since >= patience_s:
            self._give_up(trouble, patience_s)

    def _waits_since(self, trouble: Trouble, now: float) -> float:
        """When a trouble that is seen now began: one that an earlier tuner saw is borne no longer for a new one."""
        if not self.is_adopted or self._started_at is not None or trouble.patience_s is not None:
            return now
        return now - max(_age_s(self.document or {}, self._server_s), 0.0)

    def _give_up(self, trouble: Trouble, patience_s: float) -> None:
        message = trouble.message
        if trouble.patience_s is None:
            message += f"; it was given up after {patience_s:g} s, which kfp-hpo/pending-deadline sets"
        self._given_up = Trouble(trouble.reason, message, patience_s, trouble.ending)
        if self.document is None:
            self.is_gone = True
        else:
            self.wants_deletion = True

    def _find_trouble(self, primary: list[_Pod], warnings: Warnings, how: Ending | None, now: float) -> Trouble | None:
        if self.document is None:
            return self.refused
        return (
            (self._late(now) if how is None else None)
            or self._in_primary_pod(primary, warnings)
            or self._helper_trouble(primary)
            or (self._without_pod(warnings, now) if how is None and not self._pods else None)
        )

    def _in_primary_pod(self, primary: list[_Pod], warnings: Warnings) -> Trouble | None:
        if not primary or primary[-1].gone:
            return None
        pod, container = primary[-1].document, self.job.primary_container
        found = pod_trouble(pod, container, now_s=self._server_s)
        if found is None and self._rules.kind not in COUNTS_RESTARTS and not _sets_backoff(self.document or {}):
            found = restart_trouble(pod, container)
        if self._rules.sidecar is not None:
            found = sidecar_trouble(pod, self._rules.sidecar, found)
        return found or volume_trouble(pod, warnings(pod["metadata"]["name"]))

    def _helper_trouble(self, primary: list[_Pod]) -> Trouble | None:
        ours = {pod.document["metadata"]["name"] for pod in primary}
        helpers = [pod.document for name, pod in self._pods.items() if name not in ours and not pod.gone]
        return helper_trouble(helpers, now_s=self._server_s)

    def _without_pod(self, warnings: Warnings, now: float) -> Trouble | None:
        document, kind = self.document or {}, self._rules.kind
        found = event_trouble(warnings(self.job.name)) or suspension(document, kind)
        if found is not None or document.get("status") or now - self._submitted_at < NOT_TAKEN_UP_S:
            return found
        told = f"nobody takes up its {kind}: see whether the operator of that kind runs"
        return Trouble("NotTakenUp", told, UNCLAIMED_S)

    def _late(self, now: float) -> Trouble | None:
        """A deadline that the workload's kind does not keep itself, or only with the time for its output."""
        keeps = self._rules.kind in KEEPS_DEADLINE and not has_sidecar(self.document or {})
        if keeps or self._deadline_at is None or now < self._deadline_at:
            return None
        return Trouble("DeadlineExceeded", "", 0.0)


def _sets_backoff(document: Document) -> bool:
    """Whether a workload of the training operator says how often its containers may be restarted."""
    return ((document.get("spec") or {}).get("runPolicy") or {}).get("backoffLimit") is not None


def _age_s(document: Document, server_s: float) -> float:
    """Seconds since the server created an object; 0 for one that it has not told of."""
    created = _seconds(str((document.get("metadata") or {}).get("creationTimestamp") or ""))
    return 0.0 if created is None else server_s - created


def _seconds(text: str) -> float | None:
    """Seconds since 1970 of an RFC 3339 time; None for ""."""
    return datetime.fromisoformat(text).timestamp() if text else None
