"""The components for Kubeflow Pipelines: thin steps around `hpo_core.steps`.

Each folder holds `component.py` and the `component.yaml` made from it, which users load by file or URL. `python -m
pipelines.compile` makes the YAML anew.
"""
