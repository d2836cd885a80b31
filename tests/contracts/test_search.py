"""The contract of `Search`, proven of every algorithm in the registry."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from hpo_core.search import ALGORITHMS, Suggestion, next_number
from hpo_core.trial import MetricSummary, Observation, Trial, TrialCondition
from tests.contracts import search_suite
from tests.contracts.search_suite import ENDS, Case, Moment, as_trials, end, histories, simulate

CASES = search_suite.cases()

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def run(case: Case, seed: int = 1) -> list[Moment]:
    return simulate(case.experiment, case.search(), random.Random(seed))


def test_every_algorithm_accepts_one_of_the_spaces() -> None:
    assert {case.algorithm for case in CASES} == set(ALGORITHMS)


@every_case
def test_each_assignment_has_one_feasible_value_for_each_parameter(case: Case) -> None:
    for moment in run(case):
        for assignment in moment.answer.assignments:
            assert list(assignment.values) == [parameter.name for parameter in case.experiment.parameters]
            assert all(p.contains(assignment.values[p.name]) for p in case.experiment.parameters), assignment


@every_case
def test_an_answer_holds_at_most_what_was_asked_for(case: Case) -> None:
    assert all(len(moment.answer.assignments) <= moment.count for moment in run(case))


@every_case
def test_asking_for_several_is_asking_for_one_after_the_other(case: Case) -> None:
    """A kill between the records of one batch changes nothing."""
    for history in histories(run(case)):
        whole = case.search().ask(history, 4)
        search, trials, exhausted = case.search(), list(history), False
        for _ in range(4):
            answer = search.ask(tuple(trials), 1)
            exhausted = answer.exhausted
            trials += as_trials(case.experiment, trials, answer.assignments)
        one_by_one = [(trial.assignments, trial.labels) for trial in trials[len(history) :]]
        assert one_by_one == [(assignment.values, assignment.labels) for assignment in whole.assignments]
        assert exhausted == whole.exhausted


@every_case
def test_a_new_instance_answers_as_the_one_that_was_asked_all_along(case: Case) -> None:
    """A search that resumes at any point of a run goes on as if nothing had happened."""
    for moment in run(case):
        assert case.search().ask(moment.trials, moment.count) == moment.answer


@every_case
def test_what_an_instance_was_asked_before_does_not_matter(case: Case) -> None:
    """Asked in reverse, and twice, one instance answers as it did in the order of the run."""
    search = case.search()
    for moment in reversed(run(case)):
        assert search.ask(moment.trials, moment.count) == moment.answer
        assert search.ask(moment.trials, moment.count) == moment.answer


@pytest.mark.parametrize("case", [case for case in CASES if case.any_order], ids=str)
def test_the_order_in_which_trials_end_does_not_matter(case: Case) -> None:
    """For algorithms that promise it."""
    asked = []
    for seed in range(4):
        trials = run(case, seed)[-1].trials
        asked.append([trial.assignments for trial in trials])
    shortest = min(len(assignments) for assignments in asked)
    assert all(assignments[:shortest] == asked[0][:shortest] for assignments in asked)


@every_case
def test_an_instance_never_changes_what_it_is_shown(case: Case) -> None:
    trials = list(run(case)[-1].trials)
    before = copy.deepcopy(trials)
    case.search().ask(trials, 3)
    assert trials == before


@every_case
def test_the_shared_random_generator_is_neither_used_nor_changed(case: Case) -> None:
    random.seed(1)
    before = random.getstate()
    first = case.search().ask((), 3)
    assert random.getstate() == before
    random.seed(2)
    assert case.search().ask((), 3) == first


@every_case
def test_asking_for_nothing_gives_nothing_and_tells_whether_it_is_exhausted(case: Case) -> None:
    for history in histories(run(case)):
        answer = case.search().ask(history, 0)
        assert answer.assignments == ()
        more = case.search().ask(history, 1)
        assert answer.exhausted == (more.exhausted and not more.assignments)


@every_case
def test_an_exhausted_search_has_nothing_more_whatever_the_trials_gave(case: Case) -> None:
    for history in histories(run(case)):
        answer = case.search().ask(history, 2)
        trials = [*history, *as_trials(case.experiment, history, answer.assignments)]
        for condition in ENDS if answer.exhausted else ():
            ended = [t if t.condition.is_terminal else end(t, condition, random.Random(1)) for t in trials]
            assert case.search().ask(tuple(ended), 5) == Suggestion((), exhausted=True)


@every_case
@pytest.mark.parametrize("condition", ENDS)
def test_a_run_whose_trials_all_end_in_one_way_goes_on(case: Case, condition: TrialCondition) -> None:
    """`simulate` fails when a search with no open trial neither suggests anything nor is exhausted."""
    moments = simulate(case.experiment, case.search(), random.Random(3), (condition,))
    assert moments[-1].answer.exhausted or len(moments[-1].trials) >= search_suite.MOST_TRIALS


@every_case
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_result_that_is_not_finite_leaves_the_suggestions_feasible(case: Case, value: float) -> None:
    odd = Observation({"loss": MetricSummary(value, value, value)})
    trials = tuple(replace(t, observation=odd) if t.observation else t for t in run(case)[-1].trials)
    for assignment in case.search().ask(trials, 3).assignments:
        assert all(p.contains(assignment.values[p.name]) for p in case.experiment.parameters), assignment


@every_case
def test_trials_of_a_user_without_uid_or_attempts_are_taken(case: Case) -> None:
    """A number, an assignment, a condition and an observation are enough."""
    trials = run(case)[-1].trials
    plain = [Trial(t.number, t.assignments, t.condition, t.observation, labels=t.labels) for t in trials]
    assert case.search().ask(plain, 2) == case.search().ask(trials, 2)


ANOTHER_PROCESS = """
import random
from tests.contracts import search_suite
for case in search_suite.cases():
    print(case, search_suite.simulate(case.experiment, case.search(), random.Random(1))[-1])
"""


def test_another_process_gives_the_same_answers() -> None:
    """Nothing depends on the hashes of texts, which differ from process to process."""
    first, second = [
        subprocess.run(
            [sys.executable, "-c", ANOTHER_PROCESS],
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(first.splitlines()) == len(CASES)
    assert first == second


@pytest.mark.parametrize(("numbers", "following"), [([], 1), ([1], 2), ([1, 2, 3], 4), ([2, 5], 6), ([3, 1, 2], 4)])
def test_the_next_number_follows_the_highest_one(numbers: list[int], following: int) -> None:
    assert next_number([Trial(number, {}) for number in numbers]) == following
