"""The trial's manifest: values enter as data, the trial's own fields are known, the template stays as it is."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from hpo_core.errors import AlgorithmError
from hpo_core.experiment import Experiment
from hpo_core.launch.command import expand
from hpo_core.manifest import LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID, PHASE_RETRAIN, primary_container, render
from tests.experiments import LEARNING_RATE, MOMENTUM, Changes, make_experiment, parameter

HOSTILE = [
    "$(HOME)",
    "$$",
    "$$(HOME)",
    "$HOME",
    "${trialParameters.lr}",
    "a$$b$",
    "; rm -rf /",
    'it\'s "quoted"',
    "two  words",
    "line\nbreak",
    "{}",
    "- a: b",
    "&x *x !x #x %x @x",
    "`id`",
    "\\n",
    "",
]
SPEC = "spec.trialTemplate.trialSpec"
CONTAINER = f"{SPEC}.spec.template.spec.containers.0"
VALUES = {"lr": 0.02, "momentum": 0.5}


def with_text(*items: str, changes: Changes | None = None) -> Experiment:
    return make_experiment([parameter("text", "categorical", list=list(items))], changes=changes)


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return dict(primary_container(manifest, "training-container"))


def test_each_placeholder_becomes_its_value() -> None:
    manifest = render(make_experiment(), VALUES, "small-1")
    assert container_of(manifest)["command"] == ["python3", "train.py", "--lr=0.02", "--momentum=0.5"]


def test_placeholders_are_replaced_wherever_they_stand() -> None:
    changes = {
        f"{CONTAINER}.args": ["--both=${trialParameters.lr}/${trialParameters.momentum}"],
        f"{CONTAINER}.env": [{"name": "LR", "value": "${trialParameters.lr}"}],
        f"{SPEC}.metadata": {"annotations": {"lr-${trialParameters.lr}": "is ${trialParameters.lr}"}},
    }
    manifest = render(make_experiment(changes=changes), VALUES, "small-1")
    assert container_of(manifest)["args"] == ["--both=0.02/0.5"]
    assert container_of(manifest)["env"][0] == {"name": "LR", "value": "0.02"}
    assert manifest["metadata"]["annotations"] == {"lr-0.02": "is 0.02"}


def test_an_item_of_a_list_is_written_as_the_user_wrote_it() -> None:
    experiment = make_experiment([parameter("dropout", "discrete", list=["0.10", "1e-3", "5"])])
    (dropout,) = experiment.parameters
    manifests = [render(experiment, {"dropout": dropout.value_at(index)}, "a") for index in range(3)]
    assert [container_of(manifest)["command"][-1] for manifest in manifests] == [
        "--dropout=0.10",
        "--dropout=1e-3",
        "--dropout=5",
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_value_reaches_the_trial_as_it_is_whatever_is_in_it(text: str) -> None:
    """After Kubernetes, or the local launcher, has expanded what the manifest says."""
    fields = {
        f"{CONTAINER}.args": ["${trialParameters.text}${trialParameters.text}"],
        f"{CONTAINER}.env": [{"name": "TEXT", "value": "${trialParameters.text}"}],
    }
    container = container_of(render(with_text(text, "other", changes=fields), {"text": text}, "a"))
    around = {"HOME": "/root", "lr": "no"}
    assert expand(container["command"][-1], around) == f"--text={text}"
    assert expand(container["args"][0], around) == text + text
    assert expand(container["env"][0]["value"], around) == text


def test_what_the_template_refers_to_is_still_expanded() -> None:
    changes = {f"{CONTAINER}.args": ["$(HOME)/$$(x)/${trialParameters.text}"]}
    container = container_of(render(with_text("$(HOME)", changes=changes), {"text": "$(HOME)"}, "a"))
    assert expand(container["args"][0], {"HOME": "/root"}) == "/root/$(x)/$(HOME)"


def test_outside_of_commands_and_environment_nothing_is_escaped() -> None:
    """Kubernetes expands nothing there."""
    changes = {f"{SPEC}.metadata": {"annotations": {"text": "${trialParameters.text}"}}}
    manifest = render(with_text("$(HOME)$$", changes=changes), {"text": "$(HOME)$$"}, "a")
    assert manifest["metadata"]["annotations"]["text"] == "$(HOME)$$"


def test_a_value_that_looks_like_a_placeholder_is_not_replaced_again() -> None:
    experiment = make_experiment([parameter("a", "categorical", list=["${trialParameters.b}", "x"]), MOMENTUM])
    manifest = render(experiment, {"a": "${trialParameters.b}", "momentum": 0.5}, "n")
    assert expand(container_of(manifest)["command"][2], {}) == "--a=${trialParameters.b}"


def test_a_parameter_without_a_value_is_named() -> None:
    with pytest.raises(AlgorithmError, match="no value for the parameter 'momentum'; got lr"):
        render(make_experiment(), {"lr": 0.02}, "a")


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("${trialSpec.Name}", "small-1"),
        ("${trialSpec.Namespace}", "kubeflow"),
        ("${trialSpec.Kind}", "Job"),
        ("${trialSpec.APIVersion}", "batch/v1"),
        ("${trialSpec.Labels[team]}", "blue"),
        ("${trialSpec.Annotations[kfp/note]}", "hello"),
        ("${trialSpec.Labels[absent]}", ""),
        ("${trialSpec.Name}/${trialSpec.Kind}", "small-1/Job"),
    ],
)
def test_a_trial_parameter_can_stand_for_a_field_of_the_trial_itself(reference: str, text: str) -> None:
    changes = {
        "spec.trialTemplate.trialParameters.2": {"name": "own", "reference": reference},
        f"{CONTAINER}.args": ["${trialParameters.own}"],
        f"{SPEC}.metadata": {"labels": {"team": "blue"}, "annotations": {"kfp/note": "hello"}},
    }
    manifest = render(make_experiment(changes=changes), VALUES, "small-1")
    assert container_of(manifest)["args"] == [text]


def test_a_manifest_has_the_name_namespace_and_labels_of_its_trial() -> None:
    changes = {f"{SPEC}.metadata": {"labels": {"team": "blue"}, "annotations": {"a": "b"}}}
    metadata = render(make_experiment(changes=changes), VALUES, "small-1")["metadata"]
    own = {LABEL_EXPERIMENT: "small", LABEL_TRIAL: "small-1", LABEL_UID: "00000000"}
    assert metadata == {
        "name": "small-1",
        "namespace": "kubeflow",
        "labels": {"team": "blue", **own},
        "annotations": {"a": "b"},
    }


@pytest.mark.parametrize("metadata", [None, {}, {"labels": None}])
def test_empty_metadata_in_the_template_is_no_obstacle(metadata: Any) -> None:
    manifest = render(make_experiment(changes={f"{SPEC}.metadata": metadata}), VALUES, "small-1")
    assert manifest["metadata"]["labels"][LABEL_EXPERIMENT] == "small"


def test_a_rendered_manifest_begins_as_people_expect() -> None:
    assert list(render(make_experiment(), VALUES, "small-1")) == ["apiVersion", "kind", "metadata", "spec"]


def test_the_trial_finds_its_name_and_phase_in_its_environment() -> None:
    def environment(phase: str) -> dict[str, str]:
        container = container_of(render(make_experiment(), VALUES, "small-1", phase=phase))
        return {item["name"]: item["value"] for item in container["env"]}

    assert environment("trial") == {"KATIB_TRIAL_NAME": "small-1", "HPO_PHASE": "trial"}
    assert environment(PHASE_RETRAIN) == {"KATIB_TRIAL_NAME": "small-1", "HPO_PHASE": "retrain"}


def test_name_and_phase_are_set_whatever_the_template_says_and_its_own_variables_come_first() -> None:
    """A trial is known by its name, also to those who have to end what it left."""
    given = [{"name": "HPO_PHASE", "value": "mine"}, {"name": "A", "value": "b"}]
    container = container_of(render(make_experiment(changes={f"{CONTAINER}.env": given}), VALUES, "small-1"))
    ours = [{"name": "KATIB_TRIAL_NAME", "value": "small-1"}, {"name": "HPO_PHASE", "value": "trial"}]
    assert container["env"] == [{"name": "A", "value": "b"}, *ours]


def test_only_the_primary_container_gets_the_environment() -> None:
    sidecar = {"name": "sidecar", "image": "other:1", "command": ["sleep", "1"]}
    changes = {f"{SPEC}.spec.template.spec.containers.1": sidecar}
    manifest = render(make_experiment(changes=changes), VALUES, "small-1")
    assert dict(primary_container(manifest, "sidecar")) == sidecar


def test_rendering_leaves_the_template_as_it_is() -> None:
    experiment = make_experiment()
    before = copy.deepcopy(experiment.template.trial_spec)
    for _ in range(2):
        manifest = render(experiment, VALUES, "small-1")
        manifest["spec"]["template"]["spec"]["containers"][0]["command"].append("changed")
    assert experiment.template.trial_spec == before


def test_a_container_that_is_not_there_is_a_key_error() -> None:
    manifest = render(make_experiment([LEARNING_RATE]), {"lr": 0.02}, "small-1")
    with pytest.raises(KeyError, match=re.escape("'main'")):
        primary_container(manifest, "main")
