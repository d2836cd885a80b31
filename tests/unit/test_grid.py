"""Grid search: every combination once, in the order of the YAML or in a mixed one, and what it demands."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pytest

from hpo_core.experiment import Draft, Experiment
from hpo_core.search import make_search
from hpo_core.search.grid import MixedOrder
from hpo_core.space import Values
from hpo_core.trial import Trial
from tests.experiments import REMOVED, make_draft, make_experiment, parameter

LAYERS = parameter("layers", "int", min="1", max="2")
RATE = parameter("rate", "double", min="0.1", max="0.3", step="0.1")
OPTIMIZER = parameter("optimizer", "categorical", list=["sgd", "adam"])
SPACE = [LAYERS, RATE, OPTIMIZER]
COMBINATIONS = list(product([1, 2], [0.1, 0.2, 0.3], ["sgd", "adam"]))


def options(random_state: str | None = None, most: Any = REMOVED) -> dict[str, Any]:
    settings = [] if random_state is None else [{"name": "random_state", "value": random_state}]
    algorithm = {"algorithmName": "grid", "algorithmSettings": settings}
    return {"changes": {"spec.algorithm": algorithm, "spec.maxTrialCount": most}}


def grid(space: Sequence[Mapping[str, Any]] = SPACE, random_state: str | None = None) -> Experiment:
    return make_experiment(space, **options(random_state))


def ask(experiment: Experiment, before: int, count: int) -> tuple[list[Values], bool]:
    trials = [Trial(number, {}) for number in range(1, before + 1)]
    answer = make_search(experiment).ask(trials, count)
    return [assignment.values for assignment in answer.assignments], answer.exhausted


def combinations(experiment: Experiment, count: int) -> list[tuple[Any, ...]]:
    return [tuple(values.values()) for values in ask(experiment, 0, count)[0]]


def found(draft: Draft) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    problems, warnings = draft.findings.problems, draft.findings.warnings
    return [(p.path, p.message) for p in problems], [(w.path, w.message) for w in warnings]


def test_it_goes_in_the_order_of_the_yaml_with_the_last_parameter_fastest() -> None:
    assert combinations(grid(), 100) == COMBINATIONS


@pytest.mark.parametrize(
    ("before", "count", "given", "exhausted"),
    [(0, 11, 11, False), (0, 12, 12, True), (0, 13, 12, True), (10, 1, 1, False), (11, 1, 1, True), (12, 1, 0, True)],
)
def test_it_is_exhausted_with_the_last_combination(before: int, count: int, given: int, exhausted: bool) -> None:
    values, ended = ask(grid(), before, count)
    assert (len(values), ended) == (given, exhausted)


@pytest.mark.parametrize("random_state", ["0", "1", "2"])
def test_a_mixed_order_holds_every_combination_exactly_once(random_state: str) -> None:
    mixed = combinations(grid(random_state=random_state), 100)
    assert sorted(mixed) == sorted(COMBINATIONS)
    assert mixed != COMBINATIONS


def test_a_mixed_order_follows_from_random_state() -> None:
    first, again, other = (combinations(grid(random_state=state), 12) for state in ("1", "1", "2"))
    assert first == again
    assert first != other


def test_a_mixed_order_is_the_same_on_every_machine_and_in_every_release() -> None:
    order = MixedOrder(12, 1)
    assert [order.at(place) for place in range(12)] == [1, 0, 10, 7, 11, 5, 2, 4, 8, 6, 3, 9]


@pytest.mark.parametrize("size", [1, 2, 3, 50, 1000])
def test_the_mixed_order_is_a_permutation(size: int) -> None:
    order = MixedOrder(size, 1)
    assert sorted(order.at(place) for place in range(size)) == list(range(size))


def test_every_order_is_equally_likely() -> None:
    orders = Counter(tuple(MixedOrder(3, seed).at(place) for place in range(3)) for seed in range(3000))
    assert len(orders) == 6
    # Each count is binomial, 3000 times one sixth; five standard deviations.
    assert all(abs(count - 500) < 5 * math.sqrt(3000 / 6 * 5 / 6) for count in orders.values()), orders


@pytest.mark.parametrize("random_state", [None, "1"])
def test_a_grid_of_a_million_million_combinations_is_not_written_out(random_state: str | None) -> None:
    space = [parameter(name, "int", min="1", max="1000000") for name in ("a", "b")]
    asked = combinations(grid(space, random_state), 1000)
    assert len(set(asked)) == 1000


def test_a_grid_larger_than_any_float_is_mixed_too() -> None:
    order = MixedOrder(10**400, 1)
    drawn = [order.at(place) for place in range(20)]
    assert len(set(drawn)) == 20
    assert all(0 <= number < 10**400 for number in drawn)


# What it demands


def test_a_double_without_step_is_refused_with_a_step_that_would_do() -> None:
    problems, _ = found(make_draft([LAYERS, parameter("lr", "double", min="0.01", max="0.05")], **options()))
    path, message = problems[0]
    assert path == "spec.parameters[1].feasibleSpace.step"
    assert message.startswith('grid tries every value, so a double needs a step: add one, such as step: "0.01"')


def test_the_proposed_step_is_accepted() -> None:
    assert combinations(grid([parameter("lr", "double", min="0.01", max="0.05", step="0.01")]), 9) == [
        (0.01,),
        (0.02,),
        (0.03,),
        (0.04,),
        (0.05,),
    ]


def test_a_path_counts_parameters_that_could_not_be_read() -> None:
    broken = parameter("broken", "int", min="1")
    problems, _ = found(make_draft([broken, parameter("lr", "double", min="0", max="1")], **options()))
    assert [path for path, _ in problems] == [
        "spec.parameters[0].feasibleSpace.max",
        "spec.parameters[1].feasibleSpace.step",
    ]


def test_a_wrong_step_is_told_once() -> None:
    space = [parameter("lr", "double", min="0", max="1", step="small")]
    problems, _ = found(make_draft(space, **options()))
    assert problems == [("spec.parameters[0].feasibleSpace.step", "must be a number, got 'small'")]


def test_more_trials_than_combinations_are_a_warning() -> None:
    assert found(make_draft(SPACE, **options(most=13))) == (
        [],
        [("spec.maxTrialCount", "13 is more than the grid's 12 combinations: it ends after these, all of them tried")],
    )


def test_fewer_trials_than_combinations_are_a_warning_where_they_are_the_first_ones() -> None:
    problems, warnings = found(make_draft(SPACE, **options(most=5)))
    assert problems == []
    assert [path for path, _ in warnings] == ["spec.maxTrialCount"]
    assert warnings[0][1].startswith("only the first 5 of 12 combinations are tried, in the order of the YAML")


@pytest.mark.parametrize("given", [options(most=12), options(), options("1", most=5)])
def test_a_grid_that_fits_its_budget_or_is_mixed_gives_no_warning(given: dict[str, Any]) -> None:
    assert found(make_draft(SPACE, **given)) == ([], [])


def test_combinations_are_not_counted_where_a_parameter_could_not_be_read() -> None:
    _, warnings = found(make_draft([*SPACE, parameter("broken", "int", min="1")], **options(most=100)))
    assert warnings == []
