"""From a trial template and an assignment to a manifest that a launcher can run; for the retraining job too.

Values enter as data, placeholder by placeholder inside single strings of the document: nothing is parsed again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hpo_core.errors import AlgorithmError
from hpo_core.experiment.model import Experiment, pod_templates
from hpo_core.experiment.template import META_REFERENCE, PLACEHOLDER
from hpo_core.space import Values

LABEL_EXPERIMENT = "katib.kubeflow.org/experiment"
LABEL_TRIAL = "katib.kubeflow.org/trial"
LABEL_UID = "kfp-hpo/uid"
PHASE_TRIAL, PHASE_RETRAIN = "trial", "retrain"

_EXPANDED_FIELDS = ("command", "args", "value")
"""Fields in which Kubernetes expands `$(NAME)`."""


def render(experiment: Experiment, values: Values, name: str, *, phase: str = PHASE_TRIAL) -> dict[str, Any]:
    """Render the workload for these values.

    Args:
        experiment: Whose template is rendered.
        values: One value for each parameter, by parameter name.
        name: The workload's name.
        phase: `trial` or `retrain`; the workload finds it in HPO_PHASE.

    Returns:
        A new manifest with name, namespace, labels and environment filled in.

    Raises:
        AlgorithmError: A parameter has no value.
    """
    texts = _replacements(experiment, values, name)
    filled: dict[str, Any] = _fill(experiment.template.trial_spec, texts, expanded=False)
    given = filled.pop("metadata", None) or {}
    labels = {**(given.get("labels") or {}), LABEL_EXPERIMENT: experiment.name, LABEL_TRIAL: name}
    if experiment.uid:
        labels[LABEL_UID] = experiment.uid
    metadata = {**given, "name": name, "namespace": experiment.namespace, "labels": labels}
    manifest = {"apiVersion": filled.pop("apiVersion"), "kind": filled.pop("kind"), "metadata": metadata, **filled}
    environment = {"KATIB_TRIAL_NAME": name, "HPO_PHASE": phase}
    for _, pod in pod_templates(manifest, ""):
        for container in pod["containers"]:
            if container["name"] == experiment.template.primary_container_name:
                _add_environment(container, environment)
    if manifest["kind"] == "TrainJob":  # holds no pod template, but what its trainer gets
        _add_environment(manifest["spec"].setdefault("trainer", {}), environment)
    return manifest


def primary_container(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the first container of that name in a manifest, with its pod's other fields left aside.

    Raises:
        KeyError: There is none, which a loaded Experiment rules out.
    """
    for _, pod in pod_templates(manifest, ""):
        for container in pod["containers"]:
            if container["name"] == name:
                found: Mapping[str, Any] = container
                return found
    raise KeyError(name)


def _replacements(experiment: Experiment, values: Values, name: str) -> dict[str, str]:
    """The text of each placeholder, by its name."""
    formats = {parameter.name: parameter for parameter in experiment.parameters}
    texts = {}
    for parameter in experiment.template.trial_parameters:
        if parameter.reference in values:
            texts[parameter.name] = formats[parameter.reference].format(values[parameter.reference])
        elif META_REFERENCE.search(parameter.reference):
            texts[parameter.name] = META_REFERENCE.sub(
                lambda found: _meta(experiment, found[1], name), parameter.reference
            )
        else:
            raise AlgorithmError(
                f"no value for the parameter {parameter.reference!r}; got {', '.join(values) or 'none'}"
            )
    return texts


def _meta(experiment: Experiment, field: str, name: str) -> str:
    """A field of the trial's own workload: its name and namespace, or what the template says."""
    trial_spec = experiment.template.trial_spec
    plain = {
        "Name": name,
        "Namespace": experiment.namespace,
        "Kind": trial_spec.get("kind"),
        "APIVersion": trial_spec.get("apiVersion"),
    }
    if field in plain:
        return str(plain[field])
    group, _, key = field.rstrip("]").partition("[")
    return str(((trial_spec.get("metadata") or {}).get(group.lower()) or {}).get(key, ""))


def _fill(node: Any, texts: Mapping[str, str], *, expanded: bool) -> Any:
    if isinstance(node, Mapping):
        return {
            _replace(str(key), texts, expanded=False): _fill(value, texts, expanded=key in _EXPANDED_FIELDS)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_fill(item, texts, expanded=expanded) for item in node]
    return _replace(node, texts, expanded=expanded) if isinstance(node, str) else node


def _replace(text: str, texts: Mapping[str, str], *, expanded: bool) -> str:
    def value(found: re.Match[str]) -> str:
        # Where Kubernetes expands $(NAME) and takes $$ for $, a value must say that it means the characters.
        return texts[found[1]].replace("$", "$$") if expanded else texts[found[1]]

    return PLACEHOLDER.sub(value, text)


def _add_environment(container: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Set variables, above the template's own: a trial is known by them."""
    given = [item for item in container.get("env") or [] if item.get("name") not in environment]
    container["env"] = [*given, *({"name": name, "value": value} for name, value in environment.items())]
