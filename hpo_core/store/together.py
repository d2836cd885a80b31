"""Doing many things at the same time that only wait for a server: the store, or the Kubernetes API."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

THREADS = 16
"""How many of them are done at the same time."""

_T = TypeVar("_T")
_R = TypeVar("_R")


def together(action: Callable[[_T], _R], things: Iterable[_T]) -> list[_R]:
    """Do the same with many things at the same time, and wait until all of it is done.

    An action must not call this itself.

    Returns:
        The results, in the order of the things.

    Raises:
        Exception: What the first action in that order raised; the others have ended too.
    """
    todo = list(things)
    if len(todo) < 2:
        return [action(thing) for thing in todo]
    futures = [_pool().submit(action, thing) for thing in todo]
    try:
        wait(futures)
    finally:
        for future in futures:  # when the waiting was interrupted
            future.cancel()
    return [future.result() for future in futures]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "together")
