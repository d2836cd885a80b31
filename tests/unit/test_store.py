"""The records of an experiment: their form, which is final, what is accepted, the lease and the inbox."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpo_core.errors import Conflict, NotFound, Problem, SpecError, StoreError
from hpo_core.experiment import read_draft
from hpo_core.objects import DirectoryStore, MemoryStore
from hpo_core.store import (
    RETRAINING,
    STOP,
    ExperimentStore,
    Request,
    inbox,
    list_experiments,
    trial_from_json,
    trial_to_json,
)
from hpo_core.trial import (
    SCHEMA_VERSION,
    Attempt,
    MetricSummary,
    Observation,
    StopRequest,
    Trial,
    TrialCondition,
)
from tests.experiments import Changes, make_document, make_experiment, parameter

NOW = "2024-05-01T12:00:00.000Z"
FULL = Trial(
    number=7,
    assignments={"lr": 0.01, "layers": 3, "optimizer": "sgd"},
    condition=TrialCondition.EARLY_STOPPED,
    observation=Observation({"loss": MetricSummary(0.3, 0.25, 0.9), "accuracy": MetricSummary(0.9, 0.1, 0.95)}),
    uid="0123456789abcdef0123456789abcdef",
    labels={"generation": "2", "parent": "3"},
    asked_after=4,
    finished_seq=6,
    attempts=(Attempt("small-1a2b3c4d5e", "Lost"), Attempt("small-5e4d3c2b1a", site="laptop:/home/me/.hpo/.scratch")),
    stop_requested=StopRequest(TrialCondition.EARLY_STOPPED, "TrialEarlyStopped", "it was no good", "medianstop", 5),
    reason="TrialEarlyStopped",
    message="it was no good",
    metrics_incomplete=True,
    log_cursor=4711,
    created="2024-05-01T12:00:01.000Z",
    started="2024-05-01T12:00:02.000Z",
    completed="2024-05-01T12:00:03.000Z",
)
GOLDEN = """{
 "schemaVersion": 1,
 "number": 7,
 "assignments": {
  "lr": 0.01,
  "layers": 3,
  "optimizer": "sgd"
 },
 "condition": "EarlyStopped",
 "observation": {
  "loss": {
   "latest": 0.3,
   "min": 0.25,
   "max": 0.9
  },
  "accuracy": {
   "latest": 0.9,
   "min": 0.1,
   "max": 0.95
  }
 },
 "uid": "0123456789abcdef0123456789abcdef",
 "labels": {
  "generation": "2",
  "parent": "3"
 },
 "askedAfter": 4,
 "finishedSeq": 6,
 "attempts": [
  {
   "name": "small-1a2b3c4d5e",
   "outcome": "Lost",
   "site": ""
  },
  {
   "name": "small-5e4d3c2b1a",
   "outcome": "",
   "site": "laptop:/home/me/.hpo/.scratch"
  }
 ],
 "stopRequested": {
  "condition": "EarlyStopped",
  "reason": "TrialEarlyStopped",
  "message": "it was no good",
  "rule": "medianstop",
  "step": 5
 },
 "reason": "TrialEarlyStopped",
 "message": "it was no good",
 "metricsIncomplete": true,
 "logCursor": 4711,
 "created": "2024-05-01T12:00:01.000Z",
 "started": "2024-05-01T12:00:02.000Z",
 "completed": "2024-05-01T12:00:03.000Z",
 "writer": ""
}"""
ODD_TEXTS = (
    "1e-3",
    "0x1F",
    "017",
    "on",
    "no",
    "~",
    "1_000",
    "1:30",
    "2024-05-01",
    ".5",
    "",
    " x ",
    "a\nb",
    "'",
    "%",
    "é",
)


@pytest.fixture
def store(tmp_path: Path) -> ExperimentStore:
    return ExperimentStore(DirectoryStore(tmp_path / "store"), "kubeflow", "small")


def again(store: ExperimentStore) -> ExperimentStore:
    """The same records as another process sees them."""
    return ExperimentStore(store.objects, store.namespace, store.name)


def through_json(trial: Trial) -> Trial:
    return trial_from_json(json.loads(json.dumps(trial_to_json(trial))))


def test_the_form_of_a_trial_record_is_final(store: ExperimentStore) -> None:
    """Whoever changes it has to raise SCHEMA_VERSION and to go on reading this one."""
    store.record(FULL)
    assert store.objects.get("kubeflow/small/trials/00007.json").data.decode() == json.dumps(json.loads(GOLDEN))
    assert trial_from_json(json.loads(GOLDEN)) == FULL


def test_a_record_holds_every_field_of_a_trial(store: ExperimentStore) -> None:
    """No field of the trial that is tried has its default, so none can be left out unseen."""
    for field in dataclasses.fields(Trial):
        default = field.default_factory() if callable(field.default_factory) else field.default
        assert getattr(FULL, field.name) != default, field.name
    first = replace(FULL, number=1)
    store.record(first)
    assert again(store).trials() == [first]


@pytest.mark.parametrize("condition", TrialCondition)
def test_every_condition_survives_as_such(condition: TrialCondition) -> None:
    back = through_json(replace(FULL, condition=condition)).condition
    assert back is condition


def test_a_new_trial_survives() -> None:
    trial = Trial(1, {"lr": 0.1 + 0.2, "n": 10**12})
    assert through_json(trial) == trial


@pytest.mark.parametrize("latest", [math.nan, math.inf, -math.inf])
def test_values_that_json_has_no_number_for_survive(latest: float) -> None:
    trial = replace(FULL, observation=Observation({"loss": MetricSummary(latest, 0.1, 0.2)}))
    text = json.dumps(trial_to_json(trial), allow_nan=False)
    observation = trial_from_json(json.loads(text)).observation
    assert observation is not None
    back = observation.metrics["loss"]
    assert repr(back) == repr(MetricSummary(latest, 0.1, 0.2))


def test_of_a_record_only_number_and_assignments_are_demanded() -> None:
    """So that a history for `hpo suggest` can be written by hand."""
    assert trial_from_json({"number": 2, "assignments": {"lr": 0.5}}) == Trial(2, {"lr": 0.5})


def test_a_record_of_a_newer_version_is_refused_with_the_next_step(store: ExperimentStore) -> None:
    record = {**trial_to_json(FULL), "schemaVersion": SCHEMA_VERSION + 1, "unheardOf": 1}
    store.objects.put("kubeflow/small/trials/00007.json", json.dumps(record).encode())
    with pytest.raises(StoreError, match="trial 7 was recorded by a newer version of kfp-hpo; install that one"):
        store.trials()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"number": 1}',
        b'{"number": "1", "assignments": {}}',
        b'{"number": 1, "assignments": ["lr"]}',
        b'{"number": 1, "assignments": {}, "condition": "Odd"}',
        b'{"number": 1, "assignments": {}, "attempts": [{}]}',
        b'{"number": 1, "assignments": {}, "observation": {"loss": {"min": 1}}}',
    ],
)
def test_a_broken_record_is_named_with_the_next_step(store: ExperimentStore, content: bytes) -> None:
    store.objects.put("kubeflow/small/trials/00001.json", content)
    with pytest.raises(StoreError, match=r"trials/00001\.json cannot be read: .*; restore it from a copy"):
        store.trials()


def test_trials_come_by_number_in_whatever_order_they_were_written(store: ExperimentStore) -> None:
    for number in (3, 11, 1, 10, 2, 9, 8, 4, 7, 5, 6):
        store.record(Trial(number, {"lr": 0.5}))
    assert [trial.number for trial in store.trials()] == list(range(1, 12))


def test_a_missing_record_is_named_with_the_next_step(store: ExperimentStore) -> None:
    """A search would take what follows the gap for other trials than they are."""
    for number in (1, 2, 4):
        store.record(Trial(number, {"lr": 0.5}, TrialCondition.SUCCEEDED))
    with pytest.raises(StoreError, match="the record of trial 3 of 'small' is missing; restore it from a copy"):
        store.trials()


def test_a_number_is_created_once_and_updated_as_often_as_need_be(store: ExperimentStore) -> None:
    trial = Trial(1, {"lr": 0.5})
    store.record(trial, create=True)
    with pytest.raises(Conflict, match="exists already"):
        store.record(replace(trial, assignments={"lr": 0.9}), create=True)
    store.record(trial.run(NOW))
    assert store.trials() == [trial.run(NOW)]


def test_an_accepted_experiment_has_an_identity_that_stays(store: ExperimentStore) -> None:
    first = store.accept(make_experiment(), now=NOW)
    assert len(first.uid) == 32
    assert first.created == NOW
    for seen in (again(store).accept(make_experiment(), now="later"), again(store).load()):
        assert (seen.uid, seen.created, seen.spec_hash) == (first.uid, first.created, first.spec_hash)
        assert replace(seen, document={}) == replace(first, document={})


def test_the_same_document_elsewhere_is_another_experiment(store: ExperimentStore) -> None:
    other = ExperimentStore(MemoryStore(), store.namespace, store.name)
    experiment = make_experiment()
    assert store.accept(experiment, now=NOW).uid != other.accept(experiment, now=NOW).uid


def test_an_experiment_goes_on_whatever_its_texts_look_like(store: ExperimentStore) -> None:
    """What is recorded is YAML again, in which `no` and `1e-3` would be something else than these texts."""
    odd = [parameter("text", "categorical", list=list(ODD_TEXTS)), parameter("x", "double", min="1e-3", max="1E2")]
    changes = {"spec.trialTemplate.trialSpec.spec.template.spec.containers.0.args": list(ODD_TEXTS)}
    # As JSON, which is YAML too, with every text in quotes.
    experiment = read_draft(json.dumps(make_document(odd, changes=changes))).experiment()
    first = store.accept(experiment, now=NOW)
    loaded = again(store).load()
    assert loaded.spec_hash == first.spec_hash
    assert loaded.parameters == first.parameters
    assert loaded.template == first.template
    again(store).accept(experiment, now=NOW)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"spec.parameters.0.feasibleSpace.max": "0.07"}, r"-      max: '0\.05'\n\+      max: '0\.07'"),
        ({"spec.objective.goal": 0.1}, r"\+    goal: 0\.1"),
        ({"spec.algorithm.algorithmName": "tpe"}, r"-    algorithmName: random\n\+    algorithmName: tpe"),
        ({"metadata.annotations": {"kfp-hpo/seed": "7"}}, r"\+    kfp-hpo/seed: '7'"),
    ],
)
def test_another_spec_is_refused_with_the_difference(store: ExperimentStore, changes: Changes, shown: str) -> None:
    first = store.accept(make_experiment(), now=NOW)
    with pytest.raises(SpecError, match=rf"(?s)give it another metadata\.name or choose another --store.*{shown}"):
        again(store).accept(changed(changes), now=NOW)
    assert again(store).load().spec_hash == first.spec_hash


def changed(changes: Changes) -> Any:
    if "spec.algorithm.algorithmName" in changes:  # an algorithm that this version may not have
        experiment = make_experiment()
        spec = {**experiment.document["spec"], "algorithm": {"algorithmName": "tpe"}}
        return replace(experiment, document={**experiment.document, "spec": spec})
    return make_experiment(changes=changes)


def test_another_budget_is_recorded_and_nothing_else_changes(store: ExperimentStore) -> None:
    first = store.accept(make_experiment(), now=NOW)
    budget = {"spec.maxTrialCount": 24, "spec.parallelTrialCount": 5, "spec.maxFailedTrialCount": 9}
    accepted = again(store).accept(make_experiment(changes=budget), now="later")
    for seen in (accepted, again(store).load()):
        assert (seen.max_trial_count, seen.parallel_trial_count, seen.max_failed_trial_count) == (24, 5, 9)
        assert (seen.uid, seen.created, seen.spec_hash) == (first.uid, NOW, first.spec_hash)


def test_labels_and_a_status_make_no_other_experiment(store: ExperimentStore) -> None:
    store.accept(make_experiment(), now=NOW)
    changes = {"metadata.labels": {"team": "a"}, "status": {"trials": 3}, "metadata.resourceVersion": "17"}
    store.accept(make_experiment(changes=changes), now=NOW)


def test_what_a_cluster_added_to_a_document_is_not_recorded(store: ExperimentStore) -> None:
    changes = {"metadata.labels": {"team": "a"}, "status": {"trials": 3}, "metadata.resourceVersion": "17"}
    accepted = store.accept(make_experiment(changes=changes), now=NOW)
    document = store.load().document
    assert "status" not in document
    expected = {"name": "small", "namespace": "kubeflow", "uid": accepted.uid, "creationTimestamp": NOW}
    assert document["metadata"] == {**expected, "labels": {"team": "a"}}


def test_an_experiment_that_is_not_there_is_told_with_the_ways_to_find_it(store: ExperimentStore) -> None:
    with pytest.raises(NotFound, match=r"no experiment 'small' in the namespace 'kubeflow'.*`hpo list`.*--store"):
        store.load()


def test_requests_come_oldest_first_and_are_gone_once_consumed(store: ExperimentStore) -> None:
    for number in range(5):
        store.inbox.send(Request(STOP, f"user {number}"))
        time.sleep(0.002)  # the order is told by the millisecond
    found = again(store).inbox.requests()
    assert [(request.kind, request.by) for request in found] == [(STOP, f"user {number}") for number in range(5)]
    store.inbox.consume(found[1])
    store.inbox.consume(found[1])
    assert [request.by for request in store.inbox.requests()] == ["user 0", "user 2", "user 3", "user 4"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"by": "me"}'])
def test_a_request_that_cannot_be_read_is_removed_and_keeps_no_other_back(
    store: ExperimentStore, content: bytes
) -> None:
    store.objects.put("kubeflow/small/requests/0.json", content)
    store.inbox.send(Request(STOP, "me"))
    assert [request.by for request in store.inbox.requests()] == ["me"]
    assert len(store.objects.list("kubeflow/small/requests/")) == 1


def test_an_empty_inbox_is_empty(store: ExperimentStore) -> None:
    assert store.inbox.requests() == []


def test_one_writer_at_a_time_and_the_refusal_says_who_writes(store: ExperimentStore) -> None:
    assert not store.is_held()
    assert store.holder() == {}
    with store.lease({"pid": 4711, "host": "here"}):
        assert again(store).is_held()
        assert again(store).holder() == {"pid": 4711, "host": "here"}
        with (
            pytest.raises(Conflict, match="'small' is being run by process 4711 on here; `hpo stop small` stops it"),
            again(store).lease({"pid": 1, "host": "there"}),
        ):
            pass
        assert again(store).is_held()
    assert not store.is_held()


def test_the_refusal_says_that_the_holder_retrains(store: ExperimentStore) -> None:
    with (
        store.lease({"pid": 1, "host": "here", "purpose": RETRAINING}),
        pytest.raises(Conflict, match="is being retrained by process 1 on here"),
        again(store).lease({"pid": 2}),
    ):
        pass


def test_the_lease_is_given_back_when_its_holder_fails(store: ExperimentStore) -> None:
    with pytest.raises(ZeroDivisionError, match="division"), store.lease({"pid": 1}):
        print(1 / 0)
    with store.lease({"pid": 2}):
        assert store.holder() == {"pid": 2}


def test_who_takes_the_lease_drops_what_was_asked_before_and_hears_what_is_asked_then(store: ExperimentStore) -> None:
    store.inbox.send(Request(STOP, "yesterday"))
    with store.lease({"pid": 1}):
        assert store.inbox.requests() == []
        again(store).inbox.send(Request(STOP, "now"))
        assert [request.by for request in store.inbox.requests()] == ["now"]


def test_a_request_that_comes_while_the_lease_is_being_taken_is_heard(tmp_path: Path) -> None:
    class Observed(DirectoryStore):
        """Somebody sends a request at the very instant before the lock is taken."""

        def lock(self, key: str, owner: Mapping[str, Any]) -> Any:
            records.inbox.send(Request(STOP, "just now"))
            return super().lock(key, owner)

    records = ExperimentStore(Observed(tmp_path), "kubeflow", "small")
    with records.lease({"pid": 1}):
        assert [request.by for request in records.inbox.requests()] == ["just now"]


def test_who_does_not_get_the_lease_drops_nothing(store: ExperimentStore) -> None:
    with store.lease({"pid": 1}):
        store.inbox.send(Request(STOP, "for the holder"))
        with pytest.raises(Conflict, match="is being run"), again(store).lease({"pid": 2}):
            pass
        assert [request.by for request in store.inbox.requests()] == ["for the holder"]


def test_what_was_printed_is_kept_as_it_is(store: ExperimentStore) -> None:
    store.save_printed("00001", b"\x00\xffline\n", '{"name": "loss"}\n', final=True)
    assert again(store).log("00001") == b"\x00\xffline\n"
    assert store.objects.get("kubeflow/small/metrics/00001.jsonl").data == b'{"name": "loss"}\n'
    with pytest.raises(NotFound, match=r"00002\.log"):
        store.log("00002")


def test_a_late_picture_of_a_running_workload_does_not_replace_the_last_one(store: ExperimentStore) -> None:
    store.save_printed("00001", b"half", "half", final=False)
    store.save_printed("00001", b"whole", "whole", final=True)
    store.save_printed("00001", b"half", "half", final=False)
    store.save_printed("00002", b"another", "another", final=False)
    assert store.log("00001") == b"whole"
    assert store.objects.get("kubeflow/small/metrics/00001.jsonl").data == b"whole"
    assert store.log("00002") == b"another"


def test_a_derived_document_is_what_was_written_last(store: ExperimentStore) -> None:
    assert store.derived("status.json") is None
    store.save_derived("status.json", "{}")
    store.save_derived("status.json", "[]")
    assert again(store).derived("status.json") == "[]"


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_derived_document_that_cannot_be_read_is_as_good_as_none(store: ExperimentStore, content: str) -> None:
    store.save_derived("retrain.json", content)
    assert store.derived_json("retrain.json") == store.derived_json("never-written.json") == {}


def test_experiments_are_listed_by_namespace_and_name(tmp_path: Path) -> None:
    objects = DirectoryStore(tmp_path)
    for namespace, name in (("b", "one"), ("a", "two"), ("a", "one")):
        ExperimentStore(objects, namespace, name).accept(make_experiment(), now=NOW)
    objects.put("a/one/models/00001/experiment.yaml", b"written by a trainer")
    objects.put("a/three/status.json", b"{}")
    assert list_experiments(objects) == [("a", "one"), ("a", "two"), ("b", "one")]
    assert list_experiments(MemoryStore()) == []


def test_trials_behind_a_gap_that_were_never_begun_are_left_out_and_their_numbers_given_again(
    store: ExperimentStore,
) -> None:
    """Several are created at a time; a crash among them leaves some, of which none was submitted."""
    for number in (1, 2, 4, 5):
        store.record(Trial(number, {"lr": 0.1}), create=True)
    after = again(store)
    assert [trial.number for trial in after.trials()] == [1, 2]
    after.discard_unbegun()
    for number in (3, 4, 5):
        after.record(Trial(number, {"lr": 0.2}), create=True)
    assert [trial.number for trial in again(store).trials()] == [1, 2, 3, 4, 5]


def test_a_tuner_that_takes_the_place_of_one_that_died_hears_what_was_asked_of_that_one(store: ExperimentStore) -> None:
    store.inbox.send(Request(STOP, "a user"))
    with store.lease({"pid": 1}, goes_on=False):
        assert [request.by for request in store.inbox.requests()] == ["a user"]


# --- refusals


def test_a_refusal_that_nobody_fetches_is_dropped_after_a_while_and_not_before(
    store: ExperimentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = store.inbox.send(Request(STOP, "who has given up"))
    store.inbox.refuse(sent, SpecError([Problem("spec", "no")]))
    store.inbox.drop_refusals()
    assert len(store.objects.list("kubeflow/small/requests/")) == 1
    monkeypatch.setattr(inbox, "REFUSED_S", -1.0)
    store.inbox.drop_refusals()
    assert store.objects.list("kubeflow/small/requests/") == []
