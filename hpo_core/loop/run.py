"""One experiment being run: from events to records to new trials.

A turn takes all events that are there, records the trials that ended, asks for as many, records them as created and
only then submits them. What a stage has to write or to submit goes out at the same time.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from hpo_core.errors import AlgorithmError, Conflict, HpoError, SpecError
from hpo_core.experiment import Experiment
from hpo_core.launch import Exited, Launcher, Output, Started
from hpo_core.loop.attendance import Attendance
from hpo_core.loop.best_few import BestFew
from hpo_core.loop.clock import Clock, SystemClock, time_text
from hpo_core.loop.patience import PATIENCE_S, Patience
from hpo_core.loop.snapshot import Followed, Snapshot
from hpo_core.loop.workload import Follower, abandon, keep_output, make_job, settle
from hpo_core.outcome import sentence, trial_verdict
from hpo_core.search import Search
from hpo_core.status import SUSPENDED, Progress, Tally, Verdict, edit_budgets, judge, progress, wanted
from hpo_core.store import EDIT, STOP, STOP_TRIAL, ExperimentStore, Request, together
from hpo_core.trial import StopRequest, Trial, TrialCondition, create_trial

TURN_S = 0.2
"""Longest sleep of a turn: how late a request of this process to stop may be seen."""
INBOX_S = 1.0
"""How often others' requests are looked for."""

_SUSPEND = StopRequest(TrialCondition.CREATED, "Suspended", "the experiment was suspended")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ended:
    """An attempt that is over and decides its trial: the trial as it ended, and what is to be kept of it."""

    trial: Trial
    exited: Exited
    follower: Follower


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
        unattended_s: Seconds after which it suspends when nobody waits for it; None for never.
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
        unattended_s: float | None = None,
    ) -> None:
        self.experiment = experiment
        self._store, self._launcher, self._search = store, launcher, search
        self._clock = clock or SystemClock()
        self._should_stop = should_stop
        self._patiently = Patience(self._clock, patience_s=patience_s, gave_up=should_stop)
        self._attendance = Attendance(store, self._clock, self._patiently, unattended_s)
        self._followers: dict[str, Follower] = {}
        self._numbers: dict[str, int] = {}
        self._exhausted = self._suspending = False
        self._inbox_at = 0.0
        self._ended_s = 0.0
        self.trials = self._patiently(store.trials)  # the one of number n at n - 1; the store vouches for no gap
        self.tally = Tally.of(experiment.objective, self.trials)
        self._kept = BestFew(experiment.objective, experiment.settings.keep_models, self.trials)
        self._finished = max((trial.finished_seq for trial in self.trials), default=0)
        for trial in self.trials:
            self._ended_s += _duration_s(trial)

    def resume(self) -> None:
        """Take hold again of what was recorded and is not over; to be called once, before the first turn.

        Each open record is written anew, so that a late write of the writer before this one fails.
        """
        self._patiently(self._store.confirm)
        self._patiently(self._store.discard_unbegun)
        for name in self._left_behind():
            self._patiently(self._launcher.forget, name)
        opened = [trial for trial in self.trials if not trial.condition.is_terminal]
        self._discard_outputs()
        if self._verdict().condition.is_terminal and not opened:
            return
        resumed = [self._taken_over(trial) for trial in opened]
        self._record(resumed)
        for trial in resumed:
            self._store.resume_printing(_label(trial))
            self._change(trial)
        self._submit(resumed)

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
        changed = self._take_events(timeout_s if self._followers else 0.0)
        changed |= self._look_for_requests()
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
        news = {name: follower for name, follower in self._followers.items() if follower.has_news}
        return Snapshot(
            self.experiment,
            tuple(self.trials),
            SUSPENDED if suspended else verdict,
            self.progress(),
            tuple(Followed(f"{self._numbers[name]:05d}", *follower.picture()) for name, follower in news.items()),
        )

    def progress(self) -> Progress:
        """Return how far the experiment is, for people."""
        mean = self._ended_s / self.tally.completed if self.tally.completed else None
        return progress(self.experiment, self.tally, mean)

    @property
    def has_output(self) -> bool:
        """Whether a workload has printed something that no snapshot has shown yet."""
        return any(follower.has_news for follower in self._followers.values())

    def abandon(self) -> None:
        """End every workload without a record, after our own work failed; a later run starts them again."""
        abandon(self._launcher, self._followers, self._clock)

    @property
    def is_taken_over_here(self) -> bool:
        """Whether the writer who took over follows our workloads, which are then no longer ours to end."""
        return self._store.holder().get("site") == self._launcher.site

    def _verdict(self) -> Verdict:
        return judge(self.experiment, self.tally, exhausted=self._exhausted)

    def _followed_trials(self) -> list[Trial]:
        return [self.trials[number - 1] for number in sorted(self._numbers.values())]

    def _left_behind(self) -> list[str]:
        """Names of the workloads that are over by their records, and that a crash may have kept from being forgotten.

        Whatever had ended when the last trial was asked for was forgotten before that. Of an attempt that its next one
        follows elsewhere nobody has seen the end.
        """
        asked_after = max((trial.asked_after for trial in self.trials), default=0)
        recent = [t for t in self.trials if not t.condition.is_terminal or t.finished_seq > asked_after]
        earlier = [
            attempt.name
            for trial in recent
            for attempt, following in itertools.pairwise(trial.attempts)
            if attempt.site == following.site
        ]
        return [*earlier, *(trial.name for trial in recent if trial.condition.is_terminal)]

    def _taken_over(self, trial: Trial) -> Trial:
        """An open trial as this tuner goes on with it: what runs at another site cannot be found from here."""
        resumed = trial.resume()
        site = resumed.attempts[-1].site if resumed.attempts else ""
        if site in ("", self._launcher.site):
            return resumed
        return resumed.retry(self.experiment, "Interrupted", site=self._launcher.site)

    def _take_events(self, timeout_s: float) -> bool:
        ended: list[Exited] = []
        moved: dict[str, Trial] = {}
        for event in self._launcher.events(timeout_s):
            follower, number = self._followers.get(event.name), self._numbers.get(event.name)
            if follower is None or number is None:
                continue
            if isinstance(event, Output):
                follower.feed(event)
            elif isinstance(event, Exited):
                ended.append(event)
            else:
                trial = self.trials[number - 1]
                if isinstance(event, Started):
                    moved[event.name] = trial.run(time_text(event.at) or self._clock.now())
                else:
                    moved[event.name] = trial.wait(event.reason, event.message)
                self._change(moved[event.name])
        over = {exited.name for exited in ended}
        self._record([trial for name, trial in moved.items() if name not in over])
        self._conclude(ended)
        return bool(moved or ended)

    def _conclude(self, exits: Sequence[Exited]) -> None:
        """Record how attempts ended: as their trials' ends, or as the reasons for next attempts."""
        if exits:
            self._patiently(self._store.confirm)  # logs and models are written without a condition
        retried: list[Trial] = []
        ended: list[_Ended] = []
        exits = together(lambda exited: self._patiently(settle, self._store, exited), exits)
        for exited in exits:
            trial, follower = self.trials[self._numbers.pop(exited.name) - 1], self._followers.pop(exited.name)
            follower.close()
            outcome = _retry_outcome(self.experiment, trial, exited)
            if outcome:
                retried.append(trial.retry(self.experiment, outcome, site=self._launcher.site, message=exited.message))
            else:
                self._finished += 1
                ended.append(_Ended(self._judged(trial, exited, follower), exited, follower))
        ended, dropped = self._keep(ended)
        self._record([*(end.trial for end in ended), *retried])
        for end in ended:
            self._ended_s += _duration_s(end.trial)
            self._change(end.trial)
        for trial in retried:
            self._change(trial)
        for label in dropped:
            self._patiently(self._store.delete_output, label)
        together(lambda exited: self._patiently(self._launcher.forget, exited.name), exits)
        if not self._suspending:
            self._submit(retried)

    def _judged(self, trial: Trial, exited: Exited, follower: Follower) -> Trial:
        return trial.finish(
            trial_verdict(self.experiment, trial, exited, follower.reader),
            finished_seq=self._finished,
            log_cursor=follower.log.size,
            now=time_text(exited.at) or self._clock.now(),
            metrics_incomplete=follower.reader.missed_bytes > 0,
        )

    def _keep(self, ended: Sequence[_Ended]) -> tuple[list[_Ended], list[str]]:
        """Store what ended trials have left, before their records say that they are over.

        Returns:
            The trials, which now say what of it could not be stored; and the labels of outputs that are not to be kept:
            of trials that are among the best no longer, or never were.
        """
        before = self._kept.numbers
        for end in ended:
            self._kept.add(end.trial)
        kept = self._kept.numbers

        def save(end: _Ended) -> _Ended:
            note = ""
            if end.exited.output_dir is not None and end.trial.number in kept:
                note = keep_output(self._store, _label(end.trial), end.exited.output_dir, self._patiently)
            self._patiently(self._store.save_printed, _label(end.trial), *end.follower.picture(), final=True)
            return replace(end, trial=replace(end.trial, message=sentence(end.trial.message, note)))

        ended = together(save, ended)
        replaced = [self.trials[number - 1] for number in sorted(before - kept)]
        sent = [end.trial for end in ended if end.exited.has_receipt and end.trial.number not in kept]
        labels = [label for trial in [*replaced, *sent] for label in (_label(trial), attempt_label(trial))]
        earlier = [(end.trial, count) for end in ended for count in range(1, len(end.trial.attempts))]
        return ended, [*labels, *(f"{_label(trial)}-{count}" for trial, count in earlier)]

    def _discard_outputs(self) -> None:
        """Remove outputs that a crash has left: of what a better trial has replaced, and of open trials.

        What those leave is stored when their ends are told again; or is where it belongs already, where it is kept
        from where they run.
        """
        best = [self.trials[number - 1] for number in self._kept.numbers]
        kept = {label for trial in best for label in (_label(trial), attempt_label(trial))}
        kept |= {attempt_label(trial) for trial in self.trials if not trial.condition.is_terminal}
        for label in self._patiently(self._store.output_labels):
            if label.partition("-")[0].isdecimal() and label not in kept:
                self._patiently(self._store.delete_output, label)

    def _look_for_requests(self) -> bool:
        """Take up what this process and others ask for; true when something came of it that is worth showing."""
        changed = False
        if self._should_stop() or self._attendance.look():
            self._suspend()
        if self._clock.monotonic() >= self._inbox_at:
            self._inbox_at = self._clock.monotonic() + INBOX_S
            requests = self._patiently(self._store.inbox.requests)
            if requests:
                self._patiently(self._store.confirm)  # they are the writer's to deal with
            for request in requests:
                changed |= self._fulfil(request)
        return changed

    def _fulfil(self, request: Request) -> bool:
        if request.kind == STOP:
            self._suspend()  # the request stays until somebody goes on, lest a crash forget it
            return False
        _log.info("request.taken experiment=%s kind=%s by=%s", self.experiment.name, request.kind, request.by)
        if request.kind == STOP_TRIAL:
            wish = StopRequest(TrialCondition.KILLED, "TrialKilled", f"the trial was stopped by {request.by or '?'}")
            self._stop_trials([t for t in self._followed_trials() if t.number == request.trial], wish)
        elif request.kind == EDIT:
            self._edit(request)
        self._patiently(self._store.inbox.consume, request)
        return True

    def _edit(self, request: Request) -> None:
        try:
            edited = edit_budgets(self.experiment, request.budgets, completed=self.tally.completed)
        except SpecError as error:  # whoever sent it has checked it; the budget may have changed in between
            _log.warning("request.refused experiment=%s reason=%s", self.experiment.name, error)
            self._patiently(self._store.inbox.refuse, request, error)
            return
        self._patiently(self._store.save_experiment, edited)
        self.experiment = edited

    def _suspend(self) -> None:
        if not self._suspending:
            self._suspending = True
            self._stop_trials(self._followed_trials(), _SUSPEND)

    def _end_open_trials(self) -> None:
        wish = StopRequest(
            TrialCondition.KILLED, self._verdict().reason, "the experiment was over before this trial was"
        )
        self._stop_trials(self._followed_trials(), wish)

    def _stop_trials(self, trials: Iterable[Trial], wish: StopRequest) -> None:
        stopping = [trial.request_stop(wish) for trial in trials if trial.stop_requested is None]
        for trial in stopping:
            self._change(trial)
        self._record(stopping)
        for trial in stopping:
            self._patiently(self._launcher.stop, trial.name)

    def _start_trials(self) -> bool:
        count = wanted(self.experiment, self.tally)
        if count == 0 or self._exhausted:
            return False
        suggestion = self._search.ask(self.trials, count)
        self._exhausted = suggestion.exhausted
        if not suggestion.assignments and not suggestion.exhausted and not self._followers:
            name = self.experiment.algorithm.name
            raise AlgorithmError(f"the algorithm {name!r} suggests nothing and waits for nothing; please report this")
        created = [
            create_trial(
                self.experiment,
                number,
                assignment,
                asked_after=self._finished,
                now=self._clock.now(),
                site=self._launcher.site,
            )
            for number, assignment in enumerate(suggestion.assignments, len(self.trials) + 1)
        ]
        self._record(created, create=True)
        for trial in created:
            self._change(trial)
        self._submit(created)
        return bool(created)

    def _record(self, trials: Sequence[Trial], *, create: bool = False) -> None:
        together(lambda trial: self._write(trial, create=create), trials)

    def _write(self, trial: Trial, *, create: bool) -> None:
        try:
            self._patiently(self._store.record, trial, create=create)
        except Conflict:
            # A late write of the writer before us, who had it in his hands when his lease ran out; ours follows it.
            if not self._patiently(self._store.holds_lease):
                raise
            if self._patiently(self._store.trial, trial.number).condition.is_terminal:
                raise
            self._patiently(self._store.record, trial)

    def _submit(self, trials: Sequence[Trial]) -> None:
        if trials:
            self._patiently(self._store.confirm)
        together(self._submit_one, trials)
        for trial in trials:
            if trial.stop_requested is not None and trial.stop_requested.condition.is_terminal:
                self._patiently(self._launcher.stop, trial.name)  # a crash came between its record and this

    def _submit_one(self, trial: Trial) -> None:
        begun = trial.condition is TrialCondition.RUNNING
        label = attempt_label(trial) if self.experiment.settings.keep_models else ""
        job = make_job(self.experiment, trial.assignments, trial.name, begun=begun, label=label)
        self._patiently(self._launcher.submit, job)
        self._followers[trial.name] = Follower(self.experiment)
        self._numbers[trial.name] = trial.number

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


class Left(HpoError):
    """The run was left while its workloads go on, for another tuner to follow them."""


def run(
    job: Run,
    show: Callable[[Run, bool], None] = lambda job, changed: None,
    should_leave: Callable[[], bool] = lambda: False,
) -> Snapshot:
    """Run an experiment until it is over or suspended.

    Args:
        job: The run; its store's lease is held.
        show: Called after each turn with the run and whether something changed that is worth showing.
        should_leave: Asked before each turn; once it is true the run is left.

    Returns:
        Where the experiment stands at the end.

    Raises:
        Left: It was left.
        Conflict: Another writer took over; workloads that it cannot follow have been ended.
        HpoError: Our own work failed; every workload has been ended then.
    """
    try:
        job.resume()
        show(job, True)
        while not job.is_over:
            if should_leave():
                raise Left(f"the experiment {job.experiment.name!r} was left to another tuner")
            show(job, job.turn())
    except Left:
        raise
    except Conflict:
        if not job.is_taken_over_here:
            job.abandon()
        raise
    except BaseException:
        job.abandon()
        raise
    return job.snapshot()


def _label(trial: Trial) -> str:
    return f"{trial.number:05d}"


def attempt_label(trial: Trial) -> str:
    """What an output is filed under that is kept from where it runs: no two attempts share a place."""
    return f"{_label(trial)}-{len(trial.attempts)}"


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
