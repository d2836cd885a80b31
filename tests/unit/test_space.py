"""The search space: values, their texts, their lattice, and the way to the unit interval and back."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from hpo_core.space import (
    Distribution,
    FeasibleSpace,
    ParameterSpec,
    ParameterType,
    Value,
    grid_point,
    grid_size,
)

LOG = (Distribution.LOG_UNIFORM, Distribution.LOG_NORMAL)
NORMAL = (Distribution.NORMAL, Distribution.LOG_NORMAL)
POINTS = 10_000
MIDDLES = [(index + 0.5) / POINTS for index in range(POINTS)]
"""Points that cover the unit interval evenly."""


def double(low: float, high: float, step: float | None = None, distribution: str = "uniform") -> ParameterSpec:
    space = FeasibleSpace(low, high, step, (), Distribution(distribution))
    return ParameterSpec("x", ParameterType.DOUBLE, space)


def integer(low: int, high: int, step: int | None = None, distribution: str = "uniform") -> ParameterSpec:
    space = FeasibleSpace(
        float(low), float(high), None if step is None else float(step), (), Distribution(distribution)
    )
    return ParameterSpec("x", ParameterType.INT, space)


def discrete(*items: str) -> ParameterSpec:
    return ParameterSpec("x", ParameterType.DISCRETE, FeasibleSpace(items=items))


def categorical(*items: str) -> ParameterSpec:
    return ParameterSpec("x", ParameterType.CATEGORICAL, FeasibleSpace(items=items))


CONTINUA = [double(0.01, 5.0, None, kind) for kind in Distribution] + [
    double(-3.0, 4.0),
    double(-3.0, 4.0, None, "normal"),
]
LATTICES = [
    *(double(0.1, 0.9, 0.1, kind) for kind in Distribution),
    *(integer(1, 64, None, kind) for kind in Distribution),
    *(integer(10, 95, 20, kind) for kind in Distribution),
    integer(-5, 5),
    integer(7, 7),
    double(0.5, 0.5, 0.1),
]
LISTS = [discrete("0.10", "3", "-2e-3"), categorical("sgd", "adam", "1"), categorical("one")]


def name_of(parameter: object) -> str | None:
    """What a case is called in the test's name; None, for pytest's own name, where it is no parameter."""
    if not isinstance(parameter, ParameterSpec):
        return None
    space = parameter.space
    ends = ",".join(space.items) or f"{space.minimum:g}..{space.maximum:g}by{space.step}"
    return f"{parameter.type}-{ends}-{space.distribution}"


def lattice(parameter: ParameterSpec) -> list[Value]:
    return [parameter.value_at(index) for index in range(parameter.cardinality or 0)]


# From the unit interval to values and back


@pytest.mark.parametrize("parameter", LATTICES + LISTS, ids=name_of)
def test_each_value_that_can_be_counted_survives_the_way_to_the_unit_interval_and_back(
    parameter: ParameterSpec,
) -> None:
    values = lattice(parameter)
    assert [parameter.decode(parameter.encode(value)) for value in values] == values


@pytest.mark.parametrize("parameter", CONTINUA, ids=name_of)
def test_each_point_of_a_continuum_survives_the_way_to_a_value_and_back(parameter: ParameterSpec) -> None:
    # Some ten roundings of 1e-16 each, magnified where the normal density is a hundredth of its mean: 1e-12 is ample.
    for unit in MIDDLES[::37]:
        assert parameter.encode(parameter.decode(unit)) == pytest.approx(unit, abs=1e-12)


@pytest.mark.parametrize("parameter", CONTINUA + LATTICES + LISTS, ids=name_of)
def test_every_point_of_the_unit_interval_gives_one_of_the_values(parameter: ParameterSpec) -> None:
    draws = random.Random(1)
    for unit in (0.0, 1.0, 1 - 2**-53, *(draws.random() for _ in range(200))):
        assert parameter.contains(parameter.decode(unit)), unit


@pytest.mark.parametrize("parameter", CONTINUA + LATTICES, ids=name_of)
def test_a_greater_point_never_gives_a_smaller_value(parameter: ParameterSpec) -> None:
    values = [float(parameter.decode(unit)) for unit in MIDDLES[::13]]
    assert all(first <= second for first, second in pairwise(values))


@pytest.mark.parametrize("parameter", CONTINUA, ids=name_of)
def test_the_ends_of_a_continuum_are_reached(parameter: ParameterSpec) -> None:
    assert parameter.decode(0.0) == pytest.approx(parameter.space.minimum, rel=1e-12)
    assert parameter.decode(1.0) == pytest.approx(parameter.space.maximum, rel=1e-12)


# Distributions


@pytest.mark.parametrize(
    "parameter",
    [double(0.1, 0.5, 0.1), integer(1, 5), integer(10, 90, 20), discrete("1", "2", "3", "4", "5")],
    ids=name_of,
)
def test_every_value_of_a_uniform_lattice_or_list_gets_an_equal_share_its_ends_too(parameter: ParameterSpec) -> None:
    shares = [[parameter.decode(unit) for unit in MIDDLES].count(value) for value in lattice(parameter)]
    assert shares == [POINTS // 5] * 5


def test_a_log_uniform_int_gets_the_share_of_its_surroundings_on_the_log_scale() -> None:
    parameter = integer(1, 10, None, "logUniform")
    drawn = [parameter.decode(unit) for unit in MIDDLES]
    for value in range(1, 11):
        share = math.log((value + 0.5) / (value - 0.5)) / math.log(10.5 / 0.5)
        # An interval of that length holds as many of the even points, give or take one.
        assert abs(drawn.count(value) - share * POINTS) <= 1


@pytest.mark.parametrize(
    ("parameter", "middle"),
    [
        (double(0.0, 8.0), 4.0),
        (double(0.0, 8.0, None, "normal"), 4.0),
        (double(0.01, 100.0, None, "logUniform"), 1.0),
        (double(0.01, 100.0, None, "logNormal"), 1.0),
    ],
    ids=name_of,
)
def test_half_of_the_draws_lie_below_the_middle_of_the_range_or_of_its_logarithm(
    parameter: ParameterSpec, middle: float
) -> None:
    assert parameter.decode(0.5) == pytest.approx(middle, rel=1e-12)


@pytest.mark.parametrize("deviations", [1, 2])
def test_normal_has_a_sixth_of_the_range_as_its_standard_deviation(deviations: int) -> None:
    parameter = double(-3.0, 3.0, None, "normal")
    inside = sum(abs(float(parameter.decode(unit))) < deviations for unit in MIDDLES)
    # What lies beyond three standard deviations is cut off, so the rest is shared by what is left.
    share = math.erf(deviations / math.sqrt(2)) / math.erf(3 / math.sqrt(2))
    assert abs(inside - share * POINTS) <= 2


# Lattices


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (double(0.1, 0.5, 0.1), [0.1, 0.2, 0.3, 0.4, 0.5]),
        (double(1.0, 2.0, 0.1), [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0]),
        (double(0.01, 0.05, 0.02), [0.01, 0.03, 0.05]),
        (double(1e-5, 3e-5, 1e-5), [1e-5, 2e-5, 3e-5]),
        (double(-0.2, 0.1, 0.1), [-0.2, -0.1, 0.0, 0.1]),
        (double(0.0, 1.0, 0.3), [0.0, 0.3, 0.6, 0.9]),
        (double(0.0, 1.99999999, 1.0), [0.0, 1.0]),
        (double(3.0, 3.0, 1.0), [3.0]),
        (integer(1, 6, 2), [1, 3, 5]),
        (integer(10, 95, 20), [10, 30, 50, 70, 90]),
        (integer(-1, 1), [-1, 0, 1]),
        (discrete("0.10", "2", "1e1"), [0.1, 2, 10.0]),
        (categorical("b", "a"), ["b", "a"]),
    ],
    ids=name_of,
)
def test_a_lattice_starts_at_min_goes_by_step_in_exact_decimals_and_stays_within_max(
    parameter: ParameterSpec, values: list[Value]
) -> None:
    found = lattice(parameter)
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_a_double_without_a_step_cannot_be_counted() -> None:
    assert double(0.0, 1.0).cardinality is None


def test_a_lattice_of_a_million_million_points_is_counted_exactly() -> None:
    assert double(0.0, 1.0, 1e-12).cardinality == 10**12 + 1


@pytest.mark.parametrize(
    ("parameter", "inside", "outside"),
    [
        (double(0.1, 0.5), [0.1, 0.5, 0.333], [0.0999, 0.51, math.nan, math.inf, "0.3"]),
        (double(0.1, 0.5, 0.1), [0.1, 0.3, 0.1 + 0.2, 0.5], [0.25, 0.6, 0.0, math.nan]),
        (double(-1.0, 1.0, 0.5), [-1, -0.5, 0.0, 1], [0.1, -1.5]),
        (integer(1, 5), [1, 5], [0, 6, 3.0, 2.5, "3"]),
        (integer(1, 6, 2), [1, 5], [2, 6]),
        (discrete("0.10", "3"), [0.1, 3], [0.2, "3", "0.10"]),
        (categorical("a", "1"), ["a", "1"], ["b", 1]),
    ],
    ids=name_of,
)
def test_contains_tells_values_from_all_others(
    parameter: ParameterSpec, inside: list[Value], outside: list[Value]
) -> None:
    assert [value for value in inside if not parameter.contains(value)] == []
    assert [value for value in outside if parameter.contains(value)] == []


# Texts


@pytest.mark.parametrize("parameter", CONTINUA + LATTICES + LISTS, ids=name_of)
def test_each_value_survives_being_written_and_read(parameter: ParameterSpec) -> None:
    for unit in MIDDLES[::97]:
        value = parameter.decode(unit)
        read = parameter.parse(parameter.format(value))
        assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("item", ["0.10", "1e-3", "+5", "007", "5.0"])
def test_an_item_of_a_list_is_written_as_the_user_wrote_it(item: str) -> None:
    parameter = discrete("42", item)
    assert parameter.format(parameter.parse(item)) == item


@pytest.mark.parametrize(
    ("parameter", "value", "text"),
    [
        (double(0.0, 1.0), 0.30000000000000004, "0.30000000000000004"),
        (double(0.0, 1.0), 1e-05, "1e-05"),
        (integer(0, 9), 3, "3"),
        (categorical("a b", "$(c)"), "$(c)", "$(c)"),
    ],
    ids=name_of,
)
def test_a_number_is_written_with_all_its_digits_and_a_text_as_it_is(
    parameter: ParameterSpec, value: Value, text: str
) -> None:
    assert parameter.format(value) == text


def test_a_whole_number_keeps_digits_that_no_float_can_hold() -> None:
    assert discrete("9007199254740993").value_at(0) == 9007199254740993
    assert integer(0, 2**60).parse("9007199254740993") == 9007199254740993


@pytest.mark.parametrize(
    ("parameter", "text", "message"),
    [
        (double(0.0, 1.0), "fast", "could not convert"),
        (double(0.0, 1.0), "nan", "'nan' is not a finite number"),
        (integer(0, 1), "inf", "'inf' is not a finite number"),
        (integer(0, 9), "2.5", r"'2\.5' is not a whole number"),
        (discrete("1"), "-inf", "'-inf' is not a finite number"),
        (discrete("1"), "adam", "could not convert"),
    ],
)
def test_a_text_that_is_no_such_number_is_refused(parameter: ParameterSpec, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameter.parse(text)


def test_a_number_cannot_be_had_from_a_text_by_encoding_it() -> None:
    with pytest.raises(TypeError, match=r"parameter x takes numbers, got '0\.5'"):
        double(0.0, 1.0).encode("0.5")


# Grids

GRID = (integer(1, 2), categorical("a", "b", "c"), double(0.5, 1.0, 0.5))
NAMED = tuple(ParameterSpec(name, p.type, p.space) for name, p in zip(("n", "c", "d"), GRID, strict=True))


def test_the_grid_counts_every_combination() -> None:
    assert grid_size(NAMED) == 12


def test_the_last_parameter_of_the_grid_varies_fastest() -> None:
    points = [tuple(grid_point(NAMED, index).values()) for index in range(12)]
    assert points == [(n, c, d) for n in (1, 2) for c in ("a", "b", "c") for d in (0.5, 1.0)]


def test_the_values_of_a_grid_point_stand_in_the_order_of_the_parameters() -> None:
    assert list(grid_point(NAMED, 5)) == ["n", "c", "d"]


def test_a_grid_with_a_continuum_cannot_be_counted() -> None:
    assert grid_size((*NAMED, double(0.0, 1.0))) is None
