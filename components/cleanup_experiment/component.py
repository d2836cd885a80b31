"""The step that suspends what a run left running."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def cleanup_experiment(experiment_yaml: str, run_id: str = "", namespace: str = "", store: str = "") -> str:
    """Suspend the experiment that a run launched, if it still runs; made for dsl.ExitHandler.

    Args:
        experiment_yaml: As given to the launch step.
        run_id: As given to the launch step.
        namespace: As given to the launch step.
        store: As given to the launch step.

    Returns:
        What was done, in a sentence.
    """
    from hpo_core import steps

    steps.require("0.1.0")
    return steps.cleanup(experiment_yaml, namespace=namespace, run_id=run_id, store=store)
