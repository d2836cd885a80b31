"""The tuner in a pod of its Job, when it begins."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hpo_core.errors import TransientError
from hpo_core.objects import RecordStore
from hpo_core.tuner import Place, background
from tests.scenarios.folders import EXPERIMENT, Folder

SILENT = 3


class Hesitant:
    """A store that does not answer whoever first asks who holds a lock."""

    def __init__(self, wrapped: RecordStore) -> None:
        self._wrapped, self.asked = wrapped, 0

    def is_locked(self, key: str) -> bool:
        self.asked += 1
        if self.asked <= SILENT:
            raise TransientError("it does not answer in time", retry_after_s=0.01)
        return self._wrapped.is_locked(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


def test_it_waits_for_a_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not end, which its Job would count, and pause the longer for."""
    folder = Folder.make(tmp_path)
    objects = Hesitant(folder.place.objects)

    class HesitantPlace(Place):
        @property
        def objects(self) -> Any:
            return objects

    monkeypatch.setattr(background, "Place", HesitantPlace)
    order = tmp_path / "order.json"
    order.write_text(json.dumps({"document": EXPERIMENT, "place": asdict(folder.place), "namespace": "default"}))
    assert background.main([str(order)]) == 0
    assert objects.asked > SILENT
    assert folder.conditions() == ["Succeeded"] * 4
