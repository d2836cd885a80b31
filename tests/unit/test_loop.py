"""The loop's decisions, with a scripted launcher, records in memory and a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from hpo_core import loop
from hpo_core.errors import AlgorithmError, Conflict, TransientError
from hpo_core.experiment import Experiment
from hpo_core.launch import Job
from hpo_core.objects import MemoryStore
from hpo_core.search import Suggestion, make_search
from hpo_core.status import ExperimentCondition, Tally
from hpo_core.store import STOP, ExperimentStore, Request
from hpo_core.trial import Trial, TrialCondition
from tests.contracts.scripted_launcher import Play, ScriptedLauncher, ScriptedMachine, flags
from tests.experiments import REMOVED, make_experiment, parameter

NOW = "2026-01-01T00:00:00.000Z"
SUCCEEDED, FAILED, KILLED = TrialCondition.SUCCEEDED, TrialCondition.FAILED, TrialCondition.KILLED


@dataclass
class ManualClock:
    """Time passes when somebody sleeps, and a little whenever it is asked for."""

    seconds: float = 0.0

    def now(self) -> str:
        return NOW

    def monotonic(self) -> float:
        self.seconds += 0.01
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Crash(BaseException):
    """The process ends here."""


class Crashing:
    """Whatever it wraps; the n-th call of all that share a counter crashes, before or after it was carried out.

    After that nothing is carried out any more, as of a process that is dead.
    """

    def __init__(self, wrapped: Any, calls: Counter, *, after: bool) -> None:
        self._wrapped, self._calls, self._after = wrapped, calls, after

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._wrapped, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            self._calls.count += 1
            due = self._calls.count == self._calls.crash_at
            dead = self._calls.count > self._calls.crash_at
            if dead or (due and not self._after):
                raise Crash
            result = attribute(*args, **kwargs)
            if due:
                raise Crash
            return result

        return call


@dataclass
class Counter:
    crash_at: int
    count: int = 0


@dataclass
class World:
    """What outlives a tuner: the records and the machine."""

    experiment: Experiment
    script: Callable[[Job], Play] = lambda job: Play(lines=(f"loss={flags(job)['lr']}",), turns=2)
    objects: MemoryStore = field(default_factory=MemoryStore)

    def __post_init__(self) -> None:
        self.machine = ScriptedMachine(self.script)
        self.experiment = self.store.accept(self.experiment, now=NOW)
        # The identity decides the names; two worlds that are compared have the same one.
        self.experiment = replace(self.experiment, uid="0" * 32)

    @property
    def store(self) -> ExperimentStore:
        return ExperimentStore(self.objects, self.experiment.namespace, self.experiment.name)

    def run(self, **options: Any) -> loop.Run:
        """A tuner in this world."""
        launcher = ScriptedLauncher(self.machine)
        return self.run_with(self.store, launcher, **options)

    def run_with(self, store: Any, launcher: Any, **options: Any) -> loop.Run:
        search = make_search(self.experiment)
        return loop.Run(self.experiment, store, launcher, search, clock=ManualClock(), **options)

    def trials(self) -> list[Trial]:
        return self.store.trials()

    def conditions(self) -> list[TrialCondition]:
        return [trial.condition for trial in self.trials()]


def world(script: Callable[[Job], Play] | None = None, **changes: Any) -> World:
    """A world whose experiment has changes of its spec, such as maxTrialCount=4."""
    changes = {"maxFailedTrialCount": REMOVED, **changes}
    spec = {f"spec.{path.replace('_', '.')}": value for path, value in changes.items()}
    experiment = make_experiment([parameter("lr", "double", min="0.01", max="0.05")], changes=spec)
    return World(experiment, script) if script else World(experiment)


def essence(trial: Trial) -> tuple[object, ...]:
    """All of a trial but its attempts' names."""
    return (trial.number, dict(trial.assignments), trial.condition, trial.reason, trial.observation)


def test_a_run_ends_when_the_budget_is_used_up() -> None:
    here = world(maxTrialCount=5)
    final = loop.run(here.run())
    assert final.verdict.reason == "ExperimentMaxTrialsReached"
    assert here.conditions() == [SUCCEEDED] * 5
    assert set(here.machine.starts.values()) == {1}


def test_no_more_trials_run_at_once_than_allowed() -> None:
    here = world(parallelTrialCount=2, maxTrialCount=6)
    most = []
    loop.run(here.run(), lambda run, changed: most.append(len(here.machine.running)))
    assert max(most) == 2


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_call_loses_no_trial_starts_none_twice_and_changes_no_assignment(after: bool) -> None:
    undisturbed = world(maxTrialCount=4)
    loop.run(undisturbed.run())
    crash_at = 0
    while True:
        crash_at += 1
        here, calls = world(maxTrialCount=4), Counter(crash_at)
        objects = Crashing(here.objects, calls, after=after)
        store = ExperimentStore(objects, here.experiment.namespace, here.experiment.name)
        launcher = Crashing(ScriptedLauncher(here.machine), calls, after=after)
        try:
            run = here.run_with(store, launcher)
            run.resume()
            while not run.is_over:
                run.turn()
        except Crash:
            loop.run(here.run())
        else:
            break
        assert list(map(essence, here.trials())) == list(map(essence, undisturbed.trials())), f"crash at {crash_at}"
        assert set(here.machine.starts.values()) == {1}, f"crash at {crash_at}: {here.machine.starts}"
        assert not here.machine.running
    assert crash_at > 30


def test_every_past_ask_can_be_made_again_from_the_records() -> None:
    here = world(maxTrialCount=6)
    loop.run(here.run())
    trials = here.trials()
    assert sorted(trial.finished_seq for trial in trials) == [1, 2, 3, 4, 5, 6]
    for trial in trials:
        known = [
            earlier if 0 < earlier.finished_seq <= trial.asked_after else Trial(earlier.number, earlier.assignments)
            for earlier in trials[: trial.number - 1]
        ]
        (again,) = make_search(here.experiment).ask(known, 1).assignments
        assert again.values == trial.assignments


def test_the_running_tally_is_the_one_computed_from_the_records() -> None:
    here = world(lambda job: Play((f"loss={flags(job)['lr']}",), code=int(float(flags(job)["lr"]) > 0.03)))
    run = here.run()
    loop.run(run, lambda r, changed: None)
    assert run.tally == Tally.of(here.experiment.objective, here.trials())


def test_a_reached_goal_ends_the_experiment_and_what_still_runs() -> None:
    plays = iter([Play(("loss=0.5",), turns=None), Play(("loss=0.01",), turns=2)])
    here = world(lambda job: next(plays), objective_goal=0.02, parallelTrialCount=2)
    final = loop.run(here.run())
    assert final.verdict.reason == "ExperimentGoalReached"
    assert here.conditions() == [KILLED, SUCCEEDED]
    assert here.trials()[0].reason == "ExperimentGoalReached"


def test_too_many_failures_fail_the_experiment() -> None:
    here = world(lambda job: Play(("no luck",), code=3), maxFailedTrialCount=2, parallelTrialCount=1)
    final = loop.run(here.run())
    assert final.verdict.condition is ExperimentCondition.FAILED
    assert here.conditions() == [FAILED, FAILED]
    assert here.trials()[0].message == "exit code 3; last lines: no luck"


def test_a_lost_attempt_is_followed_by_another_that_counts_as_no_failure() -> None:
    plays = iter([Play(code=None, reason="Lost", message="its node is gone"), Play(("loss=1",), turns=5)])
    here = world(lambda job: next(plays), maxTrialCount=1, parallelTrialCount=1, maxFailedTrialCount=1)
    told: list[str] = []
    final = loop.run(here.run(), lambda run, changed: told.extend(trial.message for trial in run.trials))
    assert "its node is gone" in told
    assert final.verdict.condition is ExperimentCondition.SUCCEEDED
    (trial,) = here.trials()
    assert [attempt.outcome for attempt in trial.attempts] == ["Lost", ""]
    assert len({attempt.name for attempt in trial.attempts}) == 2


def test_a_trial_that_is_lost_again_and_again_fails() -> None:
    here = world(lambda job: Play(code=None, reason="Lost"), maxTrialCount=1, parallelTrialCount=1)
    loop.run(here.run())
    (trial,) = here.trials()
    assert (trial.condition, trial.reason, len(trial.attempts)) == (FAILED, "Lost", 3)


def test_a_request_in_the_inbox_suspends_and_the_next_run_goes_on() -> None:
    here = world(lambda job: Play(("loss=1",), turns=None), maxTrialCount=2, parallelTrialCount=2)
    run = here.run()
    run.resume()
    run.turn()
    here.store.inbox.send(Request(STOP))
    final = loop.run(here.run())
    assert final.verdict.condition is ExperimentCondition.SUSPENDED
    assert here.conditions() == [TrialCondition.CREATED] * 2
    assert not here.machine.running
    here.store.inbox.consume(here.store.inbox.requests()[0])
    here.machine.script = lambda job: Play(("loss=1",))
    assert loop.run(here.run()).verdict.condition is ExperimentCondition.SUCCEEDED
    assert all([a.outcome for a in trial.attempts] == ["Interrupted", ""] for trial in here.trials())


def test_a_trial_that_ended_before_its_stop_was_carried_out_keeps_its_result() -> None:
    """The tuner dies between the record of the wish and the signal."""
    here = world(lambda job: Play(("loss=1",), turns=3), maxTrialCount=1, parallelTrialCount=1)

    class Dying(ScriptedLauncher):
        def stop(self, name: str) -> None:
            raise Crash(name)

    asked = iter([False, True])
    run = here.run_with(here.store, Dying(here.machine), should_stop=lambda: next(asked, True))
    with pytest.raises(Crash):
        loop.run(run)
    (stopping,) = here.trials()
    assert stopping.stop_requested is not None
    assert loop.run(here.run()).verdict.reason == "ExperimentMaxTrialsReached"
    assert here.conditions() == [SUCCEEDED]


def test_a_wish_to_interrupt_of_a_dead_tuner_does_not_keep_its_successor_from_stopping() -> None:
    here = world(lambda job: Play(("loss=1",), turns=None), maxTrialCount=1, parallelTrialCount=1)

    class Dying(ScriptedLauncher):
        def stop(self, name: str) -> None:
            raise Crash(name)

    asked = iter([False, True])
    with pytest.raises(Crash):
        loop.run(here.run_with(here.store, Dying(here.machine), should_stop=lambda: next(asked, True)))
    asked = iter([False, False, True])
    final = loop.run(here.run(should_stop=lambda: next(asked, True)))
    assert final.verdict.condition is ExperimentCondition.SUSPENDED
    assert not here.machine.running


def test_a_search_with_nothing_more_to_suggest_ends_the_experiment() -> None:
    grid = [parameter("lr", "discrete", list=["0.1", "0.2", "0.3"])]
    changes = {"spec.algorithm.algorithmName": "grid", "spec.maxTrialCount": 10}
    here = World(make_experiment(grid, changes=changes))
    final = loop.run(here.run())
    assert final.verdict.reason == "ExperimentSuggestionEndReached"
    assert [trial.assignments["lr"] for trial in here.trials()] == [0.1, 0.2, 0.3]


class Silent:
    """A search that breaks its promise: it never suggests anything, and never says that it is done."""

    def ask(self, trials: Sequence[Trial], count: int) -> Suggestion:  # noqa: ARG002  the protocol's
        return Suggestion()


def test_a_search_that_stands_still_is_an_error_and_no_endless_wait() -> None:
    here = world()
    run = loop.Run(here.experiment, here.store, ScriptedLauncher(here.machine), Silent(), clock=ManualClock())
    with pytest.raises(AlgorithmError, match="suggests nothing and waits for nothing"):
        loop.run(run)


class Unreliable:
    """An object store that fails for a while."""

    def __init__(self, wrapped: MemoryStore, failures: int) -> None:
        self._wrapped, self.left = wrapped, failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def put(self, *args: Any, **kwargs: Any) -> str:
        if self.left > 0:
            self.left -= 1
            raise TransientError("the disk is full", 2.0)
        return self._wrapped.put(*args, **kwargs)


def test_what_fails_for_a_while_is_tried_again() -> None:
    here = world(maxTrialCount=3)
    store = ExperimentStore(Unreliable(here.objects, 5), here.experiment.namespace, here.experiment.name)
    final = loop.run(here.run_with(store, ScriptedLauncher(here.machine)))
    assert final.verdict.condition is ExperimentCondition.SUCCEEDED
    assert here.conditions() == [SUCCEEDED] * 3


def test_what_fails_beyond_patience_ends_every_workload_and_can_be_resumed() -> None:
    here = world(maxTrialCount=3)
    run = here.run_with(
        ExperimentStore(unreliable := Unreliable(here.objects, 0), here.experiment.namespace, here.experiment.name),
        ScriptedLauncher(here.machine),
        patience_s=10.0,
    )
    run.resume()
    run.turn()
    unreliable.left = 10**6
    with pytest.raises(TransientError, match="the disk is full"):
        loop.run(run)
    assert not here.machine.running
    assert loop.run(here.run()).verdict.condition is ExperimentCondition.SUCCEEDED


def test_a_second_writer_is_noticed_before_it_starts_anything() -> None:
    here = world(maxTrialCount=3)
    first, second = here.run(), here.run()
    first.resume()
    first.turn()
    started = dict(here.machine.starts)
    with pytest.raises(Conflict, match="written by somebody else"):
        second.turn()
    assert dict(here.machine.starts) == started


def test_retraining_follows_the_workload_of_one_that_was_killed() -> None:
    here = world(lambda job: Play(("test_loss=0.5",), turns=3))
    values = {"lr": 0.02}
    calls = Counter(crash_at=2)
    launcher = Crashing(ScriptedLauncher(here.machine), calls, after=True)
    with pytest.raises(Crash):
        loop.retrain(here.experiment, values, here.store, launcher)
    done = loop.retrain(here.experiment, values, here.store, ScriptedLauncher(here.machine))
    assert done.succeeded
    assert dict(done.metrics) == {"test_loss": 0.5}
    assert list(here.machine.starts.values()) == [1]
    again = loop.retrain(here.experiment, values, here.store, ScriptedLauncher(here.machine))
    assert again.name != done.name


def test_retraining_with_other_values_ends_the_workload_of_one_that_was_killed() -> None:
    here = world(lambda job: Play((f"used={flags(job)['lr']}",), turns=3))
    launcher = Crashing(ScriptedLauncher(here.machine), Counter(crash_at=2), after=True)
    with pytest.raises(Crash):
        loop.retrain(here.experiment, {"lr": 0.02}, here.store, launcher)
    done = loop.retrain(here.experiment, {"lr": 0.03}, here.store, ScriptedLauncher(here.machine))
    assert dict(done.metrics) == {"used": 0.03}
    assert not here.machine.running


def test_what_cannot_be_read_in_the_inbox_is_dropped_and_ends_nothing() -> None:
    here = world(maxTrialCount=1, parallelTrialCount=1)
    for number, body in enumerate([b"no json", b"5", b"[]", b"{}", b'{"kind": "dance"}']):
        here.objects.put(f"kubeflow/small/requests/{number}.json", body)
    assert loop.run(here.run()).verdict.condition is ExperimentCondition.SUCCEEDED
