"""The Experiment as frozen data, with the defaults that Katib gives; reading it is `load`'s part.

`Objective` is the only place that knows whether small or large is good.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from hpo_core.space import ParameterSpec

API_VERSION = "kubeflow.org/v1beta1"
KIND = "Experiment"
BUDGET_FIELDS = ("parallelTrialCount", "maxTrialCount", "maxFailedTrialCount")
ANNOTATION_PREFIX = "kfp-hpo/"
METRICS_FILE = "/var/log/katib/metrics.log"
"""Where a collector of kind File looks, when the document does not say."""


class ObjectiveType(StrEnum):
    """Katib's `objective.type`."""

    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"


class MetricStrategy(StrEnum):
    """Which of a metric's values stands for a trial."""

    MIN = "min"
    MAX = "max"
    LATEST = "latest"


@dataclass(frozen=True)
class Objective:
    """What is optimised, and in which direction.

    Attributes:
        type: Whether small or large values are good.
        metric_name: The metric that is optimised.
        goal: The experiment is over when a trial's value is as good as this; None for no goal.
        additional_metric_names: Metrics that are collected beside it.
        strategies: Which value of a metric counts, by metric name, where the user chose.
    """

    type: ObjectiveType
    metric_name: str
    goal: float | None = None
    additional_metric_names: tuple[str, ...] = ()
    strategies: Mapping[str, MetricStrategy] = field(default_factory=dict)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Every metric to collect, the objective first."""
        return (self.metric_name, *self.additional_metric_names)

    def strategy(self, metric_name: str) -> MetricStrategy:
        """Tell which value of a metric counts; by default the best one."""
        default = MetricStrategy.MIN if self.type is ObjectiveType.MINIMIZE else MetricStrategy.MAX
        return self.strategies.get(metric_name, default)

    def is_better(self, value: float, other: float) -> bool:
        """Tell whether a value is strictly better than another one."""
        return value < other if self.type is ObjectiveType.MINIMIZE else value > other

    def is_reached(self, value: float) -> bool:
        """Tell whether a value reaches the goal, which is included."""
        return self.goal is not None and (value == self.goal or self.is_better(value, self.goal))


@dataclass(frozen=True)
class AlgorithmSpec:
    """The search algorithm and its settings as the user wrote them; the algorithm's own `Settings` parses them."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialParameter:
    """A name that the template uses, and the search parameter or the trial's own field that it stands for."""

    name: str
    reference: str
    description: str = ""


def pod_templates(trial_spec: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Find every pod template's spec in a workload of any kind, with its path: each mapping that holds `containers`."""
    if isinstance(trial_spec.get("containers"), list):
        yield path, trial_spec
    for key, value in trial_spec.items():
        if isinstance(value, Mapping):
            yield from pod_templates(value, f"{path}.{key}")


@dataclass(frozen=True)
class TrialTemplate:
    """The workload of a trial with placeholders.

    Attributes:
        trial_spec: The workload's manifest, as a document.
        trial_parameters: What the placeholders stand for.
        primary_container_name: The container whose end and metrics are the trial's.
        retain: Whether the workload is kept after its end.
        success_condition: GJSON expression over the workload that tells success.
        failure_condition: GJSON expression that tells failure; looked at first.
        primary_pod_labels: Labels of the pod whose metrics count, where there are several.
    """

    trial_spec: Mapping[str, Any]
    trial_parameters: tuple[TrialParameter, ...]
    primary_container_name: str
    retain: bool = False
    success_condition: str = ""
    failure_condition: str = ""
    primary_pod_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The workload's kind, as in `Job`."""
        return str(self.trial_spec.get("kind", ""))

    @property
    def primary_image(self) -> str:
        """The image of the primary container; "" when it shows none."""
        for _, pod in pod_templates(self.trial_spec, ""):
            for container in pod["containers"]:
                if container.get("name") == self.primary_container_name:
                    return str(container.get("image", ""))
        return ""


def _setting(annotation: str, help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"annotation": ANNOTATION_PREFIX + annotation, "help": help})


@dataclass(frozen=True)
class Settings:
    """What this project adds to Katib's Experiment, as annotations `kfp-hpo/…`; Katib ignores them."""

    seed: int | None = _setting("seed", "whole number that every random choice follows from")
    trial_deadline_s: float | None = _setting("trial-deadline", "a trial that runs longer is stopped: 90s, 15m, 2h")
    pending_deadline_s: float = _setting(
        "pending-deadline", "a trial that no node can take for so long is given up: 90s, 15m, 2h", 3600.0
    )
    unattended_timeout_s: float | None = _setting(
        "unattended-timeout", "an experiment that nobody waits for any more is suspended after so long: 15m, 2h"
    )
    max_attempts: int = _setting("max-attempts", "how often a trial is started that was lost, not failed", 3)
    keep_models: int = _setting("keep-models", "of how many of the best trials the output directory is kept", 1)


ANNOTATIONS: Mapping[str, str] = {f.metadata["annotation"]: f.metadata["help"] for f in fields(Settings)}
"""Every annotation of ours and what it does."""


@dataclass(frozen=True)
class Experiment:
    """What a user asks for: a search space, an objective, an algorithm, budgets and a workload.

    Attributes:
        max_trial_count: Trials in all; None for no bound.
        max_failed_trial_count: The experiment fails when so many trials failed; None for no bound, 0 means 1.
        metric_filters: Regular expressions that find metrics in a line; empty for the default one.
        metrics_file: The file, in the primary container, whose lines hold the metrics; "" for what it prints.
        document: The YAML as it was accepted, image filled in.
        uid: Identity of this run of the YAML, drawn when it is created; "" before that.
        created: When it was created, RFC 3339 in UTC; "" before that.
    """

    name: str
    namespace: str
    objective: Objective
    algorithm: AlgorithmSpec
    parameters: tuple[ParameterSpec, ...]
    template: TrialTemplate
    document: Mapping[str, Any]
    parallel_trial_count: int = 3
    max_trial_count: int | None = None
    max_failed_trial_count: int | None = None
    resume_policy: str = "Never"
    metric_filters: tuple[str, ...] = ()
    metrics_file: str = ""
    settings: Settings = field(default_factory=Settings)
    uid: str = ""
    created: str = ""

    @property
    def seed(self) -> int:
        """The seed of every random choice: the user's, else one that follows from namespace and name."""
        if self.settings.seed is not None:
            return self.settings.seed
        return int.from_bytes(hashlib.sha256(f"{self.namespace}/{self.name}".encode()).digest()[:4])

    @property
    def spec_hash(self) -> str:
        """Hash of all that decides the trials: the spec without its three budgets, and our annotations."""
        spec = {key: value for key, value in self.document["spec"].items() if key not in BUDGET_FIELDS}
        annotations = (self.document.get("metadata") or {}).get("annotations") or {}
        ours = {key: value for key, value in annotations.items() if str(key).startswith(ANNOTATION_PREFIX)}
        # Through JSON once, since YAML also knows keys that are no texts, and those cannot be sorted among texts.
        plain = json.loads(json.dumps({"spec": spec, "annotations": ours}, default=str))
        text = json.dumps(plain, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def renamed(self, run_id: str) -> Experiment:
        """Return this experiment under a name that belongs to one run of a pipeline, the same for the same run."""
        suffix = hashlib.sha256(f"{self.name}/{run_id}".encode()).hexdigest()[:8]
        name = f"{self.name[:31].rstrip('-')}-{suffix}"
        metadata = {**self.document["metadata"], "name": name}
        return replace(self, name=name, document={**self.document, "metadata": metadata})

    @property
    def budgets(self) -> tuple[object, ...]:
        """The three fields that may change while an experiment lives, as the document gives them."""
        return tuple(self.document["spec"].get(field) for field in BUDGET_FIELDS)

    def accepted(self, uid: str, created: str) -> Experiment:
        """Return this experiment with the identity that it got when it was created."""
        return replace(self, uid=uid, created=created)
