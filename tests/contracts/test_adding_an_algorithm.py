"""The steps of docs/adding-an-algorithm.md lead to an algorithm that passes the contract."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "adding-an-algorithm.md"
REGISTRY = "hpo_core/search/registry.py"
COPIED = ("hpo_core", "tests/contracts", "tests/experiments.py", "pyproject.toml")


def blocks() -> dict[str, str]:
    """The guide's code, by the file that it belongs to."""
    return dict(re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL))


def test_the_guide_is_two_files_and_one_line() -> None:
    assert [name for name in blocks() if name != REGISTRY] == ["hpo_core/search/halton.py", "tests/unit/test_halton.py"]
    assert len(blocks()[REGISTRY].splitlines()) == 1


def test_who_follows_the_guide_has_an_algorithm_that_passes_all_tests(tmp_path: Path) -> None:
    for name in COPIED:
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for name, code in blocks().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        start = "ALGORITHMS: Mapping[str, str] = {\n"
        path.write_text(path.read_text().replace(start, start + code) if name == REGISTRY else code)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "halton", "--maxfail=1"]
    command += ["tests/contracts/test_search.py", "tests/unit/test_halton.py"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 50
