"""Searching: from an Experiment and the trials so far to what should be tried next.

`protocol` says what every algorithm promises, `settings` declares and reads an algorithm's settings, `registry` finds
an algorithm by its name; each further file is one algorithm. Nothing here starts, watches or stores a trial.
"""

from hpo_core.search.protocol import Search, Suggestion, next_number
from hpo_core.search.registry import ALGORITHMS, Algorithm, check, describe, load_algorithm, make_search

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Search",
    "Suggestion",
    "check",
    "describe",
    "load_algorithm",
    "make_search",
    "next_number",
]
