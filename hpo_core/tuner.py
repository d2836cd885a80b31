"""A tuner of an experiment, here or in the background: start it, wait for it, ask it to stop. Components call this.

It puts the parts together: a store's address becomes records, a lease, scratch space and a launcher. The background
tuner is a process of its own session, so that neither the end of whoever started it nor a signal to that one's group
reaches it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpo_core import images, loop
from hpo_core.errors import Conflict, HpoError, LaunchError, NotFound, Problem, SpecError, StoreError
from hpo_core.experiment import Experiment, dump_yaml
from hpo_core.launch.command import grace_s
from hpo_core.launch.local import LocalLauncher
from hpo_core.lint import lint
from hpo_core.objects import DirectoryStore, open_objects
from hpo_core.publish import Publisher, report_page
from hpo_core.search import make_search
from hpo_core.status import ExperimentCondition, Progress, Verdict
from hpo_core.store import RETRAINING, STOP, TUNING, ExperimentStore, Request

POLL_S = 0.1
"""How often a waiting process looks: for its own end, and through the store for the tuner's."""
READY_S = 60.0
"""How long a new tuner may take to say that it holds the lease."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where an experiment's records, images and scratch files lie on this machine.

    Attributes:
        uri: The store's address, absolute.
        directory: Working directory of trials whose image is no local image, absolute.
    """

    uri: str
    directory: str

    @classmethod
    def of(cls, store: str, directory: str | Path = ".") -> Place:
        """Make the place of a store's address as a user gave it."""
        uri = store if "://" in store else str(Path(store).absolute())
        return cls(uri, str(Path(directory).absolute()))

    @property
    def objects(self) -> DirectoryStore:
        """The object store."""
        return open_objects(self.uri)

    @property
    def images_root(self) -> Path:
        """Where local images lie."""
        return images.images_root(self.objects.root)

    def store(self, namespace: str, name: str) -> ExperimentStore:
        """The records of one experiment."""
        return ExperimentStore(self.objects, namespace, name)

    def tuner_log(self, namespace: str, name: str) -> Path:
        """Where a background tuner writes what it has to say."""
        return self.objects.root / namespace / name / "tuner.log"

    def launcher(self, experiment: Experiment, *, parallel: int) -> LocalLauncher:
        """A launcher that finds again what an earlier one started for this experiment."""
        return LocalLauncher(
            self.objects.root / ".scratch" / experiment.uid,
            images_root=self.images_root,
            directory=Path(self.directory),
            parallel=parallel,
        )


@dataclass(frozen=True)
class Handle:
    """A launched experiment, as one step of a pipeline tells the next."""

    namespace: str
    name: str
    store: str
    backend: str
    spec_hash: str
    run_id: str = ""

    def to_json(self) -> str:
        """Write it as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Handle:
        """Read it from JSON text.

        Raises:
            SpecError: The text is no handle.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            message = f"is no handle of an experiment: {error}; give the output `handle` of the launch step"
            raise SpecError([Problem("handle", message)]) from error


class Interruption:
    """Whether this process has been asked to end: by SIGINT, SIGTERM, SIGHUP, a closed stdout or a vanished parent.

    A context manager; inside, the signals only set `requested`.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, *, watch_stdout: bool = False, watch_parent: bool = False) -> None:
        self._flag = False
        self._parent = os.getppid() if watch_parent else 0
        self._stdout = select.poll() if watch_stdout else None
        if self._stdout is not None:
            self._stdout.register(1, 0)

    def __enter__(self) -> Interruption:
        self._before = [(number, signal.signal(number, self._on_signal)) for number in self._SIGNALS]
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:  # noqa: ARG002  the signature is the interpreter's
        self._flag = True

    @property
    def requested(self) -> bool:
        """Whether the end was asked for; stays true."""
        if self._parent and os.getppid() != self._parent:
            self._flag = True
        if self._stdout is not None and any(mask & select.POLLERR for _, mask in self._stdout.poll(0)):
            self._flag = True
        return self._flag


def run_experiment(
    experiment: Experiment,
    place: Place,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    show: Callable[[Progress], None] = lambda progress: None,
    ready: Callable[[Experiment], None] = lambda experiment: None,
) -> loop.Snapshot:
    """Run an experiment in this process until it is over or suspended; goes on with one that was begun.

    Args:
        experiment: As loaded.
        place: Where its records are.
        should_stop: Asked several times a second; true suspends it.
        show: Told of progress at every change.
        ready: Called once the lease is held, the experiment is recorded and its status can be read.

    Raises:
        SpecError: It was begun with another spec.
        BuildError: Its local image is not on this machine.
        Conflict: Another process is running it.
        StoreError, LaunchError: Our own work failed; it can be resumed.
    """
    images.find_local_image(experiment.template.primary_image, place.images_root)
    clock = loop.SystemClock()
    store = place.store(experiment.namespace, experiment.name)
    with store.lease(_owner(TUNING)), Publisher(store, clock) as publisher:
        accepted = store.accept(experiment, now=clock.now())
        there = launched_place(store, place)
        store.save_derived("launch.json", json.dumps({"directory": there.directory}))
        launcher = there.launcher(accepted, parallel=accepted.parallel_trial_count)
        run = loop.Run(accepted, store, launcher, make_search(accepted), clock=clock, should_stop=should_stop)
        publisher.write(run.snapshot())
        ready(accepted)

        def after_turn(job: loop.Run, changed: bool) -> None:
            publisher.offer(job, changed)
            if changed:
                show(job.progress())

        final = loop.run(run, after_turn)
        publisher.publish(final)
    return final


def run(experiment: Experiment, store: str = "./.hpo", directory: str | Path = ".") -> loop.Snapshot:
    """Run an experiment in this process until it is over, from Python; goes on with one that was begun.

    Args:
        experiment: As `load_experiment` gives it.
        store: Where records are kept: a directory.
        directory: Working directory of trials whose image is no local image.

    Raises:
        HpoError: See `run_experiment`; the experiment can be resumed.
    """
    return run_experiment(experiment, Place.of(store, directory))


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
    _start_tuner(experiment, place)
    return Handle(experiment.namespace, experiment.name, place.uri, "local", experiment.spec_hash, run_id)


@dataclass(frozen=True)
class Waited:
    """What a waiting process saw last."""

    verdict: Verdict
    progress: Progress


def wait(
    store: ExperimentStore,
    place: Place,
    *,
    show: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Waited | None:
    """Wait until an experiment is over or suspended; a tuner that died is started once more.

    Args:
        store: Its records.
        place: Where they are, for a tuner that must be started again.
        show: Told of every progress.
        should_stop: Asked several times a second; true ends the waiting, not the experiment.

    Returns:
        How it ended; None when the waiting was ended.

    Raises:
        NotFound: There is no such experiment.
        LaunchError: Its tuner died twice.
    """
    experiment = store.load()
    restarted = False
    shown: Progress | None = None
    while not should_stop():
        held = store.is_held()  # asked before the status is read: who is gone has written his last
        seen = read_status(store)
        if seen is not None and seen.progress != shown:
            shown = seen.progress
            show(seen.progress)
        if not held:
            if seen is not None and seen.verdict.condition is not ExperimentCondition.RUNNING:
                return seen
            if restarted:
                words = _last_words(place, experiment)
                raise LaunchError(f"the tuner of {experiment.name!r} died twice; {words}; `hpo run` shows more")
            _log.warning("tuner.restarted experiment=%s", experiment.name)
            _start_tuner(experiment, launched_place(store, place))
            restarted = True
        time.sleep(POLL_S)
    return None


def request_stop(store: ExperimentStore, by: str) -> bool:
    """Ask the tuner to suspend the experiment; False when none is running it."""
    if not store.is_held():
        return False
    store.send(Request(STOP, by))
    return True


def wait_for_stop(store: ExperimentStore, margin_s: float = 60.0) -> Waited | None:
    """Wait until the tuner that was asked to stop has gone.

    Args:
        store: The experiment's records.
        margin_s: Seconds that it may take beyond the grace that its trials get.

    Raises:
        LaunchError: It is still there after that time.
    """
    timeout_s = grace_s(store.load().template.trial_spec) + margin_s
    until = time.monotonic() + timeout_s
    while store.is_held():
        if time.monotonic() >= until:
            raise LaunchError(f"the tuner of {store.name!r} has not stopped within {timeout_s:g} s; try again")
        time.sleep(POLL_S)
    return read_status(store)


def read_status(store: ExperimentStore) -> Waited | None:
    """Return what the tuner published last; None when it has not yet."""
    published = store.derived_json("status.json")
    try:
        verdict = published["verdict"]
        condition = ExperimentCondition(verdict["condition"])
        return Waited(Verdict(**{**verdict, "condition": condition}), Progress(**published["progress"]))
    except (KeyError, TypeError, ValueError):
        return None


def retrain(
    store: ExperimentStore,
    place: Place,
    values: Mapping[str, Any],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    model_dir: Path | None = None,
    show: Callable[[str], None] = lambda line: None,
) -> loop.Retraining:
    """Train the final model of an experiment in this process; see `loop.retrain`.

    Raises:
        Conflict: The experiment is being run or retrained by another process.
    """
    experiment = store.load()
    there = launched_place(store, place)
    requests_at = 0.0

    def stop_asked() -> bool:
        nonlocal requests_at
        if should_stop():
            return True
        if time.monotonic() < requests_at:
            return False
        requests_at = time.monotonic() + loop.INBOX_S
        return any(request.kind == STOP for request in store.requests())

    with store.lease(_owner(RETRAINING)):
        done = loop.retrain(
            experiment,
            values,
            store,
            there.launcher(experiment, parallel=1),
            should_stop=stop_asked,
            model_dir=model_dir,
            show=show,
        )
        seen = read_status(store)
        if seen is not None:
            store.save_derived("report.html", report_page(store, experiment, store.trials(), seen.verdict))
    return done


def _owner(purpose: str) -> dict[str, Any]:
    """What the holder of a lease tells of itself."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": loop.SystemClock().now(), "purpose": purpose}


def launched_place(store: ExperimentStore, place: Place) -> Place:
    """Return the place with the directory that the experiment was first launched in, if that is still there."""
    directory = store.derived_json("launch.json").get("directory")
    return Place(place.uri, directory) if isinstance(directory, str) and Path(directory).is_dir() else place


def _start_tuner(experiment: Experiment, place: Place) -> None:
    """Start a tuner process, unless one runs this very experiment, and wait for its word."""
    store = place.store(experiment.namespace, experiment.name)
    log = place.tuner_log(experiment.namespace, experiment.name)
    order = {"document": dump_yaml(experiment.document), "place": asdict(place), "namespace": experiment.namespace}
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
    answer = _answer_of(process)
    if "ready" in answer:
        return
    if answer.get("kind") == "Conflict" and _runs_the_same(store, experiment):
        return
    said = answer.get("error") or _last_words(place, experiment)
    if answer.get("kind") == "SpecError":
        raise SpecError([Problem("", said)])
    if answer.get("kind") == "Conflict":
        raise Conflict(said)
    raise LaunchError(f"the tuner of {experiment.name!r} did not start: {said}")


def _answer_of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for a new tuner's one line; empty when it died, or said nothing in time, which ends it."""
    assert process.stdout is not None
    with process.stdout:
        ready, _, _ = select.select([process.stdout], [], [], READY_S)
        if not ready:
            process.kill()
            process.wait()
            return {}
        with contextlib.suppress(ValueError):
            answer = json.loads(process.stdout.readline())
            return answer if isinstance(answer, dict) else {}
    return {}


def _runs_the_same(store: ExperimentStore, experiment: Experiment) -> bool:
    """Tell whether the holder of the lease tunes this very experiment, with these budgets."""
    try:
        return store.holder().get("purpose") == TUNING and store.load().same_request(experiment)
    except NotFound:
        return False


def _last_words(place: Place, experiment: Experiment) -> str:
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


def main() -> int:
    """Be the background tuner: take an order from stdin, answer with one line, run to the end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    order = json.load(sys.stdin)
    place = Place(**order["place"])
    with _answering() as answer, Interruption() as interruption:
        try:
            experiment = lint(order["document"], namespace=order["namespace"]).experiment()
            run_experiment(
                experiment,
                place,
                should_stop=lambda: interruption.requested,
                ready=lambda accepted: answer({"ready": accepted.uid}),
            )
        except HpoError as error:
            answer({"error": str(error), "kind": type(error).__name__})
            _log.error("tuner.failed reason=%s", error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
