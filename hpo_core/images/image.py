"""A finished local image: where it lies, how an Experiment names it, and what paths mean inside of it.

Making one is `local`'s; running a trial in one is the launchers'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo_core.errors import BuildError

_REFERENCE = re.compile(r"local/[^@\s]+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class LocalImage:
    """A trainer image that lies on this machine as a folder.

    Attributes:
        reference: What an Experiment's `image:` says, `local/<name>@sha256:<64 hex>`.
        digest: `sha256:<64 hex>` of the files and the configuration.
        rootfs: Absolute path of the folder that is the image's `/`.
        env: What ENV set.
        workdir: The working directory as a path in the image.
        entrypoint: ENTRYPOINT; empty when the Dockerfile has none.
        cmd: CMD; empty when the Dockerfile has none.
        skipped: What was not carried out, as `Dockerfile:LINE: RUN …`.
        already_built: It was there before.
    """

    reference: str
    digest: str
    rootfs: Path
    env: Mapping[str, str]
    workdir: str
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    skipped: tuple[str, ...]
    already_built: bool

    @property
    def workdir_path(self) -> Path:
        """The working directory on this machine."""
        return self.rootfs / self.workdir.lstrip("/")


def find_local_image(reference: str, images_root: Path) -> LocalImage | None:
    """Finds the local image that an Experiment names.

    Args:
        reference: The value of `image:`.
        images_root: Folder of all local images.

    Returns:
        The image; None when the reference is not of the local form, so that it names an image of a registry.

    Raises:
        BuildError: It is of the local form, and not here or damaged.
    """
    if not reference.startswith("local/") or "@sha256:" not in reference:
        return None
    if not _REFERENCE.fullmatch(reference):
        raise BuildError(
            f"image {reference!r} is cut off or changed; allowed is local/<name>@sha256:<64 digits of 0-9a-f>, "
            "as `hpo build DIR` prints it"
        )
    return load(images_root.absolute(), reference)


def localise(image: LocalImage, argv: Sequence[str], env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Brings a command line and an environment from the image's paths to this machine's.

    Changed are exactly the items that are an absolute path which exists in the image, and those whose part after the
    first `=` is one. `/` alone stays: it is in every image, and more often a separator than a place.

    Args:
        image: The image.
        argv: Command line, program first.
        env: The template's environment; it wins over the image's own.

    Returns:
        Both with the paths replaced, the environment with what ENV set.
    """
    root = image.rootfs.resolve()
    values = {**image.env, **env}
    return [_on_machine(root, item) for item in argv], {key: _on_machine(root, value) for key, value in values.items()}


def _on_machine(root: Path, item: str) -> str:
    if _is_inside(root, item):
        return f"{root}{item}"
    key, equals, value = item.partition("=")
    return f"{key}={root}{value}" if equals and _is_inside(root, value) else item


def _is_inside(root: Path, path: str) -> bool:
    if not path.startswith("/") or not path.strip("/"):
        return False
    try:
        return Path(f"{root}{path}").resolve(strict=True).is_relative_to(root)
    except (OSError, ValueError, RuntimeError):  # missing, too long or with a NUL, links in circles
        return False


def load(images_root: Path, reference: str) -> LocalImage:
    """Reads the image with the digest of this reference; its name is not compared.

    Raises:
        BuildError: It is not here, or damaged.
    """
    digest = reference.partition("@")[2]
    folder = folder_of(images_root, digest)
    if not folder.exists():
        raise BuildError(
            f"image {reference} is not in {images_root}; a local image stays on the machine where it was built: "
            "run `hpo build DIR` here and put the reference that it prints into the Experiment"
        )
    try:
        about = json.loads((folder / "image.json").read_text(encoding="ascii"))
        image = _described(reference, digest, folder / "rootfs", about)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BuildError(_damaged(folder, f"image.json: {error!r}")) from error
    if not image.rootfs.is_dir():
        raise BuildError(_damaged(folder, "rootfs is missing"))
    return image


def folder_of(images_root: Path, digest: str) -> Path:
    """Returns where the image with this digest lies, or would lie."""
    return images_root / digest.replace(":", "-")


def _described(reference: str, digest: str, rootfs: Path, about: Mapping[str, Any]) -> LocalImage:
    return LocalImage(
        reference=reference,
        digest=digest,
        rootfs=rootfs,
        env=dict(about["env"]),
        workdir=str(about["workdir"]),
        entrypoint=tuple(about["entrypoint"]),
        cmd=tuple(about["cmd"]),
        skipped=tuple(about["skipped"]),
        already_built=True,
    )


def _damaged(folder: Path, why: str) -> str:
    return f"the local image {folder} is damaged: {why}; delete that folder and run `hpo build DIR` again"
