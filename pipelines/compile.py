"""Make the YAML that users load and upload: `python -m pipelines.compile [FOLDER]`."""

import importlib
import sys
from pathlib import Path

from kfp import compiler

ROOT = Path(__file__).parent.parent
COMPONENTS = tuple(sorted(path.parent.name for path in (ROOT / "components").glob("*/component.py")))
PIPELINES = ("tune_and_retrain",)


def compile_all(folder: Path) -> list[Path]:
    """Compile every component and pipeline; returns the paths of what was written, as they lie in the repository.

    Args:
        folder: Root below which the files are written.
    """
    written = []
    for name in COMPONENTS:
        written.append(_compile(f"components.{name}.component", name, folder / "components" / name / "component.yaml"))
    for name in PIPELINES:
        written.append(_compile(f"pipelines.{name}", name, folder / "pipelines" / f"{name}.yaml"))
    return written


def _compile(module: str, name: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(getattr(importlib.import_module(module), name), str(target))
    return target


if __name__ == "__main__":
    for path in compile_all(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT):
        print(path)
