"""What a sidecar is to do, as its command line says it, and where in the store that goes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Order:
    """What a sidecar is to do.

    Attributes:
        attempt: Name of the workload that it stands beside.
        experiment: `NAMESPACE/NAME`.
        store: The store's address.
        label: What the output is filed under; "" when it is not to be kept.
        output: The folder that the trainer leaves it in.
        seconds: How long bringing it to the store may take.
        metrics: A file whose lines are to be printed as they come; None for none.
        is_primary: Whether this pod is the one whose output and metrics count.
        tell: The file for the last word, which is told in the pod's status.
    """

    attempt: str
    experiment: str
    store: str
    label: str
    output: Path
    seconds: float
    metrics: Path | None
    is_primary: bool
    tell: Path

    @classmethod
    def of(cls, argv: Sequence[str]) -> Order:
        """Read a command line; one that makes no sense ends the program, with a message."""
        given = _parser().parse_args(argv)
        return cls(
            given.attempt,
            given.experiment,
            given.store,
            given.label,
            given.output,
            given.seconds,
            given.metrics,
            all(shown == wanted for shown, wanted in given.only_if),
            given.tell,
        )

    @property
    def place(self) -> str:
        """What the keys of the output begin with in the store."""
        return f"{self.experiment}/models/{self.label}/"

    @property
    def receipt(self) -> str:
        """The key of the end marker."""
        return f"{self.experiment}/uploads/{self.attempt}.json"

    @property
    def metrics_root(self) -> Path:
        """The folder that the metrics file must not lead out of."""
        path = self.metrics or self.output
        return self.output if path.is_relative_to(self.output) else path.parent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hpo_core.sidecar", description=__doc__)
    parser.add_argument("--attempt", required=True, help="name of the workload")
    parser.add_argument("--experiment", required=True, metavar="NAMESPACE/NAME", help="the experiment")
    parser.add_argument("--store", required=True, metavar="URI", help="the store's address; AWS_* say how to reach it")
    parser.add_argument("--label", default="", help="what the output is filed under; none: it is not kept")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="what the trainer leaves")
    parser.add_argument("--seconds", type=float, default=570.0, help="how long keeping it may take")
    parser.add_argument("--metrics", type=Path, metavar="FILE", help="print this file's lines as they come")
    parser.add_argument(
        "--only-if", nargs=2, action="append", default=[], metavar=("SHOWN", "WANTED"), help="do it if these are equal"
    )
    parser.add_argument("--tell", type=Path, default=Path("/dev/termination-log"), metavar="FILE", help="the last word")
    return parser
