"""Grid search: every combination of the parameters' values, each exactly once.

Trial number n gets the n-th combination, in the order of the YAML with the last parameter varying fastest, or in a
mixed order. A grid is never written out, so its size does not matter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from hpo_core.experiment import Experiment, Findings
from hpo_core.search.protocol import Suggestion, next_number
from hpo_core.search.registry import Algorithm, Asker, parameter_path
from hpo_core.search.settings import setting
from hpo_core.space import ParameterSpec, grid_point, grid_size
from hpo_core.trial import Assignment, Trial


@dataclass(frozen=True)
class Settings:
    """Settings of grid search."""

    random_state: int | None = setting(
        None, "seed of a mixed order; without it the order is the YAML's, the last parameter varying fastest", minimum=0
    )


@dataclass(frozen=True)
class GridSearch:
    """Walks through the grid.

    Attributes:
        parameters: The search space, no continuum in it.
        size: How many combinations there are.
        order: The mixed order; None for the YAML's.
    """

    parameters: tuple[ParameterSpec, ...]
    size: int
    order: MixedOrder | None = None

    def ask(self, trials: Sequence[Trial], count: int) -> Suggestion:
        """Return the next combinations; exhausted once the last one is among them or before them."""
        first = next_number(trials)
        end = min(first + count, self.size + 1)
        return Suggestion(tuple(self._combination(number) for number in range(first, end)), exhausted=end > self.size)

    def _combination(self, number: int) -> Assignment:
        place = self.order.at(number - 1) if self.order else number - 1
        return Assignment(grid_point(self.parameters, place))


@dataclass
class MixedOrder:
    """The numbers from 0 to `size - 1` in a random order, of which only what was looked at is kept.

    It is the shuffle of Fisher and Yates, done place by place when it is needed.

    Attributes:
        size: How many numbers.
        seed: What the order follows from.
    """

    size: int
    seed: int
    _drawn: list[int] = field(default_factory=list)
    _moved: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._draws = random.Random(f"grid/{self.seed}")

    def at(self, place: int) -> int:
        """Return the number at a place from 0 to `size - 1`; the cost is that of the places not yet looked at."""
        while len(self._drawn) <= place:
            self._drawn.append(self._draw(len(self._drawn)))
        return self._drawn[place]

    def _draw(self, place: int) -> int:
        """Swap a random one of the numbers not yet drawn to this place; `_moved` holds what a swap put elsewhere."""
        left = self.size - place
        # Of Python's generator only `random()` is promised never to change; its 53 bits are scaled without rounding.
        other = place + (int(self._draws.random() * 2**53) * left >> 53)
        here = self._moved.pop(place, place)
        if other == place:
            return here
        drawn = self._moved.get(other, other)
        self._moved[other] = here
        return drawn


def _make(experiment: Experiment, settings: Settings) -> GridSearch:
    size = grid_size(experiment.parameters) or 0
    order = None if settings.random_state is None else MixedOrder(size, settings.random_state)
    return GridSearch(experiment.parameters, size, order)


def _rules(asker: Asker, settings: Settings, findings: Findings) -> None:
    for parameter in asker.parameters:
        if parameter.cardinality is None:
            findings.problem(f"{parameter_path(asker, parameter.name)}.feasibleSpace.step", _needs_step(parameter))
    # Counting makes sense only where every parameter could be read.
    size = None if findings.problems else grid_size(asker.parameters)
    most = asker.max_trial_count
    if size is None or most is None:
        return
    if most > size:
        message = f"{most} is more than the grid's {size} combinations: it ends after these, all of them tried"
        findings.warn("spec.maxTrialCount", message)
    elif most < size and settings.random_state is None:
        message = (
            f"only the first {most} of {size} combinations are tried, in the order of the YAML; give the setting "
            'random_state, such as "1", to try a mix of them, or raise maxTrialCount'
        )
        findings.warn("spec.maxTrialCount", message)


def _needs_step(parameter: ParameterSpec) -> str:
    low, high = parameter.space.minimum or 0.0, parameter.space.maximum or 0.0
    example = f', such as step: "{(high - low) / 4:g}"' if high > low else ""
    return f"grid tries every value, so a double needs a step: add one{example}, or write a discrete list"


ALGORITHM = Algorithm(Settings, _make, _rules, any_order=True)
