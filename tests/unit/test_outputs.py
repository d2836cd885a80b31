"""What trials and retraining leave in their output directory: what of it is kept, and what is said of the rest."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo_core import loop
from hpo_core.errors import StoreError, TransientError
from hpo_core.launch import Event, Job
from hpo_core.objects import MemoryStore
from hpo_core.trial import TrialCondition, retrain_name
from tests.contracts.scripted_launcher import Play, ScriptedLauncher
from tests.unit.test_loop import Counter, Crash, Crashing, ManualClock, World, world

SUCCEEDED = TrialCondition.SUCCEEDED
GOOD = {"model.pt": b"weights", "deep/er/config.json": b"{}", ".hydra/config.yaml": b"a: 1"}


def leaving(folder: Path, spoil: Callable[[Path], None] = lambda output: None) -> Callable[[Job], Play]:
    """Workloads that leave three good files each, and what else a test puts there."""

    def play(job: Job) -> Play:
        output = folder / job.name
        for name, content in GOOD.items():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_bytes(content)
        spoil(output)
        return Play(("loss=1",), output_dir=output)

    return play


def pipe(output: Path) -> None:
    os.mkfifo(output / "odd")


def unix_socket(output: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(output)  # the address of a socket is short
        listener.bind("odd")
        os.chdir(here)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda output: (output / "odd").symlink_to(target)


OF_NO_USE = [
    pytest.param(pipe, "odd (no plain file)", id="pipe"),
    pytest.param(unix_socket, "odd (no plain file)", id="socket"),
    pytest.param(link_to("nowhere"), "odd (a link to nothing)", id="dangling"),
    pytest.param(link_to("/dev/zero"), "odd (a link that leads out of the folder)", id="device"),
    pytest.param(link_to("/etc"), "odd (a link to a folder)", id="folder-elsewhere"),
]


def kept(here: World, label: str) -> dict[str, bytes]:
    found = here.store.outputs(label)
    return {key.partition("/models/")[2].partition("/")[2]: here.objects.get(key).data for key in found}


@pytest.mark.parametrize(("spoil", "said"), OF_NO_USE)
def test_a_trial_whose_output_has_something_that_cannot_be_kept_keeps_its_verdict_and_the_rest(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    here = world(leaving(tmp_path, spoil), maxTrialCount=2)
    loop.run(here.run())
    assert here.conditions() == [SUCCEEDED, SUCCEEDED]
    first, second = here.trials()
    assert first.message == f"not kept of its output: {said}"
    assert second.message == "", "its output was not to be kept"
    assert kept(here, "00001") == GOOD


class Vanishing(MemoryStore):
    """Whatever is written, the file of that name has gone just before."""

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        if isinstance(data, Path) and data.name == "model.pt":
            data.unlink()
        return super().put(key, data, expect=expect)


def test_a_file_that_vanishes_before_it_is_read_ends_nothing(tmp_path: Path) -> None:
    here = world(leaving(tmp_path), maxTrialCount=1, parallelTrialCount=1)
    here.objects = Vanishing()
    here.store.accept(here.experiment, now="")
    loop.run(here.run())
    (trial,) = here.trials()
    assert trial.condition is SUCCEEDED
    assert "not kept of its output: model.pt (cannot read" in trial.message
    assert kept(here, "00001").keys() == GOOD.keys() - {"model.pt"}


def test_an_output_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    here = world(leaving(tmp_path, shutil.rmtree), maxTrialCount=2)
    loop.run(here.run())
    assert here.conditions() == [SUCCEEDED, SUCCEEDED]
    assert "what it left in HPO_OUTPUT_DIR is not kept: the folder" in here.trials()[0].message


class Refusing(MemoryStore):
    """Refuses files: that is no affair of a trial."""

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        if isinstance(data, Path):
            raise StoreError("no files here")
        return super().put(key, data, expect=expect)


def test_a_store_that_refuses_files_is_a_failure_of_ours(tmp_path: Path) -> None:
    here = world(leaving(tmp_path), maxTrialCount=1, parallelTrialCount=1)
    here.objects = Refusing()
    here.store.accept(here.experiment, now="")
    with pytest.raises(StoreError, match="no files here"):
        loop.run(here.run())


# --- retraining


def retrain(here: World, lr: float = 0.02, **options: Any) -> loop.Retraining:
    launcher = options.pop("launcher", None) or ScriptedLauncher(here.machine)
    store = options.pop("store", here.store)
    options = {"clock": ManualClock(), **options}
    return loop.retrain(here.experiment, {"lr": lr}, store, launcher, **options)


@pytest.mark.parametrize(("spoil", "said"), OF_NO_USE)
def test_a_model_is_kept_and_copied_without_what_cannot_be_read_and_that_is_told(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    here = world(leaving(tmp_path, spoil))
    done = retrain(here, model_dir=tmp_path / "copy")
    assert (done.succeeded, done.message) == (True, f"not kept of its output: {said}")
    assert kept(here, "retrain") == GOOD
    copied = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "copy").as_posix(): path.read_bytes() for path in copied} == GOOD


def nothing_but_a_pipe(output: Path) -> None:
    shutil.rmtree(output)
    output.mkdir()
    pipe(output)


@pytest.mark.parametrize("spoil", [shutil.rmtree, nothing_but_a_pipe])
def test_a_retraining_that_leaves_what_cannot_be_kept_has_failed_and_the_model_before_it_stays(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    plays: Iterator[Callable[[Job], Play]] = iter([leaving(tmp_path), leaving(tmp_path, spoil)])
    here = world(lambda job: next(plays)(job))
    assert retrain(here).succeeded
    done = retrain(here, 0.03, model_dir=tmp_path / "copy")
    assert (done.succeeded, done.reason) == (False, "OutputNotKept")
    assert "not kept" in done.message
    assert kept(here, "retrain") == GOOD
    assert here.store.output_labels() == ["retrain-1"]
    assert list((tmp_path / "copy").iterdir()) == []


def test_a_retraining_that_leaves_nothing_says_that_the_model_before_it_stays(tmp_path: Path) -> None:
    plays: Iterator[Callable[[Job], Play]] = iter([leaving(tmp_path), lambda job: Play(("loss=1",))])
    here = world(lambda job: next(plays)(job))
    assert retrain(here).message == ""
    done = retrain(here, 0.03)
    assert (done.succeeded, done.message) == (True, "it left no model, so that of an earlier retraining stays")
    assert kept(here, "retrain") == GOOD


def test_a_model_stays_until_the_next_one_is_whole(tmp_path: Path) -> None:
    """A crash at any call to the store leaves one of them, whole."""
    for crash_at in range(1, 40):
        here = world(leaving(tmp_path / str(crash_at)))
        first = retrain(here)
        store = Crashing(here.store, Counter(crash_at), after=True)
        try:
            retrain(here, 0.03, store=store)
        except Crash:
            assert kept(here, "retrain") == GOOD
            continue
        assert first.name not in here.machine.running
        return
    raise AssertionError("it never came through")


class Failing:
    """A launcher whose events fail once, and which may not hear that its workloads are to end."""

    def __init__(self, wrapped: ScriptedLauncher, clock: ManualClock, *, deaf: bool) -> None:
        self._wrapped, self._clock, self._deaf = wrapped, clock, deaf
        self.site = wrapped.site
        self.submit, self.forget = wrapped.submit, wrapped.forget
        self._failed = False

    def stop(self, name: str) -> None:
        if not self._deaf:
            self._wrapped.stop(name)

    def events(self, timeout_s: float) -> list[Event]:
        if not self._failed:
            self._failed = True
            raise TransientError("nobody can tell now")
        self._clock.sleep(timeout_s)
        return self._wrapped.events(timeout_s)


def test_who_fails_waits_for_the_end_of_the_retraining_but_not_for_ever() -> None:
    here, clock = world(lambda job: Play(("loss=1",), turns=None)), ManualClock()
    with pytest.raises(TransientError, match="nobody can tell now"):
        retrain(here, clock=clock, launcher=Failing(ScriptedLauncher(here.machine), clock, deaf=True))
    assert len(here.machine.running) == 1


def test_a_retraining_that_was_ended_for_our_own_failure_is_done_anew() -> None:
    plays = iter([Play(("loss=1",), turns=None), Play(("loss=2",))])
    here, clock = world(lambda job: next(plays)), ManualClock()
    with pytest.raises(TransientError, match="nobody can tell now"):
        retrain(here, clock=clock, launcher=Failing(ScriptedLauncher(here.machine), clock, deaf=False))
    done = retrain(here)
    assert (done.succeeded, dict(done.metrics)) == (True, {"loss": 2.0})
    assert set(here.machine.starts.values()) == {1}


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_call_submits_no_forgotten_retraining_and_leaves_none_behind(after: bool) -> None:
    """First with other values than the ones that are wanted; the machine itself asserts the first half of it."""
    for crash_at in range(1, 60):
        here = world(lambda job: Play(("loss=1",), turns=2))
        calls = Counter(crash_at)
        came_through = True
        for lr in (0.01, 0.02, 0.02):
            try:
                store, launcher = (
                    Crashing(wrapped, calls, after=after) for wrapped in (here.store, ScriptedLauncher(here.machine))
                )
                retrain(here, lr, store=store, launcher=launcher)
            except Crash:
                came_through = False
                calls = Counter(10**6)
        retrain(here, 0.03)
        count = int(here.store.derived_json(loop.RECORD)["count"])
        begun = {retrain_name(here.experiment, number) for number in range(1, count + 1)} & here.machine.starts.keys()
        assert begun <= here.machine.forgotten
        assert set(here.machine.starts.values()) == {1}
        if came_through:
            return
    raise AssertionError("it never came through")
