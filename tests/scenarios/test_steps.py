"""A step of a pipeline that is tried again, on this machine."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from hpo_core import steps
from hpo_core.store import RETRAINING
from hpo_core.tuner import Handle
from tests.scenarios.folders import Folder

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
