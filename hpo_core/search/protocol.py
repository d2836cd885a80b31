"""What a search is: one question, `ask`, and its answer, a `Suggestion`.

How an algorithm is found by name is `registry`'s part; when to ask and what becomes of the answer is `loop`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hpo_core.trial import Assignment, Trial


@dataclass(frozen=True)
class Suggestion:
    """One answer to `ask`.

    Attributes:
        assignments: What to try next, in the order of the trials' numbers; at most as many as were asked for. Empty
            means "none now": the search wants to see running trials end first.
        exhausted: "No more, ever": nothing will follow after these assignments, whatever the trials give.
    """

    assignments: tuple[Assignment, ...] = ()
    exhausted: bool = False


class Search(Protocol):
    """A search algorithm at work on one experiment.

    An answer is a function of the experiment and the trials. So a search that was killed goes on where it was: a new
    one that is shown the same trials answers the same. For example, a grid over `a: [1, 2]` and `b: [x, y]`:

        search = make_search(experiment)
        search.ask([], 3)          # a=1 b=x, a=1 b=y, a=2 b=x; not exhausted
                                   # stored as trials 1 to 3, Created; here the process is killed

        search = make_search(experiment)
        search.ask(trials, 2)      # a=2 b=y; exhausted: one was left, two were asked for

    Had the process been killed after trial 1 was stored, `ask([trial_1], 2)` would have given a=1 b=y and a=2 b=x.
    """

    def ask(self, trials: Sequence[Trial], count: int) -> Suggestion:
        """Suggest what to try next.

        Guarantees, which `tests/contracts/search_suite.py` proves of every algorithm:

        - Each assignment has one value of its feasible space for each parameter.
        - `ask(h, k)` gives what `ask(h, 1)` and then `ask(h + [that one, Created], k - 1)` give.
        - An instance may keep what it computed, yet it answers as a new one does, in any process. It never draws from
          a shared random generator and never changes what it is shown.
        - Never stuck: if no trial is open, the answer holds an assignment or is exhausted, unless `count` is 0.
        - Trials that failed, were killed or stopped early, and those without an observation are taken as they come.

        Args:
            trials: Every trial that was created, open ones included, in the order of their numbers.
            count: How many assignments are wanted, from 0 up; 0 only asks whether the search is exhausted.

        Returns:
            At most `count` assignments; they become the trials from `next_number(trials)` on.

        Raises:
            AlgorithmError: The algorithm cannot answer.
        """
        ...


def next_number(trials: Sequence[Trial]) -> int:
    """Return the number that the next trial gets: one more than the highest one.

    Args:
        trials: In the order of their numbers, which may have gaps; or without gaps, in any order.
    """
    return max(trials[-1].number, len(trials)) + 1 if trials else 1
