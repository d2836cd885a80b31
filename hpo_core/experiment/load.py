"""Reading a Katib `Experiment` document into a `Draft`, with every problem that it has.

The rules are those of Katib's admission webhooks, and those it lacks: what has no meaning (a minimum above the maximum)
is refused here although Katib takes it. What an algorithm, a filter or a launcher demands is not known here.
"""

from __future__ import annotations

import copy
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo_core.errors import Problem, SpecError
from hpo_core.experiment.document import Findings, Node, as_node, describe, dump_yaml, near_miss, parse_yaml
from hpo_core.experiment.model import (
    ANNOTATION_PREFIX,
    ANNOTATIONS,
    API_VERSION,
    BUDGET_FIELDS,
    KIND,
    METRICS_FILE,
    AlgorithmSpec,
    Experiment,
    MetricStrategy,
    Objective,
    ObjectiveType,
    Settings,
    TrialTemplate,
)
from hpo_core.experiment.template import read_template, set_image
from hpo_core.space import Distribution, FeasibleSpace, ParameterSpec, ParameterType

_SPEC_FIELDS = (
    "parameters",
    "objective",
    "algorithm",
    "earlyStopping",
    "parallelTrialCount",
    "maxTrialCount",
    "maxFailedTrialCount",
    "resumePolicy",
    "metricsCollectorSpec",
    "nasConfig",
    "trialTemplate",
)
_METADATA_FIELDS = (
    "name",
    "namespace",
    "labels",
    "annotations",
    "generateName",
    "uid",
    "creationTimestamp",
    "resourceVersion",
    "generation",
    "managedFields",
    "finalizers",
    "ownerReferences",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


@dataclass
class Draft:
    """What could be read of a document, part by part; a part that is missing or broken is None or empty."""

    document: dict[str, Any]
    findings: Findings
    name: str = ""
    namespace: str = "default"
    objective: Objective | None = None
    algorithm: AlgorithmSpec | None = None
    parameters: tuple[ParameterSpec, ...] = ()
    template: TrialTemplate | None = None
    metric_filters: tuple[str, ...] = ()
    metrics_file: str = ""
    settings: Settings = field(default_factory=Settings)
    resume_policy: str = "Never"
    parallel_trial_count: int = 3
    max_trial_count: int | None = None
    max_failed_trial_count: int | None = None

    def experiment(self) -> Experiment:
        """Return the Experiment.

        Raises:
            SpecError: Problems were found; it lists them all.
        """
        if self.findings.problems or self.objective is None or self.algorithm is None or self.template is None:
            raise SpecError(self.findings.problems)
        return Experiment(
            name=self.name,
            namespace=self.namespace,
            objective=self.objective,
            algorithm=self.algorithm,
            parameters=self.parameters,
            template=self.template,
            document=self.document,
            parallel_trial_count=self.parallel_trial_count,
            max_trial_count=self.max_trial_count,
            max_failed_trial_count=self.max_failed_trial_count,
            resume_policy=self.resume_policy,
            metric_filters=self.metric_filters,
            metrics_file=self.metrics_file,
            settings=self.settings,
        )


def read_draft(text: str, *, image: str = "", namespace: str = "") -> Draft:
    """Read an Experiment document as far as it can be read.

    Args:
        text: YAML or JSON, as a user wrote it or as `kubectl get -o yaml` prints it.
        image: Put into every container that shows the primary container's image; "" leaves them alone.
        namespace: Used instead of the document's; "" leaves it alone.

    Raises:
        SpecError: The text is no YAML, is empty, or is no Experiment at all, so that nothing more can be said.
    """
    findings = Findings()
    document = parse_yaml(text)
    if document is None:
        findings.problem("", "the document is empty: an Experiment is expected, see `hpo lint --help` for an example")
        raise SpecError(findings.problems)
    root = as_node(copy.deepcopy(document), "", findings)
    if root is None or not _is_experiment(root):
        raise SpecError(findings.problems)
    draft = Draft(dict(root.value), findings)
    _read_metadata(root, draft, namespace)
    spec = root.child("spec", required=True)
    if spec is not None:
        _read_spec(spec, draft)
        if draft.template is not None and image:
            set_image(draft.template, image)
    return draft


def with_budgets(experiment: Experiment, budgets: Mapping[str, int]) -> Experiment:
    """Return an accepted experiment with other budgets, by their names in the spec.

    Raises:
        SpecError: The budgets make no sense, alone or together; it lists every problem.
    """
    unknown = sorted(budgets.keys() - set(BUDGET_FIELDS))
    if unknown:
        known = ", ".join(BUDGET_FIELDS)
        raise SpecError([Problem(f"spec.{name}", f"cannot be edited; these can: {known}") for name in unknown])
    document = {**experiment.document, "spec": {**experiment.document["spec"], **budgets}}
    return read_draft(dump_yaml(document)).experiment().accepted(experiment.uid, experiment.created)


def parse_duration(text: str) -> float | None:
    """Read a time span such as `90s`, `15m`, `1h30m` or `90` (seconds); None when it is none, or zero."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return (hours * 3600 + minutes * 60 + seconds) or None


def _is_experiment(root: Node) -> bool:
    api_version, kind = root.value.get("apiVersion"), root.value.get("kind")
    root.check_fields(("apiVersion", "kind", "metadata", "spec", "status"))
    if kind != KIND:
        root.findings.problem("kind", f"must be {KIND}, got {describe(kind)}")
    if api_version == "kubeflow.org/v1alpha3":
        root.findings.problem("apiVersion", f"kubeflow.org/v1alpha3 is not read by this version, write {API_VERSION}")
    elif api_version != API_VERSION:
        root.findings.problem("apiVersion", f"must be {API_VERSION}, got {describe(api_version)}")
    return kind == KIND


def _read_metadata(root: Node, draft: Draft, namespace: str) -> None:
    metadata = root.child("metadata", required=True)
    if metadata is None:
        return
    metadata.check_fields(_METADATA_FIELDS)
    draft.name = metadata.text("name", required=True)
    draft.namespace = namespace or metadata.text("namespace") or "default"
    if draft.name and (len(draft.name) > 63 or not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", draft.name)):
        metadata.findings.problem(
            metadata.at("name"),
            f"got {draft.name!r}; at most 63 small letters, digits and '-', a letter first, no '-' last",
        )
    elif len(draft.name) > 40:
        metadata.findings.warn(metadata.at("name"), "Katib itself takes at most 40 characters")
    if not re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", draft.namespace):
        path = metadata.at("namespace")
        metadata.findings.problem(path, f"got {draft.namespace!r}; at most 63 small letters, digits and '-'")
    annotations = metadata.child("annotations")
    if annotations is not None:
        draft.settings = _read_settings(annotations)


def _read_settings(annotations: Node) -> Settings:
    values: dict[str, Any] = {}
    for name, value in annotations.value.items():
        path = f"{annotations.path}[{name}]"
        if not str(name).startswith(ANNOTATION_PREFIX):
            continue
        if name not in ANNOTATIONS:
            hint = near_miss(name, ANNOTATIONS)
            suffix = f"did you mean {hint}?" if hint else f"known are {', '.join(ANNOTATIONS)}"
            annotations.findings.problem(path, f"unknown annotation of ours, {suffix}")
        elif name.endswith(("-deadline", "-timeout")):
            seconds = parse_duration(str(value))
            if seconds is not None:
                values[f"{name.removeprefix(ANNOTATION_PREFIX).replace('-', '_')}_s"] = seconds
            else:
                annotations.findings.problem(path, f"must be a time span such as 90s, 15m or 2h, got {describe(value)}")
        else:
            minimum = 1 if name.endswith("max-attempts") else 0
            if not str(value).isdecimal() or int(value) < minimum:
                annotations.findings.problem(path, f"must be a whole number from {minimum} up, got {describe(value)}")
            else:
                values[name.removeprefix(ANNOTATION_PREFIX).replace("-", "_")] = int(value)
    return Settings(**values)


def _read_spec(spec: Node, draft: Draft) -> None:
    spec.check_fields(_SPEC_FIELDS)
    draft.parameters = _read_parameters(spec)
    draft.objective = _read_objective(spec)
    draft.algorithm = _read_algorithm(spec)
    _read_budgets(spec, draft)
    draft.resume_policy = spec.choice("resumePolicy", ("Never", "LongRunning", "FromVolume"), default="Never")
    for name, advice in (
        ("earlyStopping", "early stopping is not part of this version: remove it to let every trial run to its end"),
        ("nasConfig", "architecture search is not part of this version: give spec.parameters instead"),
    ):
        if spec.value.get(name) is not None:
            spec.findings.problem(spec.at(name), advice)
    _read_collector(spec, draft)
    draft.template = read_template(spec, draft.parameters)


def _read_parameters(spec: Node) -> tuple[ParameterSpec, ...]:
    parameters: list[ParameterSpec] = []
    names: set[str] = set()
    for node in spec.children("parameters"):
        node.check_fields(("name", "parameterType", "feasibleSpace"))
        name = node.text("name", required=True)
        if name and name in names:
            node.findings.problem(node.at("name"), f"{name!r} is the name of an earlier parameter too")
        names.add(name)
        kind = node.choice("parameterType", tuple(ParameterType))
        space = node.child("feasibleSpace", required=True)
        if space is None or not kind:
            continue
        parameter = _read_space(name, ParameterType(kind), space)
        if parameter is not None and name:
            parameters.append(parameter)
    if not spec.value.get("parameters"):
        spec.findings.problem(spec.at("parameters"), "missing, at least one parameter is needed")
    return tuple(parameters)


def _read_space(name: str, kind: ParameterType, space: Node) -> ParameterSpec | None:
    space.check_fields(("min", "max", "step", "list", "distribution"))
    items = space.texts("list")
    if kind is ParameterType.DOUBLE and items and space.value.get("min") is None:
        space.findings.warn(space.at("list"), "a double with a list is taken as discrete; Katib refuses it")
        kind = ParameterType.DISCRETE
    if kind in (ParameterType.DISCRETE, ParameterType.CATEGORICAL):
        return _read_list(name, kind, items, space)
    return _read_range(name, kind, space)


def _read_list(name: str, kind: ParameterType, items: tuple[str, ...], space: Node) -> ParameterSpec | None:
    for wrong in ("min", "max", "step"):
        if space.value.get(wrong) is not None:
            space.findings.problem(space.at(wrong), f"has no meaning for a {kind} parameter, which takes a list")
    if not items:
        space.findings.problem(space.at("list"), f"missing, a {kind} parameter needs at least one item")
        return None
    parameter = ParameterSpec(name, kind, FeasibleSpace(items=items))
    values = []
    for index, item in enumerate(items):
        try:
            values.append(parameter.parse(item))
        except ValueError:
            space.findings.problem(f"{space.at('list')}[{index}]", f"must be a number, got {item!r}")
    if len(set(values)) < len(values):
        space.findings.problem(space.at("list"), f"holds a value twice: {', '.join(items)}")
    return parameter if len(values) == len(items) else None


def _read_range(name: str, kind: ParameterType, space: Node) -> ParameterSpec | None:
    for end in ("min", "max"):
        if space.value.get(end) in (None, ""):
            space.findings.problem(space.at(end), f"missing, a parameter of type {kind} needs min and max")
    if space.value.get("list"):
        space.findings.problem(space.at("list"), f"has no meaning for a parameter of type {kind} with min and max")
    distribution = space.choice("distribution", tuple(Distribution), default=Distribution.UNIFORM)
    low, high, step = space.number("min"), space.number("max"), space.number("step")
    if low is None or high is None or not distribution or (step is None and space.value.get("step") not in (None, "")):
        return None
    for field_name, value in (("min", low), ("max", high), ("step", step)):
        if kind is ParameterType.INT and value is not None and value != int(value):
            space.findings.problem(space.at(field_name), f"must be a whole number for an int parameter, got {value}")
            return None
    if low > high:
        space.findings.problem(space.at("min"), f"min {low:g} is above max {high:g}: exchange them")
        return None
    if step is not None and (step <= 0 or step > max(high - low, 0) > 0):
        space.findings.problem(
            space.at("step"), f"must be above 0 and at most max - min = {high - low:g}, got {step:g}"
        )
        return None
    if distribution in (Distribution.LOG_UNIFORM, Distribution.LOG_NORMAL) and low <= 0:
        space.findings.problem(space.at("min"), f"must be above 0 for the distribution {distribution}, got {low:g}")
        return None
    return ParameterSpec(name, kind, FeasibleSpace(low, high, step, (), Distribution(distribution)))


def _read_objective(spec: Node) -> Objective | None:
    node = spec.child("objective", required=True)
    if node is None:
        return None
    node.check_fields(("type", "goal", "objectiveMetricName", "additionalMetricNames", "metricStrategies"))
    kind = node.choice("type", tuple(ObjectiveType))
    name = node.text("objectiveMetricName", required=True)
    additional = node.texts("additionalMetricNames")
    if name in additional:
        node.findings.problem(node.at("additionalMetricNames"), f"must not hold the objective {name!r} itself")
    strategies = {}
    for strategy in node.children("metricStrategies"):
        strategy.check_fields(("name", "value"))
        metric, value = strategy.text("name", required=True), strategy.choice("value", tuple(MetricStrategy))
        if metric and metric not in (name, *additional):
            strategy.findings.problem(
                strategy.at("name"), f"{metric!r} is none of the metrics {', '.join((name, *additional))}"
            )
        if value:
            strategies[metric] = MetricStrategy(value)
    goal = node.number("goal")
    return Objective(ObjectiveType(kind), name, goal, additional, strategies) if kind and name else None


def _read_algorithm(spec: Node) -> AlgorithmSpec | None:
    node = spec.child("algorithm", required=True)
    if node is None:
        return None
    node.check_fields(("algorithmName", "algorithmSettings"))
    name = node.text("algorithmName", required=True)
    settings: dict[str, str] = {}
    for setting in node.children("algorithmSettings"):
        setting.check_fields(("name", "value"))
        key, value = setting.text("name", required=True), setting.text("value")
        if key and key in settings:
            setting.findings.problem(setting.at("name"), f"{key!r} is given twice")
        settings[key] = value
    return AlgorithmSpec(name, settings) if name else None


def _read_budgets(spec: Node, draft: Draft) -> None:
    draft.max_trial_count = spec.integer("maxTrialCount", minimum=1)
    draft.max_failed_trial_count = spec.integer("maxFailedTrialCount", minimum=0)
    parallel = spec.integer("parallelTrialCount", minimum=1)
    most = draft.max_trial_count
    if most is not None:
        for name, value in (("parallelTrialCount", parallel), ("maxFailedTrialCount", draft.max_failed_trial_count)):
            if value is not None and value > most:
                spec.findings.problem(spec.at(name), f"must not exceed maxTrialCount {most}, got {value}")
    draft.parallel_trial_count = parallel or min(3, most or 3)


def _read_collector(spec: Node, draft: Draft) -> None:
    node = spec.child("metricsCollectorSpec")
    if node is None:
        return
    node.check_fields(("source", "collector"))
    collector = node.child("collector")
    kind = "StdOut" if collector is None else collector.text("kind", required=True)
    if collector is not None and kind and kind not in ("StdOut", "File"):
        collector.findings.problem(
            collector.at("kind"), f"got {kind}; this version reads what a trial prints, StdOut, or a File"
        )
    source = node.child("source")
    if kind == "File":
        draft.metrics_file = METRICS_FILE
        place = source.child("fileSystemPath") if source is not None else None
        if place is not None:
            _read_metrics_file(place, draft)
    chosen = source.child("filter") if source is not None else None
    draft.metric_filters = chosen.texts("metricsFormat") if chosen is not None else ()


def _read_metrics_file(place: Node, draft: Draft) -> None:
    place.check_fields(("path", "kind", "format"))
    place.choice("kind", ("File",), default="File")
    if place.choice("format", ("TEXT", "JSON"), default="TEXT") == "JSON":
        place.findings.problem(place.at("format"), "got JSON; this version reads TEXT: lines with name=value")
    path = place.text("path") or METRICS_FILE
    if not path.startswith("/") or posixpath.normpath(path) != path or posixpath.dirname(path) == "/":
        example = f"as in {METRICS_FILE}"
        place.findings.problem(
            place.at("path"), f"must be absolute, a file in a folder of its own, {example}; got {path!r}"
        )
        return
    draft.metrics_file = path
