"""An experiment at one instant, for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass

from hpo_core.experiment import Experiment
from hpo_core.status import Progress, Verdict
from hpo_core.trial import Trial


@dataclass(frozen=True)
class Snapshot:
    """An experiment at one instant, for whoever shows it.

    Attributes:
        followed: What the trials that are not over have printed, of those that have printed since the last snapshot.
    """

    experiment: Experiment
    trials: tuple[Trial, ...]
    verdict: Verdict
    progress: Progress
    followed: tuple[Followed, ...] = ()


@dataclass(frozen=True)
class Followed:
    """What a trial that is not over has printed so far, for others to look at."""

    label: str
    log: bytes
    metrics: str
