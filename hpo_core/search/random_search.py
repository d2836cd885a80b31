"""Random search: every trial is drawn by itself from its parameters' distributions.

Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13 (2012). The values of a trial follow from
the seed, its number and the parameters, so neither earlier results nor the order in which trials end matter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from hpo_core.experiment import Experiment
from hpo_core.search.protocol import Suggestion, next_number
from hpo_core.search.registry import Algorithm
from hpo_core.search.settings import setting
from hpo_core.space import ParameterSpec
from hpo_core.trial import Assignment, Trial


@dataclass(frozen=True)
class Settings:
    """Settings of random search."""

    random_state: int | None = setting(
        None,
        "seed of the draws; without it the experiment's seed, which follows from its namespace and name",
        minimum=0,
    )


@dataclass(frozen=True)
class RandomSearch:
    """Draws each trial's values from their distributions.

    Attributes:
        parameters: The search space.
        seed: What all draws follow from.
    """

    parameters: tuple[ParameterSpec, ...]
    seed: int

    def ask(self, trials: Sequence[Trial], count: int) -> Suggestion:
        """Draw the next trials; never exhausted."""
        first = next_number(trials)
        return Suggestion(tuple(self._draw(number) for number in range(first, first + count)))

    def _draw(self, number: int) -> Assignment:
        # Seeded by a text, `random()` gives the same numbers on every machine and in every later version of Python.
        draws = random.Random(f"random/{self.seed}/{number}")
        return Assignment({parameter.name: parameter.decode(draws.random()) for parameter in self.parameters})


def _make(experiment: Experiment, settings: Settings) -> RandomSearch:
    seed = experiment.seed if settings.random_state is None else settings.random_state
    return RandomSearch(experiment.parameters, seed)


ALGORITHM = Algorithm(Settings, _make, any_order=True)
