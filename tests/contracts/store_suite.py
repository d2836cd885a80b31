"""What every object store promises, made ready for tests: the stores, and other processes that use them.

A store joins by adding how it is made to `STORES`, and to `SHARED` when several processes can open it. What is `s3` in
them is the server that the environment names, so its tests belong to `make e2e`.
"""

from __future__ import annotations

import functools
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from hpo_core.objects import DirectoryStore, MemoryStore, RecordStore, open_objects
from tests.s3_server import shared_server

T = TypeVar("T")

BUCKET = "kfp-hpo-tests"


def s3_address(folder: Path) -> str:
    """Address of a prefix that nobody else uses, in a bucket that is there."""
    shared_server()
    _make_bucket()
    return f"s3://{BUCKET}/{folder.name}-{secrets.token_hex(4)}"


@functools.cache
def _make_bucket() -> None:
    store = open_objects(f"s3://{BUCKET}")
    lock = store.lock("made", {})
    if lock is not None:
        lock.release()


STORES: Mapping[str, Callable[[Path], RecordStore]] = {
    "memory": lambda folder: MemoryStore(),
    "directory": lambda folder: DirectoryStore(folder / "store"),
    "s3": lambda folder: open_objects(s3_address(folder)),
}
"""Every store, from a folder for its test."""

SHARED: Mapping[str, Callable[[Path], str]] = {
    "directory": lambda folder: str(folder / "store"),
    "s3": s3_address,
}
"""Address of every store that other processes can open, from the same folder."""


def parameters(names: Mapping[str, object]) -> list[object]:
    """Parameters of a fixture, one for each store; those that need a server are marked."""
    return [pytest.param(name, marks=pytest.mark.e2e if name == "s3" else ()) for name in names]


PROLOGUE = """
import os, sys, time
from hpo_core.errors import Conflict
from hpo_core.objects import ABSENT, open_objects
store, me = open_objects(sys.argv[1]), sys.argv[2]
def wait_for_the_instant():
    instant = float(sys.stdin.readline())
    while time.monotonic() < instant:
        pass
print("up", flush=True)
"""


def all_at_once(actions: Sequence[Callable[[], T]]) -> list[T]:
    """Do all of these in threads of their own; returns what each returned."""
    with ThreadPoolExecutor(len(actions)) as pool:
        return [future.result() for future in [pool.submit(action) for action in actions]]


def many_at_once(action: Callable[[str], object], keys: Sequence[str]) -> None:
    """Do the same for many keys, 16 at a time."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(action, keys))


@contextmanager
def other_process(address: str, program: str, me: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that runs a program with `store` open and `me` set; killed at the end. It has come up."""
    command = [sys.executable, "-c", PROLOGUE + program, address, me]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert hear(process) == "up"
            yield process
        finally:
            process.kill()


def together(address: str, program: str, count: int, *, turns: int = 1) -> list[list[str]]:
    """Let several processes run a program; at each `wait_for_the_instant` of it all of them go on at the same instant.

    Args:
        address: Of the store.
        program: Prints one line behind each of its waits; `me` is the number of the process.
        count: How many processes.
        turns: How often the program waits.

    Returns:
        The lines of each turn, by process.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(other_process(address, program, str(number))) for number in range(count)]
        told = []
        for _ in range(turns):
            instant = time.monotonic() + 0.002 + 0.002 * count
            for process in processes:
                tell(process, str(instant))
            told.append([hear(process) for process in processes])
        return told


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Send a line to another process."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    """Wait for a line of another process."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
