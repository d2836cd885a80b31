"""A real tuner that kills itself, with SIGKILL, just before its n-th store or launcher call; n of 0 is never.

    python -m tests.scenarios.killing_tuner EXPERIMENT.yaml STORE N [BACKEND]

In a cluster each request to the API server is a call, in place of those to the launcher.

It prints how many calls it made when it lives to the end.
"""

import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_core.experiment import Experiment
from hpo_core.lint import AUTO, KUBERNETES, load_experiment
from hpo_core.tuner import Place, run_experiment


class Fuse:
    """Counts calls, of every thread, and kills the process before the n-th."""

    def __init__(self, calls: int) -> None:
        self.count = 0
        self._calls = calls
        self._lock = threading.Lock()

    def burn(self) -> None:
        with self._lock:
            self.count += 1
            if self.count == self._calls:
                os.kill(os.getpid(), signal.SIGKILL)


class Fused:
    """Whatever it wraps, each call of which burns the fuse. An idle wait for events is no call: its number varies."""

    def __init__(self, wrapped: Any, fuse: Fuse) -> None:
        self._wrapped, self._fuse = wrapped, fuse

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._wrapped, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            if name != "events":
                self._fuse.burn()
            result = attribute(*args, **kwargs)
            if name == "events" and result:
                self._fuse.burn()
            return result

        return call


@dataclass(frozen=True)
class FusedPlace(Place):
    """A place whose store and launcher burn the fuse."""

    fuse: Fuse = field(default_factory=lambda: Fuse(0))

    @property
    def objects(self) -> Any:
        return Fused(super().objects, self.fuse)

    def launcher(self, experiment: Experiment, *, parallel: int) -> Any:
        launcher = super().launcher(experiment, parallel=parallel)
        return launcher if self.backend == KUBERNETES else Fused(launcher, self.fuse)

    def kube(self, experiment: Experiment) -> Any:
        return Fused(super().kube(experiment), self.fuse)


def main() -> None:
    file, store, calls, *backend = sys.argv[1:]
    place = Place.of(store, Path(file).parent, backend[0] if backend else AUTO)
    fuse = Fuse(int(calls))
    run_experiment(load_experiment(file), FusedPlace(place.uri, place.directory, place.backend, fuse=fuse))
    print(fuse.count)


if __name__ == "__main__":
    main()
