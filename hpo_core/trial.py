"""One trial: its assignment, its attempts, its condition and what it observed, as frozen data with legal moves.

A trial that reached a terminal condition never changes again. Counting trials and judging the experiment is `status`'s
part, storing them `store`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from hpo_core.experiment.model import Experiment, MetricStrategy, Objective
from hpo_core.space import Value

SCHEMA_VERSION = 1
NAME_LENGTH = 50
"""Longest trial name: 63 characters less the longest suffix that a workload kind puts behind it."""


class TrialCondition(StrEnum):
    """Katib's trial conditions."""

    CREATED = "Created"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    KILLED = "Killed"
    EARLY_STOPPED = "EarlyStopped"
    METRICS_UNAVAILABLE = "MetricsUnavailable"

    @property
    def is_terminal(self) -> bool:
        """Whether a trial in this condition never changes again."""
        return self not in (TrialCondition.CREATED, TrialCondition.RUNNING)


@dataclass(frozen=True)
class Assignment:
    """What a search asks to be tried.

    Attributes:
        values: One value for each parameter, by parameter name.
        labels: What the search wants to find again on the trial, such as a generation or a rung.
    """

    values: Mapping[str, Value]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricSummary:
    """The reports of one metric of one trial; only finite values are told by `minimum` and `maximum`."""

    latest: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Observation:
    """What a trial reported, by metric name; a metric that it never reported is absent."""

    metrics: Mapping[str, MetricSummary] = field(default_factory=dict)

    def value(self, objective: Objective) -> float | None:
        """Return the value by which the trial is judged; None when the objective was not reported."""
        summary = self.metrics.get(objective.metric_name)
        if summary is None:
            return None
        return {
            MetricStrategy.MIN: summary.minimum,
            MetricStrategy.MAX: summary.maximum,
            MetricStrategy.LATEST: summary.latest,
        }[objective.strategy(objective.metric_name)]


@dataclass(frozen=True)
class StopRequest:
    """Why a running trial is being stopped; it decides the trial's condition whatever the exit code.

    Attributes:
        condition: What the trial becomes: Killed or EarlyStopped; Created for an attempt that is only interrupted.
        reason: One word in CamelCase.
        message: The same in a sentence.
        rule: The stop rule that fired, "" when a person or the end of the experiment stopped it.
        step: The report at which the rule fired, None without a rule.
    """

    condition: TrialCondition
    reason: str
    message: str = ""
    rule: str = ""
    step: int | None = None


@dataclass(frozen=True)
class Attempt:
    """One start of a trial's workload.

    Attributes:
        name: The workload's name.
        outcome: Why another attempt had to follow: `Interrupted` (uncounted) or `Lost`; "" for the current one.
        site: Where it was started, as its launcher calls that; only a launcher of the same site can find it again.
    """

    name: str
    outcome: str = ""
    site: str = ""


@dataclass(frozen=True)
class Trial:
    """One evaluation of one assignment.

    Attributes:
        number: From 1, in the order of asking; the order of everything.
        assignments: One value for each parameter, by parameter name.
        uid: Identity, follows from the experiment's uid and the number.
        labels: What the search attached.
        asked_after: How many trials had finished when this one was asked for.
        finished_seq: How many trials had finished when this one had; 0 while it is open.
        attempts: Every start of its workload, the current one last.
        stop_requested: Why it is being stopped; None when nobody asked.
        condition: Where it stands.
        reason: Why, in one word in CamelCase.
        message: Why, in a sentence that a person understands.
        observation: What it reported; None before its end.
        metrics_incomplete: Whether a part of what it printed could not be read, and may have held metrics.
        log_cursor: Bytes of its output that were read.
        started: When its first attempt was seen running, RFC 3339 in UTC; "" before.
        completed: When it reached its terminal condition; "" before.
    """

    number: int
    assignments: Mapping[str, Value]
    condition: TrialCondition = TrialCondition.CREATED
    observation: Observation | None = None
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    asked_after: int = 0
    finished_seq: int = 0
    attempts: tuple[Attempt, ...] = ()
    stop_requested: StopRequest | None = None
    reason: str = "TrialCreated"
    message: str = ""
    metrics_incomplete: bool = False
    log_cursor: int = 0
    created: str = ""
    started: str = ""
    completed: str = ""

    @property
    def name(self) -> str:
        """Name of the current attempt's workload, by which the trial is known outside."""
        return self.attempts[-1].name if self.attempts else ""

    @property
    def losses(self) -> int:
        """How many attempts were lost, which counts, unlike those that were interrupted."""
        return sum(attempt.outcome == "Lost" for attempt in self.attempts)

    def wait(self, reason: str, message: str) -> Trial:
        """Return the trial with what keeps it from running."""
        self._check_open()
        return replace(self, reason=reason, message=message)

    def run(self, now: str) -> Trial:
        """Return the trial as running; unchanged when it is."""
        self._check_open()
        started = self.started or now
        return replace(self, condition=TrialCondition.RUNNING, reason="TrialRunning", message="", started=started)

    def request_stop(self, request: StopRequest) -> Trial:
        """Return the trial with the wish to stop it; the first wish stays."""
        self._check_open()
        return self if self.stop_requested else replace(self, stop_requested=request)

    def resume(self) -> Trial:
        """Return the trial as a new tuner takes it over: the wish only to interrupt it was the earlier tuner's."""
        request = self.stop_requested
        return replace(self, stop_requested=None) if request and not request.condition.is_terminal else self

    def retry(self, experiment: Experiment, outcome: str, *, site: str = "", message: str = "") -> Trial:
        """Return the trial with a next attempt at a site, after the current one was `Interrupted` or `Lost`."""
        self._check_open()
        ended = replace(self.attempts[-1], outcome=outcome)
        following = Attempt(trial_name(experiment, self.number, len(self.attempts) + 1), site=site)
        return replace(
            self,
            condition=TrialCondition.CREATED,
            reason=f"Trial{outcome}",
            message=message,
            attempts=(*self.attempts[:-1], ended, following),
            stop_requested=self.resume().stop_requested,
            log_cursor=0,
        )

    def finish(
        self, verdict: TrialVerdict, *, finished_seq: int, log_cursor: int, now: str, metrics_incomplete: bool = False
    ) -> Trial:
        """Return the trial in its terminal condition."""
        self._check_open()
        if not verdict.condition.is_terminal:
            raise ValueError(f"trial {self.number} cannot end as {verdict.condition}")
        return replace(
            self,
            condition=verdict.condition,
            reason=verdict.reason,
            message=verdict.message,
            observation=verdict.observation,
            metrics_incomplete=metrics_incomplete,
            finished_seq=finished_seq,
            log_cursor=log_cursor,
            started=self.started or now,
            completed=now,
        )

    def _check_open(self) -> None:
        if self.condition.is_terminal:
            raise ValueError(f"trial {self.number} is {self.condition} and never changes again")


@dataclass(frozen=True)
class TrialVerdict:
    """How a trial ended: a terminal condition, why, and what it observed."""

    condition: TrialCondition
    reason: str
    message: str = ""
    observation: Observation | None = None


def create_trial(
    experiment: Experiment, number: int, assignment: Assignment, *, asked_after: int, now: str, site: str = ""
) -> Trial:
    """Make the trial of that number, with its first attempt named, for a site."""
    return Trial(
        number=number,
        assignments=dict(assignment.values),
        labels=dict(assignment.labels),
        uid=_digest(experiment.uid, number)[:32],
        asked_after=asked_after,
        attempts=(Attempt(trial_name(experiment, number, 1), site=site),),
        created=now,
    )


def trial_name(experiment: Experiment, number: int, attempt: int) -> str:
    """Name the workload of an attempt; another run of the same YAML has another uid and so other names."""
    suffix = _digest(experiment.uid, number, attempt)[:10]
    return f"{experiment.name[: NAME_LENGTH - len(suffix) - 1].rstrip('-')}-{suffix}"


def retrain_name(experiment: Experiment, count: int) -> str:
    """Name the workload of the experiment's n-th retraining."""
    suffix = f"retrain-{_digest(experiment.uid, 'retrain', count)[:6]}"
    return f"{experiment.name[: NAME_LENGTH - len(suffix) - 1].rstrip('-')}-{suffix}"


def _digest(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
