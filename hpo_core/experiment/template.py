"""Reading the trial template: the workload with placeholders, and what they stand for.

It looks at what every workload kind has: containers somewhere, one of which is the primary one. What a launcher can do
with the rest is the launcher's to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping

from hpo_core import gjson
from hpo_core.experiment.document import Node, as_node, near_miss
from hpo_core.experiment.model import TrialParameter, TrialTemplate, pod_templates
from hpo_core.space import ParameterSpec

PLACEHOLDER = re.compile(r"\$\{trialParameters\.([^{}]*)\}")
META_REFERENCE = re.compile(r"\$\{trialSpec\.(Name|Namespace|Kind|APIVersion|Annotations\[[^]]+\]|Labels\[[^]]+\])\}")

_CONDITIONS = {
    kind: (
        f'status.conditions.#(type=="{success}")#|#(status=="True")#',
        'status.conditions.#(type=="Failed")#|#(status=="True")#',
    )
    for kind, success in {
        "Job": "Complete",
        "TrainJob": "Complete",
        "TFJob": "Succeeded",
        "PyTorchJob": "Succeeded",
        "XGBoostJob": "Succeeded",
        "MPIJob": "Succeeded",
    }.items()
}

_MASTER = {"training.kubeflow.org/job-role": "master"}
_PRIMARY_LABELS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("TFJob", "PyTorchJob", "XGBoostJob", "MPIJob"), _MASTER),
    "TrainJob": {"jobset.sigs.k8s.io/replicatedjob-name": "node", "batch.kubernetes.io/job-completion-index": "0"},
}
"""Labels of the primary pod, by kind, where the document names none; as Katib has them."""


def read_template(spec: Node, parameters: tuple[ParameterSpec, ...]) -> TrialTemplate | None:
    """Read `trialTemplate` of an experiment's spec; None, and problems, when there is none that can be looked at."""
    node = spec.child("trialTemplate")
    if node is None:
        if spec.value.get("trialTemplate") is None:
            names = ", ".join(parameter.name for parameter in parameters) or "your parameters"
            spec.findings.problem(
                spec.at("trialTemplate"),
                f"missing: add the Job that trains once, with a placeholder for each of {names}, as "
                "manifests/experiments/mnist-random.yaml shows",
            )
        return None
    node.check_fields(
        (
            "retain",
            "trialSpec",
            "configMap",
            "trialParameters",
            "primaryContainerName",
            "primaryPodLabels",
            "successCondition",
            "failureCondition",
        )
    )
    if node.value.get("configMap") is not None:
        node.findings.problem(node.at("configMap"), "this version takes the template inline, as trialSpec")
        return None
    trial_spec = node.child("trialSpec", required=True)
    if trial_spec is None:
        return None
    _check_workload(trial_spec, node)
    kind, labels = str(trial_spec.value.get("kind")), node.child("primaryPodLabels")
    success, failure = _CONDITIONS.get(kind, ("", ""))
    marks = labels.value if labels else _PRIMARY_LABELS.get(kind, {})
    template = TrialTemplate(
        trial_spec=trial_spec.value,
        trial_parameters=_read_trial_parameters(node),
        primary_container_name=node.text("primaryContainerName", required=True),
        retain=node.value.get("retain") is True,
        success_condition=node.text("successCondition") or success,
        failure_condition=node.text("failureCondition") or failure,
        primary_pod_labels={str(name): str(value) for name, value in marks.items()},
    )
    for name in ("successCondition", "failureCondition"):
        wrong = gjson.check(node.text(name))
        if wrong and node.text(name):
            node.findings.problem(node.at(name), wrong)
    _check_template(template, node)
    _check_references(template, parameters, spec)
    return template


def _read_trial_parameters(node: Node) -> tuple[TrialParameter, ...]:
    found: list[TrialParameter] = []
    for item in node.children("trialParameters"):
        item.check_fields(("name", "description", "reference"))
        name, reference = item.text("name", required=True), item.text("reference", required=True)
        if "{" in name or "}" in name:
            item.findings.problem(item.at("name"), f"must not hold braces, got {name!r}")
        for attribute, value in (("name", name), ("reference", reference)):
            if value and any(getattr(other, attribute) == value for other in found):
                item.findings.problem(item.at(attribute), f"{value!r} is given twice")
        found.append(TrialParameter(name, reference, item.text("description")))
    if not found:
        node.findings.problem(node.at("trialParameters"), "missing: name a placeholder for each search parameter")
    return tuple(found)


def _check_workload(trial_spec: Node, template: Node) -> None:
    trial_spec.text("apiVersion", required=True)
    kind = trial_spec.text("kind", required=True)
    metadata = trial_spec.child("metadata")
    for name in ("name", "namespace"):
        if metadata is not None and metadata.value.get(name) is not None:
            metadata.findings.problem(metadata.at(name), "must not be given: each trial gets its own; remove it")
    if kind and kind not in _CONDITIONS:
        for name in ("successCondition", "failureCondition"):
            if not template.value.get(name):
                template.findings.problem(template.at(name), f"missing: there is no default for the kind {kind}")


def _check_template(template: TrialTemplate, node: Node) -> None:
    path = node.at("trialSpec")
    names = []
    for pod_path, pod in pod_templates(template.trial_spec, path):
        for index, container in enumerate(pod["containers"]):
            at = as_node(container, f"{pod_path}.containers[{index}]", node.findings)
            if at is not None:
                names.append(at.text("name", required=True))
                at.texts("command")
                at.texts("args")
    primary = template.primary_container_name
    if primary and names and primary not in names:
        found = f"the template's containers are {', '.join(names)}"
        node.findings.problem(node.at("primaryContainerName"), f"no container is called {primary!r}; {found}")
    elif not names and template.kind == "Job":
        node.findings.problem(f"{path}.spec.template.spec.containers", "missing, a Job needs at least one container")


def _check_references(template: TrialTemplate, parameters: tuple[ParameterSpec, ...], spec: Node) -> None:
    path = f"{spec.path}.trialTemplate"
    used = set(PLACEHOLDER.findall(json.dumps(template.trial_spec, default=str)))
    declared = {parameter.name for parameter in template.trial_parameters}
    for name in sorted(used - declared):
        hint = near_miss(name, declared)
        suffix = f"did you mean {hint}?" if hint else "add it to trialParameters or remove it"
        spec.findings.problem(
            f"{path}.trialSpec", f"the placeholder ${{trialParameters.{name}}} has no trialParameter; {suffix}"
        )
    places = _places(spec.value.get("parameters"))
    _check_targets(template, places, path, spec)
    for index, trial_parameter in enumerate(template.trial_parameters):
        if trial_parameter.name and trial_parameter.name not in used:
            spec.findings.problem(
                f"{path}.trialParameters[{index}].name",
                f"${{trialParameters.{trial_parameter.name}}} does not occur in the trialSpec: use it or remove it",
            )
    references = {parameter.reference for parameter in template.trial_parameters}
    for search_parameter in parameters:
        if search_parameter.name not in references:
            spec.findings.problem(
                f"{spec.at('parameters')}[{places[search_parameter.name]}]",
                f"no trialParameter refers to {search_parameter.name!r}, so it would change nothing",
            )


def _check_targets(template: TrialTemplate, known: Collection[str], path: str, spec: Node) -> None:
    for index, parameter in enumerate(template.trial_parameters):
        where = f"{path}.trialParameters[{index}].reference"
        if parameter.reference in known or META_REFERENCE.search(parameter.reference) or not parameter.reference:
            continue
        hint = near_miss(parameter.reference, known)
        suffix = f"; did you mean {hint}?" if hint else f"; there are {', '.join(sorted(known)) or 'none'}"
        spec.findings.problem(where, f"{parameter.reference!r} is no parameter of the search space{suffix}")


def _places(parameters: object) -> dict[str, int]:
    """Place of each search parameter in the user's list, where those that could not be read count too."""
    listed = parameters if isinstance(parameters, list) else []
    return {
        str(item["name"]): index
        for index, item in enumerate(listed)
        if _is(item) and item.get("name") not in (None, "")
    }


def _is(value: object) -> bool:
    return isinstance(value, Mapping)


def set_image(template: TrialTemplate, image: str) -> None:
    """Replace the primary container's image wherever the template shows it; the document is our own copy."""
    containers = [c for _, pod in pod_templates(template.trial_spec, "") for c in pod["containers"] if _is(c)]
    shown = [c.get("image") for c in containers if c.get("name") == template.primary_container_name]
    for container in containers:
        if container.get("image") in shown:
            container["image"] = image
