"""What a supervisor leaves behind, as its tuner reads it: the claim, the log in segments, the exit.

The other side of these files is `supervisor`, which says what they mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpo_core.launch.supervisor import SEGMENT_BYTES

CHUNK_BYTES = 1 << 20


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


def end_leftovers(folder: Path, name: str) -> None:
    """Kill what a dead supervisor left of its trial: the group on its claim, and whoever carries the trial's name.

    To be called while the claim is known to be dead. The environment finds those that left the group.
    """
    group = read_facts(folder / "claim").get("group", "")
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
            with contextlib.suppress(ProcessLookupError):
                if group and os.getpgid(int(process.name)) == int(group):
                    os.killpg(int(group), signal.SIGKILL)
                else:
                    os.kill(int(process.name), signal.SIGKILL)


class LogTail:
    """Reads a supervised trial's log from its start, piece by piece, while it grows and loses its middle."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._position = 0

    def read(self) -> Iterator[tuple[bytes, int]]:
        """Yield the new pieces in order, each with the number of bytes before it that are gone."""
        missing = 0
        while True:
            index, offset = divmod(self._position, SEGMENT_BYTES)
            try:
                with (self._folder / f"log.{index:06d}").open("rb") as file:
                    file.seek(offset)
                    data = file.read(min(CHUNK_BYTES, SEGMENT_BYTES - offset))
            except FileNotFoundError:
                following = [i for i in self._segments() if i > index]
                if not following:
                    return
                missing += following[0] * SEGMENT_BYTES - self._position
                self._position = following[0] * SEGMENT_BYTES
                continue
            if not data:
                return
            self._position += len(data)
            yield data, missing
            missing = 0

    def _segments(self) -> Mapping[int, Path]:
        return {int(path.suffix[1:]): path for path in sorted(self._folder.glob("log.[0-9]*"))}
