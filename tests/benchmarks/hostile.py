"""What hostile trainers cost: `python -m tests.benchmarks.hostile [NAME ...]`.

Each runs in full beside short neighbours, in an experiment of its own. Printed are the wall time, the verdict, what was
observed, the tuner's peak memory, the bytes in scratch space at most and in the store at the end, and how late a
neighbour's end was recorded at worst. Asserts nothing: machines differ.
"""

import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.scenarios.folders import Folder
from tests.scenarios.test_bad_trainers import by_program
from tests.scenarios.test_hostile_trainers import NEIGHBOUR, bytes_in, make_folder, make_programs, run_watched

FULL = {"lines": 10_000_000, "line_bytes": 100_000_000, "blocks": 64}
NEIGHBOURS = 12


def measure(name: str, program: str, path: Path) -> str:
    """Run one hostile trainer among neighbours; returns a line of figures."""
    programs = {name: program, **{f"neighbour{number:02d}": NEIGHBOUR for number in range(NEIGHBOURS)}}
    folder = make_folder(path, programs, parallel=2)
    began = time.monotonic()
    costs, _ = run_watched(path, timeout_s=600.0)
    wall_s = time.monotonic() - began
    record = by_program(folder)[f"{name}.py"]
    loss = (record["observation"] or {}).get("loss", {})
    seen = " ".join(f"{key}={value}" for key, value in loss.items()) or "-"
    sizes = [costs.memory_bytes, costs.scratch_bytes, bytes_in(path / ".hpo")]
    memory, scratch, store = (f"{size / 2**20:.1f}" for size in sizes)
    return (
        f"{name:14s} {wall_s:6.1f} s  trial {_trial_s(record):5.1f} s  {record['reason']:16s} {seen:34s} "
        f"tuner {memory:>6s} MiB  scratch {scratch:>6s} MiB  store {store:>4s} MiB  "
        f"neighbour late {1000 * _late_s(folder):6.0f} ms"
    )


def _trial_s(record: dict[str, Any]) -> float:
    return _seconds(record["completed"]) - _seconds(record["started"])


def _late_s(folder: Folder) -> float:
    """Longest time from a neighbour's end to the writing of its record."""
    late = []
    for path, record in zip(
        sorted((folder.path / ".hpo/default/small/trials").glob("*.json")), folder.records(), strict=True
    ):
        if record["assignments"]["program"].startswith("neighbour"):
            late.append(path.stat().st_mtime - _seconds(record["completed"]))
    return max(late)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    for each, text in make_programs(**FULL).items():
        if not sys.argv[1:] or each in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as folder:
                print(measure(each, text, Path(folder)), flush=True)
