"""Where an experiment stands: a fold over its trials, the verdict that follows, and Katib's status schema.

All of it can be computed again from the trials' records, in any order; nothing here is a second truth. It stands beside
`trial` and not in it, because judging many trials is another thing than one trial's legal moves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hpo_core.errors import Problem, SpecError
from hpo_core.experiment import with_budgets
from hpo_core.experiment.model import Experiment, Objective
from hpo_core.space import Value
from hpo_core.trial import Observation, Trial, TrialCondition

_LISTS = {
    TrialCondition.RUNNING: "runningTrialList",
    TrialCondition.CREATED: "pendingTrialList",
    TrialCondition.FAILED: "failedTrialList",
    TrialCondition.SUCCEEDED: "succeededTrialList",
    TrialCondition.KILLED: "killedTrialList",
    TrialCondition.EARLY_STOPPED: "earlyStoppedTrialList",
    TrialCondition.METRICS_UNAVAILABLE: "metricsUnavailableTrialList",
}
_COUNTS = {
    TrialCondition.RUNNING: "trialsRunning",
    TrialCondition.CREATED: "trialsPending",
    TrialCondition.FAILED: "trialsFailed",
    TrialCondition.SUCCEEDED: "trialsSucceeded",
    TrialCondition.KILLED: "trialsKilled",
    TrialCondition.EARLY_STOPPED: "trialsEarlyStopped",
    TrialCondition.METRICS_UNAVAILABLE: "trialMetricsUnavailable",
}


class ExperimentCondition(StrEnum):
    """Katib's experiment conditions that a run can be in, and `Suspended`, which is ours."""

    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def is_terminal(self) -> bool:
        """Whether no further trial will be started without a change of the budget."""
        return self in (ExperimentCondition.SUCCEEDED, ExperimentCondition.FAILED)


@dataclass(frozen=True)
class Verdict:
    """What the trials say about the experiment."""

    condition: ExperimentCondition
    reason: str
    message: str


RUNNING = Verdict(ExperimentCondition.RUNNING, "ExperimentRunning", "Experiment is running")
SUSPENDED = Verdict(
    ExperimentCondition.SUSPENDED, "ExperimentSuspended", "Experiment was stopped; `hpo run` or `hpo launch` goes on"
)
GOAL_REACHED = Verdict(
    ExperimentCondition.SUCCEEDED,
    "ExperimentGoalReached",
    "Experiment has succeeded because Objective goal has reached",
)
MAX_TRIALS_REACHED = Verdict(
    ExperimentCondition.SUCCEEDED,
    "ExperimentMaxTrialsReached",
    "Experiment has succeeded because max trial count has reached",
)
SUGGESTIONS_EXHAUSTED = Verdict(
    ExperimentCondition.SUCCEEDED,
    "ExperimentSuggestionEndReached",
    "Experiment has succeeded because suggestion service has reached the end",
)
TOO_MANY_FAILED = Verdict(
    ExperimentCondition.FAILED, "ExperimentFailed", "Experiment has failed because max failed count has reached"
)


@dataclass
class Tally:
    """Running count of an experiment's trials and the best of them, folded trial by trial.

    Attributes:
        counts: Number of trials in each condition.
        best: The best trial that observed a finite value; of equal ones the first by number.
        best_value: Its objective value.
    """

    objective: Objective
    counts: dict[TrialCondition, int] = field(default_factory=lambda: dict.fromkeys(TrialCondition, 0))
    best: Trial | None = None
    best_value: float | None = None

    @classmethod
    def of(cls, objective: Objective, trials: Iterable[Trial]) -> Tally:
        """Compute the tally from the trials alone; equal to having folded them one change at a time."""
        tally = cls(objective)
        for trial in trials:
            tally.fold(None, trial)
        return tally

    def fold(self, before: Trial | None, after: Trial) -> None:
        """Take in one change of one trial.

        Args:
            before: The trial as it was taken in last; None for a new one.
            after: The trial as it is now.
        """
        if before is not None:
            self.counts[before.condition] -= 1
        self.counts[after.condition] += 1
        value = after.observation.value(self.objective) if after.observation else None
        if value is not None and math.isfinite(value) and after.condition.is_terminal:
            self._challenge(after, value)

    def _challenge(self, trial: Trial, value: float) -> None:
        if self.best is None or self.best_value is None:
            wins = True
        elif value == self.best_value:
            wins = trial.number < self.best.number
        else:
            wins = self.objective.is_better(value, self.best_value)
        if wins:
            self.best, self.best_value = trial, value

    @property
    def total(self) -> int:
        """Trials that were ever created."""
        return sum(self.counts.values())

    @property
    def completed(self) -> int:
        """Trials in a terminal condition."""
        return sum(count for condition, count in self.counts.items() if condition.is_terminal)

    @property
    def active(self) -> int:
        """Trials that are waiting or running."""
        return self.total - self.completed

    @property
    def failed(self) -> int:
        """Trials that count against `maxFailedTrialCount`: failed, or ended without the objective metric."""
        return self.counts[TrialCondition.FAILED] + self.counts[TrialCondition.METRICS_UNAVAILABLE]


def judge(experiment: Experiment, tally: Tally, *, exhausted: bool = False) -> Verdict:
    """Tell where the experiment stands, in Katib's order: goal, failures, budget.

    Args:
        experiment: Its budgets and goal.
        tally: Its trials.
        exhausted: Whether the search has nothing more to suggest, ever.
    """
    if tally.best_value is not None and experiment.objective.is_reached(tally.best_value):
        return GOAL_REACHED
    most_failed = experiment.max_failed_trial_count
    if most_failed is not None and tally.failed and tally.failed >= most_failed:
        return TOO_MANY_FAILED
    if experiment.max_trial_count is not None and tally.completed >= experiment.max_trial_count:
        return MAX_TRIALS_REACHED
    if exhausted and not tally.active:
        return SUGGESTIONS_EXHAUSTED
    return RUNNING


def edit_budgets(experiment: Experiment, budgets: Mapping[str, int], *, completed: int) -> Experiment:
    """Return an experiment with other budgets, by their names in the spec, after so many of its trials are over.

    Raises:
        SpecError: They make no sense, alone, together or by now; it lists every problem.
    """
    edited = with_budgets(experiment, budgets)
    most = budgets.get("maxTrialCount")
    if most is not None and most < completed:
        advice = f"`hpo stop {experiment.name}` suspends the experiment"
        message = f"must be at least {completed}, since so many trials are over, got {most}; {advice}"
        raise SpecError([Problem("spec.maxTrialCount", message)])
    return edited


def wanted(experiment: Experiment, tally: Tally) -> int:
    """Tell how many trials may be started now."""
    most = experiment.parallel_trial_count
    if experiment.max_trial_count is not None:
        most = min(most, experiment.max_trial_count - tally.completed)
    return max(most - tally.active, 0)


@dataclass(frozen=True)
class Progress:
    """How far an experiment is, for people.

    Attributes:
        completed: Trials that are over.
        running: Trials that run now.
        failed: Trials over without a result.
        total: Trials in all; None where nothing bounds them.
        metric: Name of the objective metric.
        best_value: The best objective value so far; None before the first.
        best: The assignment that gave it, as texts by parameter name.
        seconds_left: Estimate from the mean duration of the trials so far; None when nothing is known.
    """

    completed: int
    running: int
    failed: int
    total: int | None
    metric: str
    best_value: float | None = None
    best: Mapping[str, str] = field(default_factory=dict)
    seconds_left: float | None = None

    def line(self) -> str:
        """Tell it in one line."""
        parts = [f"{self.completed}/{self.total or '?'} trials done", f"{self.running} running"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.best_value is None:
            parts.append("no result yet")
        else:
            shown = " ".join(f"{name}={_short(text)}" for name, text in self.best.items())
            parts.append(f"best {self.metric}={self.best_value:.6g} ({shown})")
        if self.seconds_left is not None and self.completed != self.total:
            parts.append(f"about {duration_text(self.seconds_left)} left")
        return ", ".join(parts)


def progress(experiment: Experiment, tally: Tally, mean_trial_s: float | None) -> Progress:
    """Tell how far an experiment is.

    Args:
        experiment: Its budget and search space.
        tally: Its trials.
        mean_trial_s: Mean duration of the trials that are over, in seconds; None before the first.
    """
    total = experiment.max_trial_count
    best = parameter_assignments(experiment, tally.best.assignments) if tally.best else []
    left = None
    if total is not None and mean_trial_s is not None:
        left = mean_trial_s * -(-(total - tally.completed) // experiment.parallel_trial_count)
    return Progress(
        completed=tally.completed,
        running=tally.counts[TrialCondition.RUNNING],
        failed=tally.failed,
        total=total,
        metric=experiment.objective.metric_name,
        best_value=tally.best_value,
        best={item["name"]: item["value"] for item in best},
        seconds_left=left,
    )


def duration_text(seconds: float) -> str:
    """Tell a time span in words short enough for a line: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _short(text: str) -> str:
    """A value as a progress line shows it: numbers to five digits."""
    try:
        return f"{float(text):.5g}"
    except ValueError:
        return text


def katib_status(experiment: Experiment, trials: Sequence[Trial], verdict: Verdict, *, now: str) -> dict[str, Any]:
    """Write the status as Katib's Experiment shows it.

    Args:
        experiment: As accepted, with its creation time.
        trials: All of them, in order.
        verdict: Where it stands.
        now: RFC 3339, for a condition that has no trial's time to show.
    """
    tally = Tally.of(experiment.objective, trials)
    ended = max((trial.completed for trial in trials), default="") or now
    status: dict[str, Any] = {
        "startTime": experiment.created,
        "conditions": _conditions(experiment, verdict, ended if verdict.condition.is_terminal else now),
    }
    if verdict.condition.is_terminal:
        status["completionTime"] = ended
    if tally.best is not None and tally.best.observation is not None:
        status["currentOptimalTrial"] = {
            "bestTrialName": tally.best.name,
            "parameterAssignments": parameter_assignments(experiment, tally.best.assignments),
            "observation": {"metrics": _metrics(tally.best.observation)},
        }
    for condition, key in _LISTS.items():
        names = [trial.name for trial in trials if trial.condition is condition]
        if names:
            status[key] = names
    status["trials"] = len(trials)
    status.update({key: tally.counts[c] for c, key in _COUNTS.items() if tally.counts[c]})
    return status


def parameter_assignments(experiment: Experiment, values: Mapping[str, Value]) -> list[dict[str, str]]:
    """Write an assignment as Katib does: names and texts, in the order of the search space."""
    return [{"name": p.name, "value": p.format(values[p.name])} for p in experiment.parameters if p.name in values]


def _metrics(observation: Observation) -> list[dict[str, str]]:
    return [
        {"name": name, "min": str(summary.minimum), "max": str(summary.maximum), "latest": str(summary.latest)}
        for name, summary in observation.metrics.items()
    ]


def _conditions(experiment: Experiment, verdict: Verdict, when: str) -> list[dict[str, str]]:
    created = ("Created", "True", "ExperimentCreated", "Experiment is created", experiment.created)
    running = verdict.condition is ExperimentCondition.RUNNING
    shown = [
        created,
        ("Running", str(running), RUNNING.reason, RUNNING.message, experiment.created if running else when),
    ]
    if not running:
        shown.append((verdict.condition.value, "True", verdict.reason, verdict.message, when))
    return [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastUpdateTime": at,
            "lastTransitionTime": at,
        }
        for kind, status, reason, message, at in shown
    ]
