"""Status: the fold over trials equals the recomputation, who is best, how an experiment stands, and Katib's schema."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from hpo_core.experiment import Experiment
from hpo_core.status import (
    GOAL_REACHED,
    MAX_TRIALS_REACHED,
    RUNNING,
    SUGGESTIONS_EXHAUSTED,
    SUSPENDED,
    TOO_MANY_FAILED,
    Tally,
    Verdict,
    duration_text,
    judge,
    katib_status,
    progress,
    wanted,
)
from hpo_core.trial import (
    Assignment,
    MetricSummary,
    Observation,
    StopRequest,
    Trial,
    TrialCondition,
    TrialVerdict,
    create_trial,
)
from tests.experiments import REMOVED, make_experiment

CREATED, RUNS = TrialCondition.CREATED, TrialCondition.RUNNING
SUCCEEDED, FAILED, KILLED = TrialCondition.SUCCEEDED, TrialCondition.FAILED, TrialCondition.KILLED
STOPPED, UNAVAILABLE = TrialCondition.EARLY_STOPPED, TrialCondition.METRICS_UNAVAILABLE
EXPERIMENT = make_experiment()


def trial(number: int, condition: TrialCondition, loss: float | None = None) -> Trial:
    observation = None if loss is None else Observation({"loss": MetricSummary(loss, loss, loss)})
    made = create_trial(EXPERIMENT, number, Assignment({"lr": 0.01 * number, "momentum": 0.5}), asked_after=0, now="T0")
    return replace(made, condition=condition, observation=observation)


def trials(*given: TrialCondition | float) -> list[Trial]:
    """Trials numbered from 1: a number is the loss of one that succeeded, a condition a trial without a result."""
    return [
        trial(number, given_one) if isinstance(given_one, TrialCondition) else trial(number, SUCCEEDED, given_one)
        for number, given_one in enumerate(given, 1)
    ]


def tally(*given: TrialCondition | float, objective: str = "minimize") -> Tally:
    return Tally.of(make_experiment(changes={"spec.objective.type": objective}).objective, trials(*given))


def experiment(**spec: Any) -> Experiment:
    """An experiment without budgets or goal, save those that are given."""
    free = dict.fromkeys(("maxTrialCount", "maxFailedTrialCount", "parallelTrialCount"), REMOVED)
    changes = {f"spec.{name}": value for name, value in {**free, **spec}.items()}
    return make_experiment(changes={name.replace("__", "."): value for name, value in changes.items()})


# The fold


def move(before: Trial, events: random.Random) -> Trial:
    """One legal move of an open trial."""
    what = events.choice(["run", "stop", "retry", "end", "end"])
    if what == "run":
        return before.run("T1")
    if what == "stop":
        return before.request_stop(StopRequest(KILLED, "Stopped"))
    if what == "retry":
        return before.retry(EXPERIMENT, events.choice(["Lost", "Interrupted"]))
    condition = events.choice([SUCCEEDED, SUCCEEDED, FAILED, KILLED, STOPPED, UNAVAILABLE])
    # Few different values, so that there are ties; and some that are no numbers.
    loss = events.choice([0.5, 1.0, 1.5, 2.0, math.nan, math.inf, -math.inf])
    observes = condition in (SUCCEEDED, STOPPED)
    observation = Observation({"loss": MetricSummary(loss, loss, loss)}) if observes else None
    verdict = TrialVerdict(condition, "Any", observation=observation)
    return before.finish(verdict, finished_seq=1, log_cursor=0, now="T2")


@pytest.mark.parametrize("objective", ["minimize", "maximize"])
@pytest.mark.parametrize("seed", range(20))
def test_the_fold_equals_the_recomputation_after_every_event_and_in_any_order(seed: int, objective: str) -> None:
    events = random.Random(seed)
    goal = make_experiment(changes={"spec.objective.type": objective}).objective
    folded, known = Tally(goal), list[Trial]()
    for _ in range(60):
        open_ones = [index for index, one in enumerate(known) if not one.condition.is_terminal]
        if not open_ones or events.random() < 0.3:
            known.append(trial(len(known) + 1, CREATED))
            folded.fold(None, known[-1])
        else:
            index = events.choice(open_ones)
            before, known[index] = known[index], move(known[index], events)
            folded.fold(before, known[index])
        assert folded == Tally.of(goal, known)
        assert folded == Tally.of(goal, events.sample(known, len(known)))


def test_the_counts_of_a_tally_add_up() -> None:
    found = tally(CREATED, CREATED, RUNS, 1.0, FAILED, KILLED, STOPPED, UNAVAILABLE)
    assert (found.total, found.active, found.completed, found.failed) == (8, 3, 5, 2)


# The best


@pytest.mark.parametrize(("objective", "number", "value"), [("minimize", 2, 1.0), ("maximize", 3, 9.0)])
def test_the_best_trial_follows_the_objective(objective: str, number: int, value: float) -> None:
    found = tally(5.0, 1.0, 9.0, FAILED, objective=objective)
    assert found.best is not None
    assert (found.best.number, found.best_value) == (number, value)


@pytest.mark.parametrize("objective", ["minimize", "maximize"])
def test_of_equal_trials_the_first_by_number_is_best_in_whatever_order_they_come(objective: str) -> None:
    goal = make_experiment(changes={"spec.objective.type": objective}).objective
    found = Tally.of(goal, reversed(trials(1.0, 1.0, 1.0)))
    assert found.best is not None
    assert found.best.number == 1


@pytest.mark.parametrize("objective", ["minimize", "maximize"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_the_best_and_never_in_the_way(value: float, objective: str) -> None:
    assert tally(value, objective=objective).best is None
    assert tally(value, 3.0, objective=objective).best_value == 3.0
    assert tally(3.0, value, objective=objective).best_value == 3.0


def test_a_trial_that_still_runs_is_not_the_best_whatever_it_has_reported() -> None:
    assert Tally.of(EXPERIMENT.objective, [trial(1, RUNS, 0.1), trial(2, SUCCEEDED, 0.5)]).best_value == 0.5


def test_a_trial_that_was_stopped_early_can_be_the_best() -> None:
    assert Tally.of(EXPERIMENT.objective, [trial(1, STOPPED, 0.1), trial(2, SUCCEEDED, 0.5)]).best_value == 0.1


# The verdict


@pytest.mark.parametrize(
    ("objective", "loss", "verdict"),
    [
        ("minimize", 0.5, GOAL_REACHED),
        ("minimize", 0.4, GOAL_REACHED),
        ("minimize", 0.51, RUNNING),
        ("maximize", 0.5, GOAL_REACHED),
        ("maximize", 0.6, GOAL_REACHED),
        ("maximize", 0.49, RUNNING),
    ],
)
def test_the_goal_itself_is_reached(objective: str, loss: float, verdict: Verdict) -> None:
    run = experiment(objective__type=objective, objective__goal=0.5)
    assert judge(run, Tally.of(run.objective, trials(loss))) == verdict


@pytest.mark.parametrize("objective", ["minimize", "maximize"])
def test_no_goal_is_reached_by_what_is_no_number(objective: str) -> None:
    goal = make_experiment(changes={"spec.objective.type": objective, "spec.objective.goal": 0.5}).objective
    assert not goal.is_reached(math.nan)


@pytest.mark.parametrize(
    ("most", "given", "verdict"),
    [
        (2, [FAILED], RUNNING),
        (2, [FAILED, UNAVAILABLE], TOO_MANY_FAILED),
        (2, [FAILED, KILLED, STOPPED, 1.0], RUNNING),
        (1, [FAILED], TOO_MANY_FAILED),
        (0, [1.0], RUNNING),
        (0, [FAILED], TOO_MANY_FAILED),
        (REMOVED, [FAILED] * 50, RUNNING),
    ],
)
def test_failed_trials_and_those_without_a_metric_count_against_the_bound(
    most: Any, given: Sequence[TrialCondition | float], verdict: Verdict
) -> None:
    run = experiment(maxFailedTrialCount=most)
    assert judge(run, tally(*given)) == verdict


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ([1.0, FAILED], RUNNING),
        ([1.0, FAILED, KILLED], MAX_TRIALS_REACHED),
        ([STOPPED, UNAVAILABLE, KILLED], MAX_TRIALS_REACHED),
        ([1.0, 1.0, RUNS], RUNNING),
        ([1.0, 1.0, 1.0, 1.0], MAX_TRIALS_REACHED),
    ],
)
def test_every_trial_that_is_over_uses_up_the_budget(given: Sequence[TrialCondition | float], verdict: Verdict) -> None:
    assert judge(experiment(maxTrialCount=3), tally(*given)) == verdict


@pytest.mark.parametrize(
    ("given", "verdict"),
    [([], SUGGESTIONS_EXHAUSTED), ([1.0], SUGGESTIONS_EXHAUSTED), ([1.0, RUNS], RUNNING), ([CREATED], RUNNING)],
)
def test_an_exhausted_search_ends_the_experiment_once_no_trial_is_open(
    given: Sequence[TrialCondition | float], verdict: Verdict
) -> None:
    assert judge(experiment(), tally(*given), exhausted=True) == verdict


def test_the_goal_comes_before_failures_these_before_the_budget_and_that_before_exhaustion() -> None:
    reached = experiment(objective__goal=1.0, maxFailedTrialCount=1, maxTrialCount=2)
    assert judge(reached, tally(1.0, FAILED), exhausted=True) == GOAL_REACHED
    assert judge(reached, tally(2.0, FAILED), exhausted=True) == TOO_MANY_FAILED
    assert judge(reached, tally(2.0, 3.0), exhausted=True) == MAX_TRIALS_REACHED
    assert judge(reached, tally(2.0), exhausted=True) == SUGGESTIONS_EXHAUSTED


def test_which_verdicts_end_an_experiment() -> None:
    ends = [GOAL_REACHED, MAX_TRIALS_REACHED, SUGGESTIONS_EXHAUSTED, TOO_MANY_FAILED]
    assert [verdict for verdict in [*ends, RUNNING, SUSPENDED] if verdict.condition.is_terminal] == ends


@pytest.mark.parametrize(
    ("parallel", "most", "given", "count"),
    [
        (3, 12, [], 3),
        (3, 12, [RUNS, CREATED], 1),
        (3, 12, [RUNS, RUNS, CREATED], 0),
        (3, 3, [1.0], 2),
        (3, 3, [1.0, RUNS], 1),
        (3, 3, [1.0, 1.0, RUNS], 0),
        (3, 3, [FAILED, KILLED, UNAVAILABLE], 0),
        (1, 3, [RUNS, RUNS], 0),
        (2, 2, [1.0, 1.0, 1.0, RUNS], 0),
        (5, REMOVED, [1.0] * 100, 5),
    ],
)
def test_as_many_trials_are_wanted_as_parallelism_and_budget_leave(
    parallel: int, most: Any, given: Sequence[TrialCondition | float], count: int
) -> None:
    assert wanted(experiment(parallelTrialCount=parallel, maxTrialCount=most), tally(*given)) == count


@pytest.mark.parametrize("seed", range(10))
def test_the_budget_is_never_exceeded_and_always_used_up(seed: int) -> None:
    events = random.Random(seed)
    run = experiment(parallelTrialCount=events.randint(1, 4), maxTrialCount=events.randint(4, 9))
    known: list[Trial] = []
    while judge(run, Tally.of(run.objective, known)) == RUNNING:
        known += [trial(len(known) + 1, RUNS) for _ in range(wanted(run, Tally.of(run.objective, known)))]
        active = [index for index, one in enumerate(known) if one.condition is RUNS]
        assert 0 < len(active) <= run.parallel_trial_count
        index = events.choice(active)
        known[index] = trial(index + 1, events.choice([SUCCEEDED, FAILED, KILLED, UNAVAILABLE]), None)
    assert len(known) == run.max_trial_count


# What is shown


def test_the_status_of_a_finished_experiment_is_katibs() -> None:
    ended = [replace(one, completed=f"2024-05-01T12:0{one.number}:00Z") for one in trials(0.5, 0.25, FAILED)]
    status = katib_status(EXPERIMENT, ended, MAX_TRIALS_REACHED, now="now")
    assert status["startTime"] == EXPERIMENT.created
    assert status["completionTime"] == "2024-05-01T12:03:00Z"
    assert status["currentOptimalTrial"] == {
        "bestTrialName": ended[1].name,
        "parameterAssignments": [{"name": "lr", "value": "0.02"}, {"name": "momentum", "value": "0.5"}],
        "observation": {"metrics": [{"name": "loss", "min": "0.25", "max": "0.25", "latest": "0.25"}]},
    }
    assert status["succeededTrialList"] == [ended[0].name, ended[1].name]
    assert status["failedTrialList"] == [ended[2].name]
    assert (status["trials"], status["trialsSucceeded"], status["trialsFailed"]) == (3, 2, 1)
    assert "trialsRunning" not in status


def test_the_current_condition_stands_last_and_running_is_over() -> None:
    ended = [replace(one, completed="2024-05-01T12:05:00Z") for one in trials(0.5)]
    conditions = katib_status(EXPERIMENT, ended, GOAL_REACHED, now="now")["conditions"]
    assert [(c["type"], c["status"], c["reason"]) for c in conditions] == [
        ("Created", "True", "ExperimentCreated"),
        ("Running", "False", "ExperimentRunning"),
        ("Succeeded", "True", "ExperimentGoalReached"),
    ]
    assert [c["lastTransitionTime"] for c in conditions] == [EXPERIMENT.created, *["2024-05-01T12:05:00Z"] * 2]


def test_a_running_experiment_has_neither_an_end_nor_an_optimal_trial_before_the_first_result() -> None:
    status = katib_status(EXPERIMENT, trials(RUNS, CREATED, UNAVAILABLE), RUNNING, now="now")
    assert [(c["type"], c["status"]) for c in status["conditions"]] == [("Created", "True"), ("Running", "True")]
    assert not {"completionTime", "currentOptimalTrial"} & set(status)
    assert (status["trialsRunning"], status["trialsPending"], status["trialMetricsUnavailable"]) == (1, 1, 1)


def test_a_suspended_experiment_has_no_end() -> None:
    status = katib_status(EXPERIMENT, trials(CREATED), SUSPENDED, now="2024-05-02T00:00:00Z")
    assert "completionTime" not in status
    assert status["conditions"][-1]["type"] == "Suspended"
    assert status["conditions"][-1]["lastTransitionTime"] == "2024-05-02T00:00:00Z"


def test_a_line_of_progress_tells_counts_the_best_and_what_is_left() -> None:
    found = progress(EXPERIMENT, tally(0.5, 0.25, FAILED, RUNS), 100.0)
    # Three of six trials are left, two at a time: two rounds of 100 s.
    assert found.line() == (
        "3/6 trials done, 1 running, 1 failed, best loss=0.25 (lr=0.02 momentum=0.5), about 3 min 20 s left"
    )


def test_a_line_of_progress_without_results_or_bounds_says_so() -> None:
    assert progress(experiment(), tally(RUNS), None).line() == "0/? trials done, 1 running, no result yet"


def test_nothing_is_left_when_all_trials_are_done() -> None:
    assert "left" not in progress(EXPERIMENT, tally(*[0.5] * 6), 100.0).line()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (8.4, "8 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_a_time_span_is_told_in_two_units_at_most(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
