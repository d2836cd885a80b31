"""The step that starts the tuner."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def launch_experiment(
    experiment_yaml: str, image: str = "", namespace: str = "", run_id: str = "", store: str = ""
) -> str:
    """Start a tuning experiment in the background; the same run launches it once, however often the step runs.

    Args:
        experiment_yaml: The Katib Experiment, as YAML text.
        image: Trainer image, put in place of the template's; the template's own when it is empty.
        namespace: Used instead of the YAML's; the YAML's when it is empty.
        run_id: What makes this run's experiment its own; pass the pipeline job's id. The YAML's name when it is empty.
        store: Where records are kept; $HPO_STORE when it is empty, else a folder of the pipeline root's bucket.

    Returns:
        The handle of the experiment as JSON, for the next steps.
    """
    from hpo_core import steps

    steps.require("0.1.0")
    return steps.launch(experiment_yaml, image=image, namespace=namespace, run_id=run_id, store=store)
