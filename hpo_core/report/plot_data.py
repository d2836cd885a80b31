"""What the page's plots need, as one JSON text that is safe inside a script element.

Every decision is made here (which value is best, which axis is logarithmic); `page.js` only draws.
"""

from __future__ import annotations

import json
from typing import Any

from hpo_core.experiment import Objective, ObjectiveType
from hpo_core.report.rows import TrialRow, condition_text, metric_value, printable
from hpo_core.report.summary import Summary
from hpo_core.report.tables import finite
from hpo_core.space import Distribution, ParameterSpec, ParameterType, Value
from hpo_core.trial import TrialCondition

# A script element ends at its first end tag, and `<!--` changes how it is read; the other two are for good measure.
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}


def plot_data(summary: Summary) -> str:
    """Write the plots' data; ASCII only, without any `<`, `>` or `&`, every number finite."""
    experiment = summary.experiment
    objective = experiment.objective
    document = {
        "objective": {
            "name": summary.metric,
            "goal": objective.goal,
            "minimize": objective.type is ObjectiveType.MINIMIZE,
        },
        "metrics": [printable(name) for name in objective.additional_metric_names],
        "parameters": [_axis(parameter) for parameter in experiment.parameters],
        "conditions": {condition.value: condition_text(condition) for condition in TrialCondition},
        "best": summary.best.number if summary.best else None,
        "bestSoFar": _best_so_far(objective, summary.rows),
        "trials": [_trial(row, summary) for row in summary.rows],
    }
    return json.dumps(document, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _axis(parameter: ParameterSpec) -> dict[str, Any]:
    if parameter.is_list:
        return {"name": printable(parameter.name), "items": [printable(item) for item in parameter.space.items]}
    return {
        "name": printable(parameter.name),
        "minimum": parameter.space.minimum,
        "maximum": parameter.space.maximum,
        "log": parameter.space.distribution in (Distribution.LOG_UNIFORM, Distribution.LOG_NORMAL),
        "integer": parameter.type is ParameterType.INT,
    }


def _trial(row: TrialRow, summary: Summary) -> dict[str, Any]:
    experiment = summary.experiment
    return {
        "number": row.number,
        "condition": row.condition,
        "reason": row.reason,
        "objective": row.objective,
        "metrics": [
            finite(metric_value(experiment.objective, name, row))
            for name in experiment.objective.additional_metric_names
        ],
        "parameters": [_place(parameter, row.parameters.get(parameter.name)) for parameter in experiment.parameters],
    }


def _place(parameter: ParameterSpec, value: Value | None) -> Value | None:
    """The value as its axis knows it: an item's text on a list, a number on a range."""
    if value is None:
        return None
    if parameter.is_list:
        return printable(parameter.format(value))
    return printable(value) if isinstance(value, str) else finite(value)


def _best_so_far(objective: Objective, rows: tuple[TrialRow, ...]) -> list[float | None]:
    """The best value among each trial and those before it; None before the first one."""
    best: float | None = None
    reached = []
    for row in rows:
        if row.condition.is_terminal and row.objective is not None:
            best = row.objective if best is None or objective.is_better(row.objective, best) else best
        reached.append(best)
    return reached
