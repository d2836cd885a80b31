"""The step that trains the final model."""

from kfp import dsl
from kfp.dsl import Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retrain_final_model(handle: str, best_parameters: str, model: Output[Model], metrics: Output[Metrics]) -> None:
    """Run the trial template once more with HPO_PHASE=retrain and keep the model that it writes to HPO_OUTPUT_DIR.

    Args:
        handle: The launch step's output.
        best_parameters: The assignment as JSON, as the extract step gives it.
    """
    from hpo_core import steps

    steps.require("0.1.0")
    for name, value in steps.retrain(handle, best_parameters, model.path).items():
        metrics.log_metric(name, value)
        model.metadata[name] = value
