"""Reading an Experiment: what is accepted and what it becomes, and every rule that a document can break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpo_core.errors import SpecError
from hpo_core.experiment import (
    AlgorithmSpec,
    Draft,
    MetricStrategy,
    Objective,
    ObjectiveType,
    TrialParameter,
    dump_yaml,
    parse_yaml,
    read_draft,
)
from hpo_core.experiment.load import parse_duration
from hpo_core.space import Distribution, FeasibleSpace, ParameterSpec, ParameterType
from tests.experiments import REMOVED, Changes, make_document, make_experiment, parameter

MANIFEST = Path(__file__).parents[2] / "manifests" / "experiments" / "mnist-random.yaml"
CONTAINERS = "spec.trialTemplate.trialSpec.spec.template.spec.containers"


def read(changes: Changes) -> Draft:
    return read_draft(dump_yaml(make_document(changes=changes)))


def problems(draft: Draft) -> list[str]:
    return [str(problem) for problem in draft.findings.problems]


def warnings(draft: Draft) -> list[str]:
    return [str(warning) for warning in draft.findings.warnings]


def space(**fields: Any) -> Changes:
    """Changes that give the first parameter this feasible space."""
    return {"spec.parameters.0.feasibleSpace": fields}


def kind(name: str, **fields: Any) -> Changes:
    return {"spec.parameters.0": parameter("lr", name, **fields)}


# What is accepted


def test_the_shipped_experiment_has_neither_problems_nor_warnings() -> None:
    draft = read_draft(MANIFEST.read_text())
    assert (problems(draft), warnings(draft)) == ([], [])


def test_every_field_of_the_shipped_experiment_arrives() -> None:
    experiment = read_draft(MANIFEST.read_text()).experiment()
    assert (experiment.namespace, experiment.name) == ("kubeflow", "firstexperiment")
    assert experiment.objective == Objective(ObjectiveType.MINIMIZE, "loss", goal=0.001)
    assert experiment.algorithm == AlgorithmSpec("random")
    assert experiment.parameters == (
        ParameterSpec("lr", ParameterType.DOUBLE, FeasibleSpace(0.01, 0.05)),
        ParameterSpec("momentum", ParameterType.DOUBLE, FeasibleSpace(0.5, 0.9)),
    )
    budgets = (experiment.parallel_trial_count, experiment.max_trial_count, experiment.max_failed_trial_count)
    assert budgets == (3, 12, 3)
    template = experiment.template
    assert (template.kind, template.primary_container_name, template.retain) == ("Job", "training-container", True)
    assert template.trial_parameters == (
        TrialParameter("learningRate", "lr", "Learning rate for the training model"),
        TrialParameter("momentum", "momentum", "Momentum for the training model"),
    )
    assert template.success_condition == 'status.conditions.#(type=="Complete")#|#(status=="True")#'
    assert template.failure_condition == 'status.conditions.#(type=="Failed")#|#(status=="True")#'


def test_json_is_read_too() -> None:
    assert read_draft(json.dumps(make_document())).experiment().name == "small"


def test_what_kubectl_prints_is_read_without_a_word() -> None:
    draft = read(
        {
            "metadata.uid": "5f0c",
            "metadata.creationTimestamp": "2024-05-01T12:00:00Z",
            "metadata.generation": 2,
            "metadata.resourceVersion": "1234",
            "metadata.finalizers": ["update-prometheus-metrics"],
            "metadata.managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {".": {}}}}],
            "metadata.annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
            "spec.parameters.0.feasibleSpace.distribution": "uniform",
            "spec.parameters.1": parameter("momentum", "categorical", list=["a"], distribution="uniform"),
            "spec.objective.metricStrategies": [{"name": "loss", "value": "min"}],
            "spec.metricsCollectorSpec": {"collector": {"kind": "StdOut"}},
            "spec.resumePolicy": "Never",
            "spec.trialTemplate.successCondition": "status.x",
            "spec.trialTemplate.primaryPodLabels": {"role": "master"},
            "status": {"conditions": [{"type": "Running", "status": "True"}], "trialsRunning": 1},
        }
    )
    assert (problems(draft), warnings(draft)) == ([], [])


def test_what_is_not_given_has_katibs_default() -> None:
    experiment = make_experiment(
        changes={
            "metadata.namespace": REMOVED,
            "spec.parallelTrialCount": REMOVED,
            "spec.maxTrialCount": REMOVED,
            "spec.maxFailedTrialCount": REMOVED,
        }
    )
    assert experiment.namespace == "default"
    assert experiment.parallel_trial_count == 3
    assert (experiment.max_trial_count, experiment.max_failed_trial_count) == (None, None)
    assert (experiment.resume_policy, experiment.objective.goal) == ("Never", None)
    assert experiment.settings.max_attempts == 3


@pytest.mark.parametrize(
    ("workload", "given", "expected"),
    [
        ("Job", None, {}),
        ("PyTorchJob", None, {"training.kubeflow.org/job-role": "master"}),
        ("TFJob", {"role": "chief"}, {"role": "chief"}),
        (
            "TrainJob",
            None,
            {"jobset.sigs.k8s.io/replicatedjob-name": "node", "batch.kubernetes.io/job-completion-index": "0"},
        ),
    ],
)
def test_the_labels_of_the_primary_pod_are_katibs_by_kind_unless_the_user_chose(
    workload: str, given: dict[str, str] | None, expected: dict[str, str]
) -> None:
    changes = {"spec.trialTemplate.trialSpec.kind": workload, "spec.trialTemplate.primaryPodLabels": given}
    template = read(changes).template
    assert template is not None
    assert template.primary_pod_labels == expected


def test_a_collector_of_kind_file_reads_katibs_file_or_the_one_that_is_named() -> None:
    collector = {"collector": {"kind": "File"}}
    named = {**collector, "source": {"fileSystemPath": {"path": "/logs/m.txt", "kind": "File", "format": "TEXT"}}}
    assert read({"spec.metricsCollectorSpec": collector}).metrics_file == "/var/log/katib/metrics.log"
    assert read({"spec.metricsCollectorSpec": named}).metrics_file == "/logs/m.txt"
    assert read({"spec.metricsCollectorSpec": {"collector": {"kind": "StdOut"}}}).metrics_file == ""


@pytest.mark.parametrize(("most", "parallel"), [(1, 1), (2, 2), (3, 3), (12, 3)])
def test_without_a_parallel_trial_count_it_is_three_or_the_whole_budget(most: int, parallel: int) -> None:
    draft = read({"spec.maxTrialCount": most, "spec.parallelTrialCount": REMOVED, "spec.maxFailedTrialCount": REMOVED})
    assert draft.parallel_trial_count == parallel


@pytest.mark.parametrize(
    ("objective", "strategies"),
    [
        ({"type": "minimize"}, {"loss": "min", "accuracy": "min"}),
        ({"type": "maximize"}, {"loss": "max", "accuracy": "max"}),
        ({"metricStrategies": [{"name": "accuracy", "value": "latest"}]}, {"loss": "min", "accuracy": "latest"}),
    ],
)
def test_a_metric_counts_with_its_best_value_unless_the_user_chose(
    objective: dict[str, Any], strategies: dict[str, str]
) -> None:
    changes = {"additionalMetricNames": ["accuracy"], **objective}
    experiment = make_experiment(changes={f"spec.objective.{name}": value for name, value in changes.items()})
    assert experiment.objective.metric_names == ("loss", "accuracy")
    assert {name: experiment.objective.strategy(name) for name in strategies} == {
        name: MetricStrategy(value) for name, value in strategies.items()
    }


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "+1e-3", "0.001", "'1e-3'", '"0.001"'])
def test_a_number_may_be_written_as_kubernetes_takes_it_with_or_without_quotes(written: str) -> None:
    text = MANIFEST.read_text().replace('min: "0.01"', f"min: {written}")
    assert read_draft(text).experiment().parameters[0].space.minimum == 0.001


def test_a_whole_number_in_scientific_writing_is_a_number_too() -> None:
    assert parse_yaml("[1e3, 5e+2, -2E-1, 1.5e3]") == [1000.0, 500.0, -0.2, 1500.0]


def test_a_date_stays_the_text_that_was_written() -> None:
    draft = read_draft(
        dump_yaml(make_document(changes=kind("categorical", list=["DATE"]))).replace("DATE", "2024-05-01")
    )
    assert draft.experiment().parameters[0].space.items == ("2024-05-01",)


def test_a_double_with_a_list_is_taken_as_discrete_with_a_warning() -> None:
    draft = read(kind("double", list=["0.5", "0.6"]))
    assert problems(draft) == []
    assert draft.parameters[0].type is ParameterType.DISCRETE
    assert warnings(draft) == [
        "spec.parameters[0].feasibleSpace.list: a double with a list is taken as discrete; Katib refuses it"
    ]


@pytest.mark.parametrize("name", [distribution.value for distribution in Distribution])
def test_every_distribution_of_katib_is_known(name: str) -> None:
    assert read(space(min="1", max="2", distribution=name)).experiment().parameters[0].space.distribution == name


def test_a_trial_parameter_may_stand_for_a_field_of_the_trial() -> None:
    draft = read(
        {
            "spec.trialTemplate.trialParameters.2": {"name": "me", "reference": "${trialSpec.Name}"},
            f"{CONTAINERS}.0.args": ["${trialParameters.me}"],
        }
    )
    assert problems(draft) == []


def test_our_annotations_become_settings_and_those_of_others_are_left_alone() -> None:
    draft = read(
        {
            "metadata.annotations": {
                "kfp-hpo/seed": "7",
                "kfp-hpo/trial-deadline": "1h30m",
                "kfp-hpo/max-attempts": 5,
                "example.com/seed": "x",
            }
        }
    )
    assert problems(draft) == []
    assert (draft.settings.seed, draft.settings.trial_deadline_s, draft.settings.max_attempts) == (7, 5400, 5)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("2h", 7200), ("1h30m", 5400), ("1.5m", 90), ("45", 45), (" 5s ", 5)]
    + [(wrong, None) for wrong in ("", "0", "0s", "soon", "-5s", "5 minutes", "5m2h")],
)
def test_a_time_span_is_read_in_hours_minutes_and_seconds(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


def test_a_name_longer_than_katib_takes_is_a_warning() -> None:
    draft = read({"metadata.name": "a" * 41})
    assert (problems(draft), warnings(draft)) == ([], ["metadata.name: Katib itself takes at most 40 characters"])


def test_an_unknown_field_is_a_warning_that_tells_the_known_ones() -> None:
    draft = read({"spec.objective.colour": "red"})
    assert problems(draft) == []
    assert warnings(draft) == [
        "spec.objective.colour: unknown field, ignored; known here: additionalMetricNames, goal, metricStrategies, "
        "objectiveMetricName, type"
    ]


def test_the_image_goes_into_each_container_that_shows_the_primary_ones() -> None:
    others = [{"name": "same", "image": "trainer:1"}, {"name": "sidecar", "image": "proxy:2"}]
    document = make_document(changes={f"{CONTAINERS}.1": others[0], f"{CONTAINERS}.2": others[1]})
    experiment = read_draft(dump_yaml(document), image="mine:3").experiment()
    shown = experiment.document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"]
    assert [container["image"] for container in shown] == ["mine:3", "mine:3", "proxy:2"]


def test_a_given_namespace_comes_before_the_documents() -> None:
    assert read_draft(dump_yaml(make_document()), namespace="team").experiment().namespace == "team"


def test_what_was_read_can_be_written_and_read_again() -> None:
    first = make_experiment()
    again = read_draft(dump_yaml(first.document)).experiment()
    assert again.spec_hash == first.spec_hash
    assert again.parameters == first.parameters


# Identity


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"spec.maxTrialCount": 5, "spec.parallelTrialCount": 1, "spec.maxFailedTrialCount": 1}, False),
        ({"metadata.labels": {"team": "a"}}, False),
        ({"metadata.annotations": {"example.com/a": "b"}}, False),
        ({"status": {"trials": 1}}, False),
        ({"metadata.annotations": {"kfp-hpo/seed": "1"}}, True),
        ({"spec.objective.goal": 0.1}, True),
        (space(min="0.01", max="0.06"), True),
        ({f"{CONTAINERS}.0.image": "other:1"}, True),
    ],
)
def test_the_spec_hash_tells_what_decides_the_trials_and_nothing_else(changes: Changes, differs: bool) -> None:
    assert (make_experiment(changes=changes).spec_hash != make_experiment().spec_hash) is differs


def test_the_spec_hash_takes_keys_that_are_no_texts() -> None:
    odd = {"metadata.annotations": {1: "a", "b": "c"}, "spec.trialTemplate.trialSpec.spec.odd": {1: "a", "b": "c"}}
    assert make_experiment(changes=odd).spec_hash != make_experiment().spec_hash


def test_the_seed_is_the_users_or_follows_from_namespace_and_name() -> None:
    assert make_experiment(changes={"metadata.annotations": {"kfp-hpo/seed": "0"}}).seed == 0
    names = [{}, {"metadata.name": "other"}, {"metadata.namespace": "other"}]
    seeds = [make_experiment(changes=change).seed for change in names]
    assert len(set(seeds)) == 3
    assert seeds[0] == make_experiment().seed


# What is no Experiment at all


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the document is empty: an Experiment is expected"),
        ("# only a comment\n", "the document is empty"),
        ("- a\n- b\n", "must be a mapping of fields, got a list"),
        ("just words", "must be a mapping of fields, got 'just words'"),
        ("a: [1, 2", "this is not valid YAML: .*expected ',' or ']'"),
        ("a: 1\nb: {c: 1, d: 2, c: 3}\n", "line 2, column 17: this is not valid YAML: the key 'c' is given twice"),
        ("a: 1\n---\nb: 2\n", "expected a single document"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: \x07", "this is not valid YAML"),
        ("&a [*a]", "this is not valid YAML|must be a mapping"),
        ("[" * 5000, "this is not valid YAML"),
        (
            "kind: Pod\napiVersion: v1\n",
            r"(?s)kind: must be Experiment, got 'Pod'.*apiVersion: must be kubeflow.org/v1beta1",
        ),
        ("metadata: {name: a}", "kind: must be Experiment, got nothing"),
    ],
)
def test_a_text_that_is_no_experiment_is_refused_at_once(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_draft(text)
