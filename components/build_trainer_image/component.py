"""The step that builds the trainer image."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def build_trainer_image(context: str = "", image: str = "", name: str = "", store: str = "") -> str:
    """Build the trainer image from a folder with a Dockerfile, as a local image; in a cluster give one that exists.

    Args:
        context: Folder with the Dockerfile; not needed when an image is given, or the experiment's own is meant.
        image: Reference of an image that exists already; nothing is built then.
        name: The image's name; the folder's when it is empty.
        store: Where records are kept; $HPO_STORE when it is empty, else a folder of the pipeline root's bucket.

    Returns:
        The image's reference, with its digest where it was built; empty for the experiment's own.
    """
    from hpo_core import steps

    steps.require("0.1.0")
    return steps.build(context, image=image, name=name, store=store)
