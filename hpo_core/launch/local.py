"""Trials as processes of this machine: each under a supervisor of its own, which outlives the tuner.

What a Job's manifest means here is `command`'s; what the supervisor leaves behind is read by `claims`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

from hpo_core.errors import LaunchError, TransientError
from hpo_core.launch import Event, Exited, Job, Output, Started, supervisor
from hpo_core.launch.claims import LogTail, dead_claim, end_leftovers, is_held, read_facts
from hpo_core.launch.command import read_command, trial_environment

POLL_S = 0.1
"""How often output is looked for; exits wake the launcher at once."""
OUTPUT_BYTES = 256 << 10
"""After so much output of one workload it is the others' turn."""
ROOM_S, ROOM_PATIENCE_S = 1.0, 300.0
"""How often, and for how long, a workload that found the disk full is started again."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger(__name__)


@dataclass
class _Watched:
    """A workload that is being followed.

    Attributes:
        is_over: Its supervisor is gone; its end is told once all of its output has been.
        is_behind: It has printed more than was given.
        is_waiting: The disk is full; it is started once there is room.
        retry_at, give_up_at: When that is tried next, and when no more.
    """

    name: str
    folder: Path
    log: LogTail
    job: Job | None = None
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    started: bool = False
    stopping: bool = False
    is_over: bool = False
    is_behind: bool = False
    code: int = 0
    is_waiting: bool = False
    retry_at: float = 0.0
    give_up_at: float = math.inf


class LocalLauncher:
    """Runs Jobs as processes of this machine.

    Args:
        scratch: Folder for what supervisors leave; a launcher that is given the same one finds their trials again.
        images_root: Where local images lie.
        directory: Working directory of commands whose image is no local image.
        parallel: How many workloads are to share the machine's cores.
    """

    def __init__(self, scratch: Path, *, images_root: Path, directory: Path, parallel: int = 1) -> None:
        self.site = site_of(scratch.parent)
        self._scratch = scratch
        self._images_root = images_root
        self._directory = directory
        self._threads = max(1, len(os.sched_getaffinity(0)) // parallel)
        self._watched: dict[str, _Watched] = {}
        self._by_pidfd: dict[int, _Watched] = {}
        self._poll = select.poll()
        self._looked = 0.0

    def submit(self, job: Job) -> None:
        """See `Launcher.submit`."""
        if job.name in self._watched:
            return
        folder = self._scratch / job.name
        watched = _Watched(job.name, folder, LogTail(folder), job)
        if not (folder / "claim").exists():
            if job.begun:
                watched.is_over = True  # what it left is gone, and so is all that could be told of it
                self._watched[job.name] = watched
                return
            try:
                watched.process = self._spawn(job, folder)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise TransientError(f"cannot start {job.name} in {folder}: {error.strerror}", 2.0) from error
                self._wait_for_room(watched)  # not here: the end of another one may make it
            except ValueError as error:  # a NUL, or a variable's name with =
                raise LaunchError(f"cannot start {job.name}: its command or environment has an {error}") from error
        self._watched[job.name] = watched
        if not watched.is_waiting:
            self._follow(watched)

    def stop(self, name: str) -> None:
        """See `Launcher.stop`."""
        watched = self._watched.get(name)
        if watched is not None and watched.is_waiting:
            watched.stopping = watched.is_over = True
        elif watched is not None and watched.pidfd >= 0:
            watched.stopping = True
            try:
                signal.pidfd_send_signal(watched.pidfd, signal.SIGTERM)
            except ProcessLookupError:
                return  # it has just ended, its exit is about to be told

    def events(self, timeout_s: float) -> list[Event]:
        """See `Launcher.events`; of what a workload printed it gives about OUTPUT_BYTES at once."""
        until = time.monotonic() + timeout_s
        while True:
            at_once = any(watched.is_over or watched.is_behind for watched in self._watched.values())
            wait_s = 0.0 if at_once else max(min(until - time.monotonic(), POLL_S), 0.0)
            for pidfd, _ in self._poll.poll(wait_s * 1000):
                self._on_exit(self._by_pidfd[pidfd])
            events = self._look_around()
            if events or time.monotonic() >= until:
                return events

    def forget(self, name: str) -> None:
        """See `Launcher.forget`."""
        _remove(self._scratch / name)
        with contextlib.suppress(OSError):
            self._scratch.rmdir()  # the last one takes the folder with it

    def close(self) -> None:
        """Follow nothing any more; what runs goes on."""
        for pidfd in self._by_pidfd:
            os.close(pidfd)
        self._by_pidfd.clear()
        self._watched.clear()

    def sweep(self) -> None:
        """End every workload that anybody has started in this scratch folder, and remove all that it left behind."""
        for folder in sorted(self._scratch.glob("*/")):
            watched = _Watched(folder.name, folder, LogTail(folder))
            if (folder / "claim").exists() and folder.name not in self._watched:
                self._watched[folder.name] = watched
                self._follow(watched)
                self.stop(folder.name)
        while self._watched:
            self.events(POLL_S)
        _remove(self._scratch)

    def _spawn(self, job: Job, folder: Path) -> subprocess.Popen[bytes]:
        output = folder / "output"
        output.mkdir(parents=True, exist_ok=True)
        command = read_command(job, images_root=self._images_root, directory=self._directory)
        arguments = [str(folder), str(job.deadline_s or 0), str(command.memory_bytes), str(command.grace_s), "--"]
        with (folder / "supervisor.log").open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-S", "-E", supervisor_program(), *arguments, *command.argv],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=command.directory,
                env=trial_environment(command, output_dir=output, threads=self._threads),
                start_new_session=True,
            )

    def _follow(self, watched: _Watched) -> None:
        """Wake up when the workload's supervisor ends: the child just started, or the one that its claim names."""
        pid = watched.process.pid if watched.process else int(read_facts(watched.folder / "claim").get("pid") or 0)
        try:
            watched.pidfd = os.pidfd_open(pid)
        except OSError:  # nobody has that number, or a power cut has emptied the claim
            self._end(watched)
            return
        if watched.process is None:
            # Asked after the process was taken hold of: had it died before, its number might be another's by now.
            with dead_claim(watched.folder) as dead:
                pass
            if dead:
                os.close(watched.pidfd)
                self._end(watched)
                return
        self._by_pidfd[watched.pidfd] = watched
        self._poll.register(watched.pidfd, select.POLLIN)

    def _unfollow(self, watched: _Watched) -> None:
        self._poll.unregister(watched.pidfd)
        del self._by_pidfd[watched.pidfd]
        os.close(watched.pidfd)
        watched.pidfd = -1

    def _on_exit(self, watched: _Watched) -> None:
        self._unfollow(watched)
        if watched.process is not None:
            watched.code = watched.process.wait()
            watched.process = None
            if is_held(watched.folder):  # somebody else's supervisor was first, and is the one to follow
                self._follow(watched)
                if watched.stopping:
                    self.stop(watched.name)
                return
            if watched.code in NO_ROOM and not watched.stopping and time.monotonic() < watched.give_up_at:
                self._wait_for_room(watched)
                return
        self._end(watched)

    def _end(self, watched: _Watched) -> None:
        """Take note that a workload's supervisor is gone; what that left running is ended."""
        watched.is_over = True
        if not (watched.folder / "exit").exists():
            with dead_claim(watched.folder) as dead:
                if dead:
                    end_leftovers(watched.folder, watched.name)

    def _look_around(self) -> list[Event]:
        everywhere = time.monotonic() - self._looked >= POLL_S
        if everywhere:
            self._looked = time.monotonic()
        events: list[Event] = []
        for watched in list(self._watched.values()):
            if watched.is_waiting and watched.job is not None and not watched.is_over:
                self._start_late(watched, watched.job)
            elif everywhere or watched.is_over or watched.is_behind:
                events += self._look(watched)
                if watched.is_over and not watched.is_behind:
                    events += self._conclude(watched)
        return events

    def _wait_for_room(self, watched: _Watched) -> None:
        if not watched.is_waiting:
            _log.warning("launch.waits name=%s reason=no room left in %s", watched.name, watched.folder)
        watched.is_waiting = True
        watched.retry_at = time.monotonic() + ROOM_S
        watched.give_up_at = min(watched.give_up_at, time.monotonic() + ROOM_PATIENCE_S)

    def _start_late(self, watched: _Watched, job: Job) -> None:
        """Start a workload that found no room on the disk, when it is time to try again."""
        if time.monotonic() < watched.retry_at:
            return
        try:
            watched.process = self._spawn(job, watched.folder)
        except OSError as error:
            watched.code = error.errno or 0
            self._wait_for_room(watched)
            watched.is_over = time.monotonic() >= watched.give_up_at
            return
        watched.is_waiting = False
        self._follow(watched)

    def _look(self, watched: _Watched) -> Iterator[Event]:
        if not watched.started:
            since = read_facts(watched.folder / "claim").get("started")
            if since is not None:
                watched.started = True
                yield Started(watched.name, float(since))
        given = 0
        for data, missing in watched.log.read(OUTPUT_BYTES):
            given += len(data)
            yield Output(watched.name, data, missing)
        watched.is_behind = given >= OUTPUT_BYTES

    def _conclude(self, watched: _Watched) -> Iterator[Event]:
        """Tell the end of a workload whose supervisor is gone and whose output has been given."""
        del self._watched[watched.name]
        facts = read_facts(watched.folder / "exit")
        missing = int(facts.get("printed", 0)) - watched.log.position
        if missing > 0:  # it ended while the disk was full
            yield Output(watched.name, b"", missing)
        if facts:
            yield self._exit(watched, facts)
        elif watched.stopping:
            yield Exited(watched.name, None, "Stopped")  # before its supervisor could take the order
        elif (watched.folder / "claim").exists():
            yield Exited(watched.name, None, "Lost", "its supervisor died, so nobody saw how it ended")
        elif watched.job is not None and watched.job.begun:
            yield Exited(watched.name, None, "Lost", "nothing of it is left on this machine")
        else:
            yield Exited(watched.name, None, "CannotStart", _why_not(watched))

    def _exit(self, watched: _Watched, facts: Mapping[str, str]) -> Exited:
        code, reason = int(facts["code"]), facts.get("reason", "")
        notes = []
        if int(facts.get("strays", 0)):
            notes.append(f"{facts['strays']} process(es) that it had left behind were ended")
        if int(facts.get("dropped", 0)):
            notes.append(f"{facts['dropped']} bytes of its output were lost: the disk is full")
        if reason == "OutOfMemory":
            notes.append(f"it used {int(facts['peak_memory_bytes']) >> 20} MiB, more than resources.limits.memory")
        output = watched.folder / "output"
        kept = output if _holds_anything(output) else None
        return Exited(watched.name, code, reason, "; ".join(notes), kept, float(facts["ended"]))


def _holds_anything(folder: Path) -> bool:
    """Tell whether a folder is there and not empty; of one that cannot be read it is assumed."""
    try:
        return any(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _remove(folder: Path) -> None:
    """Remove a folder, also what a trainer has locked up in it."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for at, folders, _ in os.walk(folder):
            for path in (Path(at, name) for name in folders if not Path(at, name).is_symlink()):
                with contextlib.suppress(OSError):
                    path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


def site_of(folder: Path) -> str:
    """Name the place whose trials leave their scratch folders there."""
    return f"{socket.gethostname()}:{folder}"


def supervisor_program() -> str:
    """Return the supervisor's compiled form, which starts faster and smaller, where there is one of this very source.

    With PYTHONDONTWRITEBYTECODE an old one may lie there.
    """
    source, compiled = Path(supervisor.__file__), Path(cache_from_source(supervisor.__file__))
    with contextlib.suppress(OSError):
        if compiled.stat().st_mtime >= source.stat().st_mtime:
            return str(compiled)
    return str(source)


def _why_not(watched: _Watched) -> str:
    """Why a supervisor did not come up: its last word, else what its exit code says."""
    log = watched.folder / "supervisor.log"
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    cause = os.strerror(watched.code) if watched.code > 0 else f"ended by signal {-watched.code}"
    fallback = f"its supervisor could not start in {watched.folder}: {cause}"
    return next((line for line in reversed(lines) if line.strip()), fallback)
