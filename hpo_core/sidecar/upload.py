"""From a folder to the store: every file, then a marker that says so, so that a half is never taken for the whole."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from hpo_core.errors import HpoError, StoreError, TransientError
from hpo_core.objects import ObjectStore
from hpo_core.sidecar.order import Order

UPLOADS = 3
"""How many files are sent at once; each takes a few parts of 5 MiB into memory."""
TOLD = 20
"""How many of the files that are left out are named."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Receipt:
    """What has become of an output; the store's end marker.

    Attributes:
        attempt: Name of the workload that left it.
        label: What it is filed under.
        files: How many files are in the store.
        size_bytes: How large they are together.
        left_out: What is not, and why: the first ones, and how many there are.
        error: Why it is not whole, in a sentence; "" when it is.
    """

    attempt: str
    label: str
    files: int = 0
    size_bytes: int = 0
    left_out: tuple[str, ...] = ()
    error: str = ""

    @property
    def note(self) -> str:
        """What a person has to know of it; "" when all is well."""
        return self.error or (f"not kept of its output: {'; '.join(self.left_out)}" if self.left_out else "")

    def to_json(self) -> bytes:
        """Write the marker."""
        told = {"attempt": self.attempt, "label": self.label, "files": self.files, "bytes": self.size_bytes}
        return json.dumps({**told, "leftOut": self.left_out, "error": self.error}, indent=1).encode()


@dataclass(frozen=True)
class Found:
    """What lies in a folder: the files to keep, by their relative names, and what cannot be kept, with the reason."""

    files: dict[str, Path]
    left_out: list[str]


def deliver(
    objects: ObjectStore,
    order: Order,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Receipt:
    """Bring an output to its place in the store, instead of what is there; its end marker comes last.

    What fails transiently is tried again while there is time.

    Returns:
        The receipt, which is in the store unless it tells of an error.
    """
    patiently = _Patience(monotonic() + order.seconds, monotonic, sleep)
    receipt = Receipt(order.attempt, order.label)
    try:
        found = find(order.output)
        receipt = replace(receipt, left_out=_first(found.left_out))
        patiently(lambda: objects.delete(order.receipt))
        _each(lambda key: patiently(lambda: objects.delete(key)), patiently(lambda: objects.list(order.place)))
        sizes = [path.stat().st_size for path in found.files.values()]
        _each(
            lambda item: patiently(lambda: objects.put(order.place + item[0], item[1])),
            found.files.items(),
        )
        receipt = replace(receipt, files=len(sizes), size_bytes=sum(sizes))
        patiently(lambda: objects.put(order.receipt, receipt.to_json()))
    except (HpoError, OSError) as error:
        receipt = replace(receipt, error=str(error))
        with contextlib.suppress(HpoError):
            objects.put(order.receipt, receipt.to_json())
    return receipt


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


class _Patience:
    """Tries again what fails transiently, until a time of the given clock."""

    def __init__(self, until: float, monotonic: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._until, self._monotonic, self._sleep = until, monotonic, sleep

    def __call__(self, action: Callable[[], _T]) -> _T:
        while True:
            try:
                return action()
            except TransientError as error:
                if self._monotonic() + error.retry_after_s >= self._until:
                    raise
                self._sleep(error.retry_after_s)


def _each(action: Callable[[_T], object], things: Iterable[_T]) -> None:
    """Do something with all things, a few at once; the first that fails ends it."""
    with ThreadPoolExecutor(UPLOADS) as pool:
        futures = [pool.submit(action, thing) for thing in things]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def _first(left_out: list[str]) -> tuple[str, ...]:
    more = len(left_out) - TOLD
    return (*left_out[:TOLD], *([f"and {more} more"] if more > 0 else []))
