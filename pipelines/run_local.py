"""Run the shipped pipeline on this machine: `python -m pipelines.run_local EXPERIMENT.yaml TRAINER_DIR`.

kfp's local runner gives each step a process of this interpreter. What the steps leave is shown at the end from the
records, after kfp's own output.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpo_core.cli import show
from hpo_core.errors import HpoError
from hpo_core.launch.supervisor import descendants
from hpo_core.lint import lint, read_text
from hpo_core.publish import read_status
from hpo_core.store import ExperimentStore, list_experiments
from hpo_core.tuner import Interruption, Place, request_stop, wait_for_stop

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the pipeline; returns the exit code, 0 when the final model was trained."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml", help="Katib Experiment")
    parser.add_argument("trainer", metavar="TRAINER_DIR", help="folder with the trainer's Dockerfile")
    parser.add_argument("--store", default=os.environ.get("HPO_STORE", "./.hpo"), help="where records are kept")
    arguments = parser.parse_args()
    place = Place.of(arguments.store)
    if "python3" in place.uri:
        message = f"--store: kfp's local runner replaces `python3` in paths, got {place.uri}: choose another"
        print(message, file=sys.stderr)
        return 2
    before = set(list_experiments(place.objects))
    try:
        text = read_text(arguments.experiment)
        lint(text).experiment()
    except HpoError as error:
        print(f"{arguments.experiment}: {error}", file=sys.stderr)
        return 2

    def launched() -> list[ExperimentStore]:
        found = sorted(set(list_experiments(place.objects)) - before)
        return [place.store(namespace, name) for namespace, name in found]

    done = threading.Event()
    with Interruption() as interruption:
        watch = threading.Thread(target=_stop_when_asked, args=(interruption, launched, done), daemon=True)
        watch.start()
        failure = _run_pipeline(text, str(Path(arguments.trainer).absolute()), place.uri)
        done.set()
        watch.join()
        if interruption.requested:
            return _leave(launched(), place)
    return _show(launched(), place, failure)


def _run_pipeline(text: str, trainer: str, store: str) -> str:
    """Run it in this process; returns why it failed, "" when it did not."""
    # kfp warns of things that are no concern of whoever runs a pipeline here: image names, resources without meaning.
    warnings.simplefilter("ignore")
    local = _import_runner()

    from pipelines.tune_and_retrain import tune_and_retrain

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(Path(store) / ".pipeline"))
    try:
        tune_and_retrain(experiment_yaml=text, context=trainer, store=store)
    except (RuntimeError, ValueError) as error:  # what kfp raises when a step has failed; the step has said why
        return str(error)
    return ""


def _import_runner() -> Any:
    """Import kfp's local runner, which looks for a package `docker`: the folder of that name here is none."""
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() != ROOT]
    try:
        from kfp import local
        from kfp.local import task_dispatcher  # noqa: F401  it is this one that looks, when it is first used
    finally:
        sys.path[:] = path
    return local


def _stop_when_asked(
    interruption: Interruption, launched: Callable[[], list[ExperimentStore]], done: threading.Event
) -> None:
    """Hand an interruption on, again and again until the pipeline has ended.

    kfp passes no signal to its steps, and whoever sends one may mean this process alone, not its group as a terminal.
    """
    while not done.wait(0.1):
        if not interruption.requested:
            continue
        for store in launched():
            request_stop(store, by="run_local")
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == os.getsid(0):  # a step; tuners and supervisors have sessions of their own
                    os.kill(pid, signal.SIGTERM)


def _leave(stores: list[ExperimentStore], place: Place) -> int:
    """After an interruption: wait until nothing runs any more, and say how to go on."""
    print("\n\ninterrupted")
    for store in stores:
        request_stop(store, by="run_local")
        seen = wait_for_stop(store, place)
        stands = seen.verdict.message if seen else "it had not begun"
        print(f"{store.name}: {stands}; nothing of it is left running. To go on:")
        print(f"{_command()} run {store.uri}/experiment.yaml --store {place.uri}")
    return 130


def _command() -> str:
    """How `hpo` is called here: it lies beside the interpreter, which need not be on the PATH."""
    return os.path.relpath(Path(sys.executable).with_name("hpo"))


def _show(stores: list[ExperimentStore], place: Place, failure: str) -> int:
    """Print what the run found."""
    if not stores:
        print(f"the pipeline failed before it launched an experiment: {failure}", file=sys.stderr)
        return 3
    store = stores[-1]
    experiment, seen = store.load(), read_status(store)
    print("\n")
    if seen is not None:
        show.trials(experiment, store.trials())
        print()
        show.result(experiment, seen.verdict, seen.progress, store)
    retrained = json.loads(store.derived("retrain.json") or "{}")
    if failure or not retrained.get("succeeded"):
        print(f"the pipeline failed: {failure or retrained.get('message', 'no model was trained')}", file=sys.stderr)
        return 3
    print("retrained " + " ".join(f"{name}={value:g}" for name, value in retrained["metrics"].items()))
    for key in store.outputs("retrain"):
        print(f"model   {place.objects.uri}/{key}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
