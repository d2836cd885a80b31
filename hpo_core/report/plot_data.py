"""What the page's plots need, as one JSON text that is safe inside a script element.

Every decision is made here (which value is best, which axis is logarithmic, which colour a trial has); the scripts
only draw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hpo_core.experiment import ObjectiveType
from hpo_core.report.curves import Curve
from hpo_core.report.rows import TrialRow, condition_text, printable
from hpo_core.report.summary import Summary
from hpo_core.report.tables import finite
from hpo_core.space import Distribution, ParameterSpec, ParameterType, Value
from hpo_core.trial import TrialCondition

SHADES = 8
"""Colours from the worst trials to the best ones; the better, the fewer trials have one, so that the best stand out."""
_CURVE_DIGITS = 5
# A script element ends at its first end tag, and `<!--` changes how it is read; the other two are for good measure.
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}


def plot_data(summary: Summary, places: Sequence[int], curves: Mapping[int, Mapping[str, Curve]]) -> str:
    """Write the plots' data; ASCII only, without any `<`, `>` or `&`, every number finite.

    Args:
        summary: The experiment and its trials.
        places: The trials that are shown, ascending.
        curves: The curves that are shown, by a trial's number and the metric's name; may be empty.
    """
    experiment = summary.experiment
    objective = experiment.objective
    shades = _shades(summary, places)
    document = {
        "objective": {
            "name": summary.metric,
            "goal": objective.goal,
            "minimize": objective.type is ObjectiveType.MINIMIZE,
        },
        "parameters": [_axis(parameter) for parameter in experiment.parameters],
        "conditions": {condition.value: condition_text(condition) for condition in TrialCondition},
        "best": summary.best.number if summary.best else None,
        "bestSoFar": [summary.best_so_far[place] for place in places],
        "trials": [
            _trial(row, experiment.parameters, shades.get(place))
            for place, row in zip(places, summary.rows(places), strict=True)
        ],
        "curves": {
            printable(name): [_curve(number, own[name]) for number, own in curves.items() if name in own]
            for name in curve_metrics(summary, curves)
        },
    }
    return json.dumps(document, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def curve_metrics(summary: Summary, curves: Mapping[int, Mapping[str, Curve]]) -> list[str]:
    """Name the metrics that have a curve, the objective first; empty when there is none."""
    return [name for name in summary.experiment.objective.metric_names if any(name in own for own in curves.values())]


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


def _trial(row: TrialRow, parameters: Sequence[ParameterSpec], shade: int | None) -> dict[str, Any]:
    return {
        "number": row.number,
        "condition": row.condition,
        "objective": row.objective,
        "shade": shade,
        "parameters": [_place(parameter, row.parameters.get(parameter.name)) for parameter in parameters],
    }


def _shades(summary: Summary, places: Sequence[int]) -> dict[int, int]:
    """Colour of each shown trial that has a value, by place: 7 for the best 1.6 %, 0 for the worst 23 %."""
    shown = set(places)
    ranked = [place for place in summary.ranking if place in shown]
    return {place: SHADES - 1 - int(SHADES * math.sqrt(rank / len(ranked))) for rank, place in enumerate(ranked)}


def _place(parameter: ParameterSpec, value: Value | None) -> Value | None:
    """The value as its axis knows it: an item's text on a list, a number on a range."""
    if value is None:
        return None
    if parameter.is_list:
        return printable(parameter.format(value))
    return printable(value) if isinstance(value, str) else finite(value)


def _curve(number: int, curve: Curve) -> dict[str, Any]:
    """A curve's points; which report each one is, is left out where it is every one from the first."""
    values = [float(f"{value:.{_CURVE_DIGITS}g}") for value in curve.values]
    if curve.indexes == tuple(range(1, len(values) + 1)):
        return {"trial": number, "values": values}
    return {"trial": number, "values": values, "indexes": curve.indexes}
