"""What every object store promises, made ready for tests: the stores, and other processes that use them.

A store joins by adding how it is made to `STORES`, and to `SHARED` when several processes can open it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from hpo_core.objects import DirectoryStore, MemoryStore, RecordStore

T = TypeVar("T")

STORES: Mapping[str, Callable[[Path], RecordStore]] = {
    "memory": lambda folder: MemoryStore(),
    "directory": lambda folder: DirectoryStore(folder / "store"),
}
"""Every store, from a folder for its test."""

SHARED: Mapping[str, Callable[[Path], str]] = {"directory": lambda folder: str(folder / "store")}
"""Address of every store that other processes can open, from the same folder."""

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
