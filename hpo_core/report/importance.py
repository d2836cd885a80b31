"""How much each parameter matters on its own: the share of the objective's variation that it explains.

Pure arithmetic on values; what is shown of it is the page's part.

The objective's values are replaced by their ranks, so that a single diverged trial does not decide everything. The
trials are grouped by one parameter, and the ranks' variation between the groups is compared with all of it: Pearson's
correlation ratio, eta^2 = SSB / SST (K. Pearson, "On the general theory of skew correlation and non-linear regression",
1905). Chance alone makes it larger than 0, by (k - 1) / (n - 1) on average for n trials in k groups; Kelley's epsilon
squared takes that out: epsilon^2 = 1 - (1 - eta^2) (n - 1) / (n - k) (T. L. Kelley, "An unbiased correlation ratio
measure", PNAS 21, 1935). It may fall below 0, where it is shown as 0.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence

from hpo_core.space import ParameterSpec, Value

FEWEST_TRIALS = 10
"""With fewer trials nothing is said: at 10, chance alone explains a fifth of the variation in three groups."""
MOST_BINS = 10


def importance(
    parameters: Iterable[ParameterSpec], assignments: Sequence[Mapping[str, Value]], values: Sequence[float]
) -> dict[str, float | None]:
    """Return the share of the variation of the ranked values that each parameter explains alone.

    Interactions are not seen: of two parameters that only matter together, both get about 0.

    Args:
        parameters: A list's items are its groups; a range is cut into at most 10 groups of about equal size.
        assignments: One for each value; a trial counts for the parameters that it has.
        values: What the trials reached, finite, in any unit.

    Returns:
        From 0 to 1 by parameter name; None where fewer than 10 trials, or not more trials than groups, allow none.
    """
    return {parameter.name: _explained(parameter, assignments, values) for parameter in parameters}


def ranks(values: Sequence[float]) -> list[float]:
    """Return each value's rank from 1, equal values sharing the mean of theirs; empty for none."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or values[order[end]] != values[order[start]]:
            for index in order[start:end]:
                found[index] = (start + 1 + end) / 2
            start = end
    return found


def epsilon_squared(groups: Iterable[Hashable], values: Sequence[float]) -> float | None:
    """Return Kelley's epsilon squared, clipped at 0; None when there are no more values than groups.

    Args:
        groups: Each value's group.
        values: At least one.
    """
    count = len(values)
    mean = math.fsum(values) / count
    sums: dict[Hashable, float] = {}
    sizes: dict[Hashable, int] = {}
    for group, value in zip(groups, values, strict=True):
        sums[group] = sums.get(group, 0.0) + value - mean
        sizes[group] = sizes.get(group, 0) + 1
    if count <= len(sums):
        return None
    total = math.fsum((value - mean) ** 2 for value in values)
    if total == 0:
        return 0.0
    between = math.fsum(sums[group] ** 2 / sizes[group] for group in sums)
    return max(1 - (1 - between / total) * (count - 1) / (count - len(sums)), 0.0)


def _explained(
    parameter: ParameterSpec, assignments: Sequence[Mapping[str, Value]], values: Sequence[float]
) -> float | None:
    name = parameter.name
    known = [(own[name], value) for own, value in zip(assignments, values, strict=True) if name in own]
    if len(known) < FEWEST_TRIALS:
        return None
    settings = [setting for setting, _ in known]
    groups = settings if parameter.is_list else _bins([float(setting) for setting in settings])
    return epsilon_squared(groups, ranks([value for _, value in known]))


def _bins(settings: Sequence[float]) -> Sequence[float]:
    """Each number's group: groups of about equal size, about as many as each has members; equal numbers share one."""
    most = min(MOST_BINS, math.isqrt(len(settings)))
    if len(set(settings)) <= most:
        return settings
    return [int((rank - 0.5) * most / len(settings)) for rank in ranks(settings)]
