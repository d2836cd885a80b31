"""From a folder to the store: every file, then a marker that says so, so that a half is never taken for the whole."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from hpo_core.errors import HpoError, TransientError
from hpo_core.launch.outputs import find, first, not_kept
from hpo_core.objects import ObjectStore
from hpo_core.sidecar.order import Order

UPLOADS = 3
"""How many files are sent at once; each takes a few parts of 5 MiB into memory."""

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
        return self.error or not_kept(self.left_out)

    def to_json(self) -> bytes:
        """Write the marker."""
        told = {"attempt": self.attempt, "label": self.label, "files": self.files, "bytes": self.size_bytes}
        return json.dumps({**told, "leftOut": self.left_out, "error": self.error}, indent=1).encode()


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
        receipt = replace(receipt, left_out=first(found.left_out))
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
