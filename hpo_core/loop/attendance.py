"""Whether anybody still waits for an experiment that is to be suspended once nobody does."""

from __future__ import annotations

from hpo_core.loop.clock import Clock
from hpo_core.loop.patience import Patience
from hpo_core.store import ExperimentStore

LOOKS = 10
"""How often it is looked within the time that an experiment may be unattended."""


class Attendance:
    """Looks now and then whether somebody waits.

    Args:
        store: Where those who wait say so.
        clock: Where times come from.
        patiently: Asks the store.
        timeout_s: How long nobody may wait, in seconds; None for as long as it likes.
    """

    def __init__(self, store: ExperimentStore, clock: Clock, patiently: Patience, timeout_s: float | None) -> None:
        self._store, self._clock, self._patiently = store, clock, patiently
        self._timeout_s = timeout_s
        self._began_at = clock.monotonic()
        self._look_at = 0.0
        self._is_over = False

    def look(self) -> bool:
        """Look when it is time to, and tell whether nobody has waited for so long; at its begin a run has its time."""
        now = self._clock.monotonic()
        if self._timeout_s is None or now < self._look_at or self._is_over:
            return self._is_over
        self._look_at = now + self._timeout_s / LOOKS
        began_s = now - self._began_at
        attended_s = self._patiently(self._store.attended_s)
        alone_s = began_s if attended_s is None else min(began_s, attended_s)
        self._is_over = alone_s >= self._timeout_s
        return self._is_over
