"""The table of all trials on the HTML page, complete without JavaScript; the scripts sort and filter it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from hpo_core.report.rows import (
    TrialRow,
    condition_text,
    duration_text,
    metric_value,
    number_text,
    printable,
    shown_strategy,
    value_text,
)
from hpo_core.report.summary import Summary, reason_text
from hpo_core.space import ParameterType
from hpo_core.trial import TrialCondition

_MESSAGE_LENGTH = 400


def table(summary: Summary, places: Sequence[int]) -> str:
    """Write the section with a row for each trial that is shown, ordered by number; "" without trials.

    Args:
        summary: The experiment and its trials.
        places: The trials that are shown, ascending.
    """
    if not places:
        return ""
    rows = summary.rows(places)
    body = "".join(_row(row, summary) for row in rows)
    return (
        f'<section class="card" aria-labelledby="trials"><div class="head"><h2 id="trials">Trials</h2>{_controls(rows)}'
        '</div><div class="scroll" role="region" aria-labelledby="trials" tabindex="0">'
        f"<table>{_head(summary)}<tbody>{body}</tbody></table></div>"
        '<p class="none muted" hidden>No trial is left. <button type="button" data-clear>Show all</button></p>'
        "</section>"
    )


def _controls(rows: Sequence[TrialRow]) -> str:
    """What filters the table; the style sheet hides it where there is no JavaScript."""
    found = Counter(row.condition for row in rows)
    chips = "".join(
        f'<button type="button" class="c-{condition}" data-only="{condition}" aria-pressed="false">'
        f'<i class="dot"></i>{condition_text(condition)} <b>{found[condition]:,}</b></button>'
        for condition in TrialCondition
        if found[condition]
    )
    only = f'<div class="chips" role="group" aria-label="Only these conditions">{chips}</div>' if len(found) > 1 else ""
    return (
        f'<div class="controls">{only}<input type="search" aria-label="Filter by any text" '
        'placeholder="Filter by any text" autocomplete="off" spellcheck="false">'
        '<p class="count" data-count="shown"></p>'
        '<button type="button" class="clear" data-clear hidden>Show all</button></div>'
    )


def _head(summary: Summary) -> str:
    experiment, objective = summary.experiment, summary.experiment.objective
    metrics = "".join(
        _column(name, number=True, hint=shown_strategy(objective, name)) for name in objective.metric_names
    )
    parameters = "".join(_column(p.name, number=p.type is not ParameterType.CATEGORICAL) for p in experiment.parameters)
    spans = (
        f'<td colspan="2"></td><th scope="colgroup" colspan="{len(objective.metric_names)}">Metrics</th>'
        f'<th scope="colgroup" colspan="{len(experiment.parameters)}">Parameters</th><td colspan="3"></td>'
    )
    first = _column("Trial", number=True, order="ascending") + _column("Condition")
    last = _column("Duration", number=True) + _column("Reason") + _column("Name")
    return f'<thead><tr class="groups">{spans}</tr><tr class="columns">{first}{metrics}{parameters}{last}</tr></thead>'


def _column(name: str, *, number: bool = False, hint: str = "", order: str = "none") -> str:
    kind = ' class="n"' if number else ""
    note = f" <small>{hint}</small>" if hint else ""
    return f'<th scope="col"{kind} aria-sort="{order}"><span>{escape(printable(name))}</span>{note}</th>'


def _row(row: TrialRow, summary: Summary) -> str:
    objective, parameters = summary.experiment.objective, summary.experiment.parameters
    badge = '<em class="badge">best</em> ' if row.is_best else ""
    kind = ' class="is-best"' if row.is_best else ""
    metrics = "".join(_number(metric_value(objective, name, row)) for name in objective.metric_names)
    values = "".join(
        f"<td>{escape(value_text(row.parameters.get(p.name)))}</td>"
        if p.type is ParameterType.CATEGORICAL
        else _value(row.parameters.get(p.name))
        for p in parameters
    )
    return (
        f'<tr data-trial="{row.number}"{kind}><th scope="row" class="n" data-v="{row.number}">{badge}{row.number}</th>'
        f'<td class="c-{row.condition}"><i class="dot"></i>{condition_text(row.condition)}</td>{metrics}{values}'
        f'<td class="n" data-v="{number_text(row.duration_s)}">{duration_text(row.duration_s)}</td>'
        f"{_reason(row)}<td><code>{escape(row.name)}</code></td></tr>\n"
    )


def _value(value: object) -> str:
    return _number(value if isinstance(value, int | float) else None)


def _number(value: float | None) -> str:
    return f'<td class="n">{number_text(value)}</td>'


def _reason(row: TrialRow) -> str:
    reason = f"<b>{escape(reason_text(row))}</b> " if reason_text(row) else ""
    return f'<td class="why">{reason}{escape(_shortened(row.message))}</td>'


def _shortened(message: str) -> str:
    """Keep a long message's end, where a log tells what went wrong; trials.json has all of it."""
    return message if len(message) <= _MESSAGE_LENGTH else f"… {message[-_MESSAGE_LENGTH:]}"
