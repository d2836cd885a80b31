"""The step that waits for the end of the tuning and shows it."""

from kfp import dsl
from kfp.dsl import HTML, Markdown, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def wait_for_experiment(handle: str, report: Output[HTML], summary: Output[Markdown]) -> str:
    """Wait until a tuning experiment is over; terminating the step suspends the experiment.

    Args:
        handle: The launch step's output.

    Returns:
        The verdict as JSON: condition, reason, message. A failed experiment has its report too; the next step fails.
    """
    from hpo_core import steps

    steps.require("0.1.0")
    return steps.wait(handle, report.path, summary.path)
