"""Hyperparameter tuning for Kubeflow Pipelines: the engine that searches, launches trials and keeps every record."""

__version__ = "0.1.0"
