"""What a workload has left in its output folder: which of it can be kept, and what is said of the rest."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpo_core.errors import StoreError

TOLD = 20
"""How many of the files that are left out are named."""


@dataclass(frozen=True)
class Found:
    """What lies in a folder: the files to keep, by their relative names, and what cannot be kept, with the reason."""

    files: dict[str, Path]
    left_out: list[str]


def not_kept(left_out: Sequence[str]) -> str:
    """Say what is not kept of an output; "" when all of it is."""
    return f"not kept of its output: {'; '.join(left_out)}" if left_out else ""


def first(left_out: Sequence[str]) -> tuple[str, ...]:
    """Return the first ones of what is left out, and how many more there are."""
    more = len(left_out) - TOLD
    return (*left_out[:TOLD], *([f"and {more} more"] if more > 0 else []))


def find(folder: Path) -> Found:
    """Look for what is to be kept below a folder: files, and links to files that do not lead out of it.

    Raises:
        StoreError: The folder itself cannot be read.
    """
    if not os.access(folder, os.R_OK | os.X_OK):
        raise StoreError(f"the folder {folder} cannot be read by user {os.getuid()}")
    root = folder.resolve()
    found = Found({}, [])
    for path, reason in _walk(root, found.left_out):
        name = path.relative_to(root).as_posix()
        reason = reason or _obstacle(path, root)
        if reason:
            found.left_out.append(f"{name.encode(errors='replace').decode()} ({reason})")
        else:
            found.files[name] = path.resolve()
    return found


def _walk(root: Path, left_out: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield what is no folder, and the reason against it where that is known already; folders in order of names."""

    def unreadable(error: OSError) -> None:
        name = os.path.relpath(error.filename, root)
        left_out.append(f"{name}/ (cannot be read by user {os.getuid()}: {error.strerror})")

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders.sort()
        for name in sorted(files):
            yield Path(folder, name), ""
        for name in folders:
            if Path(folder, name).is_symlink():
                yield Path(folder, name), "a link to a folder"


def _obstacle(path: Path, root: Path) -> str:
    """Why a file cannot be kept; "" when it can."""
    try:
        path.relative_to(root).as_posix().encode()
    except UnicodeEncodeError:
        return "its name is no UTF-8"
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root):
            return "a link that leads out of the folder"
        if not stat.S_ISREG(real.stat().st_mode):
            return "no plain file"
        os.close(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
    except FileNotFoundError:
        return "a link to nothing"
    except OSError as error:
        return f"cannot be read by user {os.getuid()}: {error.strerror}"
    except RuntimeError:
        return "a link to itself"
    return ""
