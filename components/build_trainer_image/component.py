"""The step that builds the trainer image."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def build_trainer_image(context: str, image: str = "", name: str = "", store: str = "") -> str:
    """Build the trainer image from a folder with a Dockerfile; on a machine without a container engine, a local image.

    Args:
        context: Folder with the Dockerfile.
        image: Reference of an image that exists already; nothing is built then.
        name: The image's name; the folder's when it is empty.
        store: Where records are kept; $HPO_STORE when it is empty, else a folder of the pipeline root's bucket.

    Returns:
        The image's reference, with its digest.
    """
    from hpo_core import steps

    steps.require("0.1.0")
    return steps.build(context, image=image, name=name, store=store)
