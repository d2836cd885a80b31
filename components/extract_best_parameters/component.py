"""The step that takes the best assignment out of a finished experiment."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Metrics, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def extract_best_parameters(handle: str, verdict: str, metrics: Output[Metrics]) -> NamedTuple(
    "Outputs", [("best_parameters", str), ("objective_value", float)]
):
    """Take the best assignment out of an experiment that is over; fails with the reason when there is none.

    Args:
        handle: The launch step's output.
        verdict: The wait step's output.

    Returns:
        best_parameters: The best assignment as JSON.
        objective_value: Its objective value.
    """
    from hpo_core import steps

    steps.require("0.1.0")
    best = steps.extract(handle, verdict)
    metrics.log_metric(best.metric, best.value)
    return (best.parameters, best.value)
