"""Objects as files below a folder, and locks that the system gives back when their holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo_core.errors import Conflict, NotFound, StoreError, TransientError
from hpo_core.objects.protocol import ABSENT, Blob, Lock, check_expectation, open_source, writing

_FLOCK = struct.Struct("hhqqi0q")
"""The system's `struct flock`: type, whence, start, length, process."""

_OURS = re.compile(r"\.lock|\..+\.\d+-[0-9a-f]{8}")
"""Names of files that are no objects: what keeps conditional writers apart, and what is being written."""


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
        with self._translated(key):
            try:
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
            keys += [f"{start}{name}" for name in files if not _OURS.fullmatch(name)]
            if not deep:
                keys += [f"{start}{name}/" for name in folders]
                break
        return sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        with self._translated(key):
            self._path(key).unlink(missing_ok=True)

    def lock(self, key: str, owner: Mapping[str, Any]) -> Lock | None:
        """See `Locks.lock`; the lock is the open file's, so that to ask about it disturbs nobody."""
        path = self._path(key)
        while True:
            with self._translated(key), contextlib.ExitStack() as on_failure:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                on_failure.callback(os.close, file)
                if not _take(file):
                    return None
                if not _is_at(file, path):  # its holder has removed it together with all else
                    continue
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(dict(owner)).encode(), 0)
                on_failure.pop_all()
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


def _write(path: Path, data: bytes | Path) -> str:
    """Write a new file through to the disk, in a folder that is made for it; returns the tag of what it holds."""
    try:
        file = path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")
    with file:
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


def _is_at(file: int, path: Path) -> bool:
    """Tell whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
