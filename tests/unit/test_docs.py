"""What the documentation promises to explain, it explains."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REASON_AT = {"Trouble": 0, "Ending": 1}
"""Which argument of these holds the reason of a trial that did not run, or did not end well."""


def reasons() -> Iterator[str]:
    """Every reason that the launcher in a cluster, and the verdict on an exit, give by name."""
    for file in (ROOT / "hpo_core/launch/cluster").glob("*.py"):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            position = REASON_AT.get(call.func.id) if isinstance(call.func, ast.Name) else None
            if position is not None and len(call.args) > position:
                yield from _text(call.args[position])
    for node in ast.walk(ast.parse((ROOT / "hpo_core/outcome.py").read_text())):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            yield from _text(node.value.elts[0])


def _text(node: ast.expr) -> list[str]:
    """The text that a node spells out, if it does."""
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value else []


@pytest.mark.parametrize("reason", sorted({*reasons()} - {"Unknown"}))
def test_every_reason_of_a_trial_is_explained_for_users(reason: str) -> None:
    rows = [line for line in (ROOT / "docs/kubernetes.md").read_text().splitlines() if line.startswith("| `")]
    assert any(f"`{reason}`" in row.split("|")[1] for row in rows), f"docs/kubernetes.md explains no {reason}"


def test_the_reasons_are_found() -> None:
    """So that the law above cannot hold of nothing."""
    assert {"Unschedulable", "Lost", "OutOfMemory", "ExitCode"} <= {*reasons()}
