"""Which trials the page shows when there are too many to draw, and the sentence that says so.

One choice for all plots and the table, so that what is selected in one is there in the other. Everything that is
computed, such as the counts, the best so far and the importance, is of all trials nevertheless.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hpo_core.report.curves import spread
from hpo_core.report.summary import Summary
from hpo_core.trial import TrialCondition

MOST_SHOWN = 1000
_BEST = 200
_IMPROVEMENTS = 250
_NEWEST = 100
_LOST = 100
_RUNNING = 100


def shown_places(summary: Summary, *, also: Iterable[int] = ()) -> list[int]:
    """Choose the trials that the page shows, always the same ones for the same trials.

    Args:
        summary: Its trials.
        also: Numbers of at most 100 trials that are shown whatever else is, such as those with a curve.

    Returns:
        At most 1,000 places, ascending, all of them where there are no more: the best trials, those that improved on
        all before them, the newest, the last without a value, those that run, and an even choice of the rest.
    """
    if len(summary.trials) <= MOST_SHOWN:
        return list(range(len(summary.trials)))
    wanted = set(also)
    chosen = {place for place, trial in enumerate(summary.trials) if trial.number in wanted}
    chosen.update(summary.ranking[:_BEST], _improvements(summary), range(len(summary.trials))[-_NEWEST:])
    judged = enumerate(zip(summary.trials, summary.values, strict=True))
    lost = [place for place, (trial, value) in judged if value is None and trial.condition.is_terminal]
    running = [place for place, trial in enumerate(summary.trials) if trial.condition is TrialCondition.RUNNING]
    chosen.update(lost[-_LOST:], running[-_RUNNING:])
    rest = [place for place in range(len(summary.trials)) if place not in chosen]
    return sorted(chosen.union(rest[index] for index in spread(len(rest), MOST_SHOWN - len(chosen))))


def thinned_note(summary: Summary, places: Sequence[int]) -> str:
    """Say how many trials of how many are shown, and where the others are; "" when all of them are."""
    if len(places) == len(summary.trials):
        return ""
    return (
        f"The plots and the table show {len(places):,} of {len(summary.trials):,} trials: the best {_BEST}, those that "
        "improved on all before them, the newest, the last without a value, and an even choice of the others."
    )


def _improvements(summary: Summary) -> list[int]:
    """Places where the best so far changes; an even choice where that is most of the time."""
    course = summary.best_so_far
    found = [
        place for place, best in enumerate(course) if best is not None and (not place or best != course[place - 1])
    ]
    return [found[index] for index in spread(len(found), _IMPROVEMENTS)]
