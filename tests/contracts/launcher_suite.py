"""What every launcher promises, made ready for tests: machines to run on, workloads to run, and a patient listener.

A launcher joins by adding a `Machine` to `MACHINES`: how to make one of its launchers, and how to say in its manifests
what a `Workload` does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hpo_core.launch import Event, Exited, Job, Launcher, Output, Started
from hpo_core.launch.local import LocalLauncher
from tests.contracts.scripted_launcher import Play, ScriptedLauncher, ScriptedMachine

PATIENCE_S = 20.0
"""After which a test has failed, on the slowest machine."""

TRAINER = """
import json, os, sys, time
does = json.loads(sys.argv[1])
with open(does["starts"], "a") as starts:
    starts.write(os.environ["KATIB_TRIAL_NAME"] + "\\n")
for name, text in does["files"].items():
    with open(os.path.join(os.environ["HPO_OUTPUT_DIR"], name), "w") as file:
        file.write(text)
for line in does["lines"]:
    print(line)
while does["endless"]:
    time.sleep(0.02)
if does["code"] < 0:
    os.kill(os.getpid(), -does["code"])
sys.exit(does["code"])
"""


@dataclass(frozen=True)
class Workload:
    """What a workload of these tests does; a code below 0 is the signal that it sends itself."""

    lines: Sequence[str] = ()
    code: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    endless: bool = False
    missing_command: bool = False


class Machine(Protocol):
    """Where workloads run; it outlives every launcher."""

    def launcher(self) -> Launcher:
        """A new launcher, which finds what others have started."""
        ...

    def job(self, name: str, workload: Workload) -> Job:
        """The job that makes a workload do this."""
        ...

    def starts(self, name: str) -> int:
        """How often a workload has been started."""
        ...


class LocalMachine:
    """Processes, with a tiny trainer in Python."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._starts = folder / "starts"

    def launcher(self) -> Launcher:
        return LocalLauncher(
            self._folder / "scratch", images_root=self._folder / "images", directory=self._folder, parallel=2
        )

    def job(self, name: str, workload: Workload) -> Job:
        program = "/nowhere/trainer" if workload.missing_command else sys.executable
        does = json.dumps({**asdict(workload), "starts": str(self._starts)})
        return process_job(name, [program, "-S", "-c", TRAINER, does])

    def starts(self, name: str) -> int:
        return self._starts.read_text().split().count(name) if self._starts.exists() else 0


class ScriptedWorkloads:
    """Scripts; what a workload does stands in its manifest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._machine = ScriptedMachine(self._play)

    def launcher(self) -> Launcher:
        return ScriptedLauncher(self._machine)

    def job(self, name: str, workload: Workload) -> Job:
        return process_job(name, [json.dumps(asdict(workload))])

    def starts(self, name: str) -> int:
        return self._machine.starts[name]

    def _play(self, job: Job) -> Play:
        container = job.manifest["spec"]["template"]["spec"]["containers"][0]
        does = Workload(**json.loads(container["command"][0]))
        output = None
        for name, text in does.files.items():
            output = self._folder / job.name
            output.mkdir(exist_ok=True)
            (output / name).write_text(text)
        code = 127 if does.missing_command else does.code
        return Play(tuple(does.lines), code, turns=None if does.endless else 3, output_dir=output)


MACHINES: Mapping[str, Callable[[Path], Machine]] = {"local": LocalMachine, "scripted": ScriptedWorkloads}


def process_job(
    name: str,
    command: Iterable[str],
    *,
    env: Mapping[str, str] | None = None,
    deadline_s: float | None = None,
    pod: Mapping[str, Any] | None = None,
    **container: Any,
) -> Job:
    """A job as the renderer makes it, of one container; further keywords are that container's fields."""
    environment = {"KATIB_TRIAL_NAME": name, "HPO_PHASE": "trial", **(env or {})}
    main = {
        "name": "main",
        "image": "trainer:1",
        "command": list(command),
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        **container,
    }
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"template": {"spec": {"containers": [main], **(pod or {})}}},
    }
    return Job(name, manifest, "main", deadline_s)


def listen(launcher: Launcher, until: Callable[[list[Event]], object]) -> list[Event]:
    """Take events until something holds of all that were taken; fails when it never does."""
    taken: list[Event] = []
    end = time.monotonic() + PATIENCE_S
    while not until(taken):
        assert time.monotonic() < end, f"within {PATIENCE_S} s only {taken}"
        taken += launcher.events(0.5)
    return taken


def until_ended(launcher: Launcher, *names: str) -> list[Event]:
    """Take events until all of these have ended."""
    return listen(launcher, lambda taken: set(names) <= {e.name for e in taken if isinstance(e, Exited)})


def until_started(launcher: Launcher, *names: str) -> list[Event]:
    """Take events until all of these are told as started."""
    return listen(launcher, lambda taken: set(names) <= {e.name for e in taken if isinstance(e, Started)})


def output(events: Iterable[Event], name: str) -> bytes:
    """All that one workload printed."""
    return b"".join(event.data for event in events if isinstance(event, Output) and event.name == name)


def exits(events: Iterable[Event], name: str) -> list[Exited]:
    """Every end of one workload that was told."""
    return [event for event in events if isinstance(event, Exited) and event.name == name]


def only_exit(events: Iterable[Event], name: str) -> Exited:
    """The end of one workload, told once."""
    (exited,) = exits(events, name)
    return exited


def run(launcher: Launcher, job: Job) -> tuple[Exited, bytes]:
    """Run one job to its end; returns that, and what it printed."""
    launcher.submit(job)
    events = until_ended(launcher, job.name)
    return only_exit(events, job.name), output(events, job.name)
