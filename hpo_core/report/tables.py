"""Tables for machines: trials as CSV and JSON, and the best assignment.

Their columns are a contract with whoever reads them; the tables for people are in `page` and `markdown`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from typing import Any

from hpo_core.experiment import Experiment
from hpo_core.report.rows import TrialRow, best_row, parameter_texts, printable, trial_rows
from hpo_core.space import Value
from hpo_core.trial import MetricSummary, Trial

_FORMULA_STARTS = ("=", "+", "-", "@", "\t")


def trials_csv(experiment: Experiment, trials: Iterable[Trial]) -> str:
    """Write a row per trial, ordered by number, with a header line.

    Metrics are the columns `metric.NAME.min`, `.max` and `.latest`, parameters `parameter.NAME` with the texts of the
    trial's command line. A missing value is empty. A text that a spreadsheet would take for a formula gets an
    apostrophe in front.
    """
    rows = [_flat(experiment, row) for row in trial_rows(experiment, trials)]
    out = io.StringIO()
    writer = csv.DictWriter(out, _columns(experiment), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _guarded(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def trials_json(experiment: Experiment, trials: Iterable[Trial]) -> str:
    """Write a JSON list with an object per trial, ordered by number; a number that is not finite becomes null."""
    rows = [_document(row) for row in trial_rows(experiment, trials)]
    return json.dumps(rows, indent=2, allow_nan=False) + "\n"


def best_parameters(experiment: Experiment, trials: Iterable[Trial]) -> dict[str, Value]:
    """Return the best trial's values by parameter name, whole numbers as int; empty when no trial has a value."""
    best = best_row(trial_rows(experiment, trials))
    return dict(best.parameters) if best else {}


def finite(value: float | None) -> float | None:
    """Return the number, or None when JSON has no way to write it."""
    return value if value is not None and math.isfinite(value) else None


def _document(row: TrialRow) -> dict[str, Any]:
    return {
        "number": row.number,
        "name": row.name,
        "condition": row.condition,
        "reason": row.reason,
        "message": row.message,
        "objective": row.objective,
        "metrics": {name: {k: finite(v) for k, v in _parts(m).items()} for name, m in row.metrics.items()},
        "parameters": {n: v if isinstance(v, str) else finite(v) for n, v in row.parameters.items()},
        "started": row.started,
        "completed": row.completed,
        "durationSeconds": row.duration_s,
    }


def _parts(summary: MetricSummary) -> dict[str, float]:
    return {"min": summary.minimum, "max": summary.maximum, "latest": summary.latest}


def _columns(experiment: Experiment) -> list[str]:
    metrics = [
        f"metric.{name}.{part}" for name in experiment.objective.metric_names for part in ("min", "max", "latest")
    ]
    parameters = [f"parameter.{parameter.name}" for parameter in experiment.parameters]
    head = ["number", "name", "condition", "reason", "message", "objective"]
    return [printable(name) for name in (*head, *metrics, *parameters, "started", "completed", "durationSeconds")]


def _flat(experiment: Experiment, row: TrialRow) -> dict[str, object]:
    flat: dict[str, object] = {k: v for k, v in _document(row).items() if k not in ("metrics", "parameters")}
    for name in experiment.objective.metric_names:
        if name in row.metrics:
            flat |= {printable(f"metric.{name}.{part}"): v for part, v in _parts(row.metrics[name]).items()}
    flat |= {printable(f"parameter.{name}"): text for name, text in parameter_texts(experiment, row).items()}
    return flat


def _guarded(value: object) -> object:
    if not isinstance(value, str) or not value.startswith(_FORMULA_STARTS) or _is_number(value):
        return printable(value) if isinstance(value, str) else value
    return f"'{printable(value)}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
