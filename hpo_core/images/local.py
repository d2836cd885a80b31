"""The builder of local images: trainer images as folders, for machines without a container engine.

An image lies in `<images_root>/sha256-<64 hex>/` as `rootfs/` and `image.json`, named by what is in it. This module
owns hashing and writing; what the Dockerfile asks for is `stages`', finding and using a finished image is `image`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpo_core.errors import BuildError, Problem
from hpo_core.images.context import Context, read_ignore_file
from hpo_core.images.dockerfile import parse
from hpo_core.images.image import LocalImage, folder_of, load
from hpo_core.images.stages import Stage, evaluate
from hpo_core.images.tree import File, Folder, Link, Node, Tree

_VERSION = 1  # of image.json, and part of the digest
_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_LONGEST_NAME = 100
_UNFINISHED = ".building-"
_ABANDONED_AFTER_S = 86_400.0


def build_local_image(
    context: Path,
    images_root: Path,
    *,
    dockerfile: str = "Dockerfile",
    name: str = "",
    build_args: Mapping[str, str] | None = None,
    hidden: Sequence[Path] = (),
) -> LocalImage:
    """Makes the file tree that a Dockerfile describes, or finds it made already.

    Nothing is executed: RUN lines are reported as skipped. Any number of processes may build at once, and one that is
    killed leaves nothing under an image's name.

    Args:
        context: Folder that COPY reads from.
        images_root: Folder of all local images; made when missing. What lies in it is no part of any context.
        dockerfile: Path of the Dockerfile, relative to the context.
        name: Name for the reference, in lower case; empty takes the context folder's.
        build_args: Values for the Dockerfile's ARG lines; None for none.
        hidden: Further paths that are no part of the context, as records that change from run to run.

    Raises:
        BuildError: Every problem of the Dockerfile, one a line; or the image cannot be written.
    """
    root, images_root = _context_root(context), images_root.absolute()
    name = _checked_name(name) if name else _name_of(root)
    script, problems = parse(_read_dockerfile(root, dockerfile), dockerfile)
    ignored, ignore_problems = read_ignore_file(root, dockerfile)
    files = Context(root, ignored, [path.resolve() for path in (images_root, *hidden)])
    with _workspace(images_root) as scratch:
        stage, more = evaluate(script, files, scratch, build_args or {})
        if found := _by_line([*problems, *more]) + ignore_problems:
            raise BuildError("\n".join(str(problem) for problem in found))
        return _install(stage, script.label, name, images_root, scratch)


def _install(stage: Stage, label: str, name: str, images_root: Path, scratch: Path) -> LocalImage:
    """Hashes a stage and, unless it is there already, writes it."""
    config = {
        "base": stage.base,
        "env": stage.env,
        "workdir": stage.workdir,
        "entrypoint": stage.entrypoint,
        "cmd": stage.cmd,
    }
    entries, seen = _entries(stage.tree)
    # Without line numbers: a comment in the Dockerfile makes no other image.
    digest = _digest({**config, "skipped": [text for _, text in stage.skipped], "tree": entries})
    skipped = tuple(f"{label}:{line}: {text}" for line, text in stage.skipped)
    folder = folder_of(images_root, digest)
    already_built = folder.exists()
    if not already_built:
        about = {"version": _VERSION, "digest": digest, "name": name, **config, "skipped": skipped}
        _write(scratch / "image", stage.tree, about, seen)
        already_built = not _publish(scratch / "image", folder)
    image = load(images_root, f"local/{name}@{digest}")
    return replace(image, skipped=skipped, already_built=already_built)


def _context_root(context: Path) -> Path:
    if not context.is_dir():
        found = "a file" if context.exists() else "nothing"
        raise BuildError(f"{context}: {found} there, expected the folder with the Dockerfile; name that one")
    return context.resolve()


def _read_dockerfile(root: Path, dockerfile: str) -> str:
    path = root / dockerfile
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        others = sorted(each.name for each in root.iterdir() if "dockerfile" in each.name.lower() and each.is_file())
        there = f"there are {', '.join(others)}; name one of them" if others else "write one, beginning with FROM"
        raise BuildError(f"{path}: no such file; {there}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{path}: cannot be read: {error}") from error


def _by_line(problems: list[Problem]) -> list[Problem]:
    """Returns syntax errors and others in the order of the file; those without a line last."""

    def line(problem: Problem) -> float:
        number = problem.path.rpartition(":")[2]
        return int(number) if number.isdecimal() else float("inf")

    return sorted(problems, key=line)


def _name_of(folder: Path) -> str:
    words = re.sub(r"[^a-z0-9._]+", "-", folder.name.lower())
    return re.sub(r"[-._]{2,}", "-", words)[:_LONGEST_NAME].strip("-._") or "trainer"


def _checked_name(name: str) -> str:
    if len(name) <= _LONGEST_NAME and _NAME.fullmatch(name):
        return name
    raise BuildError(
        f"image name {name!r} is not valid; allowed are a-z and 0-9 with single . _ - or / between, at most "
        f"{_LONGEST_NAME} characters and no tag, for example {_name_of(Path(name.partition(':')[0] or 'trainer'))}"
    )


Signature = tuple[int, int]  # size and time of change


def _entries(tree: Tree) -> tuple[list[list[str]], dict[str, Signature]]:
    """Reads every file once.

    Returns:
        What the digest says of each path; and each source file's size and time of change before it was read.
    """
    seen: dict[str, Signature] = {}
    return [[path, *_entry(node, seen)] for path, node in sorted(tree.nodes.items())], seen


def _entry(node: Node, seen: dict[str, Signature]) -> list[str]:
    if isinstance(node, Folder):
        return ["folder"]
    if isinstance(node, Link):
        return ["link", node.target]
    if isinstance(node.content, bytes):
        return ["file", oct(node.mode), hashlib.sha256(node.content).hexdigest()]
    with node.content.open("rb") as file:
        seen[str(node.content)] = _signature(os.fstat(file.fileno()))
        return ["file", oct(node.mode), hashlib.file_digest(file, "sha256").hexdigest()]


def _signature(found: os.stat_result) -> Signature:
    return found.st_size, found.st_mtime_ns


def _digest(described: Mapping[str, Any]) -> str:
    text = json.dumps({"version": _VERSION, **described}, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode('ascii')).hexdigest()}"


@contextlib.contextmanager
def _workspace(images_root: Path) -> Iterator[Path]:
    """Gives a new folder beside the images; whatever is still in it at the end is removed."""
    scratch: Path | None = None
    try:
        images_root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(images_root)
        scratch = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=images_root))
        yield scratch
    except OSError as error:
        raise BuildError(
            f"cannot write the image below {images_root}: {error}; "
            "free some space or allow writing there, or choose another folder with --store"
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove_abandoned(images_root: Path) -> None:
    """Removes what builders left behind that were killed long ago."""
    for folder in images_root.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, tree: Tree, about: Mapping[str, Any], seen: Mapping[str, Signature]) -> None:
    folder.mkdir()
    for path, node in sorted(tree.nodes.items()):
        target = folder / "rootfs" / path
        if isinstance(node, Folder):
            target.mkdir()
        elif isinstance(node, Link):
            target.symlink_to(node.target)
        else:
            _write_file(target, node, seen)
    (folder / "image.json").write_text(json.dumps(about, indent=2) + "\n", encoding="ascii")


def _write_file(target: Path, node: File, seen: Mapping[str, Signature]) -> None:
    if isinstance(node.content, bytes):
        target.write_bytes(node.content)
    else:
        shutil.copyfile(node.content, target)
        if _signature(node.content.stat()) != seen[str(node.content)]:  # so the digest would name other content
            raise BuildError(f"{node.content} changed while the image was built; build again when nothing writes to it")
    target.chmod(node.mode)


def _publish(finished: Path, image: Path) -> bool:
    """Gives a finished folder its final name; False when another builder was first."""
    try:
        finished.rename(image)
    except OSError:
        if not (image / "image.json").is_file():
            raise
        return False
    return True
