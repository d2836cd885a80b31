"""Objects by key, with conditional writes and locks: in memory, or in a directory.

This is the only door to where records live. It knows keys and bytes; what they mean is `store`'s.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from hpo_core.errors import Conflict, NotFound, StoreError, TransientError

ABSENT = ""
"""As `expect`: the object must not exist yet."""

_FLOCK = struct.Struct("hhqqi0q")
"""The system's `struct flock`: type, whence, start, length, process."""

_OURS = re.compile(r"\.lock|\..+\.\d+-[0-9a-f]{8}")
"""Names of files that are no objects: what keeps conditional writers apart, and what is being written."""


@dataclass(frozen=True)
class Blob:
    """An object's bytes, and the tag of this version of them."""

    data: bytes
    etag: str


Unlock: TypeAlias = Callable[[], None]


class ObjectStore(Protocol):
    """Objects by key. Keys are relative paths with `/`; methods block; every write is atomic and visible at once.

    All methods raise TransientError for what is likely to pass and StoreError for what is not.
    """

    def get(self, key: str) -> Blob:
        """Return an object.

        Raises:
            NotFound: There is none of that key.
        """
        ...

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        """Write an object and return the tag of its new version.

        Args:
            key: Its key.
            data: Its bytes, or a file that is copied without being read into memory.
            expect: ABSENT to create only, a tag to replace only that version, None to write whatever is there.

        Raises:
            Conflict: `expect` does not hold; nothing was written.
        """
        ...

    def list(self, prefix: str) -> list[str]:
        """Return all keys that begin with the prefix, sorted; empty when there are none."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that does not exist is no error."""
        ...

    def lock(self, key: str, owner: bytes) -> Unlock | None:
        """Take the lock of that name for this process, without waiting for its owner.

        Args:
            key: The lock's name; its owner can be read as the object of that key.
            owner: Who takes it, for others to read.

        Returns:
            What gives it back; None when somebody else holds it. It is given back when the process dies.
        """
        ...

    def is_locked(self, key: str) -> bool:
        """Tell whether somebody holds the lock of that name."""
        ...


class MemoryStore:
    """Objects in memory, for tests and for looking at the protocol."""

    def __init__(self) -> None:
        self._blobs: dict[str, Blob] = {}
        self._locked: set[str] = set()
        self._writing = threading.Lock()

    def get(self, key: str) -> Blob:
        """See `ObjectStore.get`."""
        try:
            return self._blobs[key]
        except KeyError:
            raise NotFound(f"there is no object {key!r}") from None

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        """See `ObjectStore.put`."""
        content = data.read_bytes() if isinstance(data, Path) else data
        blob = Blob(content, _tag(content))
        with self._writing:
            present = self._blobs.get(key)
            _check_expectation(key, expect, present.etag if present else ABSENT)
            self._blobs[key] = blob
        return blob.etag

    def list(self, prefix: str) -> list[str]:
        """See `ObjectStore.list`."""
        return sorted(key for key in self._blobs if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        self._blobs.pop(key, None)

    def lock(self, key: str, owner: bytes) -> Unlock | None:
        """See `ObjectStore.lock`."""
        with self._writing:
            if key in self._locked:
                return None
            self._locked.add(key)
        self.put(key, owner)
        return lambda: self._locked.discard(key)

    def is_locked(self, key: str) -> bool:
        """See `ObjectStore.is_locked`."""
        return key in self._locked


class DirectoryStore:
    """Objects as files below a folder, which is made when something is written.

    A file appears whole, by rename. Its bytes are on the disk before that, so that a power cut loses no object.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> Blob:
        """See `ObjectStore.get`."""
        with self._translated(key):
            data = self._path(key).read_bytes()
        return Blob(data, _tag(data))

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        """See `ObjectStore.put`."""
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        with self._translated(key):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                tag = _write(temporary, data)
                self._publish(temporary, path, key, expect)
            finally:
                temporary.unlink(missing_ok=True)
        return tag

    def _publish(self, temporary: Path, path: Path, key: str, expect: str | None) -> None:
        if expect is None:
            temporary.replace(path)
        elif expect == ABSENT:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise Conflict(f"{path} exists already") from None
        else:
            with self._exclusive(path.parent):
                _check_expectation(key, expect, _tag(path.read_bytes()) if path.exists() else ABSENT)
                temporary.replace(path)

    def list(self, prefix: str) -> list[str]:
        """See `ObjectStore.list`."""
        keys = []
        for folder, folders, files in os.walk(self.root / prefix.rpartition("/")[0]):
            at = Path(folder).relative_to(self.root).as_posix()
            if at == ".":
                folders[:] = [name for name in folders if not name.startswith(".")]  # images and scratch files
            keys += [f"{at}/{name}" if at != "." else name for name in files if not _OURS.fullmatch(name)]
        return sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        with self._translated(key):
            self._path(key).unlink(missing_ok=True)

    def lock(self, key: str, owner: bytes) -> Unlock | None:
        """See `ObjectStore.lock`; the lock is the open file's, so that to ask about it disturbs nobody."""
        path = self._path(key)
        with self._translated(key), contextlib.ExitStack() as on_failure:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            on_failure.callback(os.close, file)
            if not _take(file):
                return None
            os.ftruncate(file, 0)
            os.pwrite(file, owner, 0)
            on_failure.pop_all()
        return lambda: os.close(file)

    def is_locked(self, key: str) -> bool:
        """See `ObjectStore.is_locked`."""
        try:
            with self._translated(key), self._path(key).open("rb") as file:
                return _is_taken(file.fileno())
        except NotFound:
            return False

    def _path(self, key: str) -> Path:
        return self.root / key

    @contextlib.contextmanager
    def _exclusive(self, folder: Path) -> Iterator[None]:
        """Keep other conditional writers of a folder out."""
        file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Say in our words what the file system says."""
        path = self._path(key)
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"there is no {path}") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise TransientError(f"cannot write {path}: {error.strerror}; make room there", 2.0) from error
            raise StoreError(f"cannot use {path}: {error.strerror}; choose another --store or mend this") from error


def open_objects(uri: str) -> DirectoryStore:
    """Open the store of that address.

    Args:
        uri: A directory, or `file://` and a directory.

    Raises:
        StoreError: The address is of a kind that is not known.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return DirectoryStore(Path(uri).absolute())
    if scheme == "file":
        return DirectoryStore(Path(rest).absolute())
    raise StoreError(f"cannot open the store {uri!r}: give a directory, as in --store ./.hpo")


def _write(path: Path, data: bytes | Path) -> str:
    """Write a new file through to the disk; returns the tag of what it holds."""
    with path.open("xb") as file:
        if isinstance(data, Path):
            with data.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
                source.seek(0)
                tag = hashlib.file_digest(source, "sha256").hexdigest()
        else:
            file.write(data)
            tag = _tag(data)
        file.flush()
        os.fsync(file.fileno())
    return tag


def _take(file: int) -> bool:
    """Lock an open file for as long as it is open; False when another open file has the lock."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except BlockingIOError:
        return False
    return True


def _is_taken(file: int) -> bool:
    answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _check_expectation(key: str, expect: str | None, present: str) -> None:
    if expect is not None and expect != present:
        raise Conflict(f"{key!r} was written by somebody else meanwhile")


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
