"""Trials as processes of this machine: each under a supervisor of its own, which outlives the tuner.

The command is the primary container's, run with that container's environment and memory limit. With a local image the
paths of the image are mapped to its folder; with any other the command runs as it stands, in the directory given.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from typing import Any

from hpo_core.errors import LaunchError, TransientError
from hpo_core.experiment import Draft
from hpo_core.images import find_local_image, localise
from hpo_core.launch import Event, Exited, Job, Output, Started, supervisor
from hpo_core.launch.claims import LogTail, dead_claim, end_leftovers, is_held, read_facts
from hpo_core.manifest import primary_container

POLL_S = 0.1
"""How often output is looked for; exits wake the launcher at once."""
GRACE_S = 10.0
"""Between asking a trial to end and ending it by force, where its pod template does not say."""

_EXPANSION = re.compile(r"\$\$|\$\(([^)]*)\)")
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(|[kKMGTPE]i?|m|[eE][+-]?\d+)")
_FACTORS = {"": 1.0, "m": 1e-3, "k": 1e3} | {
    f"{letter}{i}": (1024.0 if i else 1000.0) ** power for power, letter in enumerate("KMGTPE", 1) for i in ("", "i")
}


@dataclass
class _Watched:
    """A workload that is being followed."""

    name: str
    folder: Path
    log: LogTail
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    started: bool = False
    stopping: bool = False
    code: int = 0


class LocalLauncher:
    """Runs Jobs as processes of this machine.

    Args:
        scratch: Folder for what supervisors leave; a launcher that is given the same one finds their trials again.
        images_root: Where local images lie.
        directory: Working directory of commands whose image is no local image.
        parallel: How many workloads are to share the machine's cores.
    """

    def __init__(self, scratch: Path, *, images_root: Path, directory: Path, parallel: int = 1) -> None:
        self._scratch = scratch
        self._images_root = images_root
        self._directory = directory
        self._threads = max(1, len(os.sched_getaffinity(0)) // parallel)
        self._watched: dict[str, _Watched] = {}
        self._by_pidfd: dict[int, _Watched] = {}
        self._pending: list[Event] = []
        self._poll = select.poll()
        self._looked = 0.0

    def submit(self, job: Job) -> None:
        """See `Launcher.submit`."""
        if job.name in self._watched:
            return
        folder = self._scratch / job.name
        watched = _Watched(job.name, folder, LogTail(folder))
        if not (folder / "claim").exists():
            try:
                watched.process = self._spawn(job, folder)
            except OSError as error:
                raise TransientError(f"cannot start {job.name} in {folder}: {error.strerror}", 2.0) from error
            except ValueError as error:  # a NUL, or a variable's name with =
                raise LaunchError(f"cannot start {job.name}: its command or environment has an {error}") from error
        self._watched[job.name] = watched
        self._follow(watched)

    def stop(self, name: str) -> None:
        """See `Launcher.stop`."""
        watched = self._watched.get(name)
        if watched is not None and watched.pidfd >= 0:
            watched.stopping = True
            try:
                signal.pidfd_send_signal(watched.pidfd, signal.SIGTERM)
            except ProcessLookupError:
                return  # it has just ended, its exit is about to be told

    def events(self, timeout_s: float) -> list[Event]:
        """See `Launcher.events`."""
        until = time.monotonic() + timeout_s
        while True:
            events, self._pending = self._pending, []
            wait_s = 0.0 if events else max(min(until - time.monotonic(), POLL_S), 0.0)
            ended = [self._by_pidfd[pidfd] for pidfd, _ in self._poll.poll(wait_s * 1000)]
            for watched in ended:
                events += self._on_exit(watched)
            if time.monotonic() - self._looked >= POLL_S:
                self._looked = time.monotonic()
                for watched in list(self._watched.values()):
                    events += self._look(watched)
            if events or time.monotonic() >= until:
                return events

    def forget(self, name: str) -> None:
        """See `Launcher.forget`."""
        shutil.rmtree(self._scratch / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._scratch.rmdir()  # the last one takes the folder with it

    def _spawn(self, job: Job, folder: Path) -> subprocess.Popen[bytes]:
        output = folder / "output"
        output.mkdir(parents=True, exist_ok=True)
        command = self._command(job, output)
        arguments = [str(folder), str(job.deadline_s or 0), str(command.memory_bytes), str(command.grace_s), "--"]
        with (folder / "supervisor.log").open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-S", "-E", supervisor_program(), *arguments, *command.argv],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=command.directory,
                env=command.environment,
                start_new_session=True,
            )

    def _command(self, job: Job, output: Path) -> Command:
        container = primary_container(job.manifest, job.primary_container)
        image = find_local_image(str(container.get("image", "")), self._images_root)
        environment = {item["name"]: str(item.get("value", "")) for item in container.get("env") or []}
        defaults = dict(os.environ) | {
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self._threads)),
            "HPO_OUTPUT_DIR": str(output),
        }
        default_argv = list(image.entrypoint) if image else []
        argv = [*(container.get("command") or default_argv), *(container.get("args") or [])]
        if image and not container.get("command") and not container.get("args"):
            argv += image.cmd
        directory = self._directory / str(container.get("workingDir") or "")
        if image:
            directory = image.rootfs / str(container.get("workingDir") or image.workdir).lstrip("/")
            argv, environment = localise(image, argv, {**image.env, **environment})
        expanded: dict[str, str] = {}
        for name, value in environment.items():
            expanded[name] = expand(value, expanded)  # a variable can refer to those above it
        argv = [expand(str(part), expanded) for part in argv]
        if not argv:
            raise LaunchError(f"cannot start {job.name}: neither its template nor its image says a command")
        everything = {**defaults, **expanded}
        # `python3` is the interpreter that runs us, with the packages that the user installed beside us.
        everything["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), everything.get("PATH", os.defpath)])
        pod = ((job.manifest.get("spec") or {}).get("template") or {}).get("spec") or {}
        grace_s = pod.get("terminationGracePeriodSeconds")
        return Command(
            argv=argv,
            environment=everything,
            directory=directory if directory.is_dir() else self._directory,
            memory_bytes=int(parse_quantity(((container.get("resources") or {}).get("limits") or {}).get("memory", 0))),
            grace_s=GRACE_S if grace_s is None else float(grace_s),
        )

    def _follow(self, watched: _Watched) -> None:
        """Wake up when the workload's supervisor ends: the child just started, or the one that its claim names."""
        pid = watched.process.pid if watched.process else int(read_facts(watched.folder / "claim")["pid"])
        try:
            watched.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pending += self._conclude(watched)
            return
        if watched.process is None:
            # Asked after the process was taken hold of: had it died before, its number might be another's by now.
            with dead_claim(watched.folder) as dead:
                pass
            if dead:
                os.close(watched.pidfd)
                self._pending += self._conclude(watched)
                return
        self._by_pidfd[watched.pidfd] = watched
        self._poll.register(watched.pidfd, select.POLLIN)

    def _unfollow(self, watched: _Watched) -> None:
        self._poll.unregister(watched.pidfd)
        del self._by_pidfd[watched.pidfd]
        os.close(watched.pidfd)
        watched.pidfd = -1

    def _on_exit(self, watched: _Watched) -> list[Event]:
        self._unfollow(watched)
        if watched.process is not None:
            watched.code = watched.process.wait()
            watched.process = None
            if is_held(watched.folder):  # somebody else's supervisor was first, and is the one to follow
                self._follow(watched)
                if watched.stopping:
                    self.stop(watched.name)
                return []
        return self._conclude(watched)

    def _look(self, watched: _Watched) -> Iterator[Event]:
        if not watched.started:
            since = read_facts(watched.folder / "claim").get("started")
            if since is not None:
                watched.started = True
                yield Started(watched.name, float(since))
        for data, missing in watched.log.read():
            yield Output(watched.name, data, missing)

    def _conclude(self, watched: _Watched) -> list[Event]:
        """Tell the end of a workload whose supervisor is gone."""
        events = list(self._look(watched))
        facts = read_facts(watched.folder / "exit")
        if facts:
            exited = self._exit(watched, facts)
        elif (watched.folder / "claim").exists():
            with dead_claim(watched.folder):
                end_leftovers(watched.folder, watched.name)
            events += self._look(watched)
            exited = Exited(watched.name, None, "Lost", "its supervisor died, so nobody saw how it ended")
        else:
            exited = Exited(watched.name, None, "CannotStart", _why_not(watched))
        if watched.stopping and not facts:
            exited = Exited(watched.name, None, "Stopped")  # before its supervisor could take the order
        del self._watched[watched.name]
        return [*events, exited]

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
        kept = output if output.is_dir() and any(output.iterdir()) else None
        return Exited(watched.name, code, reason, "; ".join(notes), kept, float(facts["ended"]))


@dataclass(frozen=True)
class Command:
    """A container's command as it runs on this machine; a memory limit of 0 is none."""

    argv: list[str]
    environment: Mapping[str, str]
    directory: Path
    memory_bytes: int = 0
    grace_s: float = GRACE_S


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Expand `$(NAME)` as Kubernetes does: `$$` is a dollar sign, an unknown name stays as it is."""
    return _EXPANSION.sub(lambda m: "$" if m[1] is None else environment.get(m[1], m[0]), text)


def parse_quantity(text: str | int | float) -> float:
    """Read a Kubernetes quantity such as `1Gi`, `500m` or `0.5`.

    Raises:
        LaunchError: It is none.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise LaunchError(f"{text!r} is no quantity; write 512Mi, 1Gi, 0.5 or 500m")
    number, suffix = match.groups()
    return float(number + suffix) if suffix[1:].strip("+-").isdecimal() else float(number) * _FACTORS[suffix]


def check(draft: Draft) -> None:
    """Add to a draft's findings what this machine cannot run, and what it would leave aside."""
    template, path, findings = draft.template, "spec.trialTemplate.trialSpec", draft.findings
    if template is None:
        return
    if template.kind != "Job":
        findings.problem(f"{path}.kind", f"got {template.kind}: on this machine a trial is a batch/v1 Job")
        return
    job = template.trial_spec.get("spec") or {}
    pod = (job.get("template") or {}).get("spec") or {}
    at = f"{path}.spec.template.spec"
    for name in ("initContainers", "volumes"):
        if pod.get(name):
            findings.warn(f"{at}.{name}", "has no meaning on this machine and is left aside")
    for name in ("parallelism", "completions"):
        if isinstance(job.get(name), int) and job[name] > 1:
            findings.warn(f"{path}.spec.{name}", "on this machine one process is started for a trial")
    for index, container in enumerate(pod.get("containers") or []):
        if isinstance(container, Mapping):
            _check_container(container, f"{at}.containers[{index}]", draft, template.primary_container_name)


def _check_container(container: Mapping[str, Any], path: str, draft: Draft, primary: str) -> None:
    findings = draft.findings
    if container.get("name") != primary:
        findings.warn(path, "only the primary container runs on this machine")
        return
    if container.get("envFrom") or any("valueFrom" in item for item in container.get("env") or []):
        findings.warn(f"{path}.env", "values from the cluster (valueFrom, envFrom) are empty on this machine")
    limits = (container.get("resources") or {}).get("limits") or {}
    for name, value in limits.items():
        if name == "memory":
            try:
                parse_quantity(value)
            except LaunchError as error:
                findings.problem(f"{path}.resources.limits.memory", str(error))
        elif name != "cpu":
            findings.warn(f"{path}.resources.limits[{name}]", "is not reserved on this machine")
    image = str(container.get("image", ""))
    if not image.startswith("local/"):
        if not container.get("command"):
            findings.problem(f"{path}.command", "missing: without a local image the command must be given here")
        findings.warn(
            f"{path}.image", f"{image!r} is no local image: the command runs as it stands; `hpo build DIR` makes one"
        )


def supervisor_program() -> str:
    """Return the supervisor's compiled form, which starts faster and smaller, where there is one of this very source.

    With PYTHONDONTWRITEBYTECODE an old one may lie there.
    """
    source, compiled = Path(supervisor.__file__), cache_from_source(supervisor.__file__)
    about = source.stat()
    header = struct.pack("<4s3L", MAGIC_NUMBER, 0, int(about.st_mtime) & 0xFFFFFFFF, about.st_size & 0xFFFFFFFF)
    with contextlib.suppress(OSError), Path(compiled).open("rb") as file:
        if file.read(len(header)) == header:
            return compiled
    return str(source)


def _why_not(watched: _Watched) -> str:
    """Why a supervisor did not come up: its last word, else what its exit code says."""
    log = watched.folder / "supervisor.log"
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    cause = os.strerror(watched.code) if watched.code > 0 else f"ended by signal {-watched.code}"
    fallback = f"its supervisor could not start in {watched.folder}: {cause}"
    return next((line for line in reversed(lines) if line.strip()), fallback)
