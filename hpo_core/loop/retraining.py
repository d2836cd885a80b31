"""Training the final model: the template once more, in its own phase, followed to its end."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpo_core.errors import Problem, SpecError, StoreError
from hpo_core.experiment import Experiment
from hpo_core.launch import Exited, Launcher, Output
from hpo_core.loop.clock import SystemClock
from hpo_core.loop.patience import Patience
from hpo_core.loop.run import TURN_S
from hpo_core.loop.workload import Follower, make_job, settle
from hpo_core.manifest import PHASE_RETRAIN
from hpo_core.outcome import explain_exit, is_success
from hpo_core.space import Values
from hpo_core.store import ExperimentStore
from hpo_core.trial import retrain_name


@dataclass(frozen=True)
class Retraining:
    """The outcome of training the final model.

    Attributes:
        name: The workload's name.
        assignments: The values that it was trained with.
        succeeded: Whether it ended well.
        reason: Why not, in one word; "" when it did.
        message: The same in a sentence; of one that succeeded, what of its output is not kept.
        metrics: The last value of everything that it printed, by name; those that are finite.
    """

    name: str
    assignments: Values
    succeeded: bool
    reason: str
    message: str
    metrics: Mapping[str, float]


RETRAIN = "retrain"
"""Label of the retraining's log and model in the store."""
RECORD = "retrain.json"
"""The derived document that tells of the retraining."""


def retrain(
    experiment: Experiment,
    values: Values,
    store: ExperimentStore,
    launcher: Launcher,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    model_dir: Path | None = None,
    show: Callable[[str], None] = lambda line: None,
) -> Retraining:
    """Run the template once more, in the retraining phase, and keep the model that it leaves.

    Each call trains anew; a call after one that was killed, with the same values, follows that one's workload.

    Args:
        experiment: As accepted; the lease is held.
        values: The assignment, by parameter name.
        store: Where model, log and outcome go.
        launcher: Runs it.
        should_stop: Asked at every turn; true ends it.
        model_dir: A folder that gets a copy of the model too.
        show: Told every line with a metric.

    Raises:
        SpecError: The folder for the model cannot be made; nothing was trained.
        HpoError: Our own work failed.
    """
    if model_dir is not None:
        _make_folder(model_dir)
    patiently = Patience(SystemClock(), gave_up=should_stop)
    before = patiently(store.derived_json, RECORD)
    follows = bool(before.get("running")) and before.get("assignments") == dict(values)
    if before.get("running") and not follows:
        _end(experiment, str(before["name"]), values, launcher)
    count = int(before.get("count", 0)) + (0 if follows else 1)
    name = retrain_name(experiment, count)
    label = f"{RETRAIN}-{count}"
    told = {"count": count, "name": name, "assignments": dict(values), "output": before.get("output", RETRAIN)}
    patiently(store.save_derived, RECORD, json.dumps({**told, "running": True}))
    follower = Follower(experiment, every_metric=True)
    patiently(store.confirm)
    launcher.submit(make_job(experiment, values, name, PHASE_RETRAIN, label=label))
    exited = patiently(settle, store, _await_exit(name, launcher, follower, should_stop, show))
    patiently(store.save_printed, RETRAIN, *follower.picture(), final=True)
    succeeded = is_success(exited)
    if succeeded and exited.output_dir is not None:
        patiently(store.delete_output, RETRAIN)
        patiently(store.save_output, RETRAIN, exited.output_dir)
    elif succeeded and exited.has_receipt:
        told["output"] = label
    reason, message = ("", exited.message) if succeeded else explain_exit(exited, follower.reader)
    done = Retraining(name, dict(values), succeeded, reason, message, _last_values(follower))
    patiently(store.save_derived, RECORD, json.dumps({**told, **vars(done), "running": False}))
    _discard_others(store, str(told["output"]), patiently)
    if succeeded and exited.output_dir is not None and model_dir is not None:
        _copy(exited.output_dir, model_dir)
    elif succeeded and exited.has_receipt and model_dir is not None:
        patiently(store.fetch_output, label, model_dir)
    launcher.forget(name)
    return done


def _discard_others(store: ExperimentStore, kept: str, patiently: Patience) -> None:
    """Remove the models of other retrainings, which failed or have been replaced."""
    for label in patiently(store.output_labels):
        if label.partition("-")[0] == RETRAIN and label != kept:
            patiently(store.delete_output, label)


def _make_folder(folder: Path) -> None:
    """Make the folder for the model's copy before anything is trained for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot be made: {error.strerror}; choose another folder"
        raise SpecError([Problem(str(folder), message)]) from error


def _copy(output: Path, folder: Path) -> None:
    try:
        shutil.copytree(output, folder, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise StoreError(f"the model is kept, but cannot be copied to {folder}: {error}") from error


def _end(experiment: Experiment, name: str, values: Values, launcher: Launcher) -> None:
    """End the workload of an earlier retraining, with other values, that was killed before it saw the end."""
    launcher.submit(make_job(experiment, values, name, PHASE_RETRAIN))
    _await_exit(name, launcher, Follower(experiment), lambda: True, lambda line: None)
    launcher.forget(name)


def _await_exit(
    name: str,
    launcher: Launcher,
    follower: Follower,
    should_stop: Callable[[], bool],
    show: Callable[[str], None],
) -> Exited:
    """Follow one workload to its end, whatever comes; when our own work fails, it is ended too."""
    stopped = False
    try:
        while True:
            if not stopped and should_stop():
                stopped = True
                launcher.stop(name)
            for event in launcher.events(TURN_S):
                if isinstance(event, Exited):
                    follower.close()
                    return event
                if isinstance(event, Output):
                    _feed_and_show(event, follower, show)
    except BaseException:
        launcher.stop(name)
        while not any(isinstance(event, Exited) for event in launcher.events(TURN_S)):
            pass
        raise


def _last_values(follower: Follower) -> dict[str, float]:
    """The last value of each metric, where it is finite."""
    latest = {name: told.latest for name, told in follower.reader.observation().metrics.items()}
    return {name: value for name, value in latest.items() if math.isfinite(value)}


def _feed_and_show(output: Output, follower: Follower, show: Callable[[str], None]) -> None:
    by_line: dict[int, list[str]] = {}
    for point in follower.feed_and_tell(output):
        by_line.setdefault(point.line, []).append(f"{point.name}={point.value:g}")
    for texts in by_line.values():
        show(" ".join(texts))
