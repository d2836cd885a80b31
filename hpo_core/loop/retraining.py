"""Training the final model: the template once more, in its own phase, followed to its end."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpo_core.errors import Problem, SpecError, StoreError
from hpo_core.experiment import Experiment
from hpo_core.launch import Exited, Launcher, Output
from hpo_core.launch.outputs import find, not_kept
from hpo_core.loop.clock import Clock, SystemClock
from hpo_core.loop.patience import Patience
from hpo_core.loop.run import TURN_S
from hpo_core.loop.workload import Follower, abandon, keep_output, make_job, settle
from hpo_core.manifest import PHASE_RETRAIN
from hpo_core.outcome import explain_exit, is_success, sentence
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
    clock: Clock | None = None,
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
        clock: Where times come from.

    Raises:
        SpecError: The folder for the model cannot be made; nothing was trained.
        HpoError: Our own work failed; the workload has been ended then, or has not within half a minute.
    """
    if model_dir is not None:
        _make_folder(model_dir)
    clock = clock or SystemClock()
    patiently = Patience(clock, gave_up=should_stop)
    while True:
        told, follows = _begin(experiment, values, store, launcher, patiently)
        job = make_job(experiment, values, str(told["name"]), PHASE_RETRAIN, label=_label(told))
        follower = Follower(experiment, every_metric=True)
        patiently(store.confirm)
        patiently(launcher.submit, job)
        try:
            exited = _await_exit(job.name, launcher, follower, should_stop, show)
        except BaseException:
            abandon(launcher, [job.name], clock)
            raise
        if not (follows and exited.reason == "Stopped") or should_stop():
            break
        # Whoever began it had to end it, since his own work failed; that is no result.
        patiently(store.save_derived, RECORD, json.dumps({**told, "running": False}))
    exited = patiently(settle, store, exited)
    done = _conclude(told, exited, follower, store, patiently)
    try:
        if done.succeeded and model_dir is not None:
            _deliver(exited, _label(told), model_dir, store, patiently)
    finally:
        patiently(launcher.forget, job.name)
    return done


def _label(told: Mapping[str, Any]) -> str:
    """What a retraining's model is filed under."""
    return f"{RETRAIN}-{told['count']}"


def _conclude(
    told: Mapping[str, Any], exited: Exited, follower: Follower, store: ExperimentStore, patiently: Patience
) -> Retraining:
    """Keep what a retraining has printed and left, record its outcome, and remove the models that it replaces."""
    patiently(store.save_printed, RETRAIN, *follower.picture(), final=True)
    exited, is_new = _file_output(exited, _label(told), store, patiently)
    succeeded, kept = is_success(exited), _label(told) if is_new else str(told["output"])
    reason, message = ("", exited.message) if succeeded else explain_exit(exited, follower.reader)
    if succeeded and not is_new and patiently(store.outputs, kept):
        message = sentence(message, "it left no model, so that of an earlier retraining stays")
    done = Retraining(str(told["name"]), told["assignments"], succeeded, reason, message, _last_values(follower))
    patiently(store.save_derived, RECORD, json.dumps({**told, **vars(done), "output": kept, "running": False}))
    _discard_others(store, kept, patiently)
    return done


def _file_output(exited: Exited, label: str, store: ExperimentStore, patiently: Patience) -> tuple[Exited, bool]:
    """Keep what a retraining has left, unless that was done from where it ran.

    Returns:
        The end as it counts, and whether a model is kept that replaces the one before. One that left something of which
        nothing is kept has not ended well, wherever it ran; one that left nothing replaces nothing.
    """
    if not is_success(exited):
        return exited, False
    if exited.output_dir is not None:
        note = keep_output(store, label, exited.output_dir, patiently)
        exited = replace(exited, message=sentence(exited.message, note))
    else:
        note = not_kept(patiently(store.derived_json, f"uploads/{exited.name}.json").get("leftOut") or ())
    is_new = bool(patiently(store.outputs, label))
    if note and not is_new:
        return replace(exited, reason="OutputNotKept", message=exited.message or note), False
    return exited, is_new


def _deliver(exited: Exited, label: str, folder: Path, store: ExperimentStore, patiently: Patience) -> None:
    """Copy the model to a folder, from wherever it is."""
    if exited.output_dir is not None:
        _copy(exited.output_dir, folder)
    elif exited.has_receipt:
        patiently(store.fetch_output, label, folder)


def _begin(
    experiment: Experiment, values: Values, store: ExperimentStore, launcher: Launcher, patiently: Patience
) -> tuple[dict[str, Any], bool]:
    """Record a retraining before anything is started, or find the one that was killed.

    What an earlier one has left is removed only when the record names the next one: a removed name is never submitted.

    Returns:
        The record, and whether it is that of one that was killed.
    """
    before = patiently(store.derived_json, RECORD)
    count = int(before.get("count", 0))
    if count > 1:
        patiently(launcher.forget, retrain_name(experiment, count - 1))  # a crash may have come before that
    follows = bool(before.get("running")) and before.get("assignments") == dict(values)
    if before.get("running") and not follows:
        _end(experiment, str(before["name"]), values, launcher, patiently)
    told = {
        "count": count if follows else count + 1,
        "name": retrain_name(experiment, count if follows else count + 1),
        "assignments": dict(values),
        "output": before.get("output", RETRAIN),
    }
    patiently(store.save_derived, RECORD, json.dumps({**told, "running": True}))
    if count and not follows:
        patiently(launcher.forget, retrain_name(experiment, count))
    return told, follows


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
    """Copy what was kept of an output, which has been told."""
    try:
        for name, file in find(output).files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, folder / name)
    except OSError as error:
        raise StoreError(f"the model is kept, but cannot be copied to {folder}: {error}") from error


def _end(experiment: Experiment, name: str, values: Values, launcher: Launcher, patiently: Patience) -> None:
    """End the workload of an earlier retraining, with other values, that was killed before it saw the end."""
    patiently(launcher.submit, make_job(experiment, values, name, PHASE_RETRAIN))
    _await_exit(name, launcher, Follower(experiment), lambda: True, lambda line: None)


def _await_exit(
    name: str,
    launcher: Launcher,
    follower: Follower,
    should_stop: Callable[[], bool],
    show: Callable[[str], None],
) -> Exited:
    """Follow one workload to its end."""
    stopped = False
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
