"""What each command of `hpo` does; every function takes the parsed arguments and returns the exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from hpo_core import lint as linting
from hpo_core import manifest, search, tuner
from hpo_core import report as reporting
from hpo_core.cli import show
from hpo_core.errors import NotFound, Problem, SpecError
from hpo_core.exit_codes import DONE, INTERRUPTED, NO_RESULT, REFUSED
from hpo_core.experiment import Draft, Experiment, dump_yaml, parse_yaml
from hpo_core.experiment.document import near_miss
from hpo_core.experiment.model import BUDGET_FIELDS
from hpo_core.publish import REPORT, read_status
from hpo_core.space import Value
from hpo_core.status import ExperimentCondition, Progress, Tally, Verdict
from hpo_core.store import ExperimentStore, list_experiments, trial_from_json, trial_to_json
from hpo_core.trial import Trial
from hpo_core.tuner import Interruption, Place

Command: TypeAlias = Callable[[argparse.Namespace], int]

MOST_ROWS = 100
"""A run of more trials does not print them all at its end."""


def lint(arguments: argparse.Namespace) -> int:
    """Print every problem and warning of a document."""
    draft = _draft(arguments)
    for warning in draft.findings.warnings:
        print(f"warning: {warning}")
    for problem in draft.findings.problems:
        print(f"error: {problem}")
    if draft.findings.problems:
        return REFUSED
    print(f"{arguments.file}: an experiment that can be run")
    return DONE


def render(arguments: argparse.Namespace) -> int:
    """Print the manifest of a trial."""
    experiment = _experiment(arguments)
    values = _values(experiment, arguments.values)
    print(dump_yaml(manifest.render(experiment, values, f"{experiment.name}-example")), end="")
    return DONE


def suggest(arguments: argparse.Namespace) -> int:
    """Print the next assignments."""
    experiment = _experiment(arguments)
    history: list[Trial] = []
    if arguments.history:
        records = parse_yaml(linting.read_text(arguments.history))
        try:
            history = [trial_from_json(record) for record in records]
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            message = f"must be a JSON list of trials as `hpo trials NAME -o records` prints them: {error!r}"
            raise SpecError([Problem(arguments.history, message)]) from error
    suggestion = search.make_search(experiment).ask(history, arguments.count)
    assignments = [dict(assignment.values) for assignment in suggestion.assignments]
    print(json.dumps({"assignments": assignments, "exhausted": suggestion.exhausted}, indent=1))
    return DONE


def algorithms(arguments: argparse.Namespace) -> int:  # noqa: ARG001  every command has the same signature
    """Print every algorithm with its settings, as Markdown."""
    for name in search.ALGORITHMS:
        print(f"## {name}\n\n{search.describe(name)}")
    return DONE


def build(arguments: argparse.Namespace) -> int:
    """Build the trainer image; its reference alone goes to stdout."""
    from hpo_core import images  # a Dockerfile's grammar is dear to import, and no other command needs it

    place = _place(arguments)
    image = images.build(
        Path(arguments.context),
        store_root=place.home,
        name=arguments.tag,
        build_args=dict(_pairs(arguments.build_arg, "--build-arg")),
    )
    for line in image.skipped:
        print(f"skipped {line}", file=sys.stderr)
    print(image.reference)
    return DONE


def run(arguments: argparse.Namespace) -> int:
    """Run an experiment in the foreground."""
    experiment = _told_experiment(arguments)
    place = _place(arguments)
    progress = show.ProgressLine()
    with Interruption() as interruption:
        final = tuner.run_experiment(experiment, place, should_stop=lambda: interruption.requested, show=progress)
    progress.close()
    if len(final.trials) <= MOST_ROWS:
        show.trials(final.experiment, final.trials)
        print()
    show.result(final.experiment, final.verdict, final.progress, place.store(experiment.namespace, experiment.name))
    return _result_code(final.verdict, final.progress)


def launch(arguments: argparse.Namespace) -> int:
    """Start an experiment in the background."""
    place = replace(_place(arguments), pod=_tuner_pod(arguments))
    handle = tuner.launch(_told_experiment(arguments), place)
    print(f"experiment {handle.name} runs in the namespace {handle.namespace}; `hpo wait {handle.name}` shows it")
    return DONE


def wait(arguments: argparse.Namespace) -> int:
    """Wait for an experiment; an interruption ends the waiting alone."""
    store, place = _store(arguments)
    progress = show.ProgressLine()
    with Interruption() as interruption:
        waited = tuner.wait(store, place, show=progress, should_stop=lambda: interruption.requested)
    progress.close()
    if waited is None:
        print(f"{store.name} goes on; `hpo wait {store.name}` shows it again, `hpo stop {store.name}` suspends it")
        return INTERRUPTED
    show.result(store.load(), waited.verdict, waited.progress, store)
    print(f"trials  `hpo trials {store.name}` lists them")
    return _result_code(waited.verdict, waited.progress)


def stop(arguments: argparse.Namespace) -> int:
    """Suspend an experiment and wait until it is, or end one of its trials."""
    store, place = _store(arguments)
    if arguments.trial:
        return _stop_trial(store, arguments.trial)
    if not tuner.request_stop(store, by="hpo stop"):
        print(f"{store.name} is not running, so there is nothing to stop")
        return DONE
    stopped = tuner.wait_for_stop(store, place)
    print(f"{store.name}: {stopped.verdict.message}" if stopped else f"{store.name} was stopped")
    return DONE


def _stop_trial(store: ExperimentStore, given: str) -> int:
    trial = _trial(store, given)
    if trial.condition.is_terminal:
        print(f"trial {trial.number} of {store.name} is over: {trial.condition}")
    elif tuner.stop_trial(store, trial.number, by="hpo stop"):
        print(f"trial {trial.number} of {store.name} is being stopped, and will be Killed")
    else:
        print(f"{store.name} is not running, so there is nothing to stop")
    return DONE


def edit(arguments: argparse.Namespace) -> int:
    """Change an experiment's budget."""
    store, place = _store(arguments)
    budgets = {name: value for name in BUDGET_FIELDS if (value := getattr(arguments, name)) is not None}
    if not budgets:
        raise SpecError([Problem("hpo edit", "give at least one of --max, --parallel, --max-failed")])
    edited, runs = tuner.edit(store, place, budgets, by="hpo edit")
    values = ", ".join(
        f"{name} {'none' if v is None else v}" for name, v in zip(BUDGET_FIELDS, edited.budgets, strict=True)
    )
    print(f"{store.name}: {values}")
    print(
        f"it runs; `hpo wait {store.name}` shows it"
        if runs
        else "no tuner runs it; `hpo run` or `hpo launch` with its YAML goes on"
    )
    return DONE


def delete(arguments: argparse.Namespace) -> int:
    """Remove an experiment with all of its records."""
    store, place = _store(arguments)
    tuner.delete(store, place)
    print(f"{store.name} was deleted")
    return DONE


def list_all(arguments: argparse.Namespace) -> int:
    """List the experiments of a store."""
    place = _place(arguments)
    rows = []
    for namespace, name in list_experiments(place.objects):
        if arguments.namespace in ("", namespace):
            rows.append((namespace, name, *_summary(place.store(namespace, name))))
    show.experiments(rows, place)
    return DONE


def status(arguments: argparse.Namespace) -> int:
    """Tell where an experiment stands."""
    store, _ = _store(arguments)
    published = read_status(store)
    if arguments.output == "text":
        show.status(store.load(), published, alive=store.is_held())
        return DONE
    document = parse_yaml(store.derived("experiment.yaml") or "")
    document["status"] = dict(published.status) if published else {}
    print(json.dumps(document, indent=1) if arguments.output == "json" else dump_yaml(document).rstrip())
    return DONE


def best(arguments: argparse.Namespace) -> int:
    """Print the best assignment as JSON."""
    store, _ = _store(arguments)
    found = reporting.best_parameters(store.load(), store.trials())
    if not found:
        print(
            f"hpo best: no trial of {store.name} has succeeded (yet); `hpo trials {store.name}` tells why",
            file=sys.stderr,
        )
        return NO_RESULT
    print(json.dumps(found))
    return DONE


def trials(arguments: argparse.Namespace) -> int:
    """Print all trials."""
    store, _ = _store(arguments)
    experiment, found = store.load(), store.trials()
    if arguments.output == "csv":
        print(reporting.trials_csv(experiment, found), end="")
    elif arguments.output == "json":
        print(reporting.trials_json(experiment, found), end="")
    elif arguments.output == "records":
        print(json.dumps([trial_to_json(trial) for trial in found], indent=1))
    else:
        show.trials(experiment, found)
    return DONE


def logs(arguments: argparse.Namespace) -> int:
    """Print what a trial printed."""
    store, _ = _store(arguments)
    label = _label(store, arguments.trial)
    sys.stdout.buffer.write(store.log(label))
    return DONE


def report(arguments: argparse.Namespace) -> int:
    """Write the report that the tuner published last."""
    store, _ = _store(arguments)
    page = store.derived(REPORT)
    if page is None:
        print(f"hpo report: nothing has been published of {store.name} yet; `hpo run` publishes it", file=sys.stderr)
        return NO_RESULT
    try:
        Path(arguments.output).write_text(page, encoding="utf-8")
    except OSError as error:
        raise SpecError([Problem("--output", f"cannot write {arguments.output}: {error.strerror}")]) from error
    print(arguments.output)
    return DONE


def retrain(arguments: argparse.Namespace) -> int:
    """Train the final model."""
    store, place = _store(arguments)
    experiment = store.load()
    tally = Tally.of(experiment.objective, store.trials())
    if tally.best is None:
        print(f"hpo retrain: no trial of {store.name} has succeeded, so there is no best assignment", file=sys.stderr)
        return NO_RESULT
    with Interruption() as interruption:
        done = tuner.retrain(
            store,
            place,
            tally.best.assignments,
            should_stop=lambda: interruption.requested,
            model_dir=Path(arguments.model_dir) if arguments.model_dir else None,
            show=print,
        )
    if interruption.requested:
        return INTERRUPTED
    if not done.succeeded:
        print(f"hpo retrain: {done.reason}: {done.message}", file=sys.stderr)
        return NO_RESULT
    show.retraining(done, store, place, arguments.model_dir)
    return DONE


def _text(arguments: argparse.Namespace) -> str:
    if arguments.file != "-":
        return linting.read_text(arguments.file)
    if sys.stdin is None:
        raise SpecError([Problem("-", "there is no standard input to read from; give the path of a YAML file")])
    return sys.stdin.read()


def _draft(arguments: argparse.Namespace) -> Draft:
    return linting.lint(
        _text(arguments), image=arguments.image, namespace=arguments.namespace, backend=arguments.backend
    )


def _experiment(arguments: argparse.Namespace) -> Experiment:
    return _draft(arguments).experiment()


def _told_experiment(arguments: argparse.Namespace) -> Experiment:
    """The experiment, after its warnings have been told."""
    draft = _draft(arguments)
    experiment = draft.experiment()
    for warning in draft.findings.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return experiment


def _place(arguments: argparse.Namespace) -> Place:
    file = getattr(arguments, "file", "-")
    return Place.of(arguments.store, Path() if file == "-" else Path(file).absolute().parent, arguments.backend)


def _tuner_pod(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the pod of a tuner in a cluster is to be; what is not given is absent."""
    given = {"image": arguments.tuner_image, "service_account": arguments.service_account}
    pod: dict[str, Any] = {name: value for name, value in given.items() if value}
    if arguments.tuner_pod:
        fields = parse_yaml(linting.read_text(arguments.tuner_pod))
        if not isinstance(fields, dict):
            message = "must be a mapping of fields of a pod's spec, such as priorityClassName and resources"
            raise SpecError([Problem(arguments.tuner_pod, message)])
        if ours := sorted(tuner.OURS_IN_POD & fields.keys()):
            message = f"{', '.join(ours)} must be left to hpo; --tuner-image and --service-account are options"
            raise SpecError([Problem(arguments.tuner_pod, message)])
        pod["fields"] = fields
    return pod


def _store(arguments: argparse.Namespace) -> tuple[ExperimentStore, Place]:
    """The records of the experiment that was named, in whichever namespace it is when none was given."""
    place = _place(arguments)
    there = list_experiments(place.objects)
    found = [n for n, name in there if name == arguments.experiment and arguments.namespace in ("", n)]
    if not found:
        hint = near_miss(arguments.experiment, [name for _, name in there])
        what = f"did you mean {hint}?" if hint else "`hpo list` shows what there is; --store chooses another store"
        raise NotFound(f"there is no experiment {arguments.experiment!r} in {place.uri}; {what}")
    if len(found) > 1:
        message = f"{arguments.experiment!r} exists in {', '.join(found)}: choose one"
        raise SpecError([Problem("--namespace", message)])
    return place.store(found[0], arguments.experiment), place


def _summary(store: ExperimentStore) -> tuple[str, str]:
    """An experiment's condition and progress for a list."""
    published = read_status(store)
    if published is None:
        return "Created", ""
    condition = published.verdict.condition
    if condition is ExperimentCondition.RUNNING and not store.is_held():
        return "Running (no tuner)", published.progress.line()
    return condition, published.progress.line()


def _result_code(verdict: Verdict, progress: Progress) -> int:
    if verdict.condition is ExperimentCondition.SUSPENDED:
        return INTERRUPTED
    succeeded = verdict.condition is ExperimentCondition.SUCCEEDED
    return DONE if succeeded and progress.best_value is not None else NO_RESULT


def _pairs(texts: list[str], option: str) -> list[tuple[str, str]]:
    problems = [Problem(option, f"must be NAME=VALUE, got {text!r}") for text in texts if "=" not in text]
    if problems:
        raise SpecError(problems)
    return [(name, value) for name, _, value in (text.partition("=") for text in texts)]


def _values(experiment: Experiment, texts: list[str]) -> dict[str, Value]:
    """Read `--set NAME=VALUE`; every parameter needs one, inside its space."""
    given = dict(_pairs(texts, "--set"))
    known = {parameter.name: parameter for parameter in experiment.parameters}
    problems = [
        Problem(f"--set {n}", f"is no parameter; there are {', '.join(known)}") for n in given if n not in known
    ]
    problems += [Problem(f"--set {n}", "missing: give every parameter a value") for n in known if n not in given]
    values: dict[str, Value] = {}
    for name in known.keys() & given.keys():
        try:
            values[name] = known[name].parse(given[name])
        except ValueError:
            problems.append(Problem(f"--set {name}", f"must be a number, got {given[name]!r}"))
            continue
        if not known[name].contains(values[name]):
            print(f"warning: {name}={given[name]} is outside of the search space", file=sys.stderr)
    if problems:
        raise SpecError(problems)
    return values


def _label(store: ExperimentStore, trial: str) -> str:
    """The store's label of a trial that was given by number or name."""
    return trial if trial == "retrain" else f"{_trial(store, trial).number:05d}"


def _trial(store: ExperimentStore, given: str) -> Trial:
    """The trial that was given by number or name."""
    with contextlib.suppress(NotFound):
        if given.isdecimal():
            return store.trial(int(given))
    found = store.trials()
    for trial in found:
        if given in [attempt.name for attempt in trial.attempts]:
            return trial
    raise NotFound(f"{store.name} has no trial {given!r}; it has {len(found)}, by number from 1 or by name")
