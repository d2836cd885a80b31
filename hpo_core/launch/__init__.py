"""Launching trials: the protocol that the loop speaks, whatever a trial is: a process here, a Job in a cluster.

A launcher knows names, manifests and exits; it knows no search, no metric and no record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias


@dataclass(frozen=True)
class Job:
    """One workload to run.

    Attributes:
        name: Unique for ever; the same name is the same workload.
        manifest: The rendered workload.
        primary_container: The container whose command is the trial.
        deadline_s: Seconds that it may run; None for no bound.
        begun: Whether it is known to have run: it may be followed, but never started.
        label: What its output is filed under, where it is kept from where the workload runs; "" when it is not.
    """

    name: str
    manifest: Mapping[str, Any]
    primary_container: str
    deadline_s: float | None = None
    begun: bool = False
    label: str = ""


@dataclass(frozen=True)
class Waiting:
    """The workload cannot run yet.

    Attributes:
        name: The workload.
        reason: What it waits for, in one word, such as `Unschedulable`.
        message: The same in a sentence, with the next step.
    """

    name: str
    reason: str
    message: str


@dataclass(frozen=True)
class Started:
    """The workload runs.

    Attributes:
        name: The workload.
        at: Since when, in seconds since 1970; None when that is not known.
    """

    name: str
    at: float | None = None


LOG, METRICS = "log", "metrics"
"""Streams of a workload whose metrics do not stand in its log."""


@dataclass(frozen=True)
class Output:
    """A piece of what the workload printed, in order and from the start.

    Attributes:
        name: The workload.
        data: The piece; empty only where what came last is missing.
        missing: Bytes between this piece and the one before that could not be had.
        stream: LOG when it holds no metrics, METRICS when it is no part of the log, "" when it is both. Each stream has
            its own order.
    """

    name: str
    data: bytes
    missing: int = 0
    stream: str = ""


@dataclass(frozen=True)
class Exited:
    """The workload is over, all of its processes are gone and all of its output has been given.

    Attributes:
        name: The workload.
        code: Exit code; negative for the signal that ended it; None when that is not known.
        reason: "" when it ended by itself; `Stopped` after `stop`; `DeadlineExceeded`, `OutOfMemory`; `CannotStart`
            when it never ran; `Lost` when nobody can tell how it ended.
        message: The cause in a sentence, where there is more to say than the reason.
        output_dir: What it left in its output directory; None for nothing.
        at: When it ended, in seconds since 1970; None when that is not known.
        has_receipt: Whether what it left was kept from where it ran, so that the store's receipt must say that it is.
    """

    name: str
    code: int | None
    reason: str = ""
    message: str = ""
    output_dir: Path | None = None
    at: float | None = None
    has_receipt: bool = False


Event: TypeAlias = Waiting | Started | Output | Exited


class Launcher(Protocol):
    """Runs workloads. One launcher serves one experiment and is used from one thread, but for `submit` and `forget`.

    Attributes:
        site: Where its workloads run; a launcher of another site cannot find them again.
    """

    site: str

    def submit(self, job: Job) -> None:
        """Start a workload, or follow the one of that name that was started before, by whomever.

        Idempotent: a known name starts nothing, whether it runs or has ended; its output is given again from the start.
        Does not wait for the start. What goes wrong with the workload itself is told by an `Exited` event; one that is
        known to have begun, and is not there, is `Lost`. May be called by several threads at once.

        Raises:
            LaunchError: This can never be run here.
            TransientError: It could not be started now.
        """
        ...

    def stop(self, name: str) -> None:
        """Ask a submitted workload to end, by force after its grace; returns at once, an `Exited` event follows.

        Idempotent; a name that has ended or was never submitted is left alone.
        """
        ...

    def events(self, timeout_s: float) -> list[Event]:
        """Wait until something happened, at most that long, and return it in order; empty after the time.

        Of one that prints very much only a part is returned, so that others need not wait for it; the next call gives
        what follows, without waiting. Each submitted workload gets exactly one `Exited`, after its last `Output`.
        """
        ...

    def forget(self, name: str) -> None:
        """Remove all that an ended workload left behind; its name must not be submitted again. Idempotent.

        May be called by several threads at once.
        """
        ...
