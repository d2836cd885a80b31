"""Trials: legal moves and their effect, what never changes again, names and identities."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from hpo_core.experiment import Experiment
from hpo_core.trial import (
    NAME_LENGTH,
    Assignment,
    MetricSummary,
    Observation,
    StopRequest,
    Trial,
    TrialCondition,
    TrialVerdict,
    create_trial,
    retrain_name,
    trial_name,
)
from tests.experiments import make_experiment

EXPERIMENT = make_experiment()
SUCCESS = TrialVerdict(
    TrialCondition.SUCCEEDED, "TrialSucceeded", "all is well", Observation({"loss": MetricSummary(0.3, 0.2, 0.9)})
)
KILL = StopRequest(TrialCondition.KILLED, "TrialKilled", "somebody asked")
SUSPEND = StopRequest(TrialCondition.CREATED, "Suspended")
TERMINAL = [condition for condition in TrialCondition if condition.is_terminal]


def created(number: int = 1, experiment: Experiment = EXPERIMENT) -> Trial:
    return create_trial(experiment, number, Assignment({"lr": 0.02}, {"rung": "1"}), asked_after=4, now="T0")


def finish(trial: Trial, verdict: TrialVerdict = SUCCESS) -> Trial:
    return trial.finish(verdict, finished_seq=5, log_cursor=120, now="T9")


def test_a_new_trial_holds_what_was_asked_and_has_one_named_attempt() -> None:
    trial = created(3)
    assert (trial.number, trial.assignments, trial.labels) == (3, {"lr": 0.02}, {"rung": "1"})
    assert (trial.condition, trial.reason) == (TrialCondition.CREATED, "TrialCreated")
    assert (trial.asked_after, trial.created, trial.started, trial.completed) == (4, "T0", "", "")
    assert trial.name == trial_name(EXPERIMENT, 3, 1)
    assert trial.observation is None


def test_a_trial_does_not_share_its_values_with_the_assignment() -> None:
    values = {"lr": 0.02}
    trial = create_trial(EXPERIMENT, 1, Assignment(values), asked_after=0, now="T0")
    values["lr"] = 1.0
    assert trial.assignments == {"lr": 0.02}


def test_a_trial_that_runs_keeps_the_time_when_it_was_first_seen_running() -> None:
    running = created().run("T1")
    assert (running.condition, running.reason, running.started) == (TrialCondition.RUNNING, "TrialRunning", "T1")
    assert running.run("T2") == running


def test_a_move_leaves_the_trial_that_it_was_made_from_as_it_was() -> None:
    trial = created()
    before = replace(trial)
    trial.run("T1")
    trial.request_stop(KILL)
    trial.retry(EXPERIMENT, "Lost")
    finish(trial)
    assert trial == before


def test_a_trial_that_ends_holds_the_verdict_and_the_place_in_the_order_of_ends() -> None:
    ended = finish(created().run("T1"))
    assert (ended.condition, ended.reason, ended.message) == (TrialCondition.SUCCEEDED, "TrialSucceeded", "all is well")
    assert ended.observation == SUCCESS.observation
    assert (ended.finished_seq, ended.log_cursor, ended.started, ended.completed) == (5, 120, "T1", "T9")


def test_a_trial_that_ends_before_it_was_seen_running_started_when_it_ended() -> None:
    assert finish(created()).started == "T9"


def test_the_first_wish_to_stop_stays() -> None:
    later = StopRequest(TrialCondition.EARLY_STOPPED, "TrialEarlyStopped")
    assert created().request_stop(KILL).request_stop(later).stop_requested == KILL


@pytest.mark.parametrize(("outcome", "losses"), [("Lost", 1), ("Interrupted", 0)])
def test_another_attempt_has_another_name_and_begins_from_the_start(outcome: str, losses: int) -> None:
    first = replace(created(3).run("T1").request_stop(SUSPEND), log_cursor=99)
    second = first.retry(EXPERIMENT, outcome)
    assert [attempt.outcome for attempt in second.attempts] == [outcome, ""]
    assert second.name == trial_name(EXPERIMENT, 3, 2) != first.name
    assert (second.condition, second.reason) == (TrialCondition.CREATED, f"Trial{outcome}")
    assert (second.stop_requested, second.log_cursor, second.losses) == (None, 0, losses)
    assert (second.uid, second.assignments, second.started) == (first.uid, first.assignments, "T1")


def test_a_wish_to_end_a_trial_holds_for_its_next_attempt() -> None:
    """A crash came between the record of the wish and the signal, and the attempt cannot be found again."""
    assert created().run("T1").request_stop(KILL).retry(EXPERIMENT, "Interrupted").stop_requested == KILL


def test_only_lost_attempts_are_counted_as_losses() -> None:
    trial = created()
    for outcome in ("Lost", "Interrupted", "Lost"):
        trial = trial.retry(EXPERIMENT, outcome)
    assert (len(trial.attempts), trial.losses) == (4, 2)


def test_the_terminal_conditions_are_all_but_created_and_running() -> None:
    assert set(TrialCondition) - set(TERMINAL) == {TrialCondition.CREATED, TrialCondition.RUNNING}


@pytest.mark.parametrize("condition", TERMINAL)
@pytest.mark.parametrize("move", ["run", "request_stop", "retry", "finish"])
def test_a_trial_that_ended_never_changes_again(condition: TrialCondition, move: str) -> None:
    ended = finish(created(2), TrialVerdict(condition, "Any"))
    moves = {
        "run": lambda: ended.run("T10"),
        "request_stop": lambda: ended.request_stop(KILL),
        "retry": lambda: ended.retry(EXPERIMENT, "Lost"),
        "finish": lambda: finish(ended),
    }
    with pytest.raises(ValueError, match=f"trial 2 is {condition} and never changes again"):
        moves[move]()


@pytest.mark.parametrize("condition", [TrialCondition.CREATED, TrialCondition.RUNNING])
def test_a_trial_cannot_end_in_a_condition_that_is_no_end(condition: TrialCondition) -> None:
    with pytest.raises(ValueError, match=f"trial 1 cannot end as {condition}"):
        finish(created(), TrialVerdict(condition, "Any"))


# Observations


@pytest.mark.parametrize(
    ("kind", "strategy", "value"),
    [
        ("minimize", None, 0.2),
        ("maximize", None, 0.9),
        ("minimize", "latest", 0.3),
        ("minimize", "max", 0.9),
        ("maximize", "min", 0.2),
    ],
)
def test_a_trial_is_judged_by_the_value_that_its_strategy_names(kind: str, strategy: str | None, value: float) -> None:
    strategies = [{"name": "loss", "value": strategy}] if strategy else []
    changes = {"spec.objective.type": kind, "spec.objective.metricStrategies": strategies}
    objective = make_experiment(changes=changes).objective
    assert Observation({"loss": MetricSummary(0.3, 0.2, 0.9)}).value(objective) == value


def test_without_the_objective_metric_there_is_no_value() -> None:
    assert Observation({"accuracy": MetricSummary(1, 1, 1)}).value(EXPERIMENT.objective) is None
    assert Observation().value(EXPERIMENT.objective) is None


# Names


@pytest.mark.parametrize("name", ["a", "small", "a" * 63, "a-" * 31 + "a", "aa" + "-a" * 30])
def test_a_name_fits_kubernetes_with_the_longest_suffix_of_a_workload_kind(name: str) -> None:
    experiment = make_experiment(changes={"metadata.name": name})
    for workload in (trial_name(experiment, 10_000, 99), retrain_name(experiment, 1)):
        assert len(workload) <= NAME_LENGTH
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", workload)
        assert "--" not in workload


def test_names_and_identities_differ_by_trial_attempt_and_run_of_the_same_yaml() -> None:
    rerun = EXPERIMENT.accepted("00000001", "later")
    names = {
        trial_name(e, number, attempt) for e in (EXPERIMENT, rerun) for number in (1, 2, 12) for attempt in (1, 2, 21)
    }
    assert len(names) == 18
    uids = {created(number, experiment).uid for experiment in (EXPERIMENT, rerun) for number in (1, 2, 12)}
    assert len(uids) == 6


def test_names_and_identities_follow_from_the_experiment_and_the_number() -> None:
    assert created(2) == created(2)
    assert created(2).retry(EXPERIMENT, "Interrupted").uid == created(2).uid
