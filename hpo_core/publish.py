"""What is derived from the records, and all that others need to read: status, report, live logs; written off the loop.

Nothing here is a second truth: whoever decides about trials reads their records. What cannot be written now is written
next time, and a failure never reaches the loop. The status is written at most once a second; the report, which is
dearer, so seldom that it takes a small part of the time only.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hpo_core import report
from hpo_core.experiment import Experiment
from hpo_core.loop import RECORD, RETRAIN, Clock, Followed, Run, Snapshot
from hpo_core.report import Curve
from hpo_core.status import ExperimentCondition, Progress, Verdict, katib_status
from hpo_core.store import ExperimentStore, together
from hpo_core.trial import Trial

PERIOD_S = 1.0
REPORT_SHARE = 0.05
"""The part of the time that making reports may take while trials run."""
REPORT, SUMMARY, STATUS = "report.html", "summary.md", "status.json"

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
        self._report_at = 0.0
        self._pending = False
        self._curves = Curves(store)
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
        """Hand over a state to be written next, in place of one that is waiting.

        Of what each trial has printed the newest picture alone waits, however long the store takes none.
        """
        with self._lock:
            waiting = self._snapshot.followed if self._snapshot is not None else ()
            newest = {followed.label: followed for followed in (*waiting, *snapshot.followed)}
            self._snapshot = replace(snapshot, followed=tuple(newest.values()))
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
            write_status(self._store, snapshot, now=self._clock.now())
            for followed in snapshot.followed:  # one after the other: the threads are the loop's
                self._save_printed(followed)
            self._curves.take(snapshot)
            if self._closing or snapshot.verdict.condition.is_terminal or time.monotonic() >= self._report_at:
                began = time.monotonic()
                write_report(self._store, snapshot.experiment, snapshot.trials, snapshot.verdict, self._curves)
                took_s = time.monotonic() - began
                self._report_at = time.monotonic() + took_s / REPORT_SHARE
        except Exception as error:  # noqa: BLE001  what is derived can be made again, and must not end the run
            _log.warning("publish.failed experiment=%s reason=%s", snapshot.experiment.name, error)

    def _save_printed(self, followed: Followed) -> None:
        self._store.save_printed(followed.label, followed.log, followed.metrics, final=False)


class Curves:
    """The metric curves that a report shows, each read from the records once, when its trial is over."""

    def __init__(self, store: ExperimentStore) -> None:
        self._store = store
        self._ended: dict[int, Mapping[str, Curve]] = {}
        self._live: dict[int, Mapping[str, Curve]] = {}

    def take(self, snapshot: Snapshot) -> None:
        """Take in what trials that are not over have reported so far."""
        for followed in snapshot.followed:
            self._live[int(followed.label)] = report.read_curves(followed.metrics)

    def shown(self, experiment: Experiment, trials: Sequence[Trial]) -> dict[int, Mapping[str, Curve]]:
        """Return the curves that the report of these trials shows, by trial number and metric name."""
        numbers = report.curve_numbers(experiment, trials)
        ended = [number for number in numbers if trials[number - 1].condition.is_terminal]
        missing = [number for number in ended if number not in self._ended]
        for number, lines in zip(missing, together(self._read, missing), strict=True):
            self._ended[number] = report.read_curves(lines)
            self._live.pop(number, None)
        return {number: self._ended.get(number) or self._live.get(number, {}) for number in numbers}

    def _read(self, number: int) -> str:
        return self._store.metric_lines(f"{number:05d}")


def write_status(store: ExperimentStore, snapshot: Snapshot, *, now: str) -> None:
    """Write `status.json`.

    Raises:
        StoreError, TransientError: It could not be written.
    """
    experiment, trials, verdict = snapshot.experiment, snapshot.trials, snapshot.verdict
    status: dict[str, Any] = {
        "schemaVersion": 1,
        "at": now,
        "verdict": asdict(verdict),
        "progress": asdict(snapshot.progress),
        "status": katib_status(experiment, trials, verdict, now=now),
    }
    store.save_derived(STATUS, json.dumps(status))


@dataclass(frozen=True)
class Published:
    """What the tuner published last.

    Attributes:
        verdict: Where the experiment stands.
        progress: How far it is.
        status: The same in Katib's schema.
        at: When it was published, RFC 3339.
    """

    verdict: Verdict
    progress: Progress
    status: Mapping[str, Any]
    at: str = ""


def read_status(store: ExperimentStore) -> Published | None:
    """Return what the tuner published last; None when it has not yet."""
    published = store.derived_json(STATUS)
    try:
        verdict = published["verdict"]
        condition = ExperimentCondition(verdict["condition"])
        return Published(
            Verdict(**{**verdict, "condition": condition}),
            Progress(**published["progress"]),
            published.get("status", {}),
            str(published.get("at", "")),
        )
    except (KeyError, TypeError, ValueError):
        return None


def write_report(
    store: ExperimentStore, experiment: Experiment, trials: Sequence[Trial], verdict: Verdict, curves: Curves
) -> None:
    """Write `report.html`, with the final model where one was trained, and `summary.md`.

    Raises:
        StoreError, TransientError: They could not be written.
    """
    shown = curves.shown(experiment, trials)
    page = report.html(experiment, trials, verdict, retrained=_retrained(store), curves=shown)
    store.save_derived(REPORT, page)
    store.save_derived(SUMMARY, report.markdown(experiment, trials, verdict))


def publish_report(store: ExperimentStore, experiment: Experiment, verdict: Verdict) -> None:
    """Write the report anew from the records, for whoever holds the lease and has no run."""
    write_report(store, experiment, store.trials(), verdict, Curves(store))


def _retrained(store: ExperimentStore) -> report.RetrainSummary | None:
    """What the report says of the final model; None where none was trained."""
    told = store.derived_json(RECORD)
    if not told.keys() >= {"succeeded", "reason", "message", "metrics"}:
        return None
    keys = store.outputs(RETRAIN)
    # Behind the store's address: namespace, name, models, and whose it is.
    folder = "/".join([store.objects.uri, *keys[0].split("/")[:4]]) if keys else ""
    condition = "Succeeded" if told["succeeded"] else told["reason"]
    return report.RetrainSummary(condition, told["metrics"], folder, told["message"])
