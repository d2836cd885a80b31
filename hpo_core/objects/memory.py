"""Objects in memory."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpo_core.errors import NotFound
from hpo_core.objects.protocol import ABSENT, Blob, Lock, check_expectation, open_source


class MemoryStore:
    """Objects in memory, for tests and for looking at the protocol.

    Args:
        now_s: The clock by which objects age, in seconds.
    """

    uri = "memory"
    poll_s = 0.1

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._blobs: dict[str, Blob] = {}
        self._written: dict[str, float] = {}
        self._locked: set[str] = set()
        self._writing = threading.Lock()

    def get(self, key: str) -> Blob:
        """See `ObjectStore.get`."""
        with self._writing:
            if key not in self._blobs:
                raise NotFound(f"there is no object {key!r}")
            return replace(self._blobs[key], age_s=self._now_s() - self._written[key])

    def fetch(self, key: str, path: Path) -> None:
        """See `RecordStore.fetch`."""
        path.write_bytes(self.get(key).data)

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        """See `ObjectStore.put`."""
        if isinstance(data, Path):
            with open_source(data) as file:
                content = file.read()
        else:
            content = data
        blob = Blob(content, hashlib.sha256(content).hexdigest())
        with self._writing:
            present = self._blobs.get(key)
            check_expectation(key, expect, present.etag if present else ABSENT)
            self._blobs[key], self._written[key] = blob, self._now_s()
        return blob.etag

    def list(self, prefix: str, *, deep: bool = True) -> list[str]:
        """See `ObjectStore.list`."""
        with self._writing:
            keys = sorted(key for key in self._blobs if key.startswith(prefix))
        return keys if deep else sorted({_shallow(key, prefix) for key in keys})

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        with self._writing:
            self._blobs.pop(key, None)

    def lock(self, key: str, owner: Mapping[str, Any]) -> Lock | None:
        """See `Locks.lock`."""
        with self._writing:
            if key in self._locked:
                return None
            self._locked.add(key)
        self.put(key, json.dumps(dict(owner)).encode())
        return _MemoryLock(self._locked, key)

    def is_locked(self, key: str) -> bool:
        """See `Locks.is_locked`."""
        return key in self._locked


def _shallow(key: str, prefix: str) -> str:
    head, separator, _ = key[len(prefix) :].partition("/")
    return f"{prefix}{head}{separator}"


@dataclass
class _MemoryLock:
    locked: set[str]
    key: str

    def confirm(self) -> None:
        """See `Lock.confirm`; nobody takes it away."""

    def release(self) -> None:
        """See `Lock.release`."""
        self.locked.discard(self.key)
