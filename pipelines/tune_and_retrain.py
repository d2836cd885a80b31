"""Build the trainer image, tune, take the best assignment and retrain the final model with it."""

from typing import NamedTuple

from kfp import dsl

from components.build_trainer_image.component import build_trainer_image
from components.extract_best_parameters.component import extract_best_parameters
from components.launch_experiment.component import launch_experiment
from components.retrain_final_model.component import retrain_final_model
from components.wait_for_experiment.component import wait_for_experiment


class Outputs(NamedTuple):
    """What the pipeline gives: the best assignment as JSON, and its objective value."""

    best_parameters: str
    objective_value: float


@dsl.pipeline(
    name="tune-and-retrain",
    description="Tunes a training program by a Katib Experiment YAML and retrains the final model.",
)
def tune_and_retrain(
    experiment_yaml: str, context: str = "", image: str = "", namespace: str = "", store: str = ""
) -> Outputs:
    """Tune a training program and retrain the final model.

    Args:
        experiment_yaml: The Katib Experiment, as YAML text.
        context: Folder with the trainer's Dockerfile, on the machine of kfp's local runner; "" in a cluster.
        image: Reference of the trainer image, when it exists already; the experiment's own when it is empty.
        namespace: Used instead of the YAML's.
        store: Where records are kept.

    Returns:
        best_parameters: The best assignment as JSON.
        objective_value: Its objective value.
    """
    built = build_trainer_image(context=context, image=image, store=store)
    launched = launch_experiment(
        experiment_yaml=experiment_yaml,
        image=built.output,
        namespace=namespace,
        run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        store=store,
    )
    waited = wait_for_experiment(handle=launched.output)
    extracted = extract_best_parameters(handle=launched.output, verdict=waited.outputs["Output"])
    retrain_final_model(handle=launched.output, best_parameters=extracted.outputs["best_parameters"])
    # Each run tunes anew: an equal one of last week must not be taken for it.
    for task in (built, launched, waited):
        task.set_caching_options(False)
    return Outputs(extracted.outputs["best_parameters"], extracted.outputs["objective_value"])
