"""Finding an algorithm by its name, checking what an experiment asks of it, and making its search.

An algorithm is a module that holds `ALGORITHM`; it is imported when an experiment names it and not before, so that the
libraries of one algorithm cost the users of another nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from hpo_core.errors import SpecError
from hpo_core.experiment import Draft, Experiment, Findings
from hpo_core.experiment.document import near_miss
from hpo_core.search.protocol import Search
from hpo_core.search.settings import read_settings, settings_table

S = TypeVar("S")

Asker: TypeAlias = Draft | Experiment
"""Who names an algorithm: a draft while it is checked, an experiment when its search is made."""

ALGORITHMS: Mapping[str, str] = {
    "grid": "hpo_core.search.grid",
    "random": "hpo_core.search.random_search",
}
"""Every algorithm: the `algorithmName` by which users know it, and its module."""


def _no_rules(asker: Asker, settings: Any, findings: Findings) -> None:
    """What an algorithm demands that takes any experiment."""


@dataclass(frozen=True)
class Algorithm(Generic[S]):
    """What a module of an algorithm tells of it.

    Attributes:
        settings: Its frozen dataclass of settings, each field made by `hpo_core.search.settings.setting`.
        make: Makes its search for an experiment that passed the rules.
        rules: Adds to the findings what it demands beyond its settings, or what users should know.
        any_order: Whether a trial's assignment depends on its number alone, not on what other trials gave.
        example: Settings with which it works on a small experiment, where its defaults do not.
    """

    settings: type[S]
    make: Callable[[Experiment, S], Search]
    rules: Callable[[Asker, S, Findings], None] = _no_rules
    any_order: bool = False
    example: Mapping[str, str] = field(default_factory=dict)


def load_algorithm(name: str) -> Algorithm[Any]:
    """Import an algorithm.

    Raises:
        KeyError: `ALGORITHMS` has no such name.
    """
    algorithm: Algorithm[Any] = importlib.import_module(ALGORITHMS[name]).ALGORITHM
    return algorithm


def describe(name: str) -> str:
    """Describe an algorithm for users, in Markdown: the first line of its module, and its settings.

    Raises:
        KeyError: `ALGORITHMS` has no such name.
    """
    about = (importlib.import_module(ALGORITHMS[name]).__doc__ or "").partition("\n")[0]
    return f"{about}\n\n{settings_table(load_algorithm(name).settings)}"


def make_search(experiment: Experiment) -> Search:
    """Make the search that an experiment asks for.

    Raises:
        SpecError: There is no such algorithm, a setting is wrong, or the algorithm does not suit the search space; it
            lists every problem.
        AlgorithmError: The algorithm cannot start.
    """
    findings = Findings()
    settings = _check(experiment, findings)
    if findings.problems:
        raise SpecError(findings.problems)
    return load_algorithm(experiment.algorithm.name).make(experiment, settings)


def check(draft: Draft) -> None:
    """Add to a draft's findings what is wrong, or odd, with its algorithm and the algorithm's settings."""
    _check(draft, draft.findings)


def parameter_path(asker: Asker, name: str) -> str:
    """Return the path of a parameter in the user's document, where those that could not be read count too."""
    listed = (asker.document.get("spec") or {}).get("parameters") or []
    names = [str(item.get("name")) if isinstance(item, Mapping) else "" for item in listed]
    return f"spec.parameters[{names.index(name) if name in names else name}]"


def _check(asker: Asker, findings: Findings) -> Any:
    """Check the algorithm, and return its settings; None when they cannot be had."""
    if asker.algorithm is None:
        return None
    name = asker.algorithm.name
    if name not in ALGORITHMS:
        near = near_miss(name, ALGORITHMS)
        hint = f"did you mean {near}? " if near else ""
        message = f"{name!r} is no algorithm of this version; {hint}known are {', '.join(ALGORITHMS)}"
        findings.problem("spec.algorithm.algorithmName", message)
        return None
    algorithm = load_algorithm(name)
    settings = read_settings(algorithm.settings, asker.algorithm.settings, findings)
    if settings is not None:
        algorithm.rules(asker, settings, findings)
    return settings
