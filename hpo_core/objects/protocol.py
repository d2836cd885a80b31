"""What every store promises: objects by key, conditional writes, and locks with one holder each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any, Protocol

from hpo_core.errors import Conflict, StoreError

ABSENT = ""
"""As `expect`: the object must not exist yet."""


@dataclass(frozen=True)
class Blob:
    """An object's bytes, and what the store knows of them.

    Attributes:
        data: The bytes.
        etag: The tag of this version.
        age_s: Seconds since it was written, by the store's own clock: never more than that, and up to 2 s less where
            that clock tells whole seconds.
    """

    data: bytes
    etag: str
    age_s: float = 0.0


class SourceError(StoreError):
    """The file that is to be put cannot be read."""


class ObjectStore(Protocol):
    """Objects by key. Keys are relative paths with `/`; methods block; every write is atomic and visible at once.

    All methods may be called from several threads, and raise TransientError for what is likely to pass and StoreError
    for what is not.
    """

    def get(self, key: str) -> Blob:
        """Return an object.

        Raises:
            NotFound: There is none of that key.
        """
        ...

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        """Write an object and return the tag of its new version.

        A conditional write that failed transiently may have taken place all the same; to repeat it, with the same
        bytes, is safe.

        Args:
            key: Its key.
            data: Its bytes, or a file, which is copied without being read into memory and always unconditionally.
            expect: ABSENT to create only, a tag to replace only that version, None to write whatever is there.

        Raises:
            Conflict: `expect` does not hold; nothing was written.
            SourceError: The file cannot be read.
        """
        ...

    def list(self, prefix: str, *, deep: bool = True) -> list[str]:
        """Return all keys that begin with the prefix, sorted; empty when there are none.

        Args:
            prefix: What the keys begin with.
            deep: False to stop at the next `/` behind the prefix, with one entry that ends in it for all keys below; a
                folder that has become empty may be told too.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that does not exist is no error."""
        ...


class Lock(Protocol):
    """A lock that is held."""

    def confirm(self) -> None:
        """Return while this process holds the lock, for certain; to be called before what only the holder may do.

        Raises:
            Conflict: Somebody else has taken it, because this process was thought dead.
            TransientError: It cannot be told now.
        """
        ...

    def release(self) -> None:
        """Give it back. Idempotent; a lock that somebody else has taken is left alone."""
        ...


class Locks(Protocol):
    """Locks by name, each with at most one holder."""

    def lock(self, key: str, owner: Mapping[str, Any]) -> Lock | None:
        """Take the lock of that name for this process, without waiting for its holder.

        Args:
            key: The lock's name; what its holder tells of itself can be read as the JSON object of that key.
            owner: What this process tells of itself.

        Returns:
            The lock; None when somebody else holds it. Who dies holds it no longer.
        """
        ...

    def is_locked(self, key: str) -> bool:
        """Tell whether somebody holds the lock of that name."""
        ...


class RecordStore(ObjectStore, Locks, Protocol):
    """What records are kept in.

    Attributes:
        uri: Its address; an object's is `<uri>/<key>`.
        poll_s: How often one may look whether something has changed, in seconds.
    """

    uri: str
    poll_s: float

    def fetch(self, key: str, path: Path) -> None:
        """Copy an object to a file, whose folder is there, without reading it into memory.

        Raises:
            NotFound: There is none of that key.
            StoreError: The file cannot be written.
        """
        ...


def check_expectation(key: str, expect: str | None, present: str) -> None:
    """Compare what a conditional write expects with the tag of what is there, ABSENT for nothing.

    Raises:
        Conflict: They differ.
    """
    if expect is not None and expect != present:
        raise Conflict(f"{key!r} was written by somebody else meanwhile")


def open_source(path: Path) -> BufferedReader:
    """Open a file that is to be put.

    Raises:
        SourceError: It cannot be read.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise SourceError(f"cannot read {path}, which is to be stored: {error.strerror}; mend that") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BufferedWriter]:
    """Open a file that an object is copied to.

    Raises:
        StoreError: It cannot be written.
    """
    try:
        with path.open("wb") as file:
            yield file
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; make room there, or choose another place") from error
