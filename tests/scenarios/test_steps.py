"""A step of a pipeline that is tried again, or told to end, on this machine."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from hpo_core import steps
from hpo_core.errors import TransientError
from hpo_core.lint import load_experiment
from hpo_core.store import RETRAINING, STOP, ExperimentStore
from hpo_core.tuner import Handle
from tests.scenarios.folders import Folder, eventually

DIES_AFTER_S = 0.5


def test_a_retraining_step_that_is_tried_again_waits_for_the_lease_of_the_one_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.make(tmp_path)
    monkeypatch.chdir(folder.path)
    assert folder.hpo("run", "small.yaml").returncode == 0
    best, store = folder.hpo("best", "small").stdout, folder.store
    handle = Handle("default", "small", folder.place.uri, "local", store.load().spec_hash).to_json()
    is_held = threading.Event()

    def hold() -> None:
        with store.lease({"purpose": RETRAINING}):
            is_held.set()
            time.sleep(DIES_AFTER_S)

    earlier = threading.Thread(target=hold)
    earlier.start()
    assert is_held.wait(10)
    assert steps.retrain(handle, best, str(tmp_path / "model")) == {"test_loss": 0.25}
    earlier.join()
    assert (tmp_path / "model/model.txt").read_text().startswith("model of ")


def recorded(folder: Folder) -> str:
    """Record the folder's experiment, which nobody tunes, and return its handle."""
    experiment = folder.store.accept(load_experiment(str(folder.path / "small.yaml")), now="2026-01-01T00:00:00Z")
    return Handle("default", "small", folder.place.uri, "local", experiment.spec_hash).to_json()


def check_asks_for_suspension(folder: Folder, handle: str) -> None:
    """A waiting step ends as one that was interrupted, having asked the tuner to suspend the experiment."""
    with pytest.raises(SystemExit) as ended:
        steps.wait(handle, str(folder.path / "report"), str(folder.path / "summary"))
    assert ended.value.code == 130
    assert [request.kind for request in folder.store.inbox.requests()] == [STOP]


def test_a_wait_step_whose_store_does_not_answer_when_it_is_terminated_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.make(tmp_path)
    handle = recorded(folder)
    silent = [True] * 3

    def is_held(store: ExperimentStore) -> bool:  # noqa: ARG001  a method's
        if silent:
            silent.pop()
            os.kill(os.getpid(), signal.SIGTERM)
            raise TransientError("it does not answer", retry_after_s=0.01)
        return True

    monkeypatch.setattr(ExperimentStore, "is_held", is_held)
    check_asks_for_suspension(folder, handle)


def test_cleaning_up_tells_what_it_has_stopped_though_the_store_does_not_answer_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.make(tmp_path)
    recorded(folder)
    asked = itertools.count()

    def is_held(store: ExperimentStore) -> bool:  # noqa: ARG001  a method's
        number = next(asked)
        if number == 1:
            raise TransientError("it does not answer", retry_after_s=0.01)
        return number == 0

    monkeypatch.setattr(ExperimentStore, "is_held", is_held)
    told = steps.cleanup((folder.path / "small.yaml").read_text(), store=folder.place.uri)
    assert told == "the experiment small was suspended"


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_wait_step_that_is_terminated_while_it_starts_a_tuner_asks_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.make(tmp_path)
    handle = recorded(folder)
    started = tmp_path / "started"
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\necho $$ > {started}.new; mv {started}.new {started}; exec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))

    def terminate() -> None:
        eventually(started.exists, "a tuner is being started")
        os.kill(os.getpid(), signal.SIGTERM)

    terminating = threading.Thread(target=terminate)
    terminating.start()
    try:
        check_asks_for_suspension(folder, handle)
        os.kill(int(started.read_text()), 0)  # it goes on, to end the trials
    finally:
        terminating.join()
        os.kill(int(started.read_text()), signal.SIGKILL)
