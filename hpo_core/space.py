"""The search space: what values a parameter may take, and how they are told, counted and mapped to the unit cube.

Values are typed inside (`int`, `float`, `str`); `parse` and `format` are the only places where they are text.
Every algorithm works on this module's unit interval, so what a distribution or a step means is decided here once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from statistics import NormalDist
from typing import TypeAlias

Value: TypeAlias = int | float | str
"""One parameter's value: a number for int, double and discrete parameters, text for categorical ones."""

Values: TypeAlias = Mapping[str, Value]
"""One value for each parameter, by parameter name."""


class ParameterType(StrEnum):
    """Katib's `parameterType`."""

    DOUBLE = "double"
    INT = "int"
    DISCRETE = "discrete"
    CATEGORICAL = "categorical"


class Distribution(StrEnum):
    """Katib's `feasibleSpace.distribution`, for numeric ranges."""

    UNIFORM = "uniform"
    LOG_UNIFORM = "logUniform"
    NORMAL = "normal"
    LOG_NORMAL = "logNormal"


@dataclass(frozen=True)
class FeasibleSpace:
    """The range or the list of one parameter.

    Attributes:
        minimum: Smallest value, included; None for a list.
        maximum: Largest value, included; None for a list.
        step: Distance of the lattice points, which start at `minimum`; None for a continuum (an int has step 1).
        items: The texts of a list, as the user wrote them; empty for a range.
        distribution: How likely the values of a range are. Normal means: mean in the middle of the range, a sixth of
            the range as standard deviation, cut off at its ends; the log forms mean the same of the logarithm.
    """

    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    items: tuple[str, ...] = ()
    distribution: Distribution = Distribution.UNIFORM


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of the search space. Its space has been validated: a range has ends, a list has items."""

    name: str
    type: ParameterType
    space: FeasibleSpace

    @property
    def is_list(self) -> bool:
        """Whether the values are listed one by one."""
        return self.type in (ParameterType.DISCRETE, ParameterType.CATEGORICAL)

    @cached_property
    def cardinality(self) -> int | None:
        """How many values there are; None for a continuum."""
        if self.is_list:
            return len(self.space.items)
        step = self._step
        if step is None:
            return None
        # Counted in the decimals that the user wrote: in binary, 0.1 to 0.3 by 0.1 would fall short of its last point.
        low, high = self._ends
        return math.floor((Fraction(repr(high)) - Fraction(repr(low))) / Fraction(repr(step))) + 1

    def value_at(self, index: int) -> Value:
        """Return the value of that place in the list or on the lattice, 0 being the first.

        Args:
            index: From 0 to `cardinality - 1`; the parameter must not be a continuum.
        """
        if self.is_list:
            return self.parse(self.space.items[index])
        if self.type is ParameterType.INT:
            return int(self._ends[0]) + index * int(self._step or 1)
        # Decimal arithmetic, so that the third point of 0.1, 0.2, … is 0.3 and not 0.30000000000000004.
        return float(Decimal(repr(self._ends[0])) + index * Decimal(repr(self._step)))

    def contains(self, value: Value) -> bool:
        """Tell whether this is one of the parameter's values, of the right type and on the lattice."""
        if self.is_list:
            return value in [self.parse(item) for item in self.space.items]
        if isinstance(value, str) or (self.type is ParameterType.INT and not isinstance(value, int)):
            return False
        low, high = self._ends
        if not low <= value <= high:
            return False
        return self._step is None or math.isclose(float(self.value_at(self._nearest(value))), value, rel_tol=1e-9)

    def parse(self, text: str) -> Value:
        """Read a value from text.

        Raises:
            ValueError: The text is no finite number, where the parameter's values are numbers.
        """
        if self.type is ParameterType.CATEGORICAL:
            return text
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text!r} is not a finite number")
        if self.type is not ParameterType.DOUBLE and _is_integer_text(text):
            return int(text)
        if self.type is ParameterType.INT:
            if number != int(number):
                raise ValueError(f"{text!r} is not a whole number")
            return int(number)
        return number

    def format(self, value: Value) -> str:
        """Write a value as the trial's command line shows it; an item of a list as the user wrote it."""
        if self.is_list:
            for item in self.space.items:
                if self.parse(item) == value:
                    return item
        return str(value)

    def decode(self, unit: float) -> Value:
        """Map a point of the unit interval to a value, so that uniform points give the parameter's distribution.

        Args:
            unit: From 0 up to 1. Each value of a list and each point of a uniform lattice gets an equal share of it.
        """
        count = self.cardinality
        if self.is_list:
            return self.value_at(min(int(unit * len(self.space.items)), len(self.space.items) - 1))
        value = self._quantile(unit)
        if count is None:
            return min(max(value, self._ends[0]), self._ends[1])
        return self.value_at(self._nearest(value))

    def encode(self, value: Value) -> float:
        """Map a value to a point of the unit interval that `decode` maps back to it."""
        if self.is_list:
            values = [self.parse(item) for item in self.space.items]
            return (values.index(value) + 0.5) / len(values)
        if isinstance(value, str):
            raise TypeError(f"parameter {self.name} takes numbers, got {value!r}")
        return self._cumulative(value)

    @property
    def _ends(self) -> tuple[float, float]:
        if self.space.minimum is None or self.space.maximum is None:
            raise ValueError(f"parameter {self.name} has a list, not a range")
        return self.space.minimum, self.space.maximum

    @property
    def _step(self) -> float | None:
        return 1.0 if self.type is ParameterType.INT and self.space.step is None else self.space.step

    def _nearest(self, value: float) -> int:
        """Index of the lattice point nearest to a value."""
        low = self._ends[0]
        return min(max(round((value - low) / (self._step or 1)), 0), (self.cardinality or 1) - 1)

    def _is_log(self) -> bool:
        return self.space.distribution in (Distribution.LOG_UNIFORM, Distribution.LOG_NORMAL)

    def _warped_ends(self) -> tuple[float, float]:
        """Ends of the range, half a step wider where there is a lattice so that its end points get a whole share."""
        low, high = self._ends
        step = self._step
        if step is not None:
            top = float(self.value_at((self.cardinality or 1) - 1))
            low, high = max(low - step / 2, low / 2) if self._is_log() else low - step / 2, top + step / 2
        return (math.log(low), math.log(high)) if self._is_log() else (low, high)

    def _normal(self) -> tuple[NormalDist, float, float]:
        """The normal distribution and its cumulative probability at both ends of the warped range."""
        low, high = self._warped_ends()
        normal = NormalDist((low + high) / 2, (high - low) / 6)
        return normal, normal.cdf(low), normal.cdf(high)

    def _quantile(self, unit: float) -> float:
        low, high = self._warped_ends()
        if self.space.distribution in (Distribution.UNIFORM, Distribution.LOG_UNIFORM) or low == high:
            warped = low + unit * (high - low)
        else:
            normal, below, above = self._normal()
            warped = normal.inv_cdf(below + unit * (above - below))
        return math.exp(warped) if self._is_log() else warped

    def _cumulative(self, value: float) -> float:
        warped = math.log(value) if self._is_log() else float(value)
        low, high = self._warped_ends()
        if low == high:
            return 0.5
        if self.space.distribution in (Distribution.UNIFORM, Distribution.LOG_UNIFORM):
            return (warped - low) / (high - low)
        normal, below, above = self._normal()
        return (normal.cdf(warped) - below) / (above - below)


def grid_size(parameters: tuple[ParameterSpec, ...]) -> int | None:
    """Count the combinations of all parameters' values; None when one of them is a continuum."""
    counts = [parameter.cardinality for parameter in parameters]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def grid_point(parameters: tuple[ParameterSpec, ...], index: int) -> dict[str, Value]:
    """Return the combination of that place in the grid, the last parameter varying fastest.

    Args:
        parameters: Parameters that all have a cardinality.
        index: From 0 to `grid_size(parameters) - 1`.
    """
    values: dict[str, Value] = {}
    for parameter in reversed(parameters):
        index, place = divmod(index, parameter.cardinality or 1)
        values[parameter.name] = parameter.value_at(place)
    return {parameter.name: values[parameter.name] for parameter in parameters}


def _is_integer_text(text: str) -> bool:
    return text.strip().lstrip("+-").isdigit()
