"""A launcher without processes, for tests: what each workload does is written down beforehand, and nothing is random.

    machine = ScriptedMachine(lambda job: Play(lines=(f"loss={flags(job)['lr']}",), turns=2))
    launcher = ScriptedLauncher(machine)

The machine outlives its launchers, as processes outlive a tuner: hand it to a new launcher after a "crash". Time is
counted in turns; each call of `events` is one, whoever makes it, and takes no time. In its first turn a workload is
told as started; it prints one line in each turn and the rest in its last one. Misuse that a real launcher would not
notice, such as submitting a name that was forgotten, is an AssertionError here.
"""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpo_core.launch import Event, Exited, Job, Output, Started
from hpo_core.manifest import primary_container

IDLE_TURNS = 1000
"""Turns in a row without any event after which a test has got stuck."""


@dataclass(frozen=True)
class Play:
    """What a workload does.

    Attributes:
        lines: What it prints, one line a turn; a line break is added.
        code: Its exit code; None when nobody can tell.
        reason: As in `Exited`: "" when it ends by itself, else such as `OutOfMemory`. `CannotStart` prints nothing and
            is never told as started.
        message: The cause in a sentence.
        turns: How many turns it takes, at least 1; None when it goes on until it is stopped.
        stop_turns: How many turns it goes on after it was asked to stop, at least 1; it then ends with code -15.
        output_dir: What it leaves behind; removed when it is forgotten.
    """

    lines: Sequence[str] = ()
    code: int | None = 0
    reason: str = ""
    message: str = ""
    turns: int | None = 1
    stop_turns: int = 1
    output_dir: Path | None = None


@dataclass
class _Workload:
    play: Play
    ends_at: float
    events: list[Event] = field(default_factory=list)
    stopped: bool = False
    over: bool = False


@dataclass
class ScriptedMachine:
    """Where workloads run.

    Attributes:
        script: What the workload of this job does; asked once, when it starts.
        order: In which order the events of one turn come: gets the names that have some, in the order in which they
            were started, and returns them in another one.
        turn: How many turns have passed.
        starts: How often each name was started, in the order of the first starts. More than once is a defect.
        stops: Names that were asked to stop while they ran, each time.
        forgotten: Names that were forgotten.
    """

    script: Callable[[Job], Play] = lambda job: Play()
    order: Callable[[Sequence[str]], Sequence[str]] = lambda names: names
    turn: int = 0
    starts: Counter[str] = field(default_factory=Counter)
    stops: list[str] = field(default_factory=list)
    forgotten: set[str] = field(default_factory=set)
    _workloads: dict[str, _Workload] = field(default_factory=dict)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    @property
    def running(self) -> list[str]:
        """Names of what has been started and has not ended, in the order of the starts."""
        return [name for name, workload in self._workloads.items() if not workload.over]

    def lose(self, name: str) -> None:
        """Let a running workload end in the next turn without anybody seeing how, as a machine that reboots does."""
        workload = self._workloads[name]
        assert not workload.over, f"{name} has ended"
        workload.play, workload.ends_at = Play((), None, "Lost", "the machine was restarted"), 0

    def start(self, job: Job) -> None:
        """For the launcher: start a workload, unless its name is known."""
        assert job.name not in self.forgotten, f"{job.name} was forgotten, and is submitted again"
        with self._one_at_a_time:
            if job.name not in self._workloads:
                self._workloads[job.name] = self._begun(job)

    def _begun(self, job: Job) -> _Workload:
        if job.begun:
            return _Workload(Play(), 0, [Exited(job.name, None, "Lost", "it is not there")], over=True)
        self.starts[job.name] += 1
        play = self.script(job)
        ends_at = float("inf") if play.turns is None else self.turn + max(play.turns, 1)
        return _Workload(play, ends_at)

    def stop(self, name: str) -> None:
        """For the launcher: ask a workload to end."""
        workload = self._workloads.get(name)
        if workload is None or workload.over:
            return
        self.stops.append(name)
        if not workload.stopped:
            workload.stopped = True
            workload.ends_at = min(workload.ends_at, self.turn + max(workload.play.stop_turns, 1))

    def forget(self, name: str) -> None:
        """For the launcher: remove what is left of a workload that has ended."""
        with self._one_at_a_time:
            assert name not in self.running, f"{name} is forgotten, and still runs"
            workload = self._workloads.pop(name, None)
        if workload is not None and workload.play.output_dir is not None:
            shutil.rmtree(workload.play.output_dir, ignore_errors=True)
        self.forgotten.add(name)

    def pass_turn(self) -> None:
        """For the launcher: let one turn pass."""
        self.turn += 1
        for name in self.running:
            workload = self._workloads[name]
            workload.over = self.turn >= workload.ends_at
            workload.events += _events_of_turn(name, workload)

    def events_of(self, name: str) -> Sequence[Event]:
        """For the launcher: all that a workload has done so far, from its start."""
        return self._workloads[name].events


class ScriptedLauncher:
    """A `Launcher` over a scripted machine; a new one over the same machine finds everything again."""

    def __init__(self, machine: ScriptedMachine, site: str = "") -> None:
        self.site = site
        self._machine = machine
        self._told: dict[str, int] = {}
        self._idle = 0

    def submit(self, job: Job) -> None:
        """See `Launcher.submit`."""
        self._machine.start(job)
        self._told.setdefault(job.name, 0)

    def stop(self, name: str) -> None:
        """See `Launcher.stop`."""
        if name in self._told:
            self._machine.stop(name)

    def events(self, timeout_s: float) -> list[Event]:  # noqa: ARG002  a turn takes no time
        """See `Launcher.events`."""
        self._machine.pass_turn()
        with_news = {name: news for name in list(self._told) if (news := list(self._news(name)))}
        self._idle = 0 if with_news else self._idle + 1
        assert self._idle <= IDLE_TURNS, f"nothing happened in {IDLE_TURNS} turns; running: {self._machine.running}"
        return [event for name in self._machine.order(sorted(with_news)) for event in with_news[name]]

    def forget(self, name: str) -> None:
        """See `Launcher.forget`."""
        assert name not in self._told, f"{name} is forgotten before its end was told"
        self._machine.forget(name)

    def _news(self, name: str) -> Iterator[Event]:
        for event in self._machine.events_of(name)[self._told[name] :]:
            self._told[name] += 1
            if isinstance(event, Exited):
                del self._told[name]
            yield event


def flags(job: Job) -> Mapping[str, str]:
    """The `--name=value` words of a job's command and arguments, by name."""
    container = primary_container(job.manifest, job.primary_container)
    words = [str(word) for word in [*(container.get("command") or []), *(container.get("args") or [])]]
    pairs = (word.removeprefix("--").partition("=") for word in words if word.startswith("--"))
    return {name: value for name, _, value in pairs}


def _events_of_turn(name: str, workload: _Workload) -> list[Event]:
    """What a workload does in one turn, which is its last one when it is over."""
    play, told = workload.play, workload.events
    news: list[Event] = [] if told or play.reason == "CannotStart" else [Started(name)]
    printed = sum(isinstance(event, Output) for event in told)
    ends_by_itself = workload.over and not workload.stopped and play.reason != "CannotStart"
    lines = play.lines[printed:] if ends_by_itself else play.lines[printed : printed + (not workload.over)]
    news += [Output(name, f"{line}\n".encode()) for line in lines]
    if not workload.over:
        return news
    if workload.stopped and play.reason != "Lost":
        return [*news, Exited(name, -15, "Stopped", "", play.output_dir)]
    return [*news, Exited(name, play.code, play.reason, play.message, play.output_dir)]
