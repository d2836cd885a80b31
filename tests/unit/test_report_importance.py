"""Laws of the importance: planted influence is found with its size, and what plays no role gets nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import pytest

from hpo_core.report.importance import epsilon_squared, importance, ranks
from hpo_core.space import ParameterSpec, Value
from tests.unit.test_report import experiment, list_of, range_of

COUNT = 2000


def spaces(*parameters: Mapping[str, object]) -> tuple[ParameterSpec, ...]:
    return experiment(parameters).parameters


def planted(share: float) -> tuple[tuple[ParameterSpec, ...], list[dict[str, Value]], list[float]]:
    """Trials whose value is normal, with `share` of its variance from one parameter and nothing from the other."""
    chance = random.Random(3)
    normal = NormalDist()
    assignments: list[dict[str, Value]] = [{"x": chance.random(), "y": chance.random()} for _ in range(COUNT)]
    values = [
        math.sqrt(share) * normal.inv_cdf(float(own["x"])) + math.sqrt(1 - share) * chance.gauss(0, 1)
        for own in assignments
    ]
    return spaces(range_of("x", 0, 1), range_of("y", 0, 1)), assignments, values


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 1.0])
def test_a_parameter_gets_the_share_that_was_planted(share: float) -> None:
    """For normal X and Y with squared correlation s, ranks of Y given X have the share R = 6/pi asin(s/2).

    Y's rank is Phi(Y); E[Phi(Y) | X] = Phi(aX) with a^2 = s / (2 - s), and Var Phi(aX) = asin(a^2 / (1 + a^2)) / 2pi
    = asin(s/2) / 2pi, of a uniform rank's 1/12. Ten bins lose what varies inside of them, at most 1/100 of R, which
    the correction makes (n - 1) / (n - 10) times as much. The standard error of such a share is about
    2 sqrt(R) (1 - R) / sqrt(n); four of them are allowed.
    """
    known = 6 / math.pi * math.asin(share / 2)
    tolerance = 4 * 2 * math.sqrt(known) * (1 - known) / math.sqrt(COUNT)
    binning = known / 100 * (COUNT - 1) / (COUNT - 10)
    assert importance(*planted(share))["x"] == pytest.approx(known, abs=tolerance + binning)


def test_a_parameter_that_plays_no_role_gets_nothing() -> None:
    """By chance alone eta^2 has a standard deviation of about sqrt(2 (k - 1)) / n for k = 10 bins; four of them."""
    assert importance(*planted(0.5))["y"] == pytest.approx(0, abs=4 * math.sqrt(18) / COUNT)


def test_chance_alone_gives_no_share_on_average_even_with_few_trials() -> None:
    """Unclipped, epsilon^2 has the mean 0 and the standard deviation s = sqrt(2 (k - 1)) / (n - k) or so.

    Clipped at 0, a normal one has the mean 0.4 s. The mean of 400 draws varies by at most s / 20; four of them are
    allowed. Uncorrected, the mean would be (k - 1) / (n - 1), which is s.
    """
    chance = random.Random(8)
    groups = [index % 4 for index in range(20)]
    found = [epsilon_squared(groups, chance.sample(range(20), 20)) or 0.0 for _ in range(400)]
    spread = math.sqrt(2 * 3) / (20 - 4)
    assert sum(found) / 400 == pytest.approx(0.4 * spread, abs=4 * spread / 20)


def test_two_items_that_part_the_trials_explain_what_arithmetic_says() -> None:
    """Ranks 1 to m and m+1 to 2m: SSB = m^3 / 2 and SST = (8 m^3 - 2 m) / 12."""
    m = 50
    eta = (m**3 / 2) / ((8 * m**3 - 2 * m) / 12)
    found = importance(spaces(list_of("k", "a", "b")), [{"k": "a"}] * m + [{"k": "b"}] * m, list(range(2 * m)))
    assert found["k"] == pytest.approx(1 - (1 - eta) * (2 * m - 1) / (2 * m - 2), rel=1e-12)


def test_what_matters_only_together_is_not_seen() -> None:
    assignments: list[dict[str, Value]] = [{"a": a, "b": b} for a in "01" for b in "01" for _ in range(10)]
    values = [float(own["a"] == own["b"]) for own in assignments]
    found = importance(spaces(list_of("a", "0", "1"), list_of("b", "0", "1")), assignments, values)
    assert found == {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize("change", [math.exp, lambda value: -value, lambda value: 3 * value - 7])
def test_only_the_order_of_the_values_counts(change: object) -> None:
    """So one diverged trial decides nothing, and it does not matter which direction is good."""
    parameters, assignments, values = planted(0.5)
    assert callable(change)
    changed = importance(parameters, assignments, [change(value) for value in values])
    expected = importance(parameters, assignments, values)
    assert changed == {name: pytest.approx(share, abs=1e-9) for name, share in expected.items()}


def test_a_few_whole_numbers_are_groups_like_items() -> None:
    chance = random.Random(4)
    numbers = [chance.choice([1, 2, 5]) for _ in range(100)]
    values = [number + chance.gauss(0, 1) for number in numbers]
    as_range = importance(spaces(range_of("n", 1, 9, kind="int")), [{"n": number} for number in numbers], values)
    as_items = importance(spaces(list_of("n", "1", "2", "5")), [{"n": str(number)} for number in numbers], values)
    assert as_range == as_items


def settings_of(*texts: str) -> list[dict[str, Value]]:
    return [{"k": text} for text in texts]


@pytest.mark.parametrize(
    ("assignments", "reason"),
    [(settings_of(*"ab" * 4), "fewer than ten trials"), (settings_of(*"abcdefghij"), "as many groups as trials")],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_nothing_is_said_where_too_little_is_known(assignments: Sequence[dict[str, Value]], reason: str) -> None:
    found = importance(spaces(list_of("k", *"abcdefghij")), assignments, list(range(len(assignments))))
    assert found == {"k": None}, reason


def test_a_trial_without_the_parameter_is_left_out() -> None:
    parameters, assignments, values = planted(0.5)
    without: list[dict[str, Value]] = [{"y": 0.5}] * 30
    found = importance(parameters, assignments + without, values + [99.0] * 30)
    assert found["x"] == importance(parameters, assignments, values)["x"]


def test_equal_values_have_nothing_to_explain() -> None:
    assert importance(spaces(list_of("k", "a", "b")), settings_of(*"ab" * 10), [1.0] * 20) == {"k": 0.0}


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert ranks([5.0, 1.0, 5.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]
    assert ranks([]) == []
