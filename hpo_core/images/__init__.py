"""Building the trainer image from a folder with a Dockerfile.

`build` picks the builder. The one for machines without a container engine makes a *local image*: the file tree of the
Dockerfile in a folder named by its digest. The road there: `dockerfile` reads the text, `context` the user's folder,
`stages` carries out the instructions with `sources` for COPY and ADD, `tree` holds the result until `local` hashes and
writes it, and `image` finds it again. Running a trial in an image is the launchers' part.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hpo_core.images.image import LocalImage, find_local_image, localise
from hpo_core.images.local import build_local_image

__all__ = ["LocalImage", "build", "build_local_image", "find_local_image", "images_root", "localise"]


def build(
    context: Path,
    *,
    store_root: Path,
    dockerfile: str = "Dockerfile",
    name: str = "",
    build_args: Mapping[str, str] | None = None,
) -> LocalImage:
    """Builds the trainer image with what this machine has, which is a local image so far.

    Args:
        context: Folder that COPY reads from.
        store_root: Folder of the records; images lie in it. When it lies in the context it is no part of the image.
        dockerfile: Path of the Dockerfile, relative to the context.
        name: Name for the reference, in lower case; empty takes the context folder's.
        build_args: Values for the Dockerfile's ARG lines; None for none.

    Returns:
        The image; its `reference` is what the Experiment's `image:` says.

    Raises:
        BuildError: Every problem of the Dockerfile, one a line; or the image cannot be written.
    """
    return build_local_image(
        context,
        images_root(store_root),
        dockerfile=dockerfile,
        name=name,
        build_args=build_args,
        hidden=_inside(context, store_root),
    )


def images_root(store_root: Path) -> Path:
    """Returns the folder of local images that belongs to a folder of records; no namespace can have its name."""
    return store_root / ".images"


def _inside(context: Path, store_root: Path) -> tuple[Path, ...]:
    """Returns the records' folder when it lies within the context, where each run would change the image."""
    root, records = context.resolve(), store_root.resolve()
    return (records,) if records != root and records.is_relative_to(root) else ()
