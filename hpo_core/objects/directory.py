"""Objects as files below a folder, and locks that the system gives back when their holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hpo_core.errors import Conflict, NotFound, StoreError, TransientError
from hpo_core.objects.protocol import ABSENT, Blob, Lock, check_expectation, open_source, writing

_FLOCK = struct.Struct("hhqqi0q")
"""The system's `struct flock`: type, whence, start, length, process."""

LOCK = ".lock"
"""Name of the file that keeps conditional writers of a folder apart."""
EMPTY_S = 60.0
"""How long a process may take from making a file to locking it."""
TRIES = 10

_HALF = re.compile(r"\..+\.\d+-[0-9a-f]{8}")
"""Names of files that are being written."""
_T = TypeVar("_T")


class DirectoryStore:
    """Objects as files below a folder, which is made when something is written.

    A file appears whole, by rename. Its bytes are on the disk before that, so that after a power cut it is whole or not
    there, and only what was written last, with whoever wrote it, can be missing.
    """

    poll_s = 0.1

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def get(self, key: str) -> Blob:
        """See `ObjectStore.get`."""
        with self._translated(key), self._path(key).open("rb") as file:
            data = file.read()
            age_s = max(time.time() - os.fstat(file.fileno()).st_mtime, 0.0)
        return Blob(data, _tag(data), age_s)

    def fetch(self, key: str, path: Path) -> None:
        """See `RecordStore.fetch`."""
        with self._translated(key), self._path(key).open("rb") as source, writing(path) as file:
            shutil.copyfileobj(source, file, 1 << 20)

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        """See `ObjectStore.put`."""
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        with self._translated(key), _written(temporary, data) as tag:
            self._publish(temporary, path, key, expect)
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
            with _exclusive(path.parent):
                check_expectation(key, expect, _tag(path.read_bytes()) if path.exists() else ABSENT)
                temporary.replace(path)

    def list(self, prefix: str, *, deep: bool = True) -> list[str]:
        """See `ObjectStore.list`."""
        keys = []
        for folder, folders, files in os.walk(self.root / prefix.rpartition("/")[0]):
            at = Path(folder).relative_to(self.root).as_posix()
            start = "" if at == "." else f"{at}/"
            if not start:
                folders[:] = [name for name in folders if not name.startswith(".")]  # images and scratch files
            keys += [f"{start}{name}" for name in files if name != LOCK and not _HALF.fullmatch(name)]
            if not deep:
                keys += [f"{start}{name}/" for name in folders]
                break
        return sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`; the last object of a folder takes it along."""
        path = self._path(key)
        with self._translated(key):
            path.unlink(missing_ok=True)
        folder = path.parent
        while folder != self.root and _remove_empty(folder):
            folder = folder.parent

    def lock(self, key: str, owner: Mapping[str, Any]) -> Lock | None:
        """See `Locks.lock`; the lock is the open file's, so that to ask about it disturbs nobody.

        Whoever gets it removes what killed processes have left half written in its folder.
        """
        path = self._path(key)
        while True:
            with self._translated(key), contextlib.ExitStack() as on_failure:
                file = _make(path, lambda: os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
                on_failure.callback(os.close, file)
                if not _take(file):
                    return None
                if not _is_at(file, path):  # its holder has removed it together with all else
                    continue
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(dict(owner)).encode(), 0)
                on_failure.pop_all()
            _sweep(path.parent)
            return _FileLock(file)

    def is_locked(self, key: str) -> bool:
        """See `Locks.is_locked`."""
        try:
            with self._translated(key), self._path(key).open("rb") as file:
                return _is_taken(file.fileno())
        except NotFound:
            return False

    def _path(self, key: str) -> Path:
        return self.root / key

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


class _FileLock:
    """A locked file; the system gives the lock back with the last descriptor of it."""

    def __init__(self, file: int) -> None:
        self._file = file

    def confirm(self) -> None:
        """See `Lock.confirm`; while this process lives nobody can take it."""

    def release(self) -> None:
        """See `Lock.release`."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@contextlib.contextmanager
def _written(path: Path, data: bytes | Path) -> Iterator[str]:
    """Write a new file through to the disk; yields the tag of what it holds, and removes it at the end.

    It is locked before anything is in it, so that one that holds something and is not locked is known to be left over.
    """
    with _make(path, lambda: path.open("xb")) as file:
        try:
            _take(file.fileno())
            if isinstance(data, Path):
                with open_source(data) as source:
                    shutil.copyfileobj(source, file, 1 << 20)
                    source.seek(0)
                    tag = hashlib.file_digest(source, "sha256").hexdigest()
            else:
                file.write(data)
                tag = _tag(data)
            file.flush()
            os.fsync(file.fileno())
            yield tag
        finally:
            path.unlink(missing_ok=True)


def _make(path: Path, create: Callable[[], _T]) -> _T:
    """Make a file, in a folder that is made for it, and that somebody may remove, being empty, at the same time."""
    for _ in range(TRIES):
        with contextlib.suppress(FileNotFoundError):
            return create()
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # the second where it is gone a moment later
            path.parent.mkdir(parents=True, exist_ok=True)
    return create()


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left half written in a folder, and below."""
    for at, _, names in os.walk(folder):
        for path in (Path(at, name) for name in names if _HALF.fullmatch(name)):
            with contextlib.suppress(OSError):  # its writer may be about to end
                if _is_left_over(path):
                    path.unlink()


def _is_left_over(path: Path) -> bool:
    with path.open("rb") as file:
        told = os.fstat(file.fileno())  # before the lock is asked for, which comes before the first byte
        return (told.st_size > 0 or time.time() - told.st_mtime > EMPTY_S) and not _is_taken(file.fileno())


def _remove_empty(folder: Path) -> bool:
    """Remove a folder in which nothing is but the lock of conditional writers; False when there is more."""
    try:
        folder.rmdir()
        return True
    except OSError:
        pass
    try:
        with os.scandir(folder) as entries:
            if [entry.name for entry in itertools.islice(entries, 2)] != [LOCK]:
                return False
        with _exclusive(folder):
            (folder / LOCK).unlink()
        folder.rmdir()
        return True
    except OSError:
        return False


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Keep other conditional writers of a folder out."""
    path = folder / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, path):  # else whoever had it has removed it together with the folder
                yield
                return
        finally:
            os.close(file)


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


def _is_at(file: int, path: Path) -> bool:
    """Tell whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
