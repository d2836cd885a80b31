"""Every exception of the package, so that a caller needs one import to handle them.

A message says what went wrong, where, what was found, what is allowed and what to do next. `cli` prints the
message and maps the class to an exit code; nothing else in the package prints.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class HpoError(Exception):
    """Root of every error that this package raises on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or odd, in what a user wrote.

    Attributes:
        path: Where, as in `spec.parameters[0].feasibleSpace.min`; empty for the document as a whole.
        message: What was found there, what is allowed, and what to do.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class SpecError(HpoError):
    """An Experiment that cannot be run as it is written; holds every problem that was found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class AlgorithmError(HpoError):
    """A search algorithm could not answer."""


class LaunchError(HpoError):
    """A trial could not be started, watched or stopped."""


class StoreError(HpoError):
    """Records could not be read or written."""


class NotFound(StoreError):
    """No object of that name."""


class Conflict(StoreError):
    """A conditional write came too late, or somebody else holds the lease."""


class MetricsError(HpoError):
    """Metric lines or filters that cannot be understood."""


class BuildError(HpoError):
    """A trainer image could not be built."""


class TransientError(HpoError):
    """A failure that is likely to pass; the only error that is retried, and only by `loop`.

    Args:
        message: What failed and what is being waited for.
        retry_after_s: Seconds after which another try makes sense.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
