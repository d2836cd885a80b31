"""What the loop does with outputs that sidecars keep: it believes the receipt alone, and removes what is not wanted."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hpo_core import loop
from hpo_core.launch import LOG, METRICS, Event, Exited, Job, Output
from hpo_core.loop.workload import Follower
from hpo_core.objects import MemoryStore
from hpo_core.search import make_search
from hpo_core.sidecar.order import Order
from hpo_core.sidecar.upload import deliver
from hpo_core.store import ExperimentStore
from hpo_core.trial import Trial, TrialCondition
from tests.contracts.scripted_launcher import Play, ScriptedLauncher, ScriptedMachine, flags
from tests.experiments import REMOVED, make_experiment, parameter

SUCCEEDED, FAILED = TrialCondition.SUCCEEDED, TrialCondition.FAILED
WHOLE, NONE, BROKEN, ODD, EMPTY = "whole", "none", "broken", "odd", "empty"


@dataclass
class World:
    """Records, a machine, and sidecars that keep what its workloads leave: each its own name."""

    folder: Path
    script: Callable[[Job], Play]
    receipts: Mapping[int, str] = field(default_factory=dict)
    keep: int = 1
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.objects, self.machine = MemoryStore(), ScriptedMachine(self.script)
        changes = {"spec.maxFailedTrialCount": REMOVED, **self.changes}
        changes["metadata.annotations"] = {"kfp-hpo/keep-models": str(self.keep)}
        parameters = [parameter("lr", "double", min="0.01", max="0.05")]
        self.experiment = self.store.accept(make_experiment(parameters, changes=changes), now="2026-01-01T00:00:00Z")
        self.labels: dict[str, str] = {}
        self.done: set[str] = set()

    @property
    def store(self) -> ExperimentStore:
        return ExperimentStore(self.objects, "kubeflow", "small")

    def run(self) -> loop.Run:
        return loop.Run(self.experiment, self.store, Launcher(self), make_search(self.experiment))

    def kept(self) -> dict[str, str]:
        """The workload whose output is kept, by label."""
        labels = self.store.output_labels()
        return {label: self.objects.get(f"kubeflow/small/models/{label}/who").data.decode() for label in labels}

    def bring(self, name: str) -> None:
        """Do what a workload's sidecar does after its end, once."""
        if name in self.done:
            return
        self.done.add(name)
        label = self.labels[name]
        kind = self.receipts.get(len(self.done), WHOLE)
        output = self.folder / (name if kind != BROKEN else "absent")
        if kind != BROKEN:
            output.mkdir()
            if kind in (WHOLE, NONE):
                (output / "who").write_text(name)
            elif kind == ODD:
                os.mkfifo(output / "odd")
        words = [f"--attempt={name}", "--experiment=kubeflow/small", "--store=x", f"--label={label}"]
        order = Order.of([*words, f"--output={output}"])
        deliver(self.objects, order)
        if kind == NONE:
            self.objects.delete(order.receipt)


class Launcher:
    """A scripted launcher whose workloads have sidecars."""

    site = ""

    def __init__(self, world: World) -> None:
        self._world, self._scripted = world, ScriptedLauncher(world.machine)

    def submit(self, job: Job) -> None:
        self._world.labels[job.name] = job.label
        self._scripted.submit(job)

    def stop(self, name: str) -> None:
        self._scripted.stop(name)

    def events(self, timeout_s: float) -> list[Event]:
        return [self._with_receipt(event) for event in self._scripted.events(timeout_s)]

    def forget(self, name: str) -> None:
        self._scripted.forget(name)

    def _with_receipt(self, event: Event) -> Event:
        if not isinstance(event, Exited) or not self._world.labels[event.name]:
            return event
        self._world.bring(event.name)
        return replace(event, has_receipt=True)


def prints_loss(job: Job) -> Play:
    return Play((f"loss={flags(job)['lr']}",), turns=2)


def label(trial: Trial) -> str:
    return f"{trial.number:05d}-{len(trial.attempts)}"


def best(trials: list[Trial], count: int) -> dict[str, str]:
    ranked = sorted(trials, key=lambda trial: float(trial.assignments["lr"]))[:count]
    return {label(trial): trial.name for trial in sorted(ranked, key=label)}


@pytest.mark.parametrize("keep", [1, 3])
def test_of_all_outputs_those_of_the_best_trials_stay(tmp_path: Path, keep: int) -> None:
    here = World(tmp_path, prints_loss, keep=keep)
    loop.run(here.run())
    trials = here.store.trials()
    assert [trial.condition for trial in trials] == [SUCCEEDED] * 6
    assert here.kept() == best(trials, keep)


def test_with_nothing_to_keep_no_sidecar_is_asked_for(tmp_path: Path) -> None:
    here = World(tmp_path, prints_loss, keep=0)
    loop.run(here.run())
    assert set(here.labels.values()) == {""}


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (NONE, "its pod ended before all of it was in the store"),
        (BROKEN, "cannot be read by user"),
    ],
)
def test_a_trial_without_a_whole_receipt_fails_with_the_reason_and_leaves_nothing(
    tmp_path: Path, kind: str, told: str
) -> None:
    here = World(
        tmp_path, prints_loss, receipts={1: kind}, changes={"spec.maxTrialCount": 1, "spec.parallelTrialCount": 1}
    )
    loop.run(here.run())
    (trial,) = here.store.trials()
    assert (trial.condition, trial.reason) == (FAILED, "OutputNotKept")
    assert trial.message.startswith("what it left in HPO_OUTPUT_DIR is not kept: ")
    assert told in trial.message
    assert here.kept() == {}


def test_a_trial_that_fails_by_itself_is_told_as_such_and_leaves_nothing(tmp_path: Path) -> None:
    here = World(tmp_path, lambda job: Play(("loss=1",), code=3), receipts={1: NONE})
    loop.run(here.run())
    assert {trial.reason for trial in here.store.trials()} == {"ExitCode"}
    assert here.kept() == {}


def test_what_a_lost_attempt_has_left_goes_with_the_end_of_its_trial(tmp_path: Path) -> None:
    here = World(
        tmp_path,
        lambda job: prints_loss(job) if here.machine.starts.total() > 1 else Play((), None, "Lost", "the node is gone"),
        changes={"spec.maxTrialCount": 1, "spec.parallelTrialCount": 1},
    )
    loop.run(here.run())
    (trial,) = here.store.trials()
    assert [attempt.outcome for attempt in trial.attempts] == ["Lost", ""]
    assert here.kept() == {"00001-2": trial.name}


def test_an_output_that_came_while_no_tuner_lived_is_there_when_the_next_one_asks(tmp_path: Path) -> None:
    """The sidecar has done its work, and nobody has recorded the end of the trial."""
    here = World(tmp_path, prints_loss, changes={"spec.maxTrialCount": 2})
    first = here.run()
    first.resume()
    first.turn()
    for name in here.labels:
        here.bring(name)
    loop.run(here.run())
    trials = here.store.trials()
    assert [trial.condition for trial in trials] == [SUCCEEDED] * 2
    assert here.kept() == best(trials, 1)


def test_what_nobody_wants_and_a_crash_has_left_is_removed_when_a_tuner_comes(tmp_path: Path) -> None:
    here = World(tmp_path, prints_loss)
    loop.run(here.run())
    kept = here.kept()
    for stray in ("00001-7", "00002", "00099-1"):
        here.objects.put(f"kubeflow/small/models/{stray}/who", b"stray")
    loop.run(here.run())
    assert here.kept() == kept


# --- retraining


def retrain(here: World, lr: float, **options: Any) -> loop.Retraining:
    return loop.retrain(here.experiment, {"lr": lr}, here.store, Launcher(here), **options)


def fails_above_2(job: Job) -> Play:
    return Play(("accuracy=1",), code=int(float(flags(job)["lr"]) > 0.02))


def test_the_model_of_the_last_retraining_that_ended_well_is_the_one(tmp_path: Path) -> None:
    here = World(tmp_path, fails_above_2)
    done = [retrain(here, lr) for lr in (0.01, 0.03, 0.015)]
    assert [once.succeeded for once in done] == [True, False, True]
    assert here.kept() == {"retrain-3": done[2].name}
    assert here.store.outputs("retrain") == ["kubeflow/small/models/retrain-3/who"]


def test_one_that_fails_leaves_the_model_before_it(tmp_path: Path) -> None:
    here = World(tmp_path, fails_above_2)
    first = retrain(here, 0.01)
    retrain(here, 0.03)
    assert here.kept() == {"retrain-1": first.name}
    assert here.store.outputs("retrain") == ["kubeflow/small/models/retrain-1/who"]


def test_one_whose_model_is_not_kept_has_failed(tmp_path: Path) -> None:
    here = World(tmp_path, fails_above_2, receipts={1: NONE})
    done = retrain(here, 0.01)
    assert (done.succeeded, done.reason) == (False, "OutputNotKept")
    assert here.kept() == {}


def test_one_of_whose_output_nothing_can_be_kept_has_failed_and_leaves_the_model_before_it(tmp_path: Path) -> None:
    """As on this machine."""
    here = World(tmp_path, fails_above_2, receipts={2: ODD})
    first, second = retrain(here, 0.01), retrain(here, 0.015)
    assert (second.succeeded, second.reason) == (False, "OutputNotKept")
    assert second.message.startswith("not kept of its output: odd (no plain file)")
    assert here.kept() == {"retrain-1": first.name}


def test_one_that_leaves_nothing_leaves_the_model_before_it_and_says_so(tmp_path: Path) -> None:
    here = World(tmp_path, fails_above_2, receipts={2: EMPTY})
    first, second = retrain(here, 0.01), retrain(here, 0.015)
    assert (second.succeeded, second.message) == (True, "it left no model, so that of an earlier retraining stays")
    assert here.kept() == {"retrain-1": first.name}


def test_the_folder_that_is_named_gets_a_copy(tmp_path: Path) -> None:
    here = World(tmp_path, fails_above_2)
    done = retrain(here, 0.01, model_dir=tmp_path / "model")
    assert (tmp_path / "model" / "who").read_text() == done.name


# --- streams


def test_metrics_of_one_stream_and_the_log_of_another_are_kept_apart() -> None:
    follower = Follower(make_experiment())
    follower.feed(Output("a", b"loss=99 is only talk\n", stream=LOG))
    follower.feed(Output("a", b"loss=0.5\n", stream=METRICS))
    follower.feed(Output("a", b"bye\n", stream=LOG))
    follower.close()
    assert follower.reader.latest("loss") == 0.5
    assert follower.log.content() == b"loss=99 is only talk\nbye\n"
    assert "bye" in follower.reader.last_lines


def test_a_metric_alone_is_news() -> None:
    follower = Follower(make_experiment())
    follower.picture()
    follower.feed(Output("a", b"loss=0.5\n", stream=METRICS))
    assert follower.has_news
    assert follower.feed_and_tell(Output("a", b"loss=7\n", stream=LOG)) == []
