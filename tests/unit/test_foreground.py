"""What the process that holds the lease does about a store that hesitates, and who is asked for something by others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hpo_core import loop
from hpo_core.errors import Problem, SpecError, StoreError, TransientError
from hpo_core.launch import Job
from hpo_core.lint import KUBERNETES, load_experiment
from hpo_core.objects import MemoryStore
from hpo_core.publish import REPORT, STATUS, write_status
from hpo_core.store import STOP, TUNING, Request, inbox
from hpo_core.tuner import Place, clear, edit, foreground, observing, run_experiment
from tests.contracts.scripted_launcher import Play, ScriptedLauncher
from tests.experiments import make_experiment
from tests.fake_kubernetes import FakeKubernetes
from tests.scenarios.folders import Folder
from tests.unit.test_loop import NOW, World, world


class Faulty(MemoryStore):
    """Fails as a test says, which is told what is done with which key."""

    fault: Callable[[str, str], None] = staticmethod(lambda action, key: None)

    def get(self, key: str) -> Any:
        self.fault("get", key)
        return super().get(key)

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        self.fault("put", key)
        return super().put(key, data, expect=expect)

    def lock(self, key: str, owner: Any) -> Any:
        self.fault("lock", key)
        return super().lock(key, owner)


class Closable(ScriptedLauncher):
    def close(self) -> None:
        pass


@dataclass(frozen=True)
class ScriptedPlace:
    """Where a scripted machine is."""

    world: World

    def launcher(self, experiment: Any, *, parallel: int) -> Closable:  # noqa: ARG002  as `Place` has it
        return Closable(self.world.machine)


def trained(job: Job) -> Play:  # noqa: ARG001  every workload does the same
    return Play(("loss=1",))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> World:
    """An experiment that is over, in a store that can fail."""
    here = world(trained, maxTrialCount=1, parallelTrialCount=1)
    objects = Faulty()
    here.objects = objects
    here.store.accept(here.experiment, now=NOW)
    write_status(here.store, loop.run(here.run()), now=NOW)
    monkeypatch.setattr(foreground, "launched_place", lambda store, place: ScriptedPlace(here))
    return here


def retrain(here: World) -> loop.Retraining:
    return foreground.retrain(here.store, Place("memory", "."), {"lr": 0.02})


@pytest.mark.parametrize(
    "silent",
    [("lock", "lease"), ("get", STATUS), ("put", REPORT), ("get", "experiment.yaml")],
    ids=["lease", "status", "report", "experiment"],
)
def test_a_retraining_waits_for_a_store_that_does_not_answer(
    here: World, monkeypatch: pytest.MonkeyPatch, silent: tuple[str, str]
) -> None:
    """Whatever is asked of it: nothing is trained a second time."""
    met: list[str] = []

    def fault(action: str, key: str) -> None:
        if (action, key.rpartition("/")[2]) == silent and len(met) < 2:
            met.append(key)
            raise TransientError("it does not answer", retry_after_s=0)

    monkeypatch.setattr(here.objects, "fault", fault)
    assert retrain(here).succeeded
    assert len(met) == 2
    assert here.store.derived(REPORT) is not None


def test_a_retraining_whose_report_cannot_be_written_has_succeeded_all_the_same(
    here: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(action: str, key: str) -> None:
        if (action, key.rpartition("/")[2]) == ("put", REPORT):
            raise StoreError("there is no room")

    monkeypatch.setattr(here.objects, "fault", fault)
    assert retrain(here).succeeded
    assert "there is no room" in caplog.text


def test_nothing_is_removed_from_a_cluster_for_records_in_a_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tuner has its lease elsewhere, and would lose its Job while it runs."""
    fake = FakeKubernetes()
    try:
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
        with pytest.raises(SpecError, match="is a folder of this machine; for trials in a cluster give s3://"):
            clear(make_experiment(), Place(str(tmp_path / "store"), str(tmp_path), KUBERNETES))
        assert fake.requests == []
        assert not (tmp_path / "store").exists()
    finally:
        fake.close()


def test_who_begins_to_tune_drops_the_refusals_that_nobody_fetches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.make(tmp_path)
    monkeypatch.setattr(inbox, "REFUSED_S", -1.0)
    monkeypatch.setattr(loop, "run", lambda run, *rest: run.snapshot())
    sent = folder.store.inbox.send(Request(STOP, "who has died"))
    folder.store.inbox.refuse(sent, SpecError([Problem("spec", "no")]))
    run_experiment(load_experiment(folder.path / "small.yaml"), folder.place)
    assert folder.store.objects.list("default/small/requests/") == []


@pytest.mark.parametrize("goes_on", [True, False], ids=["slow", "gone"])
def test_a_refusal_that_comes_in_the_last_instant_is_told_and_does_not_stay(
    monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    """The tuner refuses just before its asker gives up, and may have gone by then."""
    here = world(maxTrialCount=2)
    store = here.store
    monkeypatch.setattr(observing, "ANSWER_S", 0.0)

    def is_held() -> bool:
        pending = store.inbox.requests()
        for request in pending:
            store.inbox.refuse(request, SpecError([Problem("spec.maxTrialCount", "too late")]))
        return goes_on or not pending

    with store.lease({"purpose": TUNING}):
        monkeypatch.setattr(store, "is_held", is_held)
        with pytest.raises(SpecError, match="too late"):
            edit(store, Place("memory", "."), {"maxTrialCount": 5}, by="me")
    assert here.objects.list("kubeflow/small/requests/") == []
