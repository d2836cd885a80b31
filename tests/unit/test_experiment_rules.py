"""Every rule that an Experiment document can break: where it is told, in what words, and that all are told at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from hpo_core import search
from hpo_core.errors import SpecError
from hpo_core.experiment import ANNOTATIONS, Draft, dump_yaml, read_draft
from tests.experiments import REMOVED, Changes, make_document, parameter

CONTAINERS = "spec.trialTemplate.trialSpec.spec.template.spec.containers"


def read(changes: Changes) -> Draft:
    return read_draft(dump_yaml(make_document(changes=changes)))


def problems(draft: Draft) -> list[str]:
    return [str(problem) for problem in draft.findings.problems]


def space(**fields: Any) -> Changes:
    """Changes that give the first parameter this feasible space."""
    return {"spec.parameters.0.feasibleSpace": fields}


def kind(name: str, **fields: Any) -> Changes:
    return {"spec.parameters.0": parameter("lr", name, **fields)}


RULES: list[tuple[Changes, str, str]] = [
    # A change to a correct document, the path that is told, and a part of the message.
    ({"apiVersion": "kubeflow.org/v1alpha3"}, "apiVersion", "is not read by this version, write kubeflow.org/v1beta1"),
    ({"apiVersion": "v1"}, "apiVersion", "must be kubeflow.org/v1beta1, got 'v1'"),
    ({"metadata": REMOVED}, "metadata", "missing"),
    ({"metadata": []}, "metadata", "must be a mapping of fields, got a list"),
    ({"metadata.name": REMOVED}, "metadata.name", "missing, a text is needed"),
    ({"metadata.name": "Small"}, "metadata.name", "got 'Small'; at most 63 small letters"),
    ({"metadata.name": "small-"}, "metadata.name", "got 'small-'"),
    ({"metadata.name": "1st"}, "metadata.name", "got '1st'"),
    ({"metadata.name": "a.b"}, "metadata.name", "got 'a.b'"),
    ({"metadata.name": "a" * 64}, "metadata.name", "at most 63"),
    ({"metadata.name": ["a"]}, "metadata.name", "must be a text, got a list"),
    ({"metadata.namespace": "My Team"}, "metadata.namespace", "got 'My Team'; at most 63 small letters"),
    ({"metadata.annotations": ["a"]}, "metadata.annotations", "must be a mapping of fields, got a list"),
    (
        {"metadata.annotations": {"kfp-hpo/sead": "1"}},
        "metadata.annotations[kfp-hpo/sead]",
        "unknown annotation of ours, did you mean kfp-hpo/seed?",
    ),
    (
        {"metadata.annotations": {"kfp-hpo/xyz": "1"}},
        "metadata.annotations[kfp-hpo/xyz]",
        f"unknown annotation of ours, known are {', '.join(ANNOTATIONS)}",
    ),
    (
        {"metadata.annotations": {"kfp-hpo/seed": "-1"}},
        "metadata.annotations[kfp-hpo/seed]",
        "must be a whole number from 0 up, got '-1'",
    ),
    (
        {"metadata.annotations": {"kfp-hpo/seed": "one"}},
        "metadata.annotations[kfp-hpo/seed]",
        "must be a whole number from 0 up, got 'one'",
    ),
    (
        {"metadata.annotations": {"kfp-hpo/max-attempts": 0}},
        "metadata.annotations[kfp-hpo/max-attempts]",
        "must be a whole number from 1 up, got 0",
    ),
    (
        {"metadata.annotations": {"kfp-hpo/trial-deadline": "soon"}},
        "metadata.annotations[kfp-hpo/trial-deadline]",
        "must be a time span such as 90s, 15m or 2h, got 'soon'",
    ),
    ({"spec": REMOVED}, "spec", "missing"),
    ({"spec": "all"}, "spec", "must be a mapping of fields, got 'all'"),
    ({"spec.maxTrialsCount": 3}, "spec.maxTrialsCount", "unknown field beside maxTrialCount: remove one of the two"),
    (
        {"spec.maxTrialsCount": 3, "spec.maxTrialCount": REMOVED},
        "spec.maxTrialsCount",
        "unknown field, did you mean maxTrialCount?",
    ),
    ({"spec.earlyStopping": {"algorithmName": "medianstop"}}, "spec.earlyStopping", "is not part of this version"),
    ({"spec.nasConfig": {}}, "spec.nasConfig", "give spec.parameters instead"),
    (
        {"spec.resumePolicy": "Always"},
        "spec.resumePolicy",
        "got 'Always', must be one of Never, LongRunning, FromVolume",
    ),
    ({"spec.resumePolicy": "never"}, "spec.resumePolicy", "did you mean Never?"),
    # Budgets
    ({"spec.maxTrialCount": 0}, "spec.maxTrialCount", "must be at least 1, got 0"),
    ({"spec.maxTrialCount": "12"}, "spec.maxTrialCount", "must be a whole number, got '12'"),
    ({"spec.maxTrialCount": 1.5}, "spec.maxTrialCount", "must be a whole number, got 1.5"),
    ({"spec.maxTrialCount": True}, "spec.maxTrialCount", "must be a whole number, got true"),
    ({"spec.parallelTrialCount": 0}, "spec.parallelTrialCount", "must be at least 1, got 0"),
    ({"spec.parallelTrialCount": 7}, "spec.parallelTrialCount", "must not exceed maxTrialCount 6, got 7"),
    ({"spec.maxFailedTrialCount": -1}, "spec.maxFailedTrialCount", "must be at least 0, got -1"),
    ({"spec.maxFailedTrialCount": 7}, "spec.maxFailedTrialCount", "must not exceed maxTrialCount 6, got 7"),
    # Objective
    ({"spec.objective": REMOVED}, "spec.objective", "missing"),
    ({"spec.objective": "loss"}, "spec.objective", "must be a mapping of fields, got 'loss'"),
    ({"spec.objective.type": REMOVED}, "spec.objective.type", "missing, must be one of minimize, maximize"),
    ({"spec.objective.type": "minimise"}, "spec.objective.type", "did you mean minimize?"),
    ({"spec.objective.type": 5}, "spec.objective.type", "got 5, must be one of minimize, maximize"),
    ({"spec.objective.goal": "low"}, "spec.objective.goal", "must be a number, got 'low'"),
    ({"spec.objective.goal": ".nan"}, "spec.objective.goal", "must be a number, got '.nan'"),
    ({"spec.objective.goal": float("inf")}, "spec.objective.goal", "must be a number, got inf"),
    ({"spec.objective.goal": 10**400}, "spec.objective.goal", "must be a number, got 1000"),
    ({"spec.objective.goal": True}, "spec.objective.goal", "must be a number, got true"),
    ({"spec.objective.objectiveMetricName": ""}, "spec.objective.objectiveMetricName", "missing, a text is needed"),
    (
        {"spec.objective.additionalMetricNames": ["loss"]},
        "spec.objective.additionalMetricNames",
        "must not hold the objective 'loss' itself",
    ),
    (
        {"spec.objective.additionalMetricNames": "accuracy"},
        "spec.objective.additionalMetricNames",
        "must be a list, got 'accuracy'",
    ),
    (
        {"spec.objective.additionalMetricNames": ["a", {"b": 1}]},
        "spec.objective.additionalMetricNames[1]",
        "must be a text, got a mapping; put it in quotes",
    ),
    (
        {
            "spec.objective.additionalMetricNames": ["f1"],
            "spec.objective.metricStrategies": [{"name": "x", "value": "max"}],
        },
        "spec.objective.metricStrategies[0].name",
        "'x' is none of the metrics loss, f1",
    ),
    (
        {"spec.objective.metricStrategies": [{"name": "loss", "value": "mean"}]},
        "spec.objective.metricStrategies[0].value",
        "got 'mean', must be one of min, max, latest",
    ),
    # Algorithm
    ({"spec.algorithm": REMOVED}, "spec.algorithm", "missing"),
    ({"spec.algorithm.algorithmName": REMOVED}, "spec.algorithm.algorithmName", "missing, a text is needed"),
    (
        {"spec.algorithm.algorithmSettings": {"random_state": 1}},
        "spec.algorithm.algorithmSettings",
        "must be a list, got a mapping",
    ),
    ({"spec.algorithm.algorithmSettings": ["a"]}, "spec.algorithm.algorithmSettings[0]", "must be a mapping of fields"),
    (
        {"spec.algorithm.algorithmSettings": [{"value": "1"}]},
        "spec.algorithm.algorithmSettings[0].name",
        "missing, a text is needed",
    ),
    (
        {"spec.algorithm.algorithmSettings": [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]},
        "spec.algorithm.algorithmSettings[1].name",
        "'a' is given twice",
    ),
    (
        {"spec.algorithm.algorithmSettings": [{"name": "a", "valu": "1"}]},
        "spec.algorithm.algorithmSettings[0].valu",
        "unknown field, did you mean value?",
    ),
    # Parameters
    ({"spec.parameters.0": "lr"}, "spec.parameters[0]", "must be a mapping of fields, got 'lr'"),
    ({"spec.parameters.0.name": REMOVED}, "spec.parameters[0].name", "missing, a text is needed"),
    ({"spec.parameters.1.name": "lr"}, "spec.parameters[1].name", "'lr' is the name of an earlier parameter too"),
    (
        {"spec.parameters.0.parameterType": REMOVED},
        "spec.parameters[0].parameterType",
        "missing, must be one of double,",
    ),
    (
        {"spec.parameters.0.parameterType": "float"},
        "spec.parameters[0].parameterType",
        "got 'float', must be one of double",
    ),
    ({"spec.parameters.0.parameterType": "Int"}, "spec.parameters[0].parameterType", "did you mean int?"),
    ({"spec.parameters.0.feasibleSpace": REMOVED}, "spec.parameters[0].feasibleSpace", "missing"),
    ({"spec.parameters.0.feasiblespace": {}}, "spec.parameters[0].feasiblespace", "unknown field beside feasibleSpace"),
    (space(max="1"), "spec.parameters[0].feasibleSpace.min", "missing, a parameter of type double needs min and max"),
    (space(min="1"), "spec.parameters[0].feasibleSpace.max", "missing, a parameter of type double needs min and max"),
    (space(min="low", max="1"), "spec.parameters[0].feasibleSpace.min", "must be a number, got 'low'"),
    (space(min="0", max="inf"), "spec.parameters[0].feasibleSpace.max", "must be a number, got 'inf'"),
    (space(min="1", max="0.5"), "spec.parameters[0].feasibleSpace.min", "min 1 is above max 0.5: exchange them"),
    (
        space(min="0", max="1", step="0"),
        "spec.parameters[0].feasibleSpace.step",
        "must be above 0 and at most max - min = 1",
    ),
    (space(min="0", max="1", step="-1"), "spec.parameters[0].feasibleSpace.step", "must be above 0"),
    (space(min="0", max="1", step="2"), "spec.parameters[0].feasibleSpace.step", "at most max - min = 1, got 2"),
    (space(min="0", max="1", step="x"), "spec.parameters[0].feasibleSpace.step", "must be a number, got 'x'"),
    (
        space(min="0", max="1", distribution="logUniform"),
        "spec.parameters[0].feasibleSpace.min",
        "must be above 0 for the distribution logUniform, got 0",
    ),
    (
        space(min="-1", max="1", distribution="logNormal"),
        "spec.parameters[0].feasibleSpace.min",
        "must be above 0 for the distribution logNormal, got -1",
    ),
    (
        space(min="1", max="2", distribution="loguniform"),
        "spec.parameters[0].feasibleSpace.distribution",
        "did you mean logUniform?",
    ),
    (
        space(min="1", max="2", list=["1"]),
        "spec.parameters[0].feasibleSpace.list",
        "has no meaning for a parameter of type double with min and max",
    ),
    (
        kind("int", min="0.5", max="3"),
        "spec.parameters[0].feasibleSpace.min",
        "must be a whole number for an int parameter, got 0.5",
    ),
    (kind("int", min="0", max="3.5"), "spec.parameters[0].feasibleSpace.max", "must be a whole number"),
    (kind("int", min="0", max="3", step="0.5"), "spec.parameters[0].feasibleSpace.step", "must be a whole number"),
    (kind("categorical"), "spec.parameters[0].feasibleSpace.list", "missing, a categorical parameter needs"),
    (kind("discrete", list=[]), "spec.parameters[0].feasibleSpace.list", "missing, a discrete parameter needs"),
    (kind("discrete", list="1,2"), "spec.parameters[0].feasibleSpace.list", "must be a list, got '1,2'"),
    (kind("discrete", list=["1", "two"]), "spec.parameters[0].feasibleSpace.list[1]", "must be a number, got 'two'"),
    (kind("discrete", list=["1", "nan"]), "spec.parameters[0].feasibleSpace.list[1]", "must be a number, got 'nan'"),
    (kind("discrete", list=["0.1", "0.10"]), "spec.parameters[0].feasibleSpace.list", "holds a value twice: 0.1, 0.10"),
    (kind("categorical", list=["a", "a"]), "spec.parameters[0].feasibleSpace.list", "holds a value twice: a, a"),
    (kind("categorical", list=[True]), "spec.parameters[0].feasibleSpace.list[0]", "got true; put it in quotes"),
    (
        kind("categorical", list=["a"], min="1"),
        "spec.parameters[0].feasibleSpace.min",
        "has no meaning for a categorical",
    ),
    (kind("discrete", list=["1"], max="1"), "spec.parameters[0].feasibleSpace.max", "has no meaning for a discrete"),
    (kind("discrete", list=["1"], step="1"), "spec.parameters[0].feasibleSpace.step", "has no meaning for a discrete"),
    # Metrics collector
    (
        {"spec.metricsCollectorSpec": {"collector": {"kind": "Custom"}}},
        "spec.metricsCollectorSpec.collector.kind",
        "got Custom; this version reads what a trial prints, StdOut, or a File",
    ),
    (
        {"spec.metricsCollectorSpec": {"collector": {"kind": "File"}, "source": {"fileSystemPath": {"path": "m.log"}}}},
        "spec.metricsCollectorSpec.source.fileSystemPath.path",
        "must be absolute, a file in a folder of its own, as in /var/log/katib/metrics.log; got 'm.log'",
    ),
    (
        {
            "spec.metricsCollectorSpec": {
                "collector": {"kind": "File"},
                "source": {"fileSystemPath": {"path": "/m.log"}},
            }
        },
        "spec.metricsCollectorSpec.source.fileSystemPath.path",
        "a file in a folder of its own",
    ),
    (
        {
            "spec.metricsCollectorSpec": {
                "collector": {"kind": "File"},
                "source": {"fileSystemPath": {"path": "/a/../b"}},
            }
        },
        "spec.metricsCollectorSpec.source.fileSystemPath.path",
        "must be absolute, a file in a folder of its own",
    ),
    (
        {
            "spec.metricsCollectorSpec": {
                "collector": {"kind": "File"},
                "source": {"fileSystemPath": {"format": "JSON"}},
            }
        },
        "spec.metricsCollectorSpec.source.fileSystemPath.format",
        "got JSON; this version reads TEXT",
    ),
    (
        {"spec.metricsCollectorSpec": {"collector": {}}},
        "spec.metricsCollectorSpec.collector.kind",
        "missing, a text is needed",
    ),
    # Trial template
    (
        {"spec.trialTemplate": REMOVED},
        "spec.trialTemplate",
        "missing: add the Job that trains once, with a placeholder for each of lr, momentum",
    ),
    ({"spec.trialTemplate": []}, "spec.trialTemplate", "must be a mapping of fields, got a list"),
    ({"spec.trialTemplate.trialSpec": REMOVED}, "spec.trialTemplate.trialSpec", "missing"),
    (
        {"spec.trialTemplate.trialSpec": REMOVED, "spec.trialTemplate.configMap": {"configMapName": "a"}},
        "spec.trialTemplate.configMap",
        "this version takes the template inline, as trialSpec",
    ),
    (
        {"spec.trialTemplate.primaryContainerName": REMOVED},
        "spec.trialTemplate.primaryContainerName",
        "missing, a text is needed",
    ),
    (
        {"spec.trialTemplate.primaryContainerName": "trainer"},
        "spec.trialTemplate.primaryContainerName",
        "no container is called 'trainer'; the template's containers are training-container",
    ),
    ({"spec.trialTemplate.trialSpec.kind": REMOVED}, "spec.trialTemplate.trialSpec.kind", "missing, a text is needed"),
    (
        {"spec.trialTemplate.trialSpec.apiVersion": REMOVED},
        "spec.trialTemplate.trialSpec.apiVersion",
        "missing, a text is needed",
    ),
    (
        {"spec.trialTemplate.trialSpec.metadata": {"name": "mine"}},
        "spec.trialTemplate.trialSpec.metadata.name",
        "must not be given: each trial gets its own; remove it",
    ),
    (
        {"spec.trialTemplate.trialSpec.metadata": {"namespace": "mine"}},
        "spec.trialTemplate.trialSpec.metadata.namespace",
        "must not be given",
    ),
    (
        {"spec.trialTemplate.trialSpec.kind": "Workflow", "spec.trialTemplate.failureCondition": "x"},
        "spec.trialTemplate.successCondition",
        "missing: there is no default for the kind Workflow",
    ),
    (
        {"spec.trialTemplate.trialSpec.kind": "Workflow", "spec.trialTemplate.successCondition": "x"},
        "spec.trialTemplate.failureCondition",
        "missing: there is no default for the kind Workflow",
    ),
    (
        {"spec.trialTemplate.trialParameters.0.reference": "rate"},
        "spec.trialTemplate.trialParameters[0].reference",
        "'rate' is no parameter of the search space; there are lr, momentum",
    ),
    (
        {"spec.trialTemplate.trialParameters.1.reference": "momentun"},
        "spec.trialTemplate.trialParameters[1].reference",
        "did you mean momentum?",
    ),
    (
        {"spec.trialTemplate.trialParameters.1": REMOVED, f"{CONTAINERS}.0.command": ["${trialParameters.lr}"]},
        "spec.parameters[1]",
        "no trialParameter refers to 'momentum', so it would change nothing",
    ),
    (
        {f"{CONTAINERS}.0.args": ["${trialParameters.momentun}"]},
        "spec.trialTemplate.trialSpec",
        "the placeholder ${trialParameters.momentun} has no trialParameter; did you mean momentum?",
    ),
    (
        {f"{CONTAINERS}.0.args": ["${trialParameters.xyz}"]},
        "spec.trialTemplate.trialSpec",
        "has no trialParameter; add it to trialParameters or remove it",
    ),
    (
        {f"{CONTAINERS}.0.command": ["python3", "--momentum=${trialParameters.momentum}"]},
        "spec.trialTemplate.trialParameters[0].name",
        "${trialParameters.lr} does not occur in the trialSpec: use it or remove it",
    ),
    (
        {"spec.trialTemplate.trialParameters.0.name": "a{b"},
        "spec.trialTemplate.trialParameters[0].name",
        "must not hold braces, got 'a{b'",
    ),
    (
        {"spec.trialTemplate.trialParameters.1.name": "lr"},
        "spec.trialTemplate.trialParameters[1].name",
        "'lr' is given twice",
    ),
    (
        {"spec.trialTemplate.trialParameters.1.reference": "lr"},
        "spec.trialTemplate.trialParameters[1].reference",
        "'lr' is given twice",
    ),
    (
        {"spec.trialTemplate.trialParameters.0.reference": REMOVED},
        "spec.trialTemplate.trialParameters[0].reference",
        "missing, a text is needed",
    ),
    (
        {"spec.trialTemplate.trialParameters": []},
        "spec.trialTemplate.trialParameters",
        "missing: name a placeholder for each search parameter",
    ),
    (
        {f"{CONTAINERS}": []},
        "spec.trialTemplate.trialSpec.spec.template.spec.containers",
        "missing, a Job needs at least one container",
    ),
    ({f"{CONTAINERS}.0": "trainer"}, f"{CONTAINERS}[0]", "must be a mapping of fields, got 'trainer'"),
    ({f"{CONTAINERS}.0.name": REMOVED}, f"{CONTAINERS}[0].name", "missing, a text is needed"),
    (
        {f"{CONTAINERS}.0.command": "python3 train.py"},
        f"{CONTAINERS}[0].command",
        "must be a list, got 'python3 train.py'",
    ),
    ({f"{CONTAINERS}.0.args": [["a"]]}, f"{CONTAINERS}[0].args[0]", "must be a text, got a list"),
]


@pytest.mark.parametrize(
    ("changes", "path", "fragment"), RULES, ids=[f"{path}-{fragment[:30]}" for _, path, fragment in RULES]
)
def test_a_broken_rule_is_told_with_its_path_and_what_to_do(changes: Changes, path: str, fragment: str) -> None:
    found = [problem.message for problem in read(changes).findings.problems if problem.path == path]
    assert any(fragment in message for message in found), problems(read(changes))


@pytest.mark.parametrize("changes", [changes for changes, _, _ in RULES])
def test_what_breaks_a_rule_is_never_an_experiment(changes: Changes) -> None:
    draft = read(changes)
    with pytest.raises(SpecError, match=r"."):
        draft.experiment()


def test_every_mistake_is_told_at_once_in_the_order_of_the_document() -> None:
    draft = read(
        {
            "metadata.name": "Small",
            "spec.parameters.0.feasibleSpace.min": "0.9",
            "spec.objective.type": "minimise",
            "spec.algorithm.algorithmName": REMOVED,
            "spec.maxTrialCount": 0,
            "spec.trialTemplate.primaryContainerName": "other",
        }
    )
    paths = [
        "metadata.name",
        "spec.parameters[0].feasibleSpace.min",
        "spec.objective.type",
        "spec.algorithm.algorithmName",
        "spec.maxTrialCount",
        "spec.trialTemplate.primaryContainerName",
    ]
    assert [problem.path for problem in draft.findings.problems] == paths
    with pytest.raises(SpecError, match=r"^metadata\.name: got 'Small'") as caught:
        draft.experiment()
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == paths


@pytest.mark.parametrize(
    ("changes", "only"),
    [
        ({"spec.parameters.0.name": REMOVED, "spec.parameters.1.name": REMOVED}, ["name: missing", "name: missing"]),
        ({"spec.trialTemplate.trialSpec.kind": REMOVED}, ["kind: missing"]),
        ({"spec.parameters": 5}, ["parameters: must be a list, got 5"]),
    ],
)
def test_one_mistake_is_not_told_as_several(changes: Changes, only: list[str]) -> None:
    told = [text for text in problems(read(changes)) if "reference" not in text]
    assert len(told) == len(only), told
    assert all(part in text for part, text in zip(only, told, strict=True))


def test_the_path_of_a_parameter_counts_those_that_could_not_be_read() -> None:
    changes = {
        "spec.parameters.0": "broken",
        "spec.trialTemplate.trialParameters.1": REMOVED,
        f"{CONTAINERS}.0.command": ["${trialParameters.lr}"],
    }
    assert "spec.parameters[1]: no trialParameter refers to 'momentum', so it would change nothing" in problems(
        read(changes)
    )


def test_an_unhashable_image_is_left_alone() -> None:
    document = make_document(changes={f"{CONTAINERS}.0.image": ["a"]})
    assert read_draft(dump_yaml(document), image="mine:1").template is not None


ODD: list[Any] = [None, True, 0, 5, -1.5, 10**400, "", "x", [], ["a"], [[]], {}, {"a": 1}, {1: 2}, [{"name": "a"}]]


def every_change(document: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every field of a document."""
    for key in list(document) if isinstance(document, dict) else range(len(document)):
        yield (*way, key)
        if isinstance(document[key], dict | list):
            yield from every_change(document[key], (*way, key))


def verdict(text: str) -> object:
    """The identity of what was read, or the problems that there are."""
    try:
        draft = read_draft(text, image="mine:1")
        search.check(draft)
        return draft.experiment().spec_hash
    except SpecError as error:
        return error.problems


@pytest.mark.parametrize("way", list(every_change(make_document())), ids=lambda way: ".".join(map(str, way)))
def test_whatever_stands_in_a_field_is_told_as_a_problem_or_taken(way: tuple[Any, ...]) -> None:
    """No document, however odd, ends in an error that is not meant for its author."""
    for odd in ODD:
        document = copy.deepcopy(make_document())
        place: Any = document
        for key in way[:-1]:
            place = place[key]
        place[way[-1]] = odd
        assert verdict(dump_yaml(document))
