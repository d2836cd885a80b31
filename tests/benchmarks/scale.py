"""What our own work costs when trials cost nothing.

Runs experiments of no-op trials with a scripted launcher, each in a process of its own, on a directory and, where
AWS_ENDPOINT_URL names a server, on S3. Prints trials per second, the cost of a trial at 1,000 against 10,000, memory,
writes and objects per trial, and the time to resume. Asserts nothing: machines differ, ratios tell.

    python -m tests.benchmarks.scale [STORE ...]
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hpo_core import loop
from hpo_core.loop import SystemClock
from hpo_core.objects import open_objects
from hpo_core.publish import Publisher
from hpo_core.search import make_search
from hpo_core.store import ExperimentStore
from tests.contracts.scripted_launcher import Play, ScriptedLauncher, ScriptedMachine, flags
from tests.experiments import make_experiment, parameter

FEW, MANY = 1_000, 10_000
PARALLEL = 100
PARAMETERS = [parameter("lr", "double", min="0.01", max="0.05"), parameter("layers", "int", min="1", max="9")]


class Counting:
    """A store that counts what is asked of it."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._wrapped, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.calls[name] += 1
            return attribute(*args, **kwargs)

        return call


def tune(uri: str, count: int) -> dict[str, float]:
    """Run an experiment of that many trials to its end, then resume it; returns what it cost."""
    budget = {"spec.parallelTrialCount": PARALLEL, "spec.maxTrialCount": count}
    changes = {**budget, "metadata.name": f"n{count}", "metadata.namespace": "x"}
    experiment = make_experiment(PARAMETERS, changes=changes)
    objects = Counting(open_objects(uri))
    store = ExperimentStore(objects, "x", experiment.name)
    machine = ScriptedMachine(lambda job: Play(lines=(f"loss={flags(job)['lr']}",)))
    clock = SystemClock()
    with store.lease({"purpose": "tuning"}), Publisher(store, clock) as publisher:
        accepted = store.accept(experiment, now=clock.now())
        run = loop.Run(accepted, store, ScriptedLauncher(machine), make_search(accepted), clock=clock)
        began, cpu = time.perf_counter(), time.process_time()
        final = loop.run(run, publisher.offer)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    assert len(final.trials) == count
    assert set(machine.starts.values()) == {1}
    puts = objects.calls["put"]
    resumed_s = resume(uri, experiment.name, machine)
    return {
        "trials_per_s": count / wall_s,
        "cpu_ms_per_trial": 1000 * cpu_s / count,
        "wall_ms_per_trial": 1000 * wall_s / count,
        "writes_per_trial": puts / count,
        "objects_per_trial": len(objects.list(f"x/{experiment.name}/")) / count,
        "resume_s": resumed_s,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def resume(uri: str, name: str, machine: ScriptedMachine) -> float:
    """Take up a recorded experiment as a new tuner does; returns the seconds that it takes."""
    store = ExperimentStore(open_objects(uri), "x", name)
    with store.lease({"purpose": "tuning"}):
        began = time.perf_counter()
        accepted = store.load()
        run = loop.Run(accepted, store, ScriptedLauncher(machine), make_search(accepted))
        run.resume()
        return time.perf_counter() - began


def measure(uri: str, count: int) -> dict[str, float]:
    """Run one experiment in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.scale", "--one", uri, str(count)]
    told = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if told.returncode:
        sys.exit(told.stderr)
    measured: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return measured


def show(uri: str) -> None:
    """Print what experiments of both sizes cost on a store."""
    print(f"\n{uri}, {PARALLEL} trials at a time")
    few, many = (measure(uri, count) for count in (FEW, MANY))
    for name in few:
        print(f"  {name:18} {few[name]:10.2f} at {FEW:,}   {many[name]:10.2f} at {MANY:,}")
    for name in ("wall_ms_per_trial", "cpu_ms_per_trial"):
        print(f"  growth of {name}: {many[name] / few[name]:.2f}")


def main(arguments: list[str]) -> None:
    """Measure the stores that are named, or a directory and the S3 server that the environment names."""
    if arguments[:1] == ["--one"]:
        print(json.dumps(tune(arguments[1], int(arguments[2]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        uris = arguments or [folder]
        if not arguments and os.environ.get("AWS_ENDPOINT_URL"):
            uris.append(f"s3://kfp-hpo-benchmarks/{secrets.token_hex(4)}")
        for uri in uris:
            show(uri)
        if len(uris) < 2 and not arguments:
            print("\nS3: not measured, AWS_ENDPOINT_URL names no server")


if __name__ == "__main__":
    main(sys.argv[1:])
