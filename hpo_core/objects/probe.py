"""Whether a server does what it is asked to when a write has a condition; some ignore it without a word."""

from __future__ import annotations

import contextlib
import secrets
from concurrent.futures import ThreadPoolExecutor

from hpo_core.errors import Conflict, StoreError, TransientError
from hpo_core.objects.protocol import ABSENT, ObjectStore

PROBERS = 8
"""How many create the same object at the same time."""


def keeps_writers_apart(objects: ObjectStore) -> bool:
    """Tell whether of several that create one object exactly one succeeds, and only the present version is replaced.

    Raises:
        TransientError, StoreError: It cannot be told now, or at all.
    """
    key = f".probe/{secrets.token_hex(8)}"
    try:
        with ThreadPoolExecutor(PROBERS) as pool:
            attempts = [pool.submit(_is_written, objects, key, b"%d" % number, ABSENT) for number in range(PROBERS)]
        won = sum(attempt.result() for attempt in attempts if attempt.exception() is None)
        if won != 1:
            for attempt in attempts:
                attempt.result()  # raises what kept one from its answer: it may be the one that won
            return False
        replaced = _is_written(objects, key, b"x", objects.get(key).etag)
        return replaced and not _is_written(objects, key, b"y", "0" * 32)
    finally:
        with contextlib.suppress(StoreError, TransientError):
            objects.delete(key)


def _is_written(objects: ObjectStore, key: str, data: bytes, expect: str) -> bool:
    try:
        objects.put(key, data, expect=expect)
    except Conflict:
        return False
    return True
