"""The report as one self-contained HTML page: verdict, best trial, plots and the table of all trials.

The best trial and the table are written here, so that they show without JavaScript; the scripts draw the plots and make
the table sortable. The page fetches nothing, and its policy lets only its own script and style run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from types import MappingProxyType

from hpo_core.experiment import Experiment
from hpo_core.report.curves import Curve, shown_curves
from hpo_core.report.html_plots import plots
from hpo_core.report.html_table import table
from hpo_core.report.plot_data import plot_data
from hpo_core.report.rows import (
    condition_text,
    duration_text,
    number_text,
    printable,
    value_text,
)
from hpo_core.report.summary import Summary, command_line
from hpo_core.report.tables import finite
from hpo_core.report.thin import shown_places, thinned_note
from hpo_core.status import Verdict
from hpo_core.trial import Trial

SCRIPTS = ("elements.js", "scales.js", "trials.js", "parallel.js", "curves.js", "table.js", "page.js")
"""The page's scripts, in the order of their use."""


@dataclass(frozen=True)
class RetrainSummary:
    """What retraining with the best assignment gave.

    Attributes:
        condition: How it ended, in one word, such as `Succeeded`.
        metrics: What it reported, by metric name.
        model: Where the model is; "" when there is none.
        message: What else is to be said; "" for nothing.
    """

    condition: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    message: str = ""


def html(
    experiment: Experiment,
    trials: Iterable[Trial],
    verdict: Verdict,
    *,
    retrained: RetrainSummary | None = None,
    curves: Mapping[int, Mapping[str, Curve]] = MappingProxyType({}),
) -> str:
    """Write the page.

    Args:
        experiment: What was asked for.
        trials: All of its trials, in any order.
        verdict: Where it stands.
        retrained: The final model; None leaves that part out.
        curves: Metric curves by a trial's number and the metric's name; `curve_numbers` tells which are shown.

    Returns:
        A whole HTML document for UTF-8, which works in a frame that is allowed nothing but scripts.
    """
    summary = Summary.of(experiment, trials, verdict)
    css, js = _asset("page.css"), _script()
    shown = shown_curves(experiment, summary.trials, curves)
    places = shown_places(summary, also=shown)
    return Template(_asset("page.html")).substitute(
        policy=_policy(css, js),
        title=_text(f"{experiment.name} tuning report"),
        css=css,
        header=_header(summary),
        best=_best(summary) if summary.best else _no_best(summary),
        retrained=_retrained(retrained) if retrained else "",
        note=_note(summary, places),
        plots=plots(summary, shown),
        table=table(summary, places),
        data=plot_data(summary, places, shown),
        js=js,
    )


@cache
def _asset(name: str) -> str:
    return files("hpo_core.report").joinpath(name).read_text("utf-8")


@cache
def _script() -> str:
    """All scripts as one, in a scope of their own."""
    return f'"use strict";\n(() => {{\n{"".join(map(_asset, SCRIPTS))}}})();'


def _policy(css: str, js: str) -> str:
    """What the page may do: run its own script and style, known by their hashes, and nothing else."""
    return f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src {_hash(css)}; script-src {_hash(js)}"


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest())
    return f"'sha256-{digest.decode()}'"


def _text(text: str) -> str:
    return escape(printable(text))


def _header(summary: Summary) -> str:
    experiment, objective = summary.experiment, summary.experiment.objective
    condition = summary.verdict.condition
    counts = "".join(
        f'<li class="c-{c}"><i class="dot"></i><b>{n:,}</b> {condition_text(c).lower()}</li>'
        for c, n in summary.counts.items()
    )
    aim = f"{objective.type} {summary.metric}" + (f", goal {summary.goal}" if summary.goal else "")
    facts = {
        "Trials": f"{summary.progress}",
        "Objective": aim,
        "Algorithm": experiment.algorithm.name,
        "Elapsed": duration_text(summary.elapsed_s),
    }
    return (
        f'<header><p class="over">Hyperparameter tuning, namespace {_text(experiment.namespace)}</p>'
        f"<h1>{_text(experiment.name)}</h1>"
        f'<p class="verdict v-{condition}"><strong>{condition}</strong> <span>{_text(summary.sentence)}</span></p>'
        f'<dl class="facts">{_definitions(facts)}</dl><ul class="counts">{counts}</ul></header>'
    )


def _definitions(entries: Mapping[str, str]) -> str:
    return "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in entries.items() if v)


def _best(summary: Summary) -> str:
    best = summary.best
    if best is None:
        return ""
    shown = {name: value_text(value) for name, value in best.parameters.items()}
    values = {n: v if isinstance(v, str) else finite(v) for n, v in best.parameters.items()}
    return (
        '<section class="card best" aria-labelledby="best"><div><h2 id="best">Best trial</h2>'
        f'<p class="value"><b>{number_text(best.objective)}</b> <span>{_text(summary.metric)}</span></p>'
        f'<p class="muted">Trial {best.number}{", " if best.name else ""}<code>{_text(best.name)}</code></p>'
        f'<dl class="values">{_definitions(shown)}</dl></div>'
        f"<div><h2>Use it</h2>{_copyable('Command of the trial', command_line(summary.experiment, best))}"
        f"{_copyable('Values as JSON', json.dumps(values, indent=2, allow_nan=False))}</div></section>"
    )


def _copyable(label: str, text: str) -> str:
    if not text:
        return ""
    rows = sum(max(1, math.ceil(len(line) / 60)) for line in text.splitlines())
    return (
        f'<label class="copy"><span>{label}</span>'
        f'<textarea readonly spellcheck="false" rows="{min(rows, 12)}">{_text(text)}</textarea></label>'
    )


def _no_best(summary: Summary) -> str:
    reasons = "".join(f"<li>{_text(reason)}</li>" for reason in summary.reasons)
    listed = f'<p class="muted">How trials ended:</p><ul>{reasons}</ul>' if reasons else ""
    return (
        '<section class="card" aria-labelledby="best"><h2 id="best">No best trial</h2>'
        f"<p>{_text(summary.why_none)}</p>{listed}</section>"
    )


def _note(summary: Summary, places: Sequence[int]) -> str:
    note = thinned_note(summary, places)
    command = f"<code>hpo trials {_text(summary.experiment.name)} -o csv</code>"
    return f'<p class="card note" role="note">{note} {command} has all of them.</p>' if note else ""


def _retrained(retrained: RetrainSummary) -> str:
    metrics = {name: number_text(value) for name, value in retrained.metrics.items()}
    model = {"Model": retrained.model} if retrained.model else {}
    message = f'<p class="muted">{_text(retrained.message)}</p>' if retrained.message else ""
    return (
        '<section class="card" aria-labelledby="final"><h2 id="final">Final model</h2>'
        f"<p>Retraining with the best values: {_text(retrained.condition)}</p>{message}"
        f'<dl class="values">{_definitions(metrics | model)}</dl></section>'
    )
