"""The table of all trials on the HTML page, complete without JavaScript; `page.js` adds the sorting."""

from __future__ import annotations

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

_MESSAGE_LENGTH = 400


def table(summary: Summary) -> str:
    """Write the section with a row per trial, ordered by number; without trials a sentence says so."""
    if not summary.rows:
        return ""
    body = "".join(_row(row, summary) for row in summary.rows)
    return (
        '<section class="card" aria-labelledby="trials"><h2 id="trials">Trials</h2>'
        '<div class="scroll" role="region" aria-labelledby="trials" tabindex="0">'
        f"<table>{_head(summary)}<tbody>{body}</tbody></table></div></section>"
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
