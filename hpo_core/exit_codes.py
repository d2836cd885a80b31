"""What `hpo`, the steps of a pipeline and a tuner exit with; the one table of it."""

from __future__ import annotations

from hpo_core.errors import (
    BuildError,
    Conflict,
    HpoError,
    LaunchError,
    MetricsError,
    NotFound,
    SpecError,
    StoreError,
    TransientError,
)

DONE, BUG, REFUSED, NO_RESULT, OUT_OF_REACH, INTERRUPTED = 0, 1, 2, 3, 4, 130

MEANINGS = {
    DONE: "done; of run and wait: the experiment succeeded",
    BUG: "a bug of ours",
    REFUSED: "what was given is refused; nothing was changed",
    NO_RESULT: "the experiment failed, or no trial succeeded",
    OUT_OF_REACH: "the store, or the cluster, cannot be used or reached",
    INTERRUPTED: "interrupted; of run and wait also: the experiment is suspended, and can go on",
}

_FAILURES: dict[type[BaseException], int] = {
    SpecError: REFUSED,
    BuildError: REFUSED,
    MetricsError: REFUSED,
    NotFound: REFUSED,
    Conflict: REFUSED,
    StoreError: OUT_OF_REACH,
    TransientError: OUT_OF_REACH,
    LaunchError: OUT_OF_REACH,
    HpoError: BUG,
}
"""What a failure exits with, the most special class first."""


def code_of(error: BaseException) -> int:
    """Return what a failure exits with."""
    return next((code for kind, code in _FAILURES.items() if isinstance(error, kind)), BUG)


def told() -> str:
    """Tell all exit codes, a line each."""
    return "\n".join(f"  {code:<5}{meaning}" for code, meaning in MEANINGS.items())
