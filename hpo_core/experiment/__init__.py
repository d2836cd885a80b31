"""The Experiment: what a user asks for, read from Katib's YAML into frozen data.

`model` holds the data, `document` is the only place that knows YAML, `load` turns a document into a `Draft` with every
problem that it has. What an algorithm or a launcher demands on top is added to the draft by `hpo_core.lint`.
"""

from hpo_core.experiment.document import Findings, dump_yaml, parse_yaml
from hpo_core.experiment.load import Draft, read_draft, with_budgets
from hpo_core.experiment.model import (
    ANNOTATIONS,
    AlgorithmSpec,
    Experiment,
    MetricStrategy,
    Objective,
    ObjectiveType,
    Settings,
    TrialParameter,
    TrialTemplate,
)

__all__ = [
    "ANNOTATIONS",
    "AlgorithmSpec",
    "Draft",
    "Experiment",
    "Findings",
    "MetricStrategy",
    "Objective",
    "ObjectiveType",
    "Settings",
    "TrialParameter",
    "TrialTemplate",
    "dump_yaml",
    "parse_yaml",
    "read_draft",
    "with_budgets",
]
