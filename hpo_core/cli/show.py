"""How the command line shows things: the progress line, tables, and the result of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from hpo_core import report
from hpo_core.experiment import Experiment
from hpo_core.loop import Retraining
from hpo_core.publish import REPORT, Published
from hpo_core.report import rows
from hpo_core.report.rows import TrialRow
from hpo_core.status import RUNNING, Progress, Verdict
from hpo_core.store import ExperimentStore
from hpo_core.trial import Trial, TrialCondition
from hpo_core.tuner import Place

_COLOURS = {
    TrialCondition.SUCCEEDED: "green",
    TrialCondition.RUNNING: "cyan",
    TrialCondition.FAILED: "red",
    TrialCondition.METRICS_UNAVAILABLE: "red",
    TrialCondition.KILLED: "yellow",
    TrialCondition.EARLY_STOPPED: "yellow",
}


@dataclass(frozen=True)
class Column:
    """A column of a table, set to the left or to the right."""

    title: str
    right: bool = False


@dataclass(frozen=True)
class Cell:
    """A text in a table, and how it looks, in rich's words."""

    text: str
    style: str = ""


class ProgressLine:
    """Shows progress: one line that is kept fresh on a terminal, a new line for every change elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._last = ""

    def __call__(self, progress: Progress) -> None:
        """Show where the experiment stands, if that is new."""
        line = progress.line()
        if line == self._last:
            return
        self._last = line
        if self._terminal:
            print(f"\r\x1b[K{line}", end="", flush=True)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Leave the line; what comes next begins on a new one."""
        if self._terminal and self._last:
            print(flush=True)


def trials(experiment: Experiment, found: Sequence[Trial]) -> None:
    """Print the table of trials; where the terminal is narrow, reasons are cut and not values."""
    found_rows = report.trial_rows(experiment, found)
    columns = [Column("#", right=True)]
    columns += [Column(name, right=True) for name in experiment.objective.metric_names]
    columns += [Column(parameter.name, right=True) for parameter in experiment.parameters]
    columns += [Column("time", right=True), Column("condition")]
    if any(row.condition is not TrialCondition.SUCCEEDED for row in found_rows):
        columns.append(Column("reason"))
    _print_table(columns, [_cells(experiment, row) for row in found_rows])


def result(experiment: Experiment, verdict: Verdict, progress: Progress, store: ExperimentStore) -> None:
    """Print how a run ended: the verdict, the best assignment, and where everything is."""
    print(f"{experiment.name}: {verdict.message}")
    if progress.best_value is not None:
        values = " ".join(f"{name}={value}" for name, value in progress.best.items())
        print(f"best {progress.metric}={progress.best_value:.6g} with {values}")
    print(f"report  {store.uri}/{REPORT}")
    print(f"records {store.uri}")


def status(experiment: Experiment, published: Published | None, *, alive: bool) -> None:
    """Print where an experiment stands."""
    verdict, name = published.verdict if published else RUNNING, f"{experiment.namespace}/{experiment.name}"
    print(f"{name}: {verdict.condition} ({verdict.reason})")
    if not alive and not verdict.condition.is_terminal and verdict.condition == "Running":
        print("no tuner is running it; `hpo run` or `hpo launch` goes on")
    print(published.progress.line() if published else "nothing has been published of it yet")


def experiments(found: Sequence[tuple[str, str, str, str]], place: Place) -> None:
    """Print the experiments of a store."""
    if not found:
        print(f"no experiment in {place.uri}; `hpo run experiment.yaml` starts one")
        return
    columns = [Column(title) for title in ("namespace", "name", "condition", "progress")]
    _print_table(columns, [[Cell(text) for text in row] for row in found])


def retraining(done: Retraining, store: ExperimentStore, place: Place, model_dir: str) -> None:
    """Print what the retraining gave."""
    print(" ".join(f"{name}={value:g}" for name, value in done.metrics.items()))
    keys = store.outputs("retrain")
    if not keys:
        print("the trainer left no model: it has to write one to the folder that HPO_OUTPUT_DIR names")
    for key in keys:
        print(f"model   {place.objects.uri}/{key}")
    if done.message:
        print(f"note    {done.message}")
    if model_dir:
        print(f"copy    {model_dir}")


def _cells(experiment: Experiment, row: TrialRow) -> list[Cell]:
    metrics = [rows.metric_value(experiment.objective, name, row) for name in experiment.objective.metric_names]
    values = [rows.value_text(row.parameters.get(parameter.name)) for parameter in experiment.parameters]
    why = f"{row.reason}: {row.message}" if row.message else row.reason
    plain = [str(row.number), *map(rows.number_text, metrics), *values, rows.duration_text(row.duration_s)]
    weight = "bold" if row.is_best else ""
    return [
        *(Cell(text, weight) for text in plain),
        Cell(row.condition, _COLOURS.get(row.condition, "")),
        Cell("" if row.condition is TrialCondition.SUCCEEDED else why.replace("\n", " ")),
    ]


def _print_table(columns: Sequence[Column], lines: Iterable[Sequence[Cell]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        alignment: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(Text(column.title), justify=alignment, no_wrap=True, overflow="ellipsis")
    for line in lines:
        table.add_row(*(Text(cell.text, cell.style) for cell in line[: len(columns)]))
    # Without a terminal there is no width to fit in; a table that is cut there would lose values.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
