"""Writing what is derived from the records, at most once a second and off the loop: status, report, live logs.

Nothing here is a second truth: whoever decides about trials reads their records. What cannot be written now is written
next time, and a failure never reaches the loop.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hpo_core import report
from hpo_core.experiment import Experiment
from hpo_core.loop import RECORD, RETRAIN, Clock, Run, Snapshot
from hpo_core.status import Verdict, katib_status
from hpo_core.store import ExperimentStore
from hpo_core.trial import Trial

PERIOD_S = 1.0

_log = logging.getLogger(__name__)


class Publisher:
    """Keeps an experiment's derived documents fresh; a context manager, whose end writes the last state."""

    def __init__(self, store: ExperimentStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._due = threading.Event()
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._closing = False
        self._offered_at = -PERIOD_S
        self._pending = False
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing = True
        self._due.set()
        self._thread.join()

    def offer(self, run: Run, changed: bool) -> None:
        """Take the run's state when it is time to publish again; to be called after every turn."""
        self._pending |= changed
        now = time.monotonic()
        if now - self._offered_at >= PERIOD_S and (self._pending or run.has_output):
            self._offered_at, self._pending = now, False
            self.publish(run.snapshot())

    def publish(self, snapshot: Snapshot) -> None:
        """Hand over a state to be written next, in place of one that is waiting."""
        with self._lock:
            self._snapshot = snapshot
        self._due.set()

    def _work(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            closing = self._closing
            with self._lock:
                snapshot, self._snapshot = self._snapshot, None
            if snapshot is not None:
                self.write(snapshot)
            if closing:
                return

    def write(self, snapshot: Snapshot) -> None:
        """Write a state now, in the caller's thread."""
        try:
            for followed in snapshot.followed:
                self._store.save_printed(followed.label, followed.log, followed.metrics, final=False)
            write_status(self._store, snapshot, now=self._clock.now())
        except Exception as error:  # noqa: BLE001  what is derived can be made again, and must not end the run
            _log.warning("publish.failed experiment=%s reason=%s", snapshot.experiment.name, error)


def write_status(store: ExperimentStore, snapshot: Snapshot, *, now: str) -> None:
    """Write `status.json` and `report.html`.

    Raises:
        StoreError, TransientError: They could not be written.
    """
    experiment, trials, verdict = snapshot.experiment, snapshot.trials, snapshot.verdict
    status: dict[str, Any] = {
        "schemaVersion": 1,
        "verdict": asdict(verdict),
        "progress": asdict(snapshot.progress),
        "status": katib_status(experiment, trials, verdict, now=now),
    }
    store.save_derived("status.json", json.dumps(status, indent=1))
    store.save_derived("report.html", report_page(store, experiment, trials, verdict))


def report_page(store: ExperimentStore, experiment: Experiment, trials: Sequence[Trial], verdict: Verdict) -> str:
    """Make the report, with the final model where one was trained."""
    told = store.derived_json(RECORD)
    retrained = None
    if told.keys() >= {"succeeded", "reason", "message", "metrics"}:
        keys = store.outputs(RETRAIN)
        folder = f"{keys[0].partition(f'/{RETRAIN}/')[0]}/{RETRAIN}" if keys else ""
        condition = "Succeeded" if told["succeeded"] else told["reason"]
        retrained = report.RetrainSummary(condition, told["metrics"], folder, told["message"])
    return report.html(experiment, trials, verdict, retrained=retrained)
