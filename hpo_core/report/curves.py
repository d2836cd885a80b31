"""A metric's reports within a trial: how a trial's stored reports become curves, and whose curves the page shows.

Where the reports are stored is `store`'s part, drawing the curves that of the page.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hpo_core.experiment import Experiment, ObjectiveType
from hpo_core.report.rows import objective_value
from hpo_core.trial import Trial, TrialCondition

MOST_CURVES = 100
"""Trials whose curves the page shows."""
MOST_POINTS = 60
"""Points of one curve; a screen shows no more of them."""
_POINTS_IN_ALL = 24_000


@dataclass(frozen=True)
class Curve:
    """One metric's reports in one trial, in their order.

    Attributes:
        indexes: Which report each value is, counted from 1 among this metric's reports; ascending.
        values: What was reported, as many as `indexes`; all finite.
    """

    indexes: tuple[int, ...]
    values: tuple[float, ...]

    def thinned(self, most: int) -> Curve:
        """Return at most so many points, evenly chosen, the first and the last always among them."""
        kept = spread(len(self.indexes), most)
        return Curve(tuple(self.indexes[i] for i in kept), tuple(self.values[i] for i in kept))


def read_curves(lines: str, *, most: int = MOST_POINTS) -> dict[str, Curve]:
    """Read the curves of a trial from its stored reports.

    Args:
        lines: One JSON object a line, as `MetricPoint.to_json` writes it. A line that is none is skipped; a value that
            is not finite is skipped too, but counted as a report.
        most: Points of one curve at most, 2 or more.

    Returns:
        A curve for each metric with a finite value, by name; empty when there is none.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    counts: dict[str, int] = {}
    for line in lines.splitlines():
        point = _point(line)
        if point is None:
            continue
        name, value = point
        counts[name] = counts.get(name, 0) + 1
        if math.isfinite(value):
            indexes, values = found.setdefault(name, ([], []))
            indexes.append(counts[name])
            values.append(value)
    return {name: Curve(tuple(indexes), tuple(values)).thinned(most) for name, (indexes, values) in found.items()}


def curve_numbers(experiment: Experiment, trials: Iterable[Trial]) -> list[int]:
    """Choose the trials whose curves the page shows: those that run now, at most half of all, and the best ones.

    Args:
        experiment: Says which values are good.
        trials: All of its trials, in any order.

    Returns:
        At most 100 numbers, ascending; empty when no trial runs or has a value.
    """
    sign = 1 if experiment.objective.type is ObjectiveType.MINIMIZE else -1
    running, valued = [], []
    for trial in trials:
        if trial.condition is TrialCondition.RUNNING:
            running.append(trial.number)
        elif (value := objective_value(experiment.objective, trial)) is not None:
            valued.append((sign * value, trial.number))
    chosen = heapq.nlargest(MOST_CURVES // 2, running)
    chosen += [number for _, number in heapq.nsmallest(MOST_CURVES - len(chosen), valued)]
    return sorted(chosen)


def shown_curves(
    experiment: Experiment, trials: Sequence[Trial], curves: Mapping[int, Mapping[str, Curve]]
) -> dict[int, dict[str, Curve]]:
    """Return what the page draws: by trial, the curves of the experiment's metrics that have two points or more."""
    if not curves:
        return {}
    found = {
        number: {
            name: curve
            for name in experiment.objective.metric_names
            if (curve := curves[number].get(name)) and len(curve.indexes) > 1
        }
        for number in curve_numbers(experiment, trials)
        if number in curves
    }
    most = max(_POINTS_IN_ALL // max(sum(map(len, found.values())), 1), 10)
    return {
        number: {name: curve.thinned(most) for name, curve in by_name.items()}
        for number, by_name in found.items()
        if by_name
    }


def spread(count: int, most: int) -> list[int]:
    """Choose at most `most` of `count` places evenly, from 0, first and last among them; `most` is 2 or more."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _point(line: str) -> tuple[str, float] | None:
    """Name and value of a line; None when it is no report."""
    try:
        record = json.loads(line)
        name, value = record["name"], float(record["value"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return (name, value) if isinstance(name, str) else None
