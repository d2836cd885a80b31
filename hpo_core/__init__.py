"""Hyperparameter tuning for Kubeflow Pipelines: the engine that searches, launches trials and keeps every record.

    from hpo_core import load_experiment, run

    final = run(load_experiment("experiment.yaml"), store="./.hpo")

What is named here is the engine's face for Python; it is imported when it is used, since every step pays for imports.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpo_core.lint import load_experiment
    from hpo_core.search import make_search
    from hpo_core.trial import Trial
    from hpo_core.tuner import run

__version__ = "0.1.0"
__all__ = ["Trial", "__version__", "load_experiment", "make_search", "run"]

_HOMES = {"load_experiment": "lint", "make_search": "search", "Trial": "trial", "run": "tuner"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
