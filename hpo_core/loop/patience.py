"""Trying again what fails transiently; the only place that does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hpo_core.errors import TransientError
from hpo_core.loop.clock import Clock

PATIENCE_S = 300.0
"""How long a store or launcher that cannot do its work now is tried again."""
LOOK_S = 1.0
"""How often it is asked meanwhile whether to go on."""

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Patience:
    """Calls things again and again while they fail transiently. May be used from several threads.

    Args:
        clock: Where times come from.
        patience_s: Seconds after the first failure until which it is tried again.
        gave_up: Asked after each failure; true ends the trying too.
    """

    def __init__(
        self, clock: Clock, *, patience_s: float = PATIENCE_S, gave_up: Callable[[], bool] = lambda: False
    ) -> None:
        self._clock = clock
        self._patience_s = patience_s
        self._gave_up = gave_up

    def __call__(self, action: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do something, and return what it returns.

        Raises:
            TransientError: It still failed at the end of patience.
        """
        failed_at: float | None = None
        while True:
            try:
                result = action(*args, **kwargs)
            except TransientError as error:
                now = self._clock.monotonic()
                if failed_at is None:
                    failed_at = now
                    _log.warning("work.waits reason=%s; tried again for up to %g s", error, self._patience_s)
                if now >= failed_at + self._patience_s or self._gave_up():
                    raise
                self._pause(min(error.retry_after_s, failed_at + self._patience_s - now))
                continue
            if failed_at is not None:
                _log.warning("work.goes_on after_s=%.0f", self._clock.monotonic() - failed_at)
            return result

    def _pause(self, seconds: float) -> None:
        """Wait as long as the server wishes, which may be an hour, unless somebody gives up."""
        until = self._clock.monotonic() + seconds
        while not self._gave_up() and (left_s := until - self._clock.monotonic()) > 0:
            self._clock.sleep(min(left_s, LOOK_S))
