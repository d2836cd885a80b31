"""The records of one experiment: their keys, their JSON, the lease of the one writer and the inbox of everybody else.

<namespace>/<name>/experiment.yaml        as accepted, with its uid
<namespace>/<name>/trials/00001.json      one object per trial, the truth
<namespace>/<name>/metrics/00001.jsonl    its metric points
<namespace>/<name>/logs/00001.log         head and tail of what it printed
<namespace>/<name>/models/00001/…         what it left in its output directory; `retrain/…` likewise
<namespace>/<name>/requests/<ulid>.json   what others ask of the writer
<namespace>/<name>/lease                  who the writer is
<namespace>/<name>/status.json, report.html, launch.json   derived, and how it was launched
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import logging
import math
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo_core.errors import Conflict, NotFound, Problem, SpecError, StoreError
from hpo_core.experiment import Experiment, dump_yaml, read_draft
from hpo_core.objects import ABSENT, ObjectStore
from hpo_core.trial import (
    SCHEMA_VERSION,
    Attempt,
    MetricSummary,
    Observation,
    StopRequest,
    Trial,
    TrialCondition,
)

STOP = "stop"
"""The request to suspend the experiment, or to end its retraining."""
TUNING, RETRAINING = "tuning", "retraining"
"""What the holder of the lease is doing."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What somebody asks of the writer.

    Attributes:
        kind: `stop`.
        by: Who asks, for the log.
        key: Where it lies; "" before it is sent.
    """

    kind: str
    by: str = ""
    key: str = ""


class ExperimentStore:
    """Records of one experiment in an object store. Writing, but for requests, is for the holder of the lease."""

    def __init__(self, objects: ObjectStore, namespace: str, name: str) -> None:
        self.objects = objects
        self.namespace, self.name = namespace, name
        self._prefix = f"{namespace}/{name}/"
        self._printing = threading.Lock()
        self._printed: set[str] = set()

    def accept(self, experiment: Experiment, *, now: str) -> Experiment:
        """Record an experiment, or find it recorded; a changed budget is recorded, any other change is refused.

        Args:
            experiment: As loaded.
            now: RFC 3339; the creation time of a new one.

        Returns:
            The experiment with its identity.

        Raises:
            SpecError: It was recorded with another spec; the message shows the difference.
        """
        try:
            recorded = self.load()
        except NotFound:
            accepted = experiment.accepted(secrets.token_hex(16), now)
            self._put("experiment.yaml", _experiment_text(accepted), expect=ABSENT)
            return accepted
        if recorded.spec_hash != experiment.spec_hash:
            raise SpecError([Problem("spec", _difference(recorded, experiment))])
        accepted = experiment.accepted(recorded.uid, recorded.created)
        if recorded.budgets != experiment.budgets:
            self._put("experiment.yaml", _experiment_text(accepted))
        return accepted

    def load(self) -> Experiment:
        """Return the experiment as it was accepted.

        Raises:
            NotFound: There is none of that name.
        """
        try:
            text = self.objects.get(self._prefix + "experiment.yaml").data.decode()
        except NotFound:
            raise NotFound(
                f"there is no experiment {self.name!r} in the namespace {self.namespace!r} of this store; "
                "`hpo list` shows what there is, --store and --namespace choose another place"
            ) from None
        draft = read_draft(text)
        metadata = draft.document["metadata"]
        return draft.experiment().accepted(metadata["uid"], metadata["creationTimestamp"])

    def record(self, trial: Trial, *, create: bool = False) -> None:
        """Write a trial's record.

        Raises:
            Conflict: `create` was asked for and the number is taken: there is another writer.
        """
        key = f"trials/{trial.number:05d}.json"
        self._put(key, json.dumps(trial_to_json(trial), indent=1), expect=ABSENT if create else None)

    def trials(self) -> list[Trial]:
        """Read all trials, by number; empty when there are none.

        Raises:
            StoreError: A record cannot be read, was written by a newer version, or is missing between others.
        """
        found: list[Trial] = []
        for key in self.objects.list(self._prefix + "trials/"):
            try:
                found.append(trial_from_json(json.loads(self.objects.get(key).data)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise StoreError(f"the record {key} cannot be read: {error!r}; restore it from a copy") from error
        found.sort(key=lambda trial: trial.number)
        for expected, trial in enumerate(found, 1):
            if trial.number != expected:
                raise StoreError(f"the record of trial {expected} of {self.name!r} is missing; restore it from a copy")
        return found

    def save_printed(self, label: str, log: bytes, metrics: str, *, final: bool) -> None:
        """Write what a workload printed and the metric points in it, one JSON object a line.

        Args:
            label: The trial's number in five digits, or `retrain`.
            log: Head and tail of it.
            metrics: The points.
            final: Whether the workload is over. What is not final is dropped after what was, since a picture of a
                running workload may be written late, by another thread.
        """
        with self._printing:
            if not final and label in self._printed:
                return
            if final:
                self._printed.add(label)
            self.objects.put(f"{self._prefix}logs/{label}.log", log)
            self._put(f"metrics/{label}.jsonl", metrics)

    def log(self, label: str) -> bytes:
        """Return what a trial printed.

        Raises:
            NotFound: Nothing has been kept of it (yet).
        """
        return self.objects.get(f"{self._prefix}logs/{label}.log").data

    def save_output(self, label: str, folder: Path) -> None:
        """Keep what a workload left in its output directory."""
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                self.objects.put(f"{self._prefix}models/{label}/{path.relative_to(folder).as_posix()}", path)

    def outputs(self, label: str) -> list[str]:
        """Return the keys of what was kept of a workload's output."""
        return self.objects.list(f"{self._prefix}models/{label}/")

    def delete_output(self, label: str) -> None:
        """Remove what was kept of a workload's output."""
        for key in self.outputs(label):
            self.objects.delete(key)

    def save_derived(self, name: str, content: str) -> None:
        """Write a derived document, such as `status.json`; nobody may rely on it for a decision about trials."""
        self._put(name, content)

    def derived(self, name: str) -> str | None:
        """Return a derived document; None when it has not been written."""
        try:
            return self.objects.get(self._prefix + name).data.decode(errors="replace")
        except NotFound:
            return None

    def derived_json(self, name: str) -> dict[str, Any]:
        """Return a derived document that is a JSON object; empty when it has not been written, or cannot be read."""
        text = self.derived(name)
        if text is None:
            return {}
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            _log.warning("derived.unreadable name=%s experiment=%s", name, self.name)
            return {}
        return found

    def send(self, request: Request) -> None:
        """Ask something of the writer, who looks once a second."""
        body = json.dumps({"kind": request.kind, "by": request.by})
        self._put(f"requests/{_ulid()}.json", body, expect=ABSENT)

    def requests(self) -> list[Request]:
        """Return what others asked for, the oldest first; empty when nobody did."""
        found = []
        for key in self.objects.list(self._prefix + "requests/"):
            try:
                body = json.loads(self.objects.get(key).data)
                found.append(Request(str(body["kind"]), str(body.get("by", "")), key))
            except NotFound:
                continue
            except (ValueError, KeyError, TypeError, AttributeError):
                _log.warning("request.unreadable key=%s", key)
                self.objects.delete(key)
        return found

    def consume(self, request: Request) -> None:
        """Remove a request that has been fulfilled. Idempotent."""
        self.objects.delete(request.key)

    @contextlib.contextmanager
    def lease(self, owner: Mapping[str, Any]) -> Iterator[None]:
        """Be the one writer while the context lasts; requests to stop that were there before are dropped.

        Args:
            owner: Who takes it, for others to read: host, pid.

        Raises:
            Conflict: Somebody else is; the message says who.
        """
        earlier = self.requests()
        unlock = self.objects.lock(self._prefix + "lease", json.dumps(dict(owner)).encode())
        if unlock is None:
            raise Conflict(f"the experiment {self.name!r} is being run by {self._describe_holder()}")
        try:
            # Whoever starts an experiment means it; a request that comes from now on meets a writer.
            for request in earlier:
                self.consume(request)
            yield
        finally:
            unlock()

    def is_held(self) -> bool:
        """Tell whether a writer is alive."""
        return self.objects.is_locked(self._prefix + "lease")

    def holder(self) -> dict[str, Any]:
        """Return who the writer is, or was; empty when there was none."""
        return self.derived_json("lease")

    def _describe_holder(self) -> str:
        holder = self.holder()
        doing = "retraining in " if holder.get("purpose") == RETRAINING else ""
        who = f"{doing}process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        return f"{who}; `hpo stop {self.name}` stops it"

    def _put(self, name: str, text: str, *, expect: str | None = None) -> None:
        self.objects.put(self._prefix + name, text.encode(), expect=expect)


def list_experiments(objects: ObjectStore) -> list[tuple[str, str]]:
    """Return namespace and name of every experiment in a store, sorted; empty when there is none."""
    parts = (key.split("/") for key in objects.list("") if key.endswith("/experiment.yaml"))
    return [(found[0], found[1]) for found in parts if len(found) == 3]


def trial_to_json(trial: Trial) -> dict[str, Any]:
    """Write a trial as its record, in camelCase; numbers that JSON does not know become texts."""
    record = {_camel(name): value for name, value in dataclasses.asdict(trial).items()}
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
    values = {
        field.name: record[_camel(field.name)] for field in dataclasses.fields(Trial) if _camel(field.name) in record
    }
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


def _experiment_text(experiment: Experiment) -> str:
    document = {key: value for key, value in experiment.document.items() if key != "status"}
    kept = {k: v for k, v in document["metadata"].items() if k in ("labels", "annotations")}
    identity = {"name": experiment.name, "namespace": experiment.namespace}
    document["metadata"] = {**identity, "uid": experiment.uid, "creationTimestamp": experiment.created, **kept}
    return dump_yaml(document)


def _difference(recorded: Experiment, given: Experiment) -> str:
    before, after = (
        _experiment_text(e.accepted(recorded.uid, recorded.created)).splitlines() for e in (recorded, given)
    )
    lines = difflib.unified_diff(before, after, "recorded", "given", lineterm="", n=1)
    return (
        f"the experiment {given.name!r} has trials of another spec, so it cannot go on with this one: undo the change, "
        "give it another metadata.name or choose another --store\n" + "\n".join(lines)
    )


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word.capitalize() for word in tail)


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _ulid() -> str:
    """A name that sorts by its time: 48 bits of milliseconds and 80 random ones, in Crockford's base 32."""
    number = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[(number >> shift) & 31] for shift in range(125, -1, -5))
