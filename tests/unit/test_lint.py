"""Looking at a document from every side: whatever it holds, what comes out are findings."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest

from hpo_core.errors import SpecError
from hpo_core.experiment import dump_yaml, parse_yaml
from hpo_core.lint import lint, load_experiment, read_text
from pipelines.compile import ROOT

MNIST = ROOT / "manifests/experiments/mnist-random.yaml"
ODD: tuple[Any, ...] = (5, "x", [], {}, [5], {"a": 1}, None, True, [{"a": [1]}], -1e308, "nan")


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


DOCUMENT = parse_yaml(MNIST.read_text())
PLACES = [path for path in places(DOCUMENT) if path]


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_an_odd_value_anywhere_gives_findings_and_no_other_failure(path: tuple[Any, ...]) -> None:
    for odd in ODD:
        document = copy.deepcopy(DOCUMENT)
        node = document
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = odd
        with contextlib.suppress(SpecError):
            lint(dump_yaml(document))


def test_the_authors_document_can_be_run_with_one_warning_about_its_image() -> None:
    draft = lint(MNIST.read_text())
    assert draft.findings.problems == []
    assert [warning.path.rpartition(".")[2] for warning in draft.findings.warnings] == ["image"]
    assert lint(MNIST.read_text(), image="local/mnist@sha256:" + "0" * 64).findings.warnings == []


def test_every_side_adds_its_problems_to_one_list() -> None:
    document = copy.deepcopy(DOCUMENT)
    spec = document["spec"]
    spec["algorithm"]["algorithmName"] = "randm"
    spec["metricsCollectorSpec"] = {"source": {"filter": {"metricsFormat": ["("]}}, "collector": {"kind": "StdOut"}}
    pod = spec["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    pod["containers"][0]["resources"]["limits"]["memory"] = "x"
    spec["parameters"][0]["feasibleSpace"]["min"] = "0.1"
    paths = [problem.path for problem in lint(dump_yaml(document)).findings.problems]
    assert paths == [
        "spec.parameters[0].feasibleSpace.min",
        "spec.algorithm.algorithmName",
        "spec.metricsCollectorSpec.source.filter.metricsFormat[0]",
        "spec.trialTemplate.trialSpec.spec.template.spec.containers[0].resources.limits.memory",
    ]


FROM_FILE = {"collector": {"kind": "File"}, "source": {"fileSystemPath": {"path": "/app/metrics.log"}}}


def test_metrics_from_a_file_are_refused_on_this_machine_where_all_trials_would_write_the_same_one() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["spec"]["metricsCollectorSpec"] = FROM_FILE
    (problem,) = lint(dump_yaml(document), backend="local").findings.problems
    assert problem.path == "spec.metricsCollectorSpec.collector.kind"
    assert problem.message.endswith(
        "let the trainer print its metrics and write StdOut, or run it with --backend kubernetes"
    )


def test_processes_that_all_containers_see_are_told_to_be_left_apart_in_a_cluster() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["shareProcessNamespace"] = True
    (warning,) = lint(dump_yaml(document), backend="kubernetes").findings.warnings
    assert warning.path.endswith("shareProcessNamespace")


@pytest.mark.parametrize(
    ("command", "hidden"),
    [
        (["python3", "/app/mnist.py"], "/app/mnist.py"),
        (["python3", "/opt/mnist.py", "--log", "/app/metrics.log"], ""),
        (["python3", "/application/mnist.py"], ""),
    ],
)
def test_a_metrics_file_beside_the_program_hides_it_in_a_cluster_which_is_told(command: list[str], hidden: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["spec"]["metricsCollectorSpec"] = FROM_FILE
    pod = document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    pod["containers"][0]["command"] = [*command, "${trialParameters.learningRate}", "${trialParameters.momentum}"]
    draft = lint(dump_yaml(document), backend="kubernetes")
    told = [str(warning) for warning in draft.findings.warnings if "an empty volume" in str(warning)]
    assert draft.findings.problems == []
    assert len(told) == (1 if hidden else 0)
    assert all(hidden in warning for warning in told)


def test_a_file_that_is_not_there_is_told_with_its_path() -> None:
    with pytest.raises(SpecError, match=r"nowhere\.yaml: cannot be read: No such file or directory"):
        load_experiment("nowhere.yaml")


def test_a_file_that_is_no_text_is_told_with_its_path(tmp_path: Any) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"binary\.yaml: is no text"):
        read_text(tmp_path / "binary.yaml")
