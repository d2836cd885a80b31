"""Doing many things at the same time that only wait for a server: the store, or the Kubernetes API."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

THREADS = 16
"""How many of them are done at the same time."""

_T = TypeVar("_T")
_R = TypeVar("_R")


def together(action: Callable[[_T], _R], things: Iterable[_T]) -> list[_R]:
    """Do the same with many things at the same time, and wait until all that was begun is done.

    An action must not call this itself.

    Returns:
        The results, in the order of the things.

    Raises:
        Exception: What the first action in that order raised. What had not begun by then is left undone, lest patience
            that has run out with one thing be had with each.
    """
    todo = list(things)
    if len(todo) < 2:
        return [action(thing) for thing in todo]
    futures = [_pool().submit(action, thing) for thing in todo]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        begun = [future for future in futures if not future.cancel()]
    wait(begun)
    return [future.result() for future in begun]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "together")
