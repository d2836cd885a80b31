"""Laws of the thinned page: bounded whatever the number of trials, open about it, and nothing that matters is lost."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from hpo_core.experiment import Experiment
from hpo_core.report.summary import Summary
from hpo_core.report.thin import MOST_SHOWN, shown_places, thinned_note
from hpo_core.status import RUNNING, Verdict
from hpo_core.trial import Trial
from tests.unit.test_report import ended, experiment, mixed, page_of, range_of


@pytest.fixture(scope="module")
def many() -> tuple[Experiment, list[Trial], Verdict]:
    return mixed(3000)


def improving(count: int) -> Summary:
    """Trials each of which is better than all before it."""
    asked = experiment([range_of("lr", 0, 1)])
    trials = [ended(asked, number, {"lr": 0.5}, {"loss": -float(number)}) for number in range(1, count + 1)]
    return Summary.of(asked, trials, RUNNING)


def test_up_to_a_thousand_trials_all_are_shown() -> None:
    summary = Summary.of(*mixed(MOST_SHOWN))
    assert shown_places(summary) == list(range(MOST_SHOWN))
    assert thinned_note(summary, shown_places(summary)) == ""


def test_more_trials_are_thinned_to_a_thousand_and_the_note_says_so(
    many: tuple[Experiment, list[Trial], Verdict],
) -> None:
    summary = Summary.of(*many)
    places = shown_places(summary)
    assert len(places) == MOST_SHOWN
    assert places == sorted(set(places))
    assert "1,000 of 3,000 trials" in thinned_note(summary, places)


def test_the_best_the_newest_and_the_last_losses_are_always_shown(
    many: tuple[Experiment, list[Trial], Verdict],
) -> None:
    summary = Summary.of(*many)
    places = set(shown_places(summary))
    assert set(summary.ranking[:200]) <= places
    assert set(range(2900, 3000)) <= places
    assert set([place for place, value in enumerate(summary.values) if value is None][-100:]) <= places


def test_every_improvement_is_shown_so_that_best_so_far_is_exact(many: tuple[Experiment, list[Trial], Verdict]) -> None:
    summary = Summary.of(*many)
    reached = summary.best_so_far
    improved = {place for place in range(1, 3000) if reached[place] != reached[place - 1]}
    assert len(improved) > 3
    assert improved <= set(shown_places(summary))


def test_the_rest_is_spread_over_all_trials(many: tuple[Experiment, list[Trial], Verdict]) -> None:
    """About 600 of 2,600 others are chosen, every fifth or so: no gap is wider than three of those steps."""
    places = shown_places(Summary.of(*many))
    assert max(later - earlier for earlier, later in pairwise(places)) <= 15


def test_trials_with_a_curve_are_shown(many: tuple[Experiment, list[Trial], Verdict]) -> None:
    summary = Summary.of(*many)
    hidden = sorted(set(range(3000)) - set(shown_places(summary)))[:100]
    assert set(hidden) <= set(shown_places(summary, also=[place + 1 for place in hidden]))


def test_a_search_that_always_improves_is_thinned_too() -> None:
    places = shown_places(improving(5000))
    assert len(places) == MOST_SHOWN
    assert set(range(4800, 5000)) <= set(places)


def test_the_choice_depends_on_the_trials_alone(many: tuple[Experiment, list[Trial], Verdict]) -> None:
    asked, trials, verdict = many
    shuffled = random.Random(1).sample(trials, len(trials))
    assert shown_places(Summary.of(asked, shuffled, verdict)) == shown_places(Summary.of(asked, trials, verdict))


def test_plots_and_table_of_a_thinned_page_show_the_same_trials(many: tuple[Experiment, list[Trial], Verdict]) -> None:
    page = page_of(many)
    numbers = [int(value) for tag, name, value in page.attributes if (tag, name) == ("tr", "data-trial")]
    assert [trial["number"] for trial in page.data["trials"]] == numbers
    assert len(numbers) == MOST_SHOWN
    assert len(page.data["bestSoFar"]) == MOST_SHOWN
    assert "hpo trials quick-start -o csv" in page.texts["code"]


def test_counts_and_importance_are_of_all_trials(many: tuple[Experiment, list[Trial], Verdict]) -> None:
    summary, page = Summary.of(*many), page_of(many)
    assert f"{sum(summary.counts.values()):,}" == "3,000"
    assert f"among {len(summary.ranking):,} trials" in page.texts["main"][0]
