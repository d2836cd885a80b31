"""What every search algorithm promises, made ready for tests: experiments for each of them, and simulated runs.

An algorithm needs nothing here: each entry of `ALGORITHMS` is tried on every space that it accepts, with its example
settings, and with a `random_state` too where it has that setting.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from hpo_core.experiment import Experiment
from hpo_core.search import ALGORITHMS, Search, Suggestion, load_algorithm, make_search
from hpo_core.trial import (
    Assignment,
    MetricSummary,
    Observation,
    StopRequest,
    Trial,
    TrialCondition,
    TrialVerdict,
    create_trial,
)
from tests.experiments import make_draft, make_experiment, parameter

SPACES: dict[str, list[dict[str, Any]]] = {
    "continuous": [
        parameter("lr", "double", min="0.0001", max="0.1", distribution="logUniform"),
        parameter("momentum", "double", min="0.5", max="0.9"),
        parameter("decay", "double", min="-1", max="1", distribution="normal"),
    ],
    "lattice": [
        parameter("rate", "double", min="0.1", max="0.5", step="0.1"),
        parameter("layers", "int", min="2", max="5"),
        parameter("units", "int", min="16", max="256", step="16", distribution="logNormal"),
    ],
    "lists": [
        parameter("optimizer", "categorical", list=["sgd", "adam", "ftrl"]),
        parameter("batch", "discrete", list=["16", "32", "64"]),
        parameter("dropout", "discrete", list=["0.10", "0.25"]),
    ],
    "mixed": [
        parameter("lr", "double", min="0.001", max="0.1", distribution="logNormal"),
        parameter("layers", "int", min="1", max="8", distribution="logUniform"),
        parameter("optimizer", "categorical", list=["sgd", "adam"]),
    ],
    "tiny": [parameter("flag", "categorical", list=["on", "off"]), parameter("n", "int", min="1", max="3")],
    "single": [parameter("only", "int", min="7", max="7")],
}

ENDS = (
    TrialCondition.SUCCEEDED,
    TrialCondition.FAILED,
    TrialCondition.KILLED,
    TrialCondition.EARLY_STOPPED,
    TrialCondition.METRICS_UNAVAILABLE,
)
NOW = "2024-05-01T12:00:00Z"
MOST_TRIALS = 15


@dataclass(frozen=True)
class Case:
    """One algorithm on one space."""

    algorithm: str
    space: str
    settings: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return "-".join([self.algorithm, self.space, *(f"{name}={value}" for name, value in self.settings)])

    @property
    def any_order(self) -> bool:
        """Whether the algorithm promises that the order in which trials end does not matter."""
        return load_algorithm(self.algorithm).any_order

    @property
    def options(self) -> dict[str, Any]:
        """How `make_experiment` makes this case's experiment."""
        settings = [{"name": name, "value": value} for name, value in self.settings]
        changes = {"spec.algorithm": {"algorithmName": self.algorithm, "algorithmSettings": settings}}
        return {"parameters": SPACES[self.space], "changes": changes}

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment, read by the real loader."""
        return make_experiment(**self.options)

    def search(self) -> Search:
        """A new instance of the search."""
        return make_search(self.experiment)


def cases() -> list[Case]:
    """Every registered algorithm on every space that it accepts."""
    found = [Case(name, space, settings) for name in ALGORITHMS for space in SPACES for settings in _settings_of(name)]
    return [case for case in found if not make_draft(**case.options).findings.problems]


def _settings_of(name: str) -> list[tuple[tuple[str, str], ...]]:
    algorithm = load_algorithm(name)
    example = dict(algorithm.example)
    has_seed = any(field.name == "random_state" for field in fields(algorithm.settings))
    variants = [example, {**example, "random_state": "7"}] if has_seed else [example]
    return [tuple(variant.items()) for variant in variants]


@dataclass(frozen=True)
class Moment:
    """One ask of a run: what the search was shown, and what it said."""

    trials: tuple[Trial, ...]
    count: int
    answer: Suggestion


def simulate(
    experiment: Experiment, search: Search, events: random.Random, ends: Sequence[TrialCondition] = ENDS
) -> list[Moment]:
    """Run an experiment in which everything happens: trials start, go on and end in any order and in every way.

    Args:
        experiment: Whose trials are made.
        search: One instance, asked all along.
        events: Decides what happens; from the same state the same things happen.
        ends: How trials may end.

    Returns:
        Every ask, the last one with all trials ended.
    """
    trials: list[Trial] = []
    moments: list[Moment] = []
    exhausted = False
    while len(trials) < MOST_TRIALS and not exhausted:
        idle = all(trial.condition.is_terminal for trial in trials)
        count = events.randint(1 if idle else 0, 3)
        answer = search.ask(tuple(trials), count)
        moments.append(Moment(tuple(trials), count, answer))
        exhausted = answer.exhausted
        if idle and not answer.assignments and not exhausted:
            raise AssertionError(f"stuck: no trial is open and the answer to ask(…, {count}) is empty")
        trials += as_trials(experiment, trials, answer.assignments)
        trials = [_advance(trial, events, ends) for trial in trials]
    ended = tuple(trial if trial.condition.is_terminal else end(trial, events.choice(ends), events) for trial in trials)
    return [*moments, Moment(ended, 2, search.ask(ended, 2))]


def histories(moments: Sequence[Moment]) -> list[tuple[Trial, ...]]:
    """What a run showed to its search, and every beginning of its ended trials."""
    ended = moments[-1].trials
    return [*(moment.trials for moment in moments), *(ended[:length] for length in range(len(ended)))]


def as_trials(experiment: Experiment, before: Sequence[Trial], assignments: Sequence[Assignment]) -> list[Trial]:
    """The trials that the loop makes of an answer."""
    numbered = enumerate(assignments, len(before) + 1)
    return [create_trial(experiment, number, item, asked_after=0, now=NOW) for number, item in numbered]


def end(trial: Trial, condition: TrialCondition, events: random.Random) -> Trial:
    """End a trial; one that succeeded has observed something, one that was stopped early may have."""
    if condition in (TrialCondition.KILLED, TrialCondition.EARLY_STOPPED):
        trial = trial.request_stop(StopRequest(condition, "Stopped"))
    observes = condition is TrialCondition.SUCCEEDED
    observes = observes or (condition is TrialCondition.EARLY_STOPPED and events.random() < 0.5)
    value = events.gauss(1, 1)
    observation = Observation({"loss": MetricSummary(value, value, value + 1)}) if observes else None
    verdict = TrialVerdict(condition, f"Trial{condition}", observation=observation)
    return trial.finish(verdict, finished_seq=trial.number, log_cursor=0, now=NOW)


def _advance(trial: Trial, events: random.Random, ends: Sequence[TrialCondition]) -> Trial:
    what = events.random()
    if trial.condition.is_terminal or what < 0.3:
        return trial
    return trial.run(NOW) if what < 0.5 else end(trial, events.choice(ends), events)
