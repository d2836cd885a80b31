"""A disk that is soon full: a small tmpfs that only one child process sees, so that nothing stays mounted."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOUNT = 'mkdir -p "$0" && mount -t tmpfs -o size="$1" none "$0" && shift && exec "$@"'


def run_on_small_disk(program: str, folder: Path, *, size_kib: int) -> str:
    """Run a Python program whose `sys.argv[1]` is a folder on a disk of that size; returns what it printed.

    Skips the test, and says so, where a process may not mount anything.
    """
    way_in = find_way_in()
    if way_in is None:
        pytest.skip("no full disk here: neither root nor a user namespace may mount a tmpfs")
    python = [sys.executable, "-c", program, str(folder)]
    command = [*way_in, "sh", "-c", MOUNT, str(folder), f"{size_kib}k", *python]
    root = Path(__file__).parents[1]  # so that the program can import the tests
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@functools.cache
def find_way_in() -> tuple[str, ...] | None:
    """The words that lead into a namespace where a tmpfs can be mounted; None where there is none."""
    ways = [("unshare", "-m"), ("unshare", "-Urm")] if os.getuid() == 0 else [("unshare", "-Urm")]
    for way in ways:
        try:
            tried = subprocess.run([*way, "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True, check=False)
        except FileNotFoundError:
            return None
        if tried.returncode == 0:
            return way
    return None
