"""The build context: the user's folder as a Dockerfile sees it, less what `.dockerignore` leaves out.

Reads lazily, since a folder of training data may lie beside the one file that is copied. Copying is `tree`'s.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from e2b_dockerfile_utils import PatternMatcher

from hpo_core.errors import BuildError, Problem
from hpo_core.images.tree import File, Folder, Link, Node, join


class Context:
    """A folder that COPY and ADD read from.

    Args:
        root: The folder, absolute and without symlinks.
        ignored: What `.dockerignore` says; None leaves nothing out.
        hidden: Further absolute paths that are left out.
    """

    def __init__(self, root: Path, ignored: PatternMatcher | None = None, hidden: Iterable[Path] = ()) -> None:
        self.root = root
        self._ignored = ignored
        self._hidden = frozenset(str(path) for path in hidden)

    def node(self, path: str) -> Node | None:
        """Returns what is at `path`, itself never followed; None when nothing is, or it is left out."""
        node = None if str(self.root / path) in self._hidden else self._on_disk(path)
        if node is None or self._ignored is None or not self.leaves_out(path):
            return node
        if not isinstance(node, Folder) or not self._ignored.may_match_under(path):
            return None
        return node if any(self.node(join(path, name)) is not None for name in self.names(path)) else None

    def names(self, path: str) -> Sequence[str]:
        """Returns the sorted names in the folder at `path`, with those that are left out."""
        try:
            return sorted(each.name for each in (self.root / path).iterdir())
        except OSError as error:
            full = self.root / path
            raise BuildError(f"cannot read {full}: {error.strerror}; allow it, or name it in .dockerignore") from error

    def leaves_out(self, path: str) -> bool:
        """Returns whether `.dockerignore` leaves this path out, whether or not it exists."""
        return bool(path and self._ignored and self._ignored.matches(path))

    def _on_disk(self, path: str) -> Node | None:
        full = self.root / path
        try:
            found = full.lstat()
            if stat.S_ISLNK(found.st_mode):
                return Link(str(full.readlink()))
            if stat.S_ISDIR(found.st_mode):
                return Folder()
            if stat.S_ISREG(found.st_mode):
                full.open("rb").close()  # whether it can be read is told with the line that names it
                return File(full, 0o755 if found.st_mode & stat.S_IXUSR else 0o644)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise BuildError(f"cannot read {full}: {why}; allow it, or name it in .dockerignore") from error
        raise BuildError(f"{full} is neither file, folder nor symlink; remove it or name it in .dockerignore")


def read_ignore_file(root: Path, dockerfile: str) -> tuple[PatternMatcher | None, list[Problem]]:
    """Reads `<dockerfile>.dockerignore`, else `.dockerignore`.

    Args:
        root: The build context.
        dockerfile: Path of the Dockerfile below it.

    Returns:
        The patterns, None when there is no such file; and what is wrong in it.
    """
    for name in (f"{dockerfile}.dockerignore", ".dockerignore"):
        try:
            lines = (root / name).read_text(encoding="utf-8-sig").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError) as error:
            return None, [Problem(name, f"cannot be read: {error}")]
        problems = [problem for number, line in enumerate(lines, 1) if (problem := _bad_pattern(name, number, line))]
        return (None if problems else PatternMatcher(lines)), problems
    return None, []


def _bad_pattern(name: str, number: int, line: str) -> Problem | None:
    try:
        PatternMatcher([line])
    except ValueError as error:
        return Problem(f"{name}:{number}", f"{error}; allowed is a path, with *, ?, [a-z] or ** if need be")
    return None
