"""Imports point one way, and each third party has one door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = (
    ("errors",),
    ("space", "gjson", "exit_codes"),
    ("experiment",),
    ("trial",),
    ("status",),
    ("search", "manifest", "metrics", "report", "images"),
    ("kube",),
    ("launch", "objects"),
    ("store", "lint", "outcome", "sidecar"),
    ("loop",),
    ("publish",),
    ("tuner",),
    ("steps", "cli"),
)
"""A module may import those of an earlier line, and its own package."""

DOORS = {
    "yaml": ("hpo_core/experiment/document.py",),
    "re2": ("hpo_core/metrics.py",),
    "minio": ("hpo_core/objects/s3.py",),
    "urllib3": ("hpo_core/objects/s3.py", "hpo_core/kube"),
    "kubernetes": ("hpo_core/kube",),
    "rich": ("hpo_core/cli/show.py",),
    "kfp": ("components/", "pipelines/"),
    "torch": ("trainers/",),
    "sklearn": ("trainers/",),
}
FOLDERS = ("hpo_core", "components", "pipelines", "trainers")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name in names)


def own_name(path: Path) -> str:
    part = path.relative_to(ROOT / "hpo_core").parts[0]
    return part.removesuffix(".py")


def test_every_module_of_the_engine_has_its_layer() -> None:
    found = {own_name(path) for path in MODULES if path.is_relative_to(ROOT / "hpo_core")}
    assert found - {"__init__", "__pycache__"} == {name for names in LAYERS for name in names}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_earlier_layers_only(path: Path) -> None:
    if not path.is_relative_to(ROOT / "hpo_core") or own_name(path) == "__init__":
        return
    mine = own_name(path)
    for name in imports(path):
        if name.startswith("hpo_core.") and (other := name.split(".")[1]) not in (mine, "__version__"):
            assert layer(other) < layer(mine), f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_third_parties_have_one_door(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    for name in imports(path):
        doors = DOORS.get(name.split(".")[0])
        assert doors is None or place.startswith(doors), f"{place} imports {name}, whose door is {doors}"


def test_trainers_share_nothing_with_the_engine() -> None:
    for path in (ROOT / "trainers").rglob("*.py"):
        assert not any(name.split(".")[0] in ("hpo_core", "components", "pipelines") for name in imports(path))
