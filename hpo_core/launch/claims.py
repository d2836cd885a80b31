"""What a supervisor leaves behind, as its tuner reads it: the claim, the log in segments, the exit.

The other side of these files is `supervisor`, which says what they mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

CHUNK_BYTES = 256 << 10
KILL_S = 5.0
"""How long a killed process is waited for; one that hangs in the kernel is let be."""


def read_facts(path: Path) -> dict[str, str]:
    """Read a file of `fact=value` lines; empty when it is not there."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return {}
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


@contextlib.contextmanager
def dead_claim(folder: Path) -> Iterator[bool]:
    """Tell whether the trial's claim has lost its owner, and keep it so while the context lasts.

    Yields:
        True when there is a claim that nobody holds; False when it is held or there is none.
    """
    try:
        file = os.open(folder / "claim", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        dead = True
    except BlockingIOError:
        dead = False
    try:
        yield dead
    finally:
        os.close(file)


def is_held(folder: Path) -> bool:
    """Tell whether a living supervisor has claimed the trial."""
    with dead_claim(folder) as dead:
        return not dead and (folder / "claim").exists()


def end_leftovers(folder: Path, name: str) -> None:
    """Kill what a dead supervisor left of its trial: the group on its claim, and whoever carries the trial's name.

    To be called while the claim is known to be dead. The environment finds those that left the group. Returns when
    they are gone.
    """
    group = read_facts(folder / "claim").get("group", "")
    until = time.monotonic() + KILL_S
    while _kill_carriers(group, name) and time.monotonic() < until:
        time.sleep(0.005)


def _kill_carriers(group: str, name: str) -> bool:
    """Kill every process that carries a trial's name, by its group where it is in that; False when there is none."""
    found = False
    marker = f"\0KATIB_TRIAL_NAME={name}\0".encode()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            ours = marker in b"\0" + (process / "environ").read_bytes()
        except OSError:
            continue  # another user's, or gone
        # The group's number may have been used again since: only a member that carries the name is the trial.
        if ours:
            found = True
            with contextlib.suppress(ProcessLookupError):
                if group and os.getpgid(int(process.name)) == int(group):
                    os.killpg(int(group), signal.SIGKILL)
                else:
                    os.kill(int(process.name), signal.SIGKILL)
    return found


class LogTail:
    """Reads a supervised trial's log from its start, piece by piece, while it grows and loses its middle.

    Attributes:
        position: Where in all of the output the next piece is looked for.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segment = -1  # where it begins
        self._missing = 0
        self.position = 0

    def read(self, most_bytes: float = math.inf) -> Iterator[tuple[bytes, int]]:
        """Yield the new pieces in order, each with the number of bytes before it that are gone.

        Args:
            most_bytes: No further piece is given after so many bytes.
        """
        given = 0
        while given < most_bytes:
            data = self._piece()
            if not data:
                following = self._following()
                if following is None:
                    return
                data = self._piece()  # once more, for now that the next segment is there this one grows no longer
                if not data:
                    self._missing += following - self.position
                    self._segment = self.position = following
                    continue
            self.position += len(data)
            given += len(data)
            missing, self._missing = self._missing, 0
            yield data, missing

    def _piece(self) -> bytes:
        """What comes next in its segment; empty when nothing does yet, or the segment is gone."""
        try:
            with (self._folder / f"log.{self._segment:015d}").open("rb", buffering=0) as file:
                file.seek(self.position - self._segment)
                return file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return b""

    def _following(self) -> int | None:
        """Where the next segment after this one begins that is there."""
        there = (int(path.suffix[1:]) for path in self._folder.glob("log.*"))
        return min((start for start in there if start > self._segment), default=None)
