"""The file tree of an image before anything is written: which path holds what, and how COPY fills it.

Paths are relative to the image's root, with `/` and without a leading one; the root itself is "". File contents stay
where they are until `local` hashes and copies them. Reading the user's folder belongs to `context`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from hpo_core.errors import BuildError

_MOST_LINKS = 40  # what Linux follows before it says that links go in circles
_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True)
class Folder:
    """A directory."""


@dataclass(frozen=True)
class File:
    """A regular file.

    Attributes:
        content: The file that holds the content, or the content itself.
        mode: Permission bits as they shall be in the image.
    """

    content: Path | bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


Node = Folder | File | Link
ChangeMode = Callable[[int], int]


class Files(Protocol):
    """Something that COPY can read from: the build context, or the tree of another stage."""

    def node(self, path: str) -> Node | None:
        """Returns what is at `path`, itself never followed; None when nothing is.

        Raises:
            BuildError: It is there and cannot be read.
        """

    def names(self, path: str) -> Sequence[str]:
        """Returns the sorted names in the folder at `path`, perhaps with some for which `node` answers None."""


class Tree:
    """A tree in memory that grows by `make_folder` and `put`."""

    def __init__(self, other: Tree | None = None) -> None:
        self.nodes: dict[str, Node] = dict(other.nodes) if other else {"": Folder()}
        self._names: dict[str, set[str]] = {"": set()}
        if other:
            self._names = {folder: set(names) for folder, names in other._names.items()}

    def node(self, path: str) -> Node | None:
        """Returns what is at `path`; None when nothing is."""
        return self.nodes.get(path)

    def names(self, path: str) -> Sequence[str]:
        """Returns the sorted names in the folder at `path`."""
        return sorted(self._names.get(path, ()))

    def make_folder(self, path: str) -> str:
        """Makes a folder and its missing parents, following symlinks.

        Returns:
            Where the folder really is.

        Raises:
            BuildError: A file is in the way, or a symlink leads out of the image.
        """
        place = _place_in(self, path)
        parts = place.split("/") if place else []
        for depth in range(1, len(parts) + 1):
            prefix = "/".join(parts[:depth])
            node = self.nodes.get(prefix)
            if isinstance(node, File):
                raise BuildError(f"/{prefix} is a file in the image already, so no folder can be made there")
            if node is None:
                self._set(prefix, Folder())
        return place

    def put(self, path: str, node: File | Link) -> None:
        """Puts a file or a symlink at `path`, in place of what other file or symlink was there.

        Raises:
            BuildError: A folder is there, or a file stands where a folder is needed.
        """
        parent, _, name = path.rpartition("/")
        place = join(self.make_folder(parent), name)
        if isinstance(self.nodes.get(place), Folder):
            raise BuildError(f"/{place} is a folder in the image already, so no file can be put there")
        self._set(place, node)

    def _set(self, place: str, node: Node) -> None:
        parent, _, name = place.rpartition("/")
        self.nodes[place] = node
        self._names[parent].add(name)
        if isinstance(node, Folder):
            self._names.setdefault(place, set())


def join(folder: str, name: str) -> str:
    """Returns the path of `name` in `folder`."""
    return f"{folder}/{name}" if folder else name


def resolve(files: Files, path: str) -> str | None:
    """Follows every symlink in a path, whether or not its end exists.

    Returns:
        The path without symlinks; None when it leaves the tree on the way or goes in circles.
    """
    waiting, done, links = path.split("/")[::-1], list[str](), 0
    while waiting:
        part = waiting.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not done:
                return None
            done.pop()
            continue
        node = files.node("/".join([*done, part]))
        if not isinstance(node, Link):
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS or node.target.startswith("/"):
            return None
        waiting.extend(node.target.split("/")[::-1])
    return "/".join(done)


def find(files: Files, pattern: str) -> list[str]:
    """Finds what one source of a COPY names.

    Args:
        files: Where to look.
        pattern: A path, perhaps with `*`, `?` and `[…]` within its parts.

    Returns:
        The paths that exist, as they were named, sorted; empty when there are none.

    Raises:
        BuildError: A symlink on the way leads out.
    """
    found = [""]
    for part in filter(None, pattern.split("/")):
        if not is_pattern(part):
            found = [join(path, part) for path in found]
            continue
        wanted = part.replace("[^", "[!")
        found = [
            join(path, name) for path in found for name in _listing(files, path) if fnmatch.fnmatchcase(name, wanted)
        ]
    return [path for path in found if files.node(_place_in(files, path)) is not None]


def is_pattern(text: str) -> bool:
    """Returns whether the text holds a wildcard."""
    return not _WILDCARDS.isdisjoint(text)


def copy(files: Files, source: str, tree: Tree, target: str, change_mode: ChangeMode | None = None) -> list[str]:
    """Copies one file, or the contents of one folder, into a tree; a source that is a symlink is followed.

    Args:
        files: Where the source is.
        source: Path that exists there.
        tree: Tree that grows.
        target: Path that the file, or the folder, gets in the tree.
        change_mode: From a file's permission bits to those in the image; None keeps them.

    Returns:
        What was wrong; empty when all was copied.
    """
    problems: list[str] = []
    place = resolve(files, source)
    if place is None:
        return [f"the symlink {source} leads out of the build context"]
    _copy_node(files, place, tree, target, change_mode or _same_mode, problems)
    return problems


def links_that_leave(tree: Tree) -> list[str]:
    """Returns the paths of the symlinks that would lead out of the image."""
    return [path for path, node in sorted(tree.nodes.items()) if isinstance(node, Link) and resolve(tree, path) is None]


def _copy_node(
    files: Files, source: str, tree: Tree, target: str, change_mode: ChangeMode, problems: list[str]
) -> None:
    try:
        node = files.node(source)
        if isinstance(node, Folder):
            names, place = files.names(source), tree.make_folder(target)
        elif isinstance(node, Link) and resolve(files, source) is None:
            raise BuildError(
                f"the symlink {source} -> {node.target} leads out of the build context; put a copy of the file there, "
                "or make the link relative and keep it inside"
            )
        elif node is not None:
            tree.put(target, replace(node, mode=change_mode(node.mode)) if isinstance(node, File) else node)
            return
        else:
            return
    except BuildError as error:
        problems.append(str(error))
        return
    for name in names:
        _copy_node(files, join(source, name), tree, join(place, name), change_mode, problems)


def _listing(files: Files, path: str) -> Sequence[str]:
    place = _place_in(files, path)
    names = files.names(place) if isinstance(files.node(place), Folder) else []
    return [name for name in names if files.node(join(place, name)) is not None]


def _place_in(files: Files, path: str) -> str:
    place = resolve(files, path)
    if place is None:
        raise BuildError(f"{path} leads out through a symlink, or in circles")
    return place


def _same_mode(mode: int) -> int:
    return mode
