"""One flat row per trial, and how numbers and times are written for people; every table of the package starts here.

Which trial is best is `status`'s decision; laying a row out on a page, in Markdown or in CSV is its neighbours' part.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from hpo_core.experiment import Experiment, MetricStrategy, Objective
from hpo_core.space import Value
from hpo_core.status import Tally
from hpo_core.trial import MetricSummary, Observation, Trial, TrialCondition

# Colour codes of a terminal, and what no document may hold: control characters and halves of surrogate pairs.
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_WORD_START = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class TrialRow:
    """What the tables tell of one trial.

    Attributes:
        number: From 1, in the order of asking.
        name: Name of its last workload.
        condition: Where it stands.
        reason: Why, in one word in CamelCase.
        message: Why, in a sentence or the last lines of its log; printable.
        objective: The value by which it is judged; None when there is none, or none that is finite.
        metrics: What it reported, by metric name; empty before its end.
        parameters: Typed values by parameter name, in the order of the search space.
        started: When it was first seen running, RFC 3339 in UTC; "" before.
        completed: When it ended; "" before.
        duration_s: Seconds between the two; None before its end.
        is_best: Whether this is the best trial so far; true of one row at most.
    """

    number: int
    name: str
    condition: TrialCondition
    reason: str
    message: str
    objective: float | None
    metrics: Mapping[str, MetricSummary]
    parameters: Mapping[str, Value]
    started: str
    completed: str
    duration_s: float | None
    is_best: bool


def trial_rows(experiment: Experiment, trials: Iterable[Trial]) -> tuple[TrialRow, ...]:
    """Return a row for each trial, ordered by number."""
    ordered = sorted(trials, key=lambda trial: trial.number)
    best = Tally.of(experiment.objective, ordered).best
    return tuple(trial_row(experiment, trial, is_best=trial is best) for trial in ordered)


def trial_row(experiment: Experiment, trial: Trial, *, is_best: bool) -> TrialRow:
    """Return the row of one trial."""
    return TrialRow(
        number=trial.number,
        name=printable(trial.name),
        condition=trial.condition,
        reason=printable(trial.reason),
        message=printable(trial.message),
        objective=objective_value(experiment.objective, trial),
        metrics=dict(trial.observation.metrics) if trial.observation else {},
        parameters={p.name: trial.assignments[p.name] for p in experiment.parameters if p.name in trial.assignments},
        started=trial.started,
        completed=trial.completed,
        duration_s=seconds_between(trial.started, trial.completed),
        is_best=is_best,
    )


def best_row(rows: Iterable[TrialRow]) -> TrialRow | None:
    """Return the best trial's row; None when no trial has a value yet."""
    return next((row for row in rows if row.is_best), None)


def metric_value(objective: Objective, name: str, row: TrialRow) -> float | None:
    """Return the one value of a metric that a table shows: the user's choice, else for an additional metric its latest.

    Args:
        objective: Says which metrics there are and which of their values count.
        name: The metric.
        row: The trial; None comes back when it never reported the metric.
    """
    if name not in row.metrics:
        return None
    chosen = Objective(objective.type, name, strategies={name: shown_strategy(objective, name)})
    return Observation(row.metrics).value(chosen)


def shown_strategy(objective: Objective, name: str) -> MetricStrategy:
    """Tell which of a metric's values a table shows; the smallest accuracy, say, only for those who asked for it."""
    if name == objective.metric_name:
        return objective.strategy(name)
    return objective.strategies.get(name, MetricStrategy.LATEST)


def objective_value(objective: Objective, trial: Trial) -> float | None:
    """Return the value by which a trial is judged; None when there is none, or none that is finite."""
    value = trial.observation.value(objective) if trial.observation else None
    return value if value is not None and math.isfinite(value) else None


def parameter_texts(experiment: Experiment, row: TrialRow) -> dict[str, str]:
    """Write a trial's values exactly, as its command line shows them, in the order of the search space."""
    return {p.name: p.format(row.parameters[p.name]) for p in experiment.parameters if p.name in row.parameters}


def condition_text(condition: TrialCondition) -> str:
    """Write a condition for people: `Metrics unavailable`."""
    return _WORD_START.sub(" ", condition.value).capitalize()


def number_text(value: float | None) -> str:
    """Write a number with six significant digits, whole ones and millions in full; "" for None."""
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    if 1e6 <= abs(value) < 1e15:
        return f"{value:.0f}"
    return f"{value:.6g}" if math.isfinite(value) else str(value)


def value_text(value: Value | None) -> str:
    """Write a parameter's value for a table: text as it is, a number as `number_text` does; "" for None."""
    return printable(value) if isinstance(value, str) else number_text(value)


def duration_text(duration_s: float | None) -> str:
    """Write a time span in its two largest units; "" for None."""
    if duration_s is None:
        return ""
    if duration_s < 10:
        return f"{duration_s:.2g} s"
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next(index for index, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count)


def printable(text: str) -> str:
    """Return a text without terminal codes, and with a mark for each character that no document may hold."""
    return _UNPRINTABLE.sub("\ufffd", _TERMINAL_CODE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def seconds_between(started: str, completed: str) -> float | None:
    """Count the seconds between two RFC 3339 texts; None when one of them is missing or no time."""
    try:
        return max((datetime.fromisoformat(completed) - datetime.fromisoformat(started)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
