"""A tuner in the background: a process of its own session, which neither the end of whoever started it nor a signal to
that one's group reaches.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hpo_core.errors import Conflict, HpoError, LaunchError, NotFound, Problem, SpecError, StoreError
from hpo_core.exit_codes import REFUSED
from hpo_core.experiment import Experiment, dump_yaml
from hpo_core.lint import LOCAL, lint
from hpo_core.loop import Patience, SystemClock
from hpo_core.status import ExperimentCondition
from hpo_core.store import TUNING, ExperimentStore
from hpo_core.tuner.foreground import await_lease, check_permissions, check_store, run_experiment
from hpo_core.tuner.interruption import ALERT_S, Interruption
from hpo_core.tuner.place import Handle, Place

READY_S = 60.0
"""How long a new tuner may take to say that it holds the lease."""

LAST_WORD = Path("/dev/termination-log")

_log = logging.getLogger(__name__)


def launch(experiment: Experiment, place: Place, *, run_id: str = "") -> Handle:
    """Start a tuner in the background and return once it holds the lease and has recorded the experiment.

    Idempotent: an experiment of the same spec that is running already is taken as this one.

    Args:
        experiment: As loaded.
        place: Where its records are to be.
        run_id: What makes this launch one of its own: another one gets its own experiment, whose name ends in a hash of
            it. "" takes the experiment's name as it stands.

    Raises:
        SpecError: An experiment of that name has another spec.
        Conflict: It is being retrained.
        LaunchError: The tuner did not come up; the message has its last words.
    """
    if run_id:
        experiment = experiment.renamed(run_id)
    start_tuner(experiment, place)
    return Handle(experiment.namespace, experiment.name, place.uri, place.backend, experiment.spec_hash, run_id)


def start_tuner(
    experiment: Experiment, place: Place, *, goes_on: bool = True, should_stop: Callable[[], bool] = lambda: False
) -> None:
    """Start a tuner, unless one runs this very experiment, and wait for its word.

    Args:
        experiment: As loaded.
        place: Where its records are.
        goes_on: Whether somebody means the experiment to go on, whatever was asked before; see `ExperimentStore.lease`.
        should_stop: Asked several times a second; true ends the waiting, and the tuner that was started goes on.

    Raises:
        SpecError, Conflict, LaunchError, StoreError: As `launch`.
    """
    store = place.store(experiment.namespace, experiment.name)
    order = {
        "document": dump_yaml(experiment.document),
        "place": asdict(place),
        "namespace": experiment.namespace,
        "goesOn": goes_on and place.backend == LOCAL,  # a Job's pods take each other's place
    }
    if place.backend == LOCAL:
        _start_process(experiment, place, order, store, should_stop)
        return
    check_store(place)
    if store.is_held():
        if not runs_the_same(store, experiment):
            raise store.refusal()
        return
    check_permissions(place, experiment, launching=True, gave_up=should_stop)
    if goes_on:
        store.drop_stops()
    # Imported here: the Kubernetes client is dear, and local tuners need none.
    from hpo_core.tuner import cluster_job
    from hpo_core.tuner.pod_store import tuner_environment

    pod = cluster_job.TunerPod(**place.pod, environment=tuner_environment(place.uri))
    # Whoever starts it again, as one who waits does, need not know the image by himself.
    told = replace(place, pod={**place.pod, "image": pod.image})
    order = {**order, "place": asdict(told)}
    cluster_job.start(place.kube(experiment), experiment, order, store, pod, should_stop=should_stop)


def _start_process(
    experiment: Experiment,
    place: Place,
    order: Mapping[str, Any],
    store: ExperimentStore,
    should_stop: Callable[[], bool],
) -> None:
    """Start a tuner process, and wait for its word."""
    log = place.tuner_log(experiment.namespace, experiment.name)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors, tempfile.TemporaryFile() as told:
            told.write(json.dumps(order).encode())
            told.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-m", "hpo_core.tuner"],
                stdin=told,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
    except OSError as error:
        raise StoreError(f"cannot start a tuner that logs to {log}: {error.strerror}; mend this") from error
    answer = _answer_of(process, should_stop)
    if answer is None or "ready" in answer:
        return
    if answer.get("kind") == "Conflict" and runs_the_same(store, experiment):
        return
    said = answer.get("error") or last_words(place, experiment)
    if answer.get("kind") == "SpecError":
        raise SpecError([Problem("", said)])
    if answer.get("kind") == "Conflict":
        raise Conflict(said)
    raise LaunchError(f"the tuner of {experiment.name!r} did not start: {said}")


def _answer_of(process: subprocess.Popen[bytes], should_stop: Callable[[], bool]) -> dict[str, Any] | None:
    """Wait for a new tuner's one line; None when told to stop.

    The answer is empty when the tuner died, or said nothing in time, which ends it.
    """
    assert process.stdout is not None
    until = time.monotonic() + READY_S
    with process.stdout:
        while not select.select([process.stdout], [], [], ALERT_S)[0]:
            if should_stop():
                return None
            if time.monotonic() >= until:
                process.kill()
                process.wait()
                return {}
        with contextlib.suppress(ValueError):
            answer = json.loads(process.stdout.readline())
            return answer if isinstance(answer, dict) else {}
    return {}


def runs_the_same(store: ExperimentStore, experiment: Experiment) -> bool:
    """Tell whether the holder of the lease tunes this very experiment, with these budgets or edited ones."""
    try:
        running = store.load()
    except NotFound:
        return False
    if store.holder().get("purpose") != TUNING or running.spec_hash != experiment.spec_hash:
        return False
    return store.keeps_budget(running, experiment)


def last_words(place: Place, experiment: Experiment) -> str:
    """Say what an experiment's background tuner said last, and where."""
    log = place.tuner_log(experiment.namespace, experiment.name)
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    words = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    return f"its last words in {log}: {words}"


@contextlib.contextmanager
def _answering() -> Iterator[Callable[[Mapping[str, str]], None]]:
    """Give a function that sends the one line to whoever started this process, and then lets go of the pipe."""
    pipe = os.dup(1)
    os.set_inheritable(pipe, False)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    answered = False

    def answer(content: Mapping[str, str]) -> None:
        nonlocal answered
        if not answered:
            answered = True
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe, json.dumps(dict(content)).encode() + b"\n")
            os.close(pipe)

    yield answer


def main(arguments: Sequence[str]) -> int:
    """Be the background tuner: take an order from stdin, answer with one line, run to the end.

    In a cluster the order is in the file that is named, and the answer of one who is refused is the pod's last word.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if arguments:
        return _tune_in_pod(Path(arguments[0]))
    order = json.load(sys.stdin)
    place = Place(**order["place"])
    with _answering() as answer, Interruption() as interruption:
        try:
            experiment = lint(order["document"], namespace=order["namespace"], backend=place.backend).experiment()
            run_experiment(
                experiment,
                place,
                should_stop=lambda: interruption.requested,
                goes_on=order["goesOn"],
                watched=False,
                ready=lambda accepted: answer({"ready": accepted.uid}),
            )
        except HpoError as error:
            answer({"error": str(error), "kind": type(error).__name__})
            _log.error("tuner.failed reason=%s", error)
            return 1
    return 0


def _tune_in_pod(order_file: Path) -> int:
    """Run an order in a pod of the tuner's Job; returns the exit code by which the Job knows whether to try again.

    It is REFUSED for one that would be refused again, however often the Job tried.

    A pod is asked to end when it is deleted or its node drained, which nobody means for the experiment: the next pod
    goes on with it.
    """
    order = json.loads(order_file.read_text())
    place = Place(**order["place"])
    begun: list[Experiment] = []
    with Interruption() as interruption:
        try:
            experiment = lint(order["document"], namespace=order["namespace"], backend=place.backend).experiment()
            store = place.store(experiment.namespace, experiment.name)
            patiently = Patience(SystemClock(), gave_up=lambda: interruption.requested)
            patiently(await_lease, store, lambda: interruption.requested)
            final = run_experiment(
                experiment,
                place,
                should_leave=lambda: interruption.requested,
                goes_on=False,
                watched=False,
                ready=begun.append,
            )
            if final.verdict.condition is ExperimentCondition.SUSPENDED:
                # Imported here: the Kubernetes client is dear, and local tuners need none.
                from hpo_core.tuner import cluster_job

                cluster_job.keep_briefly(place.kube(experiment), experiment)
        except HpoError as error:
            if begun or not isinstance(error, SpecError | Conflict):
                _log.error("tuner.failed reason=%s", error)
                return 1
            with contextlib.suppress(OSError):
                LAST_WORD.write_text(str(error))
            _log.error("tuner.refused reason=%s", error)
            return REFUSED
    return 0
