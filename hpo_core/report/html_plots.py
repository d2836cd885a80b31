"""The sections of the HTML page that show data as pictures.

The bars of importance are drawn here and show without JavaScript; for the plots there are places, which the scripts
draw into.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from hpo_core.report.curves import MOST_CURVES, Curve
from hpo_core.report.importance import FEWEST_TRIALS, importance
from hpo_core.report.plot_data import SHADES, curve_metrics
from hpo_core.report.rows import printable
from hpo_core.report.summary import Summary


def plots(summary: Summary, curves: Mapping[int, Mapping[str, Curve]]) -> str:
    """Write the sections; "" when no trial has a value or a curve, as nothing is promised that cannot be drawn."""
    valued = _course(summary) + _parallel() + _each(summary) if summary.ranking else ""
    drawn = valued + _curves(summary, curves)
    if not drawn:
        return ""
    without = "The plots need JavaScript. The best trial and the table of all trials do not."
    return f'<noscript><p class="card note">{without}</p></noscript>{drawn}'


def _course(summary: Summary) -> str:
    return (
        f'<section class="card plots" aria-labelledby="course"><h2 id="course">{_text(summary.metric)} by trial</h2>'
        f'<p class="muted">{summary.direction}</p>'
        '<div data-plot="legend"></div><div data-plot="objective"></div></section>'
    )


def _parallel() -> str:
    shades = "".join(f'<i class="s{shade}"></i>' for shade in range(SHADES))
    return (
        '<section class="card plots" aria-labelledby="parallel"><div class="head">'
        '<h2 id="parallel">All parameters together</h2><p class="count" data-count="selected" aria-live="polite"></p>'
        '<button type="button" class="clear" data-clear hidden>Show all</button></div>'
        '<p class="muted">Each line is a trial. Drag along an axis to select a range; click the axis or press Escape '
        'to clear it.</p><p class="ramp muted"><span>worse</span>'
        f'<span class="shades" aria-hidden="true">{shades}</span><span>better</span>'
        '<i class="shade-best" aria-hidden="true"></i><span>best trial</span></p>'
        '<div class="wide"><div data-plot="parallel"></div></div></section>'
    )


def _each(summary: Summary) -> str:
    small = "".join(
        f'<div class="plots" data-plot="parameter" data-index="{index}"></div>'
        for index in range(len(summary.experiment.parameters))
    )
    return (
        f'<section class="card" aria-labelledby="each"><h2 id="each">{_text(summary.metric)} by parameter</h2>'
        f'<p class="muted">{summary.direction}</p><div class="grid">{_importance(summary)}{small}</div></section>'
    )


def _importance(summary: Summary) -> str:
    head = '<div class="importance"><h3>Importance</h3>'
    count = len(summary.ranking)
    if count < FEWEST_TRIALS:
        having = f"{count} has" if count == 1 else f"{count} have"
        return (
            f'{head}<p class="muted">It takes at least {FEWEST_TRIALS} trials with a value to tell which parameters '
            f"matter; {having} one.</p></div>"
        )
    shares = importance(
        summary.experiment.parameters,
        [summary.trials[place].assignments for place in summary.ranking],
        [value for place in summary.ranking if (value := summary.values[place]) is not None],
    )
    tall = " tall" if len(shares) > 6 else ""
    bars = "".join(_bar(name, share) for name, share in shares.items())
    return (
        f'<div class="importance{tall}"><h3>Importance</h3><ul class="bars">{bars}</ul>'
        f'<p class="muted">The share of the differences in the ranking by {_text(summary.metric)} that each parameter '
        f"explains alone, beyond chance, among {count:,} trials. Effects of combinations are not seen.</p></div>"
    )


def _bar(name: str, share: float | None) -> str:
    told = "too few trials" if share is None else f"{share:.0%}"
    return (
        f'<li><span title="{_text(name)}">{_text(name)}</span><b>{told}</b>'
        '<svg aria-hidden="true" viewBox="0 0 100 1" preserveAspectRatio="none"><rect class="ground" width="100" '
        f'height="1"/><rect width="{100 * (share or 0):.1f}" height="1"/></svg></li>'
    )


def _curves(summary: Summary, curves: Mapping[int, Mapping[str, Curve]]) -> str:
    names = curve_metrics(summary, curves)
    if not names:
        return ""
    choice = "".join(
        f'<label><input type="radio" name="curve" value="{index}"{"" if index else " checked"}>'
        f"<span>{_text(name)}</span></label>"
        for index, name in enumerate(names)
    )
    chosen = f'<fieldset class="choice"><legend>Metric</legend>{choice}</fieldset>' if len(names) > 1 else ""
    subject = f"{len(curves)} of {len(summary.trials):,} trials"
    which = ", the best ones and those that run," if len(curves) == MOST_CURVES else ""
    return (
        '<section class="card plots" aria-labelledby="curves"><div class="head"><h2 id="curves">Curves</h2>'
        f'{chosen}</div><p class="muted">What {subject}{which} reported, first report first.</p>'
        '<div data-plot="curveLegend"></div><div data-plot="curves"></div></section>'
    )


def _text(text: str) -> str:
    return escape(printable(text))
