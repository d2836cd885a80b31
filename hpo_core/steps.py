"""What each step of a pipeline does, from texts and paths to texts and files; the components only call these.

Structured values travel as JSON text. Nothing here knows kfp. A step that fails says why in its last words; one whose
store or cluster does not answer for a while goes on when it does.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from hpo_core import __version__, images, report, tuner
from hpo_core.errors import BuildError, HpoError, LaunchError, Problem, SpecError
from hpo_core.exit_codes import INTERRUPTED
from hpo_core.experiment import Experiment
from hpo_core.lint import lint
from hpo_core.loop import Patience, SystemClock
from hpo_core.publish import REPORT, SUMMARY
from hpo_core.report.rows import best_row
from hpo_core.space import Value
from hpo_core.status import ExperimentCondition, Progress, Verdict
from hpo_core.store import ExperimentStore
from hpo_core.trial import TrialCondition
from hpo_core.tuner import Handle, Interruption, Place

_P = ParamSpec("_P")
_T = TypeVar("_T")


def patient(action: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function that may be called as often as one likes be called again while it fails transiently."""

    @functools.wraps(action)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return Patience(SystemClock())(action, *args, **kwargs)

    return called


def require(version: str) -> None:
    """Refuse to run in an image of another version than the component was made for.

    From here on this process tells an error of ours by its message alone: the way to it says nothing to a user.

    Raises:
        SpecError: The versions differ.
    """
    sys.excepthook = _tell
    if version != __version__:
        message = f"the component is of version {version}, its image has {__version__}: use the image tagged {version}"
        raise SpecError([Problem("base_image", message)])


def build(context: str, *, image: str = "", name: str = "", store: str = "") -> str:
    """Build the trainer image and return its reference; one that is given is returned as it is.

    Returns:
        The reference; "" when neither a folder nor an image is given, for the template's own.

    Raises:
        BuildError: The folder or its Dockerfile cannot be built; or this is a cluster, where no step can build.
    """
    if image or not context:
        given = _as_given(image)
        print(f"the trainer image is {given or 'the one that the experiment names'}", flush=True)
        return given
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        raise BuildError(
            f"a step in a cluster cannot build {context!r}: build the image with docker, podman or buildah, push it, "
            "and give its reference as `image`"
        )
    built = images.build(Path(_as_given(context)), store_root=_place(store).home, name=name)
    for line in built.skipped:
        print(f"skipped {line}", flush=True)
    print(f"{'found' if built.already_built else 'built'} {built.reference}", flush=True)
    return built.reference


@patient
def launch(experiment_yaml: str, *, image: str = "", namespace: str = "", run_id: str = "", store: str = "") -> str:
    """Start the tuner in the background; returns the handle as JSON.

    Raises:
        SpecError: The document cannot be run; every problem is listed.
        LaunchError: The tuner did not come up.
    """
    draft = lint(_as_given(experiment_yaml), image=_as_given(image), namespace=namespace)
    for warning in draft.findings.warnings:
        print(f"warning: {warning}", flush=True)
    handle = tuner.launch(draft.experiment(), _place(store), run_id=run_id)
    print(f"experiment {handle.namespace}/{handle.name} runs; its records are in {handle.store}", flush=True)
    return handle.to_json()


def wait(handle: str, report_path: str, summary_path: str) -> str:
    """Wait for the end and write the report, also of an experiment that failed; returns the verdict as JSON.

    An interruption, a closed stdout or a vanished parent suspend the experiment.

    Raises:
        SystemExit: This step was interrupted; the experiment is suspended.
        LaunchError: The tuner died twice.
    """
    store, place = _store(handle)
    with Interruption(watch_stdout=True, watch_parent=True) as interruption:
        waited = tuner.wait(store, place, show=_print_progress, should_stop=lambda: interruption.requested)
        if waited is None:
            # As often as there is time for; a tuner that is just being started is asked too.
            patient(tuner.request_stop)(store, by="wait_for_experiment", ahead=True)
    if waited is None:
        sys.exit(INTERRUPTED)
    _write(report_path, store.derived(REPORT) or "")
    _write(summary_path, store.derived(SUMMARY) or "")
    return json.dumps(
        {"condition": waited.verdict.condition, "reason": waited.verdict.reason, "message": waited.verdict.message}
    )


@dataclass(frozen=True)
class Best:
    """The best assignment, as JSON text, and its objective value under the metric's name."""

    parameters: str
    value: float
    metric: str


@patient
def extract(handle: str, verdict: str) -> Best:
    """Return the best assignment of an experiment that is over.

    Raises:
        LaunchError: The experiment failed, was suspended, or no trial succeeded; the message says why.
    """
    store, _ = _store(handle)
    experiment, trials = store.load(), store.trials()
    given = json.loads(_as_given(verdict))
    row = best_row(report.trial_rows(experiment, trials))
    if given["condition"] != ExperimentCondition.SUCCEEDED or row is None or row.objective is None:
        raise LaunchError(_why_none(store, experiment, Verdict(**given)))
    best = report.best_parameters(experiment, trials)
    print(f"best {experiment.objective.metric_name}={row.objective:.6g} with {json.dumps(best)}", flush=True)
    return Best(json.dumps(best), row.objective, experiment.objective.metric_name)


def retrain(handle: str, best_parameters: str, model_path: str) -> Mapping[str, float]:
    """Train the final model into a folder; returns the last value of every metric that it printed.

    Of an earlier try of this step that was killed the training is followed, once the lease of that one has run out.

    Raises:
        SystemExit: This step was interrupted; the training was ended.
        Conflict: The experiment is being run or retrained by somebody else.
        LaunchError: The training failed; the message has its last lines.
    """
    store, place = _store(handle)
    values = _typed(patient(store.load)(), best_parameters)
    Path(model_path).mkdir(parents=True, exist_ok=True)
    with Interruption(watch_stdout=True, watch_parent=True) as interruption:
        patient(tuner.await_lease)(store, lambda: interruption.requested)
        done = tuner.retrain(
            store,
            place,
            values,
            should_stop=lambda: interruption.requested,
            model_dir=Path(model_path),
            show=lambda line: print(line, flush=True),
        )
        if interruption.requested:
            sys.exit(INTERRUPTED)
    if not done.succeeded:
        raise LaunchError(f"the retraining {done.name} failed: {done.reason}: {done.message}")
    if not any(Path(model_path).iterdir()):
        raise LaunchError(
            "the retraining left no model: the trainer has to write one to the folder HPO_OUTPUT_DIR names"
        )
    return done.metrics


def cleanup(experiment_yaml: str, *, namespace: str = "", run_id: str = "", store: str = "") -> str:
    """Suspend the experiment that a run launched, if it still runs, and remove what is left of it in the cluster.

    It is for the end of a pipeline, whatever came before. Records and models stay.

    Returns:
        What was done, in a sentence.

    Raises:
        LaunchError: It has not stopped in time.
    """
    experiment = lint(_as_given(experiment_yaml), namespace=namespace).experiment()
    experiment = experiment.renamed(run_id) if run_id else experiment
    place = patient(_place)(store)
    records = patient(place.store)(experiment.namespace, experiment.name)
    was_running = patient(tuner.request_stop)(records, by="cleanup_experiment")
    if was_running:
        patient(tuner.wait_for_stop)(records, place)
    patient(tuner.clear)(experiment, place)
    return f"the experiment {experiment.name} was {'suspended' if was_running else 'not running'}"


def _as_given(text: str) -> str:
    """Return a step's input as the user gave it.

    kfp's local runner puts the path of its interpreter in place of every `python3` in a step's whole command line, and
    so in the values too: in a trial's command, an image's name, a folder's.
    """
    return text if "KUBERNETES_SERVICE_HOST" in os.environ else text.replace(sys.executable, "python3")


def _place(store: str) -> Place:
    return Place.of(_as_given(store), pod=tuner.pod_like_own())


@patient
def _store(handle: str) -> tuple[ExperimentStore, Place]:
    told = Handle.from_json(_as_given(handle))
    place = Place.of(told.store, pod=tuner.pod_like_own())
    return place.store(told.namespace, told.name), place


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, HpoError):
        print(f"{kind.__name__}: {error}", file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, trace)


def _print_progress(progress: Progress) -> None:
    print(progress.line(), flush=True)


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def _typed(experiment: Experiment, best_parameters: str) -> dict[str, Value]:
    """Read an assignment from JSON text; pipelines turn numbers into others, so the search space decides the types."""
    try:
        given = json.loads(_as_given(best_parameters))
        return {p.name: p.parse(str(given[p.name])) for p in experiment.parameters}
    except (ValueError, KeyError, TypeError) as error:
        names = ", ".join(parameter.name for parameter in experiment.parameters)
        message = f"must be a JSON object with a value for each of {names}, got {best_parameters!r}"
        raise SpecError([Problem("best_parameters", message)]) from error


def _why_none(store: ExperimentStore, experiment: Experiment, verdict: Verdict) -> str:
    """Say why there is no best assignment, with the reason of the last trial that failed by itself."""
    failed = [t for t in store.trials() if t.condition in (TrialCondition.FAILED, TrialCondition.METRICS_UNAVAILABLE)]
    last = f"; trial {failed[-1].number}: {failed[-1].reason}: {failed[-1].message}" if failed else ""
    return f"the experiment {experiment.name!r} has no result: {verdict.message} ({verdict.reason}){last}"
