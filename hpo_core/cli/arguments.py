"""The words of the command line: every command with its options, its help and an example."""

from __future__ import annotations

import argparse

from hpo_core import __version__, exit_codes
from hpo_core.cli import commands
from hpo_core.lint import BACKENDS
from hpo_core.objects import LOCAL_STORE


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; the parsed arguments hold `command`, the function to call."""
    parser = argparse.ArgumentParser(
        prog="hpo",
        description="Tune a training program: a Katib Experiment YAML, run on this machine or in a cluster.",
        epilog="Begin with `hpo run experiment.yaml`; `hpo COMMAND --help` shows an example of each command.\n\n"
        f"exit codes:\n{exit_codes.told()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hpo {__version__}")
    adder = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="name")
    _add_file_commands(adder)
    _add_tuner_commands(adder)
    _add_request_commands(adder)
    _add_result_commands(adder)
    return parser


def _add_file_commands(adder: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    lint = _command(
        adder,
        "lint",
        commands.lint,
        "tell everything that is wrong with an Experiment YAML",
        "hpo lint experiment.yaml",
    )
    _add_file(lint)
    _add_place(lint)

    render = _command(
        adder,
        "render",
        commands.render,
        "print the trial manifest for these values",
        "hpo render experiment.yaml --set lr=0.02 --set momentum=0.7",
    )
    _add_file(render)
    _add_place(render)
    render.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter's value", dest="values"
    )

    suggest = _command(
        adder,
        "suggest",
        commands.suggest,
        "print the next assignments as JSON",
        "hpo suggest experiment.yaml --history trials.json -n 3",
    )
    _add_file(suggest)
    _add_place(suggest)
    suggest.add_argument("--history", metavar="FILE", help="JSON list of trials in the store's format; none by default")
    suggest.add_argument("-n", "--count", type=int, default=1, metavar="K", help="how many, 1 by default")

    build = _command(
        adder,
        "build",
        commands.build,
        "build the trainer image of a folder with a Dockerfile and print its reference",
        "hpo run experiment.yaml --image $(hpo build trainers/mnist)",
    )
    build.add_argument("context", metavar="DIR", help="folder with the Dockerfile")
    build.add_argument("-t", "--tag", default="", metavar="NAME", help="the image's name, the folder's by default")
    build.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="a value for an ARG line")
    _add_place(build, namespace=False)


def _add_tuner_commands(adder: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = _command(
        adder,
        "run",
        commands.run,
        "run an experiment to its end, here, and show its progress; goes on with one that was begun",
        "hpo run experiment.yaml",
    )
    launch = _command(
        adder,
        "launch",
        commands.launch,
        "start an experiment in the background",
        "hpo launch experiment.yaml && hpo wait firstexperiment",
    )
    for command in (run, launch):
        _add_file(command)
        _add_place(command)
    cluster = launch.add_argument_group("the tuner's pod, with --backend kubernetes")
    cluster.add_argument("--tuner-image", default="", metavar="REF", help="the engine's image, or $HPO_IMAGE")
    cluster.add_argument(
        "--service-account", default="", metavar="NAME", help="whose permissions it has, hpo-tuner by default"
    )
    cluster.add_argument(
        "--tuner-pod",
        default="",
        metavar="FILE",
        help="YAML with fields of its pod's spec: resources, priorityClassName, imagePullSecrets, nodeSelector …",
    )
    wait = _command(
        adder,
        "wait",
        commands.wait,
        "show an experiment's progress until it is over; Ctrl-C only stops waiting",
        "hpo wait firstexperiment",
    )
    _add_name(wait)


def _add_request_commands(adder: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    stop = _command(
        adder,
        "stop",
        commands.stop,
        "suspend an experiment: running trials are interrupted, `hpo run` goes on; or end one trial as Killed",
        "hpo stop firstexperiment\n  hpo stop firstexperiment 3",
    )
    _add_name(stop)
    stop.add_argument("trial", nargs="?", default="", metavar="TRIAL", help="end this one alone: its number or name")
    edit = _command(
        adder,
        "edit",
        commands.edit,
        "change an experiment's budget, while it runs or after; a finished one goes on in the background",
        "hpo edit firstexperiment --max 24 --parallel 6",
    )
    _add_name(edit)
    for option, field, help in (
        ("--max", "maxTrialCount", "trials in all"),
        ("--parallel", "parallelTrialCount", "trials at the same time"),
        ("--max-failed", "maxFailedTrialCount", "failed trials after which the experiment fails"),
    ):
        edit.add_argument(option, type=int, dest=field, metavar="N", help=help)
    delete = _command(
        adder,
        "delete",
        commands.delete,
        "remove an experiment with all of its records and models; one that runs has to be stopped first",
        "hpo delete firstexperiment",
    )
    _add_name(delete)


def _add_result_commands(adder: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _command(
        adder, "algorithms", commands.algorithms, "list the search algorithms and their settings", "hpo algorithms"
    )
    listing = _command(adder, "list", commands.list_all, "list the experiments of a store", "hpo list --store ./.hpo")
    _add_place(listing)
    status = _command(
        adder, "status", commands.status, "tell where an experiment stands", "hpo status firstexperiment -o yaml"
    )
    _add_name(status)
    _add_output(status, ("text", "yaml", "json"), "yaml is the Experiment with Katib's status")
    best = _command(adder, "best", commands.best, "print the best assignment as JSON", "hpo best firstexperiment")
    _add_name(best)
    trials = _command(
        adder, "trials", commands.trials, "print all trials", "hpo trials firstexperiment -o csv > trials.csv"
    )
    _add_name(trials)
    _add_output(trials, ("text", "csv", "json", "records"), "records is the store's own format, which suggest reads")
    logs = _command(adder, "logs", commands.logs, "print what a trial printed", "hpo logs firstexperiment 3")
    _add_name(logs)
    logs.add_argument("trial", metavar="TRIAL", help="its number, its name, or `retrain`")
    report = _command(
        adder,
        "report",
        commands.report,
        "write the report as one HTML file",
        "hpo report firstexperiment -o report.html",
    )
    _add_name(report)
    report.add_argument(
        "-o", "--output", default="report.html", metavar="FILE", help="where to, report.html by default"
    )
    retrain = _command(
        adder,
        "retrain",
        commands.retrain,
        "train the final model with the best assignment, and keep it",
        "hpo retrain firstexperiment --model-dir ./model",
    )
    _add_name(retrain)
    retrain.add_argument("--model-dir", default="", metavar="DIR", help="a folder that gets a copy of the model")


def _command(
    adder: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: commands.Command,
    help: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = adder.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    parser.add_argument("-v", "--verbose", action="store_true", help="log every change of state, and whole errors")
    return parser


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="Experiment YAML, `-` for standard input")
    parser.add_argument("--image", default="", metavar="REF", help="trainer image, instead of the one in the template")


def _add_place(parser: argparse.ArgumentParser, *, namespace: bool = True) -> None:
    parser.add_argument(
        "--store",
        default="",
        metavar="URI",
        help="where records are kept, a directory or s3://BUCKET/PREFIX; by default $HPO_STORE, else in a pod of "
        f"Kubeflow Pipelines a folder of its namespace in the bucket of pipelines, else {LOCAL_STORE}",
    )
    if namespace:
        parser.add_argument("--namespace", default="", metavar="NAME", help="instead of the YAML's")
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="where trials run, auto by default")


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="NAME", help="the experiment's name")
    _add_place(parser)


def _add_output(parser: argparse.ArgumentParser, choices: tuple[str, ...], help: str) -> None:
    parser.add_argument("-o", "--output", default="text", choices=choices, help=f"{help}; text by default")
