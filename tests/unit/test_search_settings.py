"""Settings of algorithms: read, checked and documented from one declaration; and finding an algorithm by its name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from hpo_core.errors import SpecError
from hpo_core.experiment import AlgorithmSpec, Findings
from hpo_core.search import ALGORITHMS, load_algorithm, make_search
from hpo_core.search.settings import REQUIRED, read_settings, setting, settings_table
from tests.experiments import make_draft, make_experiment


@dataclass(frozen=True)
class Sample:
    """One setting of each kind."""

    resource: str = setting(REQUIRED, "what is shared out")
    rounds: int = setting(10, "how many rounds", minimum=1, maximum=100)
    gamma: float = setting(0.25, "share of the good ones", above=0, below=1)
    weight: float = setting(1.0, "how much the prior counts", above=0)
    kind: Literal["GP", "RF"] = setting("GP", "the model")
    mixed: bool = setting(False, "whether the order is mixed")
    seed: int | None = setting(None, "seed of the draws", minimum=0)


@dataclass(frozen=True)
class Nothing:
    """No settings at all."""


def read(**texts: str) -> tuple[Any, list[str]]:
    findings = Findings()
    settings = read_settings(Sample, {"resource": "epochs", **texts}, findings)
    return settings, [str(problem) for problem in findings.problems]


def path(name: str) -> str:
    return f"spec.algorithm.algorithmSettings[{name}]"


def test_what_is_not_given_has_its_default() -> None:
    assert read() == (Sample("epochs", 10, 0.25, 1.0, "GP", False, None), [])


def test_each_kind_is_read_from_its_text() -> None:
    settings, problems = read(rounds="100", gamma="1e-3", weight="2", kind="RF", mixed="True", seed="0")
    assert problems == []
    assert settings == Sample("epochs", 100, 0.001, 2.0, "RF", True, 0)
    assert type(settings.rounds) is int


def test_none_stands_for_no_value_where_there_may_be_none() -> None:
    assert read(seed="None") == (Sample("epochs"), [])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rounds", "many", "must be a whole number at least 1 and at most 100, got 'many'"),
        ("rounds", "2.5", "must be a whole number at least 1 and at most 100, got '2.5'"),
        ("rounds", "0", "must be a whole number at least 1 and at most 100, got '0'"),
        ("rounds", "101", "must be a whole number at least 1 and at most 100, got '101'"),
        ("rounds", "None", "must be a whole number at least 1 and at most 100, got 'None'"),
        ("rounds", "", "must be a whole number at least 1 and at most 100, got ''"),
        ("gamma", "0", "must be a number above 0 and below 1, got '0'"),
        ("gamma", "1", "must be a number above 0 and below 1, got '1'"),
        ("gamma", "nan", "must be a number above 0 and below 1, got 'nan'"),
        ("weight", "inf", "must be a number above 0, got 'inf'"),
        ("kind", "gp", "must be one of GP, RF, got 'gp'"),
        ("mixed", "yes", "must be true or false, got 'yes'"),
        ("seed", "-1", "must be a whole number at least 0 or None, got '-1'"),
        ("round", "3", "unknown setting, did you mean rounds?"),
        ("colour", "red", "unknown setting, this algorithm knows resource, rounds, gamma, weight, kind, mixed, seed"),
    ],
)
def test_a_wrong_setting_is_told_with_its_path_and_what_is_allowed(name: str, text: str, message: str) -> None:
    assert read(**{name: text}) == (None, [f"{path(name)}: {message}"])


def test_a_required_setting_that_is_missing_is_told_with_what_it_does() -> None:
    findings = Findings()
    assert read_settings(Sample, {}, findings) is None
    assert [str(p) for p in findings.problems] == [f"{path('resource')}: missing: what is shared out; must be a text"]


def test_everything_that_is_wrong_is_told_at_once() -> None:
    assert len(read(rounds="0", gamma="2", kind="SVM", colour="red")[1]) == 4


def test_the_table_for_the_documentation_tells_everything_that_is_declared() -> None:
    assert settings_table(Sample) == (
        "| setting | default | allowed | what it does |\n"
        "|---|---|---|---|\n"
        "| `resource` | must be given | a text | what is shared out |\n"
        "| `rounds` | `10` | a whole number at least 1 and at most 100 | how many rounds |\n"
        "| `gamma` | `0.25` | a number above 0 and below 1 | share of the good ones |\n"
        "| `weight` | `1.0` | a number above 0 | how much the prior counts |\n"
        "| `kind` | `GP` | one of GP, RF | the model |\n"
        "| `mixed` | `false` | true or false | whether the order is mixed |\n"
        "| `seed` | `None` | a whole number at least 0 or None | seed of the draws |\n"
    )


def test_an_algorithm_without_settings_says_so() -> None:
    assert settings_table(Nothing) == "It has no settings.\n"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_settings_of_every_algorithm_can_be_documented_and_have_defaults_that_are_allowed(name: str) -> None:
    algorithm = load_algorithm(name)
    findings = Findings()
    settings = read_settings(algorithm.settings, algorithm.example, findings)
    assert findings.problems == []
    given = {key: str(value) for key, value in vars(settings).items()}
    assert read_settings(algorithm.settings, given, findings) == settings
    assert all(f"`{key}`" in settings_table(algorithm.settings) for key in given)


# Finding an algorithm


def problems_of(algorithm: dict[str, Any]) -> list[str]:
    return [str(problem) for problem in make_draft(changes={"spec.algorithm": algorithm}).findings.problems]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("randm", "'randm' is no algorithm of this version; did you mean random? known are"),
        ("Grid", "'Grid' is no algorithm of this version; did you mean grid? known are"),
        ("darts", "'darts' is no algorithm of this version; known are"),
    ],
)
def test_an_unknown_algorithm_is_told_with_the_one_that_was_meant_and_all_that_there_are(
    name: str, message: str
) -> None:
    assert problems_of({"algorithmName": name}) == [f"spec.algorithm.algorithmName: {message} {', '.join(ALGORITHMS)}"]


@pytest.mark.parametrize("name", ["random", "grid"])
def test_the_settings_of_an_algorithm_are_checked_with_the_document(name: str) -> None:
    settings = [{"name": "random_sate", "value": "1"}, {"name": "random_state", "value": "-1"}]
    problems = problems_of({"algorithmName": name, "algorithmSettings": settings})
    assert problems[:2] == [
        f"{path('random_sate')}: unknown setting, did you mean random_state?",
        f"{path('random_state')}: must be a whole number at least 0 or None, got '-1'",
    ]


def test_a_document_without_an_algorithm_is_only_told_that_it_is_missing() -> None:
    assert problems_of({}) == ["spec.algorithm.algorithmName: missing, a text is needed here"]


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (AlgorithmSpec("tabu"), "'tabu' is no algorithm of this version"),
        (
            AlgorithmSpec("random", {"random_state": "x", "a": "b"}),
            r"(?s)random_state\]: must be.*\[a\]: unknown setting",
        ),
        (AlgorithmSpec("grid"), r"(?s)parameters\[0\].feasibleSpace.step: .*parameters\[1\].feasibleSpace.step: "),
    ],
)
def test_no_search_is_made_for_an_experiment_that_breaks_the_rules(algorithm: AlgorithmSpec, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_search(replace(make_experiment(), algorithm=algorithm))


def test_an_algorithm_that_nobody_asked_for_is_not_imported() -> None:
    code = "import hpo_core.search, sys; print([n for n in hpo_core.search.ALGORITHMS.values() if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
