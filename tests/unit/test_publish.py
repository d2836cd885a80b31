"""What is derived from the records is written off the loop, however slow the store is."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from hpo_core.loop import Followed, Snapshot, SystemClock
from hpo_core.objects import MemoryStore
from hpo_core.publish import Publisher
from hpo_core.status import Tally, judge, progress
from hpo_core.store import ExperimentStore
from tests.experiments import make_experiment


class SlowStore(MemoryStore):
    """A store whose writes below `slow` wait until they are let go on."""

    slow = ""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked, self.may_go_on = threading.Event(), threading.Event()
        self.writes: Counter[str] = Counter()

    def put(self, key: str, data: Any, **options: Any) -> str:
        if key.startswith(self.slow):
            self.is_asked.set()
            assert self.may_go_on.wait(10)
        self.writes[key] += 1
        return super().put(key, data, **options)


def printed(*pictures: Followed) -> Snapshot:
    experiment = make_experiment()
    tally = Tally.of(experiment.objective, [])
    verdict = judge(experiment, tally, exhausted=False)
    return Snapshot(experiment, (), verdict, progress(experiment, tally, None), pictures)


def test_of_what_a_trial_printed_while_the_store_took_nothing_the_newest_picture_alone_is_written() -> None:
    objects = SlowStore()
    store = ExperimentStore(objects, "x", "small")
    with Publisher(store, SystemClock()) as publisher:
        publisher.publish(printed())
        assert objects.is_asked.wait(10)
        for number in range(100):
            publisher.publish(printed(Followed("00001", b"line\n" * number, "")))
        publisher.publish(printed(Followed("00002", b"other\n", "")))
        objects.may_go_on.set()
    assert store.log("00001") == b"line\n" * 99
    assert store.log("00002") == b"other\n"
    assert objects.writes["x/small/logs/00001.log"] == 1


def test_the_end_of_a_trial_does_not_wait_for_the_pictures_of_others() -> None:
    objects = SlowStore()
    objects.slow = "x/small/logs/00001"
    store = ExperimentStore(objects, "x", "small")
    picture = threading.Thread(target=lambda: store.save_printed("00001", b"line\n", "", final=False))
    picture.start()
    assert objects.is_asked.wait(10)
    end = threading.Thread(target=lambda: store.save_printed("00002", b"end\n", "", final=True), daemon=True)
    end.start()
    end.join(10)
    assert store.log("00002") == b"end\n"
    objects.may_go_on.set()
    picture.join(10)
