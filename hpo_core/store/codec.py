"""Records as text: a trial as JSON, an accepted experiment as YAML."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from hpo_core.errors import StoreError
from hpo_core.experiment import Experiment, dump_yaml
from hpo_core.trial import (
    SCHEMA_VERSION,
    Attempt,
    MetricSummary,
    Observation,
    StopRequest,
    Trial,
    TrialCondition,
)


def trial_to_json(trial: Trial) -> dict[str, Any]:
    """Write a trial as its record, in camelCase; numbers that JSON does not know become texts."""
    record = {key: getattr(trial, name) for name, key in _KEYS.items()}
    record["assignments"], record["labels"] = dict(trial.assignments), dict(trial.labels)
    record["attempts"] = [dict(vars(attempt)) for attempt in trial.attempts]
    record["stopRequested"] = dict(vars(trial.stop_requested)) if trial.stop_requested else None
    if trial.observation is not None:
        record["observation"] = {
            metric: {"latest": _finite(told.latest), "min": _finite(told.minimum), "max": _finite(told.maximum)}
            for metric, told in trial.observation.metrics.items()
        }
    return {"schemaVersion": SCHEMA_VERSION, **record}


def trial_from_json(record: Mapping[str, Any]) -> Trial:
    """Read a trial's record; fields with a default may be absent.

    Raises:
        StoreError: It was written by a newer version.
        KeyError, TypeError, ValueError: It is no record of a trial.
    """
    if record.get("schemaVersion", SCHEMA_VERSION) > SCHEMA_VERSION:
        raise StoreError(f"trial {record.get('number')} was recorded by a newer version of kfp-hpo; install that one")
    values = {name: record[key] for name, key in _KEYS.items() if key in record}
    values["condition"] = TrialCondition(values.get("condition", TrialCondition.CREATED))
    values["attempts"] = tuple(Attempt(**attempt) for attempt in values.get("attempts", ()))
    if values.get("stop_requested"):
        stop = values["stop_requested"]
        values["stop_requested"] = StopRequest(**{**stop, "condition": TrialCondition(stop["condition"])})
    if values.get("observation") is not None:
        values["observation"] = Observation(
            {
                metric: MetricSummary(float(told["latest"]), float(told["min"]), float(told["max"]))
                for metric, told in values["observation"].items()
            }
        )
    if not isinstance(values["number"], int) or not isinstance(values["assignments"], dict):
        raise TypeError("number must be a whole number and assignments an object")
    return Trial(**values)


def experiment_text(experiment: Experiment) -> str:
    """Write an accepted experiment as its record."""
    document = {key: value for key, value in experiment.document.items() if key != "status"}
    kept = {k: v for k, v in document["metadata"].items() if k in ("labels", "annotations")}
    identity = {"name": experiment.name, "namespace": experiment.namespace}
    document["metadata"] = {**identity, "uid": experiment.uid, "creationTimestamp": experiment.created, **kept}
    return dump_yaml(document)


def difference(recorded: Experiment, given: Experiment) -> str:
    """Say how a document differs from the one that was accepted, and what can be done."""
    before, after = (
        experiment_text(e.accepted(recorded.uid, recorded.created)).splitlines() for e in (recorded, given)
    )
    lines = difflib.unified_diff(before, after, "recorded", "given", lineterm="", n=1)
    return (
        f"the experiment {given.name!r} has trials of another spec, so it cannot go on with this one: undo the change, "
        "give it another metadata.name or choose another --store\n" + "\n".join(lines)
    )


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word.capitalize() for word in tail)


_KEYS = {field.name: _camel(field.name) for field in dataclasses.fields(Trial)}
"""The record's key of each field of a trial."""


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
