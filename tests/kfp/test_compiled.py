"""What users load and upload: it is up to date, thin, and a server accepts it."""

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from components.image import IMAGE
from hpo_core import __version__
from pipelines.compile import COMPONENTS, PIPELINES, ROOT, compile_all

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
NAMES = {
    "build_trainer_image",
    "launch_experiment",
    "wait_for_experiment",
    "extract_best_parameters",
    "retrain_final_model",
    "cleanup_experiment",
}
FILES = [ROOT / "components" / name / "component.yaml" for name in COMPONENTS] + [
    ROOT / "pipelines" / f"{name}.yaml" for name in PIPELINES
]


def executors(path: Path) -> list[dict[str, Any]]:
    document = yaml.safe_load(path.read_text())
    return [executor["container"] for executor in document["deploymentSpec"]["executors"].values()]


def test_the_six_components_are_there() -> None:
    assert set(COMPONENTS) == NAMES


def test_committed_yaml_is_what_the_source_compiles_to(tmp_path: Path) -> None:
    for path in compile_all(tmp_path):
        committed = ROOT / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), f"{committed} is stale: run `make compile`"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_server_parses_it_strictly(path: Path) -> None:
    """The API server refuses a field that it does not know, and so does ParseDict."""
    spec = json_format.ParseDict(yaml.safe_load(path.read_text()), PipelineSpec())
    assert spec.schema_version == "2.1.0"


@pytest.mark.parametrize("name", COMPONENTS)
def test_each_component_loads_from_its_file(name: str) -> None:
    loaded = components.load_component_from_file(str(ROOT / "components" / name / "component.yaml"))
    assert loaded.name == name.replace("_", "-")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_steps_run_our_image_of_this_version_and_install_nothing(path: Path) -> None:
    for container in executors(path):
        assert container["image"] == IMAGE
        assert IMAGE.endswith(f"python:{__version__}")
        assert "pip install" not in " ".join(container["command"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_sources_hold_nothing_that_a_layer_on_the_way_would_replace(path: Path) -> None:
    """KFP replaces double braces, Kubernetes `$(…)` and `$$`."""
    for container in executors(path):
        source = container["command"][-1]
        assert "def " in source
        assert not [text for text in ("{{", "}}", "$(", "$$") if text in source]


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_thin_and_checks_its_version(name: str) -> None:
    module = ROOT / "components" / name / "component.py"
    function = next(n for n in ast.walk(ast.parse(module.read_text())) if isinstance(n, ast.FunctionDef))
    body = function.body[1:]
    assert (body[-1].end_lineno or 0) - body[0].lineno + 1 <= 15
    assert f'steps.require("{__version__}")' in module.read_text()


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_tells_what_each_of_its_inputs_is(name: str) -> None:
    component = getattr(importlib.import_module(f"components.{name}.component"), name)
    assert component.description
    for given in (component.component_spec.inputs or {}).values():
        assert given.description, f"{name} has an input without a description"
