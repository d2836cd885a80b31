"""The best few trials so far, whose output is kept."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable

from hpo_core.experiment import Objective
from hpo_core.trial import Trial


class BestFew:
    """The best trials by the objective; of equal ones the first by number. Each change costs its number at most.

    Args:
        objective: What is better.
        most: How many.
        trials: Those that are taken in at once.
    """

    def __init__(self, objective: Objective, most: int, trials: Iterable[Trial] = ()) -> None:
        self._objective, self._most = objective, most
        self._ranked: list[tuple[float, int]] = []
        for trial in trials:
            self.add(trial)

    @property
    def numbers(self) -> set[int]:
        """Numbers of the best trials."""
        return {number for _, number in self._ranked}

    def add(self, trial: Trial) -> None:
        """Take in a trial; one that is not over, or has no finite value, is left out."""
        value = trial.observation.value(self._objective) if trial.observation else None
        if value is None or not math.isfinite(value) or not trial.condition.is_terminal:
            return
        rank = -value if self._objective.is_better(1.0, 0.0) else value
        bisect.insort(self._ranked, (rank, trial.number))
        del self._ranked[self._most :]
