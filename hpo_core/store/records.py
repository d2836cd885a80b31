"""The records of one experiment in an object store, and the lease of their one writer."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo_core.errors import Conflict, NotFound, Problem, SpecError, StoreError
from hpo_core.experiment import Experiment, read_draft
from hpo_core.objects import ABSENT, Lock, RecordStore
from hpo_core.store.codec import difference, experiment_text, trial_from_json, trial_to_json
from hpo_core.store.inbox import STOP, Inbox, Request
from hpo_core.store.together import together
from hpo_core.trial import Trial, TrialCondition

TUNING, RETRAINING, DELETING, EDITING = "tuning", "retraining", "deleting", "editing"
"""What the holder of the lease is doing."""
HOLDER_S = 1.0
"""How long a new holder of the lease may take to say who it is."""

_UNKNOWN = "unknown"
"""Tag of a picture that an earlier tuner may have left."""

_log = logging.getLogger(__name__)


def is_record(experiment: Experiment, recorded: Experiment) -> bool:
    """Tell whether an experiment was read from its record, and not from a document that a user gave."""
    return bool(experiment.document["metadata"].get("uid") == recorded.uid)


class ExperimentStore:
    """Records of one experiment in an object store. Writing, but for requests, is for the holder of the lease.

    Every write of a trial's record is conditional on the version that this store has read or written last, and says who
    wrote it. So a writer that was paused, and whose lease somebody else has taken meanwhile, fails at its next write.
    """

    def __init__(self, objects: RecordStore, namespace: str, name: str) -> None:
        self.objects = objects
        self.namespace, self.name = namespace, name
        self._prefix = f"{namespace}/{name}/"
        self.inbox = Inbox(objects, f"{self._prefix}requests/")
        self._lock: Lock | None = None
        self._writer = ""
        self._etags: dict[int, str] = {}
        self._unbegun: list[int] = []
        self._printing: dict[str, threading.Lock] = {}
        self._printed: dict[str, str | None] = {}

    @property
    def uri(self) -> str:
        """Where the records lie, for people."""
        return f"{self.objects.uri}/{self._prefix.rstrip('/')}"

    def accept(self, experiment: Experiment, *, now: str) -> Experiment:
        """Record an experiment, or find it recorded; a changed budget is recorded, any other change is refused.

        A budget that was edited stays, while the document that is given does not change its own.

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
            self._put("experiment.yaml", experiment_text(accepted), expect=ABSENT)
            return accepted
        if recorded.spec_hash != experiment.spec_hash:
            raise SpecError([Problem("spec", difference(recorded, experiment))])
        if self.keeps_budget(recorded, experiment):
            return recorded
        accepted = experiment.accepted(recorded.uid, recorded.created)
        self.save_experiment(accepted)
        return accepted

    def keeps_budget(self, recorded: Experiment, experiment: Experiment) -> bool:
        """Tell whether an experiment means the budget that is recorded.

        It does where it was read from the record, whatever was edited since; where it has that budget; and where its
        document had the one that it has now when it was given last, so that what was edited since is to stay.
        """
        given = list(experiment.budgets)
        return (
            is_record(experiment, recorded)
            or list(recorded.budgets) == given
            or self.derived_json("launch.json").get("given") == given
        )

    def save_experiment(self, experiment: Experiment) -> None:
        """Write an accepted experiment anew, with another budget."""
        self._put("experiment.yaml", experiment_text(experiment))

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
            Conflict: The number is taken, or its record was changed by somebody else: there is another writer.
        """
        body = json.dumps({**trial_to_json(trial), "writer": self._writer}).encode()
        expect = ABSENT if create else self._etags.get(trial.number)
        self._etags[trial.number] = self.objects.put(self._trial_key(trial.number), body, expect=expect)

    def trials(self) -> list[Trial]:
        """Read all trials, by number; empty when there are none.

        Trials are created several at a time, and none is submitted before all of them are recorded. So a crash among
        them may leave a gap with nothing but created ones behind it: these were never begun, and are left out.

        Raises:
            StoreError: A record cannot be read, was written by a newer version, or is missing between others.
        """
        found = together(self._read_trial, self.objects.list(self._prefix + "trials/"))
        found.sort(key=lambda trial: trial.number)
        whole = next((at for at, trial in enumerate(found) if trial.number != at + 1), len(found))
        if any(trial.condition is not TrialCondition.CREATED for trial in found[whole:]):
            raise StoreError(f"the record of trial {whole + 1} of {self.name!r} is missing; restore it from a copy")
        self._unbegun = [trial.number for trial in found[whole:]]
        return found[:whole]

    def discard_unbegun(self) -> None:
        """Remove the records that `trials` has left out, so that their numbers can be given again."""
        for number in self._unbegun:
            self.objects.delete(self._trial_key(number))
            del self._etags[number]
        self._unbegun = []

    def trial(self, number: int) -> Trial:
        """Read one trial.

        Raises:
            NotFound: There is none of that number.
        """
        return self._read_trial(self._trial_key(number))

    def _read_trial(self, key: str) -> Trial:
        blob = self.objects.get(key)
        try:
            trial = trial_from_json(json.loads(blob.data))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"the record {key} cannot be read: {error!r}; restore it from a copy") from error
        self._etags[trial.number] = blob.etag
        return trial

    def save_printed(self, label: str, log: bytes, metrics: str, *, final: bool) -> None:
        """Write what a workload printed and the metric points in it, one JSON object a line.

        A picture of a running workload may be written late, by another thread or by a server that was paused with it in
        its hands. So it replaces only the version before it, and never what is final. None waits for another's.

        Args:
            label: The trial's number in five digits, or `retrain`.
            log: Head and tail of it; empty for nothing.
            metrics: The points; "" for none.
            final: Whether the workload is over.
        """
        with self._printing_of(label):
            for name, content in ((f"logs/{label}.log", log), (f"metrics/{label}.jsonl", metrics.encode())):
                if final:
                    self._save_final(name, content)
                else:
                    self._save_picture(name, content)

    def _printing_of(self, label: str) -> threading.Lock:
        return self._printing.setdefault(label, threading.Lock())

    def _save_final(self, name: str, content: bytes) -> None:
        if content or name in self._printed:
            self.objects.put(self._prefix + name, content)
        self._printed[name] = None

    def _save_picture(self, name: str, content: bytes) -> None:
        before = self._printed.get(name, ABSENT)
        if before is None or not content:
            return
        try:
            self._printed[name] = self.objects.put(self._prefix + name, content, expect=before)
        except Conflict:
            # An earlier tuner has left one, or an earlier write of ours came through late.
            self._printed[name] = self._tag(name)

    def _tag(self, name: str) -> str:
        try:
            return self.objects.get(self._prefix + name).etag
        except NotFound:
            return ABSENT

    def resume_printing(self, label: str) -> None:
        """Expect that an earlier tuner has left pictures of that workload."""
        with self._printing_of(label):
            for name in (f"logs/{label}.log", f"metrics/{label}.jsonl"):
                self._printed.setdefault(name, _UNKNOWN)

    def log(self, label: str) -> bytes:
        """Return what a trial printed.

        Raises:
            NotFound: Nothing has been kept of it (yet).
        """
        return self.objects.get(f"{self._prefix}logs/{label}.log").data

    def metric_lines(self, label: str) -> str:
        """Return a workload's metric points, one JSON object a line; "" when nothing has been kept of them (yet)."""
        return self.derived(f"metrics/{label}.jsonl") or ""

    def save_output(self, label: str, name: str, file: Path) -> None:
        """Keep a file that a workload has left in its output directory, by its name there.

        Raises:
            SourceError: It cannot be read.
        """
        self.objects.put(f"{self._prefix}models/{label}/{name}", file)

    def outputs(self, label: str) -> list[str]:
        """Return the keys of what was kept of a workload's output; for `retrain`, of the last that ended well."""
        place = self.derived_json("retrain.json").get("output") or label if label == "retrain" else label
        return self.objects.list(f"{self._prefix}models/{place}/")

    def fetch_output(self, label: str, folder: Path) -> None:
        """Copy what was kept of a workload's output into a folder."""
        prefix = f"{self._prefix}models/{label}/"
        for key in self.objects.list(prefix):
            target = folder / key.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.objects.fetch(key, target)

    def output_labels(self) -> list[str]:
        """Return the labels of all workloads whose output, or a part of it, is kept; sorted."""
        prefix = f"{self._prefix}models/"
        return sorted({key.removeprefix(prefix).partition("/")[0] for key in self.objects.list(prefix)})

    def delete_output(self, label: str) -> None:
        """Remove what was kept of a workload's output."""
        together(self.objects.delete, self.objects.list(f"{self._prefix}models/{label}/"))

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

    @contextlib.contextmanager
    def lease(self, owner: Mapping[str, Any], *, goes_on: bool = True) -> Iterator[None]:
        """Be the one writer while the context lasts.

        Args:
            owner: Who takes it, for others to read: host, pid, purpose.
            goes_on: Whether somebody means the experiment to go on, so that earlier requests to stop are dropped; not
                so for a tuner that takes the place of one that died.

        Raises:
            Conflict: Somebody else is; the message says who.
        """
        earlier = self._stops() if goes_on else []
        lock = self.objects.lock(self._prefix + "lease", owner)
        if lock is None:
            raise self.refusal()
        self._lock, self._writer = lock, secrets.token_hex(4)
        try:
            # A request that comes from now on meets a writer.
            for request in earlier:
                self.inbox.consume(request)
            yield
        finally:
            self._lock = None
            lock.release()

    def drop_stops(self) -> None:
        """Drop what was asked before somebody meant the experiment to go on."""
        for request in self._stops():
            self.inbox.consume(request)

    def _stops(self) -> list[Request]:
        return [request for request in self.inbox.requests() if request.kind == STOP]

    def attend(self) -> None:
        """Say that somebody waits for the experiment; for those who do, not for the writer."""
        self._put("attended", "")

    def attended_s(self) -> float | None:
        """Return how long ago somebody last said that he waits, in seconds by the store's clock; None for never."""
        try:
            return self.objects.get(f"{self._prefix}attended").age_s
        except NotFound:
            return None

    def confirm(self) -> None:
        """Make sure that this process is still the one writer, before it does what cannot be undone.

        Raises:
            Conflict: Somebody else is.
            TransientError: It cannot be told now.
        """
        if self._lock is not None:
            self._lock.confirm()

    def holds_lease(self) -> bool:
        """Tell whether this process is the one writer, by a lease that it has confirmed.

        Raises:
            Conflict: It was, and somebody else is now.
            TransientError: It cannot be told now.
        """
        self.confirm()
        return self._lock is not None

    def is_held(self) -> bool:
        """Tell whether a writer is alive."""
        return self.objects.is_locked(self._prefix + "lease")

    def holder(self) -> dict[str, Any]:
        """Return who the writer is, or was; empty when there was none. Who has just become it may need an instant."""
        until = time.monotonic() + HOLDER_S
        while True:
            text = self.derived("lease")
            with contextlib.suppress(ValueError):
                return dict(json.loads("{}" if text is None else text))
            if time.monotonic() >= until:
                return {}
            time.sleep(0.01)

    def delete(self) -> None:
        """Remove all records; the lease is held. The experiment itself goes last, so that a half is never forgotten."""
        document, lease = self._prefix + "experiment.yaml", self._prefix + "lease"
        together(self.objects.delete, [key for key in self.objects.list(self._prefix) if key not in (document, lease)])
        self.objects.delete(document)
        self.objects.delete(lease)

    def refusal(self) -> Conflict:
        """Say who the writer is, to whoever would have liked to be it."""
        holder = self.holder()
        doing = {RETRAINING: "retrained", DELETING: "deleted", EDITING: "edited"}.get(holder.get("purpose", ""), "run")
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        return Conflict(f"the experiment {self.name!r} is being {doing} by {who}; `hpo stop {self.name}` stops it")

    def _trial_key(self, number: int) -> str:
        return f"{self._prefix}trials/{number:05d}.json"

    def _put(self, name: str, text: str, *, expect: str | None = None) -> None:
        self.objects.put(self._prefix + name, text.encode(), expect=expect)


def list_experiments(objects: RecordStore) -> list[tuple[str, str]]:
    """Return namespace and name of every experiment in a store, sorted; empty when there is none."""
    namespaces = [key for key in objects.list("", deep=False) if key.endswith("/") and not key.startswith(".")]
    folders = [key for keys in together(lambda key: objects.list(key, deep=False), namespaces) for key in keys]
    there = together(lambda key: objects.list(f"{key}experiment.yaml"), [key for key in folders if key.endswith("/")])
    found = sorted(key.split("/") for keys in there for key in keys)
    return [(parts[0], parts[1]) for parts in found]
