"""A real tuner that kills itself, with SIGKILL, just before its n-th store or launcher call; n of 0 is never.

    python -m tests.scenarios.killing_tuner EXPERIMENT.yaml STORE N [BACKEND]
    python killing_tuner.py --pod ORDER.json N STORE KEY

In a cluster each request to the API server is a call, in place of those to the launcher.

The first form is a tuner of this machine. The second is the one in a pod of a tuner's Job, which has this file and the
engine and no more; of a Job's pods one alone kills itself, that which makes the object KEY in STORE.

It prints how many calls it made when it lives to the end.
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from hpo_core.errors import Conflict
from hpo_core.experiment import Experiment
from hpo_core.lint import AUTO, KUBERNETES, load_experiment
from hpo_core.objects import ABSENT, open_objects
from hpo_core.tuner import Place, background, run_experiment


class Fuse:
    """Counts calls, of every thread, and kills the process before the n-th, if it may."""

    def __init__(self, calls: int, may_kill: Callable[[], bool] = lambda: True) -> None:
        self.count = 0
        self._calls, self._may_kill = calls, may_kill
        self._lock = threading.Lock()

    def burn(self) -> None:
        with self._lock:
            self.count += 1
            if self.count == self._calls and self._may_kill():
                os.kill(os.getpid(), signal.SIGKILL)


class Fused:
    """Whatever it wraps, each call of which burns the fuse.

    What asks nobody is no call, nor is a look for events or requests that finds none: their number varies.
    """

    def __init__(self, wrapped: Any, fuse: Fuse) -> None:
        self._wrapped, self._fuse = wrapped, fuse

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._wrapped, name)
        if not callable(attribute) or name == "now_s":
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            is_look = name == "events" or (name == "list" and str(args[0]).endswith("/requests/"))
            if not is_look:
                self._fuse.burn()
            result = attribute(*args, **kwargs)
            if is_look and result:
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


def main() -> int:
    return _tune_in_pod(*sys.argv[2:]) if sys.argv[1] == "--pod" else _tune_here(*sys.argv[1:])


def _tune_here(file: str, store: str, calls: str, backend: str = AUTO) -> int:
    place = Place.of(store, Path(file).parent, backend)
    fuse = Fuse(int(calls))
    run_experiment(load_experiment(file), FusedPlace(place.uri, place.directory, place.backend, fuse=fuse))
    print(fuse.count)
    return 0


def _tune_in_pod(order: str, calls: str, store: str, key: str) -> int:
    def is_first() -> bool:
        try:
            open_objects(store).put(key, b"", expect=ABSENT)
        except Conflict:
            return False
        return True

    fuse = Fuse(int(calls), is_first)
    with mock.patch.object(background, "Place", functools.partial(FusedPlace, fuse=fuse)):
        code = background.main([order])
    print(fuse.count)
    return code


if __name__ == "__main__":
    sys.exit(main())
