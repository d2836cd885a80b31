"""The report as Markdown, for viewers that show no HTML, such as the Markdown card of the Kubeflow Pipelines UI."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain, islice

from hpo_core.experiment import Experiment
from hpo_core.report.rows import (
    TrialRow,
    condition_text,
    duration_text,
    metric_value,
    number_text,
    parameter_texts,
    printable,
    value_text,
)
from hpo_core.report.summary import Summary, reason_text
from hpo_core.status import Verdict
from hpo_core.trial import Trial

MOST_ROWS = 50
_MESSAGE_LENGTH = 160
# An underscore inside a word means nothing to Markdown and is left readable.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&$#!]|(?<!\w)_|_(?!\w)")


def markdown(experiment: Experiment, trials: Iterable[Trial], verdict: Verdict) -> str:
    """Write a short summary: the verdict, the best trial, and a table of at most 50 trials, best first.

    Args:
        experiment: What was asked for.
        trials: All of its trials, in any order.
        verdict: Where it stands.
    """
    summary = Summary.of(experiment, trials, verdict)
    parts = [*_head(summary), *_best(summary), *_table(summary)]
    return "\n\n".join(parts) + "\n"


def _head(summary: Summary) -> list[str]:
    counts = ", ".join(f"{count} {condition_text(condition).lower()}" for condition, count in summary.counts.items())
    objective = summary.experiment.objective
    goal = f", goal {summary.goal}" if summary.goal else ""
    return [
        f"# {_text(summary.experiment.name)}",
        f"**{summary.verdict.condition}**: {_text(summary.sentence)}",
        f"Trials: {counts or 'none'}. Objective: {objective.type} {_text(summary.metric)}{_text(goal)}. "
        f"Algorithm: {_text(summary.experiment.algorithm.name)}.",
    ]


def _best(summary: Summary) -> list[str]:
    best = summary.best
    if best is None:
        return ["## No best trial", *[_text(line) for line in (summary.why_none, *summary.reasons)]]
    values = parameter_texts(summary.experiment, best)
    return [
        f"## Best trial: {_text(summary.metric)} = {number_text(best.objective)}",
        f"Trial {best.number}, {_text(best.name)}",
        _lines(("Parameter", "Value"), [(name, value) for name, value in values.items()]),
    ]


def _table(summary: Summary) -> list[str]:
    if not summary.trials:
        return []
    objective, names = summary.experiment.objective, [p.name for p in summary.experiment.parameters]
    header = ("Trial", "Condition", *objective.metric_names, *names, "Duration", "Reason")
    unvalued = (place for place, value in enumerate(summary.values) if value is None)
    shown = summary.rows(islice(chain(summary.ranking, unvalued), MOST_ROWS))
    cells = [
        (
            f"{row.number} (best)" if row.is_best else str(row.number),
            condition_text(row.condition),
            *(number_text(metric_value(objective, name, row)) for name in objective.metric_names),
            *(value_text(row.parameters.get(name)) for name in names),
            duration_text(row.duration_s),
            _reason(row),
        )
        for row in shown
    ]
    left_out = len(summary.trials) - len(shown)
    note = f"The best {len(shown)} of {len(summary.trials)} trials; {left_out} are left out." if left_out else ""
    return ["## Trials", *([note] if note else []), _lines(header, cells)]


def _reason(row: TrialRow) -> str:
    message = " ".join(row.message.split())
    short = message if len(message) <= _MESSAGE_LENGTH else f"{message[: _MESSAGE_LENGTH - 1]}…"
    return ": ".join(part for part in (reason_text(row), short) if part)


def _lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head, *body = ([_text(cell) for cell in cells] for cells in (header, *rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))


def _text(text: str) -> str:
    """Write a text so that it stays on its line and nothing in it is taken for Markdown."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(printable(text).split()))
