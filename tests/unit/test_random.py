"""Random search: what its draws follow from, and that they follow the distributions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hpo_core.experiment import Experiment, read_draft
from hpo_core.search import make_search
from hpo_core.space import Values
from hpo_core.trial import Trial
from tests.experiments import make_experiment, parameter

MANIFEST = Path(__file__).parents[2] / "manifests" / "experiments" / "mnist-random.yaml"


def draw(experiment: Experiment, count: int, before: tuple[Trial, ...] = ()) -> list[Values]:
    return [assignment.values for assignment in make_search(experiment).ask(before, count).assignments]


def seeded(seed: str) -> dict[str, Any]:
    return {"spec.algorithm.algorithmSettings": [{"name": "random_state", "value": seed}]}


def test_the_shipped_experiment_is_given_the_same_values_on_every_machine_and_in_every_release() -> None:
    assert draw(read_draft(MANIFEST.read_text()).experiment(), 3) == [
        {"lr": 0.015852907498470695, "momentum": 0.5903394094181085},
        {"lr": 0.01105941222070522, "momentum": 0.6683680419898537},
        {"lr": 0.024166327272065934, "momentum": 0.6734064550634823},
    ]


def test_a_trial_is_drawn_from_its_number_alone() -> None:
    experiment = make_experiment()
    sixth = draw(experiment, 6)[5]
    assert draw(experiment, 1, tuple(Trial(number, {}) for number in range(1, 6))) == [sixth]


def test_the_number_is_one_more_than_the_highest_where_trials_are_missing() -> None:
    experiment = make_experiment()
    assert draw(experiment, 1, (Trial(2, {}), Trial(5, {}))) == [draw(experiment, 6)[5]]


def test_without_random_state_the_seed_is_the_experiments_own() -> None:
    seven = draw(make_experiment(changes={"metadata.annotations": {"kfp-hpo/seed": "7"}}), 3)
    assert seven == draw(make_experiment(changes=seeded("7")), 3)


def test_random_state_comes_before_the_experiments_seed() -> None:
    both = {"metadata.annotations": {"kfp-hpo/seed": "1"}, **seeded("7")}
    assert draw(make_experiment(changes=both), 3) == draw(make_experiment(changes=seeded("7")), 3)


def test_another_seed_and_another_name_give_other_values() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"metadata.name": "other"},
        {"metadata.namespace": "other"},
        seeded("0"),
        seeded("1"),
    ]
    drawn = [draw(make_experiment(changes=change), 1)[0] for change in changes]
    assert len({values["lr"] for values in drawn}) == len(changes)


def test_it_is_never_exhausted() -> None:
    tiny = make_experiment([parameter("flag", "categorical", list=["on"])])
    assert not make_search(tiny).ask(tuple(Trial(number, {}) for number in range(1, 100)), 5).exhausted


def test_trials_and_parameters_are_drawn_independently() -> None:
    drawn = draw(make_experiment(changes=seeded("1")), 500)
    points = [((float(v["lr"]) - 0.01) / 0.04, (float(v["momentum"]) - 0.5) / 0.4) for v in drawn]
    following = [(points[i][0], points[i + 1][0]) for i in range(len(points) - 1)]
    for pairs in (points, following):
        mean = sum((first - 0.5) * (second - 0.5) for first, second in pairs) / len(pairs)
        # The product of two independent uniform deviations has standard deviation 1/12; five standard errors of it.
        assert abs(mean) < 5 / 12 / math.sqrt(len(pairs))


def test_the_draws_follow_the_distributions() -> None:
    space = [
        parameter("uniform", "double", min="0", max="1"),
        parameter("log", "double", min="0.0001", max="1", distribution="logUniform"),
        parameter("list", "categorical", list=["a", "b"]),
        parameter("int", "int", min="1", max="2"),
    ]
    drawn = draw(make_experiment(space, changes=seeded("1")), 2000)
    halves = [
        sum(float(v["uniform"]) < 0.5 for v in drawn),
        sum(float(v["log"]) < 0.01 for v in drawn),
        sum(v["list"] == "a" for v in drawn),
        sum(v["int"] == 1 for v in drawn),
    ]
    # Each is binomial with probability one half; five standard deviations.
    assert all(abs(half - 1000) < 5 * math.sqrt(2000) / 2 for half in halves), halves
