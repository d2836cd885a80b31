"""One tuner after another on the same records: late writers, other sites, what is kept of models, edited budgets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpo_core import loop
from hpo_core.errors import Conflict, SpecError
from hpo_core.experiment import with_budgets
from hpo_core.launch import Job
from hpo_core.loop.best_few import BestFew
from hpo_core.objects import MemoryStore
from hpo_core.search import make_search
from hpo_core.store import EDIT, STOP_TRIAL, ExperimentStore, Request, trial_to_json
from hpo_core.trial import MetricSummary, Observation, Trial, TrialCondition
from tests.contracts.scripted_launcher import Play, ScriptedLauncher, ScriptedMachine, flags
from tests.unit.test_loop import NOW, Crash, World, world

SUCCEEDED, KILLED = TrialCondition.SUCCEEDED, TrialCondition.KILLED


def endless(job: Job) -> Play:  # noqa: ARG001  every workload does the same
    return Play(("loss=1",), turns=None)


def begun(here: World, site: str = "", *, should_stop: Callable[[], bool] = lambda: False) -> loop.Run:
    """A tuner that has started its first trials."""
    run = here.run_with(here.store, ScriptedLauncher(here.machine, site), should_stop=should_stop)
    run.resume()
    run.turn()
    return run


def test_a_writer_whose_open_trials_were_taken_over_fails_at_its_next_record_and_changes_nothing() -> None:
    here = world(maxTrialCount=2, parallelTrialCount=2)
    paused = begun(here)
    with here.store.lease({"site": ""}):
        final = loop.run(here.run())
    with pytest.raises(Conflict, match="written by somebody else"):
        loop.run(paused)
    assert tuple(here.trials()) == final.trials


def test_a_writer_who_creates_a_trial_that_somebody_else_has_created_starts_nothing() -> None:
    here = world(endless, maxTrialCount=4, parallelTrialCount=2)
    late = here.run()
    begun(here)
    with pytest.raises(Conflict, match="written by somebody else"):
        late.turn()
    assert set(here.machine.starts.values()) == {1}
    assert len(here.machine.starts) == 2


def test_who_was_taken_over_by_a_tuner_of_the_same_site_leaves_the_trials_to_it() -> None:
    here = world(endless, maxTrialCount=2, parallelTrialCount=2)
    woken: list[bool] = []
    paused = begun(here, "here", should_stop=lambda: bool(woken))
    with here.store.lease({"site": "here"}):
        begun(here, "here")
        woken.append(True)  # it wants to suspend now, and so has to write
        with pytest.raises(Conflict, match="written by somebody else"):
            loop.run(paused)
    assert len(here.machine.running) == 2
    assert here.machine.stops == []


def test_who_was_taken_over_from_another_site_ends_the_trials_that_nobody_follows() -> None:
    here = world(endless, maxTrialCount=2, parallelTrialCount=2)
    woken: list[bool] = []
    paused = begun(here, "here", should_stop=lambda: bool(woken))
    with here.store.lease({"site": "there"}):
        begun(here, "there")
        first = here.machine.running[:2]
        woken.append(True)  # it wants to suspend now, and so has to write
        with pytest.raises(Conflict, match="written by somebody else"):
            loop.run(paused)
    assert set(first) & set(here.machine.running) == set()


def test_a_trial_of_another_site_gets_its_next_attempt_uncounted() -> None:
    here = world(endless, maxTrialCount=2, parallelTrialCount=2)
    begun(here, "laptop")
    here.machine = ScriptedMachine(lambda job: Play(("loss=1",)))
    loop.run(here.run_with(here.store, ScriptedLauncher(here.machine, "server")))
    for trial in here.trials():
        assert [(a.outcome, a.site) for a in trial.attempts] == [("Interrupted", "laptop"), ("", "server")]
        assert trial.condition is SUCCEEDED


def leaving(folder: Path) -> Callable[[Job], Play]:
    """Workloads whose loss is their learning rate, and that leave a model each."""

    def play(job: Job) -> Play:
        output = folder / job.name
        output.mkdir()
        (output / "model.txt").write_text(job.name)
        return Play((f"loss={flags(job)['lr']}",), output_dir=output)

    return play


@pytest.mark.parametrize("most", [0, 1, 3])
@pytest.mark.parametrize("parallel", [1, 4])
def test_the_models_of_the_best_few_are_kept_and_no_others(tmp_path: Path, most: int, parallel: int) -> None:
    here = world(leaving(tmp_path), maxTrialCount=8, parallelTrialCount=parallel)
    here.experiment = replace(here.experiment, settings=replace(here.experiment.settings, keep_models=most))
    loop.run(here.run())
    ranked = sorted(here.trials(), key=lambda trial: trial.assignments["lr"])
    assert here.store.output_labels() == sorted(f"{trial.number:05d}" for trial in ranked[:most])
    for trial in ranked[:most]:
        (key,) = here.store.outputs(f"{trial.number:05d}")
        assert here.objects.get(key).data.decode() == trial.name


def test_the_best_few_are_those_of_a_sort_whatever_the_order_and_ties_go_to_the_earlier() -> None:
    objective = world().experiment.objective
    losses = [3.0, 1.0, 2.0, 1.0, 5.0, float("nan")]
    trials = [
        Trial(n, {}, SUCCEEDED, Observation({"loss": MetricSummary(loss, loss, loss)})) for n, loss in enumerate(losses)
    ]
    assert BestFew(objective, 3, trials).numbers == BestFew(objective, 3, reversed(trials)).numbers == {1, 3, 2}
    assert BestFew(objective, 1, reversed(trials)).numbers == {1}
    assert BestFew(objective, 0, trials).numbers == set()
    assert BestFew(objective, 9, trials).numbers == {0, 1, 2, 3, 4}


def test_an_edited_budget_holds_from_the_next_look_at_the_inbox_on_and_for_every_later_tuner() -> None:
    here = world(maxTrialCount=2, parallelTrialCount=1)
    here.store.inbox.send(Request(EDIT, "me", budgets={"maxTrialCount": 5, "parallelTrialCount": 3}))
    final = loop.run(here.run())
    assert len(final.trials) == 5
    assert here.store.inbox.requests() == []
    assert here.store.load().max_trial_count == 5


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ({"maxTrialCount": 0}, "spec.maxTrialCount: must be at least 1, got 0"),
        ({"parallelTrialCount": 0}, "spec.parallelTrialCount: must be at least 1, got 0"),
        ({"maxTrialCount": 1}, r"spec.maxTrialCount: must be at least \d+, since so many trials are over, got 1"),
    ],
)
def test_an_edit_that_makes_no_sense_by_now_is_refused_and_its_sender_told(budgets: dict[str, int], said: str) -> None:
    here = world(maxTrialCount=100, parallelTrialCount=1)
    run = begun(here)
    while run.tally.completed < 2:
        run.turn()
    sent = here.store.inbox.send(Request(EDIT, "me", budgets=budgets))
    while here.store.inbox.requests():
        run.turn()
    assert here.store.load().max_trial_count == 100
    with pytest.raises(SpecError, match=said):
        here.store.inbox.check_fulfilled(sent)
    here.store.inbox.check_fulfilled(sent)
    assert here.objects.list("kubeflow/small/requests/") == []


class Unforgetting:
    """A launcher whose process dies before it forgets anything."""

    def __init__(self, wrapped: ScriptedLauncher) -> None:
        self.site = wrapped.site
        self.submit, self.stop, self.events = wrapped.submit, wrapped.stop, wrapped.events

    def forget(self, name: str) -> None:
        raise Crash(name)


def crashed_before_forgetting(here: World) -> None:
    """Run until the first end that is recorded."""
    run = here.run_with(here.store, Unforgetting(ScriptedLauncher(here.machine)))
    run.resume()
    with pytest.raises(Crash):
        any(run.turn() and False for _ in range(10))


def test_what_a_crash_kept_from_being_forgotten_is_forgotten_though_fewer_run_at_a_time_by_now() -> None:
    here = world(maxTrialCount=9, parallelTrialCount=4)
    crashed_before_forgetting(here)
    ended = {trial.name for trial in here.trials()}
    assert here.conditions() == [SUCCEEDED] * 4
    here.experiment = with_budgets(here.experiment, {"parallelTrialCount": 1})
    here.run().resume()
    assert here.machine.forgotten == ended


def test_a_lost_attempt_is_forgotten_though_a_crash_came_first() -> None:
    plays = iter([Play(code=None, reason="Lost"), Play(("loss=1",))])
    here = world(lambda job: next(plays), maxTrialCount=1, parallelTrialCount=1)
    crashed_before_forgetting(here)
    loop.run(here.run())
    (trial,) = here.trials()
    assert here.machine.forgotten == {attempt.name for attempt in trial.attempts}
    assert len(trial.attempts) == 2


def test_few_are_forgotten_again_when_a_long_experiment_is_resumed() -> None:
    here = world(maxTrialCount=50, parallelTrialCount=2)
    loop.run(here.run())
    here.machine.forgotten.clear()
    here.run().resume()
    assert len(here.machine.forgotten) <= 2


def test_a_document_given_again_does_not_take_an_edit_back_but_a_changed_one_does() -> None:
    here = world(maxTrialCount=2, parallelTrialCount=1)
    given = here.experiment
    here.store.save_derived("launch.json", f'{{"given": {[1, 2, None]}}}'.replace("None", "null"))
    here.store.inbox.send(Request(EDIT, "me", budgets={"maxTrialCount": 5}))
    loop.run(here.run())
    assert here.store.accept(given, now=NOW).max_trial_count == 5
    changed = world(maxTrialCount=7, parallelTrialCount=1).experiment
    assert here.store.accept(changed, now=NOW).max_trial_count == 7


def test_a_stopped_trial_counts_as_killed_and_the_rest_goes_on() -> None:
    plays = iter([Play(("loss=1",), turns=None), Play(("loss=2",)), Play(("loss=3",))])
    here = world(lambda job: next(plays), maxTrialCount=3, parallelTrialCount=2)
    here.store.inbox.send(Request(STOP_TRIAL, "me", trial=1))
    run = begun(here)
    here.store.inbox.send(Request(STOP_TRIAL, "me", trial=1))
    loop.run(run)
    assert [trial.condition for trial in here.trials()] == [KILLED, SUCCEEDED, SUCCEEDED]
    assert here.trials()[0].message == "the trial was stopped by me"


def test_a_run_that_is_left_leaves_its_trials_running_for_the_next_one() -> None:
    here = world(lambda job: Play(("loss=1",), turns=4), maxTrialCount=2, parallelTrialCount=2)
    asked = iter([False, False, True])
    with pytest.raises(loop.Left, match="was left to another tuner"):
        loop.run(here.run(), should_leave=lambda: next(asked))
    assert len(here.machine.running) == 2
    assert here.machine.stops == []
    assert loop.run(here.run()).verdict.reason == "ExperimentMaxTrialsReached"
    assert set(here.machine.starts.values()) == {1}


@pytest.mark.parametrize("attended", [False, True])
def test_an_experiment_that_nobody_waits_for_is_suspended_after_its_time_and_another_is_not(attended: bool) -> None:
    here = world(lambda job: Play(("loss=1",), turns=30), maxTrialCount=1, parallelTrialCount=1)

    def show(run: loop.Run, changed: bool) -> None:  # noqa: ARG001  the loop's
        time.sleep(0.02)
        if attended:
            here.store.attend()

    launcher = ScriptedLauncher(here.machine)
    search = make_search(here.experiment)
    run = loop.Run(here.experiment, here.store, launcher, search, clock=loop.SystemClock(), unattended_s=0.2)
    reason = loop.run(run, show).verdict.reason
    assert reason == ("ExperimentMaxTrialsReached" if attended else "ExperimentSuspended")


class Late(MemoryStore):
    """A store in which a write of the writer before comes through just before the next one of its record."""

    def __init__(self, wrapped: MemoryStore, key: str, content: bytes) -> None:
        super().__init__()
        self._blobs, self._written, self._key, self._late = wrapped._blobs, wrapped._written, key, content

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        if key == self._key and self._late:
            late, self._late = self._late, b""
            super().put(key, late)
        return super().put(key, data, expect=expect)


@pytest.mark.parametrize("number", [1, 3], ids=["of an open trial", "of a trial to be created"])
def test_a_holder_of_the_lease_writes_over_a_late_record_of_the_writer_before(number: int) -> None:
    here = world(lambda job: Play(("loss=1",), turns=4), maxTrialCount=4, parallelTrialCount=2)
    begun(here)
    late = json.dumps({**trial_to_json(Trial(number, here.trials()[0].assignments)), "writer": "before"}).encode()
    objects = Late(here.objects, f"kubeflow/small/trials/{number:05d}.json", late)
    store = ExperimentStore(objects, here.experiment.namespace, here.experiment.name)
    with store.lease({"site": ""}):
        final = loop.run(here.run_with(store, ScriptedLauncher(here.machine)))
    assert [trial.condition for trial in final.trials] == [SUCCEEDED] * 4
    assert set(here.machine.starts.values()) == {1}
    assert tuple(here.trials()) == final.trials
