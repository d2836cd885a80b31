"""Laws of the metric curves: what is read of a trial's reports, and whose curves the page shows."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest

from hpo_core import report
from hpo_core.metrics import MetricPoint
from hpo_core.report import Curve, read_curves
from hpo_core.status import RUNNING
from hpo_core.trial import Assignment, Trial, create_trial
from tests.unit.test_report import ended, example, experiment, mixed, moment, page_of, range_of


def lines_of(*values: float, name: str = "loss") -> str:
    return "\n".join(MetricPoint(name, value, line).to_json() for line, value in enumerate(values, 1))


def test_reports_read_back_as_a_curve() -> None:
    assert read_curves(lines_of(0.5, 0.25, 0.125)) == {"loss": Curve((1, 2, 3), (0.5, 0.25, 0.125))}


def test_each_metric_counts_its_own_reports() -> None:
    text = "\n".join([lines_of(0.5), lines_of(0.8, 0.9, name="accuracy"), lines_of(0.25)])
    assert read_curves(text) == {"loss": Curve((1, 2), (0.5, 0.25)), "accuracy": Curve((1, 2), (0.8, 0.9))}


def test_a_report_that_is_not_finite_is_counted_and_not_drawn() -> None:
    assert read_curves(lines_of(1.0, math.nan, math.inf, 2.0)) == {"loss": Curve((1, 4), (1.0, 2.0))}
    assert read_curves(lines_of(math.nan)) == {}


@pytest.mark.parametrize(
    "line",
    [
        *("", "{", "[]", "3", "null", '{"name": "lo'),
        *('{"name": "loss"}', '{"name": 3, "value": 1}', '{"name": "loss", "value": [1]}'),
        *('{"name": "loss", "value": "much"}', '{"name": "loss", "value": 1' + "0" * 400 + "}"),
    ],
)
def test_a_broken_line_is_no_report(line: str) -> None:
    assert read_curves(f"{lines_of(1.0)}\n{line}\n{lines_of(2.0)}\n") == {"loss": Curve((1, 2), (1.0, 2.0))}


@pytest.mark.parametrize(("count", "most"), [(61, 60), (1000, 60), (119, 60), (10, 2), (60, 60), (3, 60)])
def test_a_long_curve_is_thinned_evenly_between_its_ends(count: int, most: int) -> None:
    """Two neighbours are at most a step and one, from rounding, apart."""
    curve = read_curves(lines_of(*map(float, range(1, count + 1))), most=most)["loss"]
    assert len(curve.indexes) == min(count, most)
    assert (curve.indexes[0], curve.indexes[-1]) == (1, count)
    steps = [later - earlier for earlier, later in pairwise(curve.indexes)]
    assert min(steps) >= 1
    assert max(steps) <= max(count - 1, 1) / (min(count, most) - 1) + 1
    assert curve.values == tuple(map(float, curve.indexes))


def running(number: int) -> Trial:
    asked, _, _ = mixed(1)
    values = {p.name: p.decode(0.5) for p in asked.parameters}
    return create_trial(asked, number, Assignment(values), asked_after=0, now=moment(0)).run(moment(1))


def test_curves_are_shown_of_the_best_and_of_those_that_run() -> None:
    asked, trials, _ = mixed(300)
    open_ones = [running(number) for number in range(301, 306)]
    numbers = report.curve_numbers(asked, random.Random(1).sample([*trials, *open_ones], 305))
    assert len(numbers) == 100
    assert numbers == sorted(numbers)
    assert {301, 302, 303, 304, 305} <= set(numbers)
    valued = {t.number: t.observation.value(asked.objective) or 0.0 for t in trials if t.observation}
    best = sorted(valued, key=lambda number: -valued[number])[:95]
    assert set(numbers) == {*best, *range(301, 306)}


def test_many_that_run_leave_half_of_the_curves_to_the_best() -> None:
    asked, trials, _ = mixed(200)
    numbers = report.curve_numbers(asked, [*trials, *map(running, range(201, 400))])
    assert sum(number > 200 for number in numbers) == 50
    assert len(numbers) == 100


def test_without_a_value_and_without_a_running_trial_there_is_no_curve() -> None:
    asked, trials, _ = example()
    assert report.curve_numbers(asked, []) == []
    assert report.curve_numbers(asked, [trials[4]]) == []


def test_the_page_draws_the_given_curves_of_the_experiments_metrics() -> None:
    found = example()
    curve = Curve((1, 3), (0.5, 0.25))
    page = page_of(found, curves={1: {"loss": curve, "stranger": curve}, 2: {"accuracy": curve}, 99: {"loss": curve}})
    assert page.data["curves"] == {
        "loss": [{"trial": 1, "values": [0.5, 0.25], "indexes": [1, 3]}],
        "accuracy": [{"trial": 2, "values": [0.5, 0.25], "indexes": [1, 3]}],
    }
    assert page.texts["fieldset"] == ["Metriclossaccuracy"]
    assert "2 of 12 trials" in page.texts["main"][0]


@pytest.mark.parametrize(
    "curves", [{}, {1: {}}, {1: {"loss": Curve((1,), (0.5,))}}, {1: {"stranger": Curve((1, 2), (1, 2))}}]
)
def test_without_two_points_there_is_no_section_of_curves(curves: dict[int, dict[str, Curve]]) -> None:
    page = page_of(example(), curves=curves)
    assert "curves" not in [value for _, name, value in page.attributes if name == "data-plot"]


def test_one_metric_leaves_nothing_to_choose() -> None:
    assert "fieldset" not in page_of(example(), curves={1: {"loss": Curve((1, 2), (2.0, 1.0))}}).texts


def test_a_running_trial_has_a_curve_before_any_trial_has_a_value() -> None:
    asked, _, _ = mixed(1)
    page = page_of((asked, [running(1)], RUNNING), curves={1: {"val-loss": Curve((1, 2), (2.0, 1.0))}})
    assert [value for _, name, value in page.attributes if name == "data-plot"] == ["curveLegend", "curves"]


def test_many_metrics_share_a_bound_of_points() -> None:
    """100 trials of 21 metrics with 60 points each would be 126,000 points; the page takes 24,000 at most."""
    names = [f"metric-{index}" for index in range(20)]
    asked = experiment([range_of("lr", 0, 1)], additionalMetricNames=names, most=100)
    trials = [ended(asked, number, {"lr": 0.5}, {"loss": float(number)}) for number in range(1, 101)]
    curve = Curve(tuple(range(1, 61)), tuple(map(float, range(60))))
    page = page_of((asked, trials, RUNNING), curves={n: dict.fromkeys(["loss", *names], curve) for n in range(1, 101)})
    drawn = [each for own in page.data["curves"].values() for each in own]
    assert len(drawn) == 2100
    assert sum(len(each["values"]) for each in drawn) <= 24_000
    assert {(each["indexes"][0], each["indexes"][-1]) for each in drawn} == {(1, 60)}


def test_names_of_metrics_are_texts_in_the_choice() -> None:
    asked, trials, verdict = example()
    objective = replace(asked.objective, additional_metric_names=("<b>&",))
    curve = Curve((1, 2), (1.0, 2.0))
    page = page_of((replace(asked, objective=objective), trials, verdict), curves={1: {"loss": curve, "<b>&": curve}})
    assert page.texts["fieldset"] == ["Metricloss<b>&"]
