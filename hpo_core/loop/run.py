"""One experiment being run: from events to records to new trials.

A turn takes all events that are there, records the trials that ended, asks for as many, records them as created and
only then submits them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import ParamSpec, TypeVar

from hpo_core.errors import AlgorithmError, TransientError
from hpo_core.experiment import Experiment
from hpo_core.launch import Event, Exited, Launcher, Output, Started
from hpo_core.loop.clock import Clock, SystemClock, time_text
from hpo_core.loop.workload import Follower, make_job
from hpo_core.outcome import trial_verdict
from hpo_core.search import Search
from hpo_core.status import SUSPENDED, Progress, Tally, Verdict, judge, progress, wanted
from hpo_core.store import STOP, ExperimentStore
from hpo_core.trial import StopRequest, Trial, TrialCondition, create_trial

TURN_S = 0.2
"""Longest sleep of a turn: how late a request of this process to stop may be seen."""
INBOX_S = 1.0
"""How often others' requests are looked for."""
PATIENCE_S = 300.0
"""How long a store or launcher that cannot do its work now is tried again."""

_SUSPEND = StopRequest(TrialCondition.CREATED, "Suspended", "the experiment was suspended")
_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Snapshot:
    """An experiment at one instant, for whoever shows it."""

    experiment: Experiment
    trials: tuple[Trial, ...]
    verdict: Verdict
    progress: Progress
    followed: tuple[Followed, ...] = ()


@dataclass(frozen=True)
class Followed:
    """What a trial that is not over has printed so far, for others to look at."""

    label: str
    log: bytes
    metrics: str


class Run:
    """One experiment being run by the holder of its lease.

    Args:
        experiment: As accepted.
        store: Its records; the lease is held.
        launcher: Runs its trials.
        search: Suggests assignments.
        clock: Where times come from.
        should_stop: Asked at every turn; once it is true the run suspends.
        patience_s: Seconds for which what fails transiently is tried again.
    """

    def __init__(
        self,
        experiment: Experiment,
        store: ExperimentStore,
        launcher: Launcher,
        search: Search,
        *,
        clock: Clock | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.experiment = experiment
        self._store, self._launcher, self._search = store, launcher, search
        self._clock = clock or SystemClock()
        self._should_stop = should_stop
        self._patience_s = patience_s
        self._followers: dict[str, Follower] = {}
        self._numbers: dict[str, int] = {}
        self._exhausted = self._suspending = False
        self._inbox_at = 0.0
        self._ended_s = 0.0
        self.trials = self._try(store.trials)  # the one of number n at n - 1; the store vouches that there is no gap
        self.tally = Tally.of(experiment.objective, self.trials)
        self._finished = max((trial.finished_seq for trial in self.trials), default=0)
        for trial in self.trials:
            self._ended_s += _duration_s(trial)

    def resume(self) -> None:
        """Take hold again of what was recorded and is not over; to be called once, before the first turn."""
        ended = sorted((t for t in self.trials if t.condition.is_terminal), key=lambda t: t.finished_seq)
        for trial in ended[-self.experiment.parallel_trial_count :]:
            self._launcher.forget(trial.name)  # a crash between its record and this left it behind
        if self._verdict().condition.is_terminal and not self.tally.active:
            return
        for trial in self._open_trials():
            self._change(trial.resume())
            self._submit(trial.resume())

    def turn(self, timeout_s: float = TURN_S) -> bool:
        """Wait for events and act on all that are there.

        Args:
            timeout_s: Longest wait, in seconds.

        Returns:
            Whether anything changed that is worth showing.

        Raises:
            StoreError, LaunchError: Our own work failed.
            Conflict: Another writer took over.
        """
        # With nothing to wait for, the first trials are not kept waiting.
        events = self._launcher.events(timeout_s if self._followers else 0.0)
        changed = False
        for event in events:
            changed |= self._take(event)
        self._look_for_stop()
        if self._suspending:
            return changed
        if self._verdict().condition.is_terminal:
            self._end_open_trials()
            return changed
        return self._start_trials() or changed

    @property
    def is_over(self) -> bool:
        """Whether no workload is left and none is to be started."""
        if self._followers:
            return False
        return self._suspending or (self._verdict().condition.is_terminal and not self.tally.active)

    def snapshot(self) -> Snapshot:
        """Return where the experiment stands now."""
        verdict = self._verdict()
        suspended = self._suspending and not verdict.condition.is_terminal
        return Snapshot(
            self.experiment,
            tuple(self.trials),
            SUSPENDED if suspended else verdict,
            self.progress(),
            tuple(
                Followed(f"{self._numbers[name]:05d}", follower.log.content(), follower.metric_lines())
                for name, follower in self._followers.items()
            ),
        )

    def progress(self) -> Progress:
        """Return how far the experiment is, for people."""
        mean = self._ended_s / self.tally.completed if self.tally.completed else None
        return progress(self.experiment, self.tally, mean)

    @property
    def has_output(self) -> bool:
        """Whether a workload has printed something that is not recorded yet."""
        return any(follower.log.size for follower in self._followers.values())

    def abandon(self) -> None:
        """End every workload without a record, after our own work failed; a later run starts them again."""
        for name in self._followers:
            self._launcher.stop(name)
        until = self._clock.monotonic() + 30.0
        while self._followers and self._clock.monotonic() < until:
            for event in self._launcher.events(TURN_S):
                if isinstance(event, Exited):
                    self._followers.pop(event.name, None)

    def _verdict(self) -> Verdict:
        return judge(self.experiment, self.tally, exhausted=self._exhausted)

    def _open_trials(self) -> list[Trial]:
        return [trial for trial in self.trials if not trial.condition.is_terminal]

    def _take(self, event: Event) -> bool:
        follower, number = self._followers.get(event.name), self._numbers.get(event.name)
        if follower is None or number is None:
            return False
        trial = self.trials[number - 1]
        if isinstance(event, Output):
            follower.feed(event)
            return False
        if isinstance(event, Started):
            running = trial.run(time_text(event.at) or self._clock.now())
            self._change(running)
            self._try(self._store.record, running)
            return True
        self._conclude(trial, event, follower)
        return True

    def _conclude(self, trial: Trial, exited: Exited, follower: Follower) -> None:
        """Record how an attempt ended: as the trial's end, or as the reason for its next attempt."""
        follower.reader.close()
        del self._followers[trial.name], self._numbers[trial.name]
        outcome = _retry_outcome(self.experiment, trial, exited)
        if outcome:
            self._retry(trial, outcome)
            return
        verdict = trial_verdict(self.experiment, trial, exited, follower.reader)
        now = time_text(exited.at) or self._clock.now()
        ended = trial.finish(verdict, finished_seq=self._finished + 1, log_cursor=follower.log.size, now=now)
        label = f"{trial.number:05d}"
        previous = self.tally.best
        if exited.output_dir is not None and self._would_be_best(ended):
            self._try(self._store.save_output, label, exited.output_dir)
        self._try(self._store.save_printed, label, follower.log.content(), follower.metric_lines(), final=True)
        self._try(self._store.record, ended)
        self._finished += 1
        self._ended_s += _duration_s(ended)
        self._change(ended)
        if previous is not None and self.tally.best is ended:
            self._store.delete_output(f"{previous.number:05d}")
        self._launcher.forget(trial.name)

    def _retry(self, trial: Trial, outcome: str) -> None:
        following = trial.retry(self.experiment, outcome)
        self._try(self._store.record, following)
        self._change(following)
        self._launcher.forget(trial.name)
        if not self._suspending:
            self._submit(following)

    def _would_be_best(self, ended: Trial) -> bool:
        tally = Tally(self.experiment.objective, best=self.tally.best, best_value=self.tally.best_value)
        tally.fold(None, ended)
        return tally.best is ended

    def _look_for_stop(self) -> None:
        requested = self._should_stop()
        if not requested and self._clock.monotonic() >= self._inbox_at:
            self._inbox_at = self._clock.monotonic() + INBOX_S
            requested = any(request.kind == STOP for request in self._try(self._store.requests))
        if requested and not self._suspending:
            self._suspending = True
            self._stop_trials(_SUSPEND)

    def _end_open_trials(self) -> None:
        reason = self._verdict().reason
        self._stop_trials(StopRequest(TrialCondition.KILLED, reason, "the experiment was over before this trial was"))

    def _stop_trials(self, request: StopRequest) -> None:
        for trial in self._open_trials():
            if trial.stop_requested is None and trial.name in self._followers:
                stopping = trial.request_stop(request)
                self._change(stopping)
                self._try(self._store.record, stopping)
                self._launcher.stop(trial.name)

    def _start_trials(self) -> bool:
        count = wanted(self.experiment, self.tally)
        if count == 0 or self._exhausted:
            return False
        suggestion = self._search.ask(self.trials, count)
        self._exhausted = suggestion.exhausted
        if not suggestion.assignments and not suggestion.exhausted and not self._followers:
            name = self.experiment.algorithm.name
            raise AlgorithmError(f"the algorithm {name!r} suggests nothing and waits for nothing; please report this")
        created = []
        for number, assignment in enumerate(suggestion.assignments, len(self.trials) + 1):
            trial = create_trial(self.experiment, number, assignment, asked_after=self._finished, now=self._clock.now())
            self._try(self._store.record, trial, create=True)
            self._change(trial)
            created.append(trial)
        for trial in created:
            self._submit(trial)
        return bool(created)

    def _submit(self, trial: Trial) -> None:
        job = make_job(self.experiment, trial.assignments, trial.name)
        self._try(self._launcher.submit, job)
        self._followers[trial.name] = Follower(self.experiment)
        self._numbers[trial.name] = trial.number
        if trial.stop_requested is not None and trial.stop_requested.condition.is_terminal:
            self._launcher.stop(trial.name)  # a crash came between its record and this

    def _change(self, trial: Trial) -> None:
        before = self.trials[trial.number - 1] if trial.number <= len(self.trials) else None
        self.trials[trial.number - 1 : trial.number] = [trial]
        self.tally.fold(before, trial)
        if before is None or before.condition is not trial.condition:
            _log.info(
                "trial.changed experiment=%s trial=%s from=%s to=%s reason=%s",
                self.experiment.name,
                trial.name,
                before.condition if before else "",
                trial.condition,
                trial.reason,
            )

    def _try(self, action: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do something of our own work, again and again while it fails transiently, within patience."""
        until = self._clock.monotonic() + self._patience_s
        while True:
            try:
                return action(*args, **kwargs)
            except TransientError as error:
                if self._clock.monotonic() >= until or self._should_stop():
                    raise
                _log.warning("work.retried experiment=%s reason=%s", self.experiment.name, error)
                self._clock.sleep(error.retry_after_s)


def run(job: Run, show: Callable[[Run, bool], None] = lambda job, changed: None) -> Snapshot:
    """Run an experiment until it is over or suspended.

    Args:
        job: The run; its store's lease is held.
        show: Called after each turn with the run and whether something changed that is worth showing.

    Returns:
        Where the experiment stands at the end.

    Raises:
        HpoError: Our own work failed; every workload has been ended then.
    """
    try:
        job.resume()
        show(job, True)
        while not job.is_over:
            show(job, job.turn())
    except BaseException:
        job.abandon()
        raise
    return job.snapshot()


def _retry_outcome(experiment: Experiment, trial: Trial, exited: Exited) -> str:
    """Tell why another attempt has to follow: `Interrupted` or `Lost`; "" when the attempt decides the trial."""
    request = trial.stop_requested
    if request is not None and request.condition.is_terminal:
        return ""
    if exited.reason == "Stopped":
        return "Interrupted"
    return "Lost" if exited.reason == "Lost" and trial.losses + 1 < experiment.settings.max_attempts else ""


def _duration_s(trial: Trial) -> float:
    if not trial.completed or not trial.started:
        return 0.0
    return (datetime.fromisoformat(trial.completed) - datetime.fromisoformat(trial.started)).total_seconds()
