"""Experiments for tests: a small document that is correct, changes to it, and the real loader.

make_experiment(changes={"spec.maxTrialCount": 4})
make_experiment([parameter("x", "int", min="1", max="3")], changes={"spec.algorithm.algorithmName": "grid"})
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from hpo_core import search
from hpo_core.experiment import Draft, Experiment, dump_yaml, read_draft

REMOVED: Any = object()
"""As the value of a change: take the field away."""

Changes = Mapping[str, Any]
"""New values by the path of their field, as in `spec.parameters.0.feasibleSpace.min`."""


def parameter(name: str, kind: str, **space: Any) -> dict[str, Any]:
    """One search parameter as a document; `space` holds min, max, step, list or distribution."""
    return {"name": name, "parameterType": kind, "feasibleSpace": space}


LEARNING_RATE = parameter("lr", "double", min="0.01", max="0.05")
MOMENTUM = parameter("momentum", "double", min="0.5", max="0.9")


def make_document(
    parameters: Sequence[Mapping[str, Any]] = (LEARNING_RATE, MOMENTUM),
    *,
    command: Sequence[str] = ("python3", "train.py"),
    changes: Changes | None = None,
) -> dict[str, Any]:
    """Make an Experiment document whose template uses every parameter; `changes` come last."""
    names = [parameter["name"] for parameter in parameters]
    flags = [f"--{name}=${{trialParameters.{name}}}" for name in names]
    container = {"name": "training-container", "image": "trainer:1", "command": [*command, *flags]}
    document: dict[str, Any] = {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {"name": "small", "namespace": "kubeflow"},
        "spec": {
            "objective": {"type": "minimize", "objectiveMetricName": "loss"},
            "algorithm": {"algorithmName": "random"},
            "parallelTrialCount": 2,
            "maxTrialCount": 6,
            "maxFailedTrialCount": 3,
            "parameters": copy.deepcopy(list(parameters)),
            "trialTemplate": {
                "primaryContainerName": "training-container",
                "trialParameters": [{"name": name, "reference": name} for name in names],
                "trialSpec": {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "spec": {"template": {"spec": {"containers": [container], "restartPolicy": "Never"}}},
                },
            },
        },
    }
    for path, value in (changes or {}).items():
        _change(document, path, value)
    return document


def make_draft(parameters: Sequence[Mapping[str, Any]] = (LEARNING_RATE, MOMENTUM), **options: Any) -> Draft:
    """Read the document of `make_document` as it is, with everything that is wrong with it and its algorithm."""
    draft = read_draft(dump_yaml(make_document(parameters, **options)))
    search.check(draft)
    return draft


def make_experiment(parameters: Sequence[Mapping[str, Any]] = (LEARNING_RATE, MOMENTUM), **options: Any) -> Experiment:
    """Load the document of `make_document`; it has a fixed uid and creation time, as an accepted one has."""
    return make_draft(parameters, **options).experiment().accepted("00000000", "2024-05-01T12:00:00Z")


def _change(document: dict[str, Any], path: str, value: Any) -> None:
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place: Any = document
    for step in way:
        if isinstance(step, str) and step not in place:
            place[step] = {}
        place = place[step]
    if value is REMOVED:
        del place[last]
    elif isinstance(last, int) and last == len(place):
        place.append(value)
    else:
        place[last] = copy.deepcopy(value)
