"""What the report costs: `python -m tests.benchmarks.report`.

Prints, for 12, 200 and 10,000 trials with curves, the time to write the page, its size, and, where Chromium is
installed, the time from the start of the navigation to the end of the load event with the page drawn and laid out.
Painting comes on top. Asserts nothing: machines differ.
"""

from __future__ import annotations

import base64
import hashlib
import math
import random
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from hpo_core import report
from hpo_core.experiment import Experiment
from hpo_core.report import Curve
from hpo_core.trial import Trial
from tests.unit.test_report import mixed

COUNTS = (12, 200, 10_000)
REPEATS = 5
REPORTS = 60
CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), "")
WATCH = """
addEventListener("load", () => {
  const height = document.documentElement.scrollHeight;
  document.documentElement.dataset.told = `OPENED${performance.now().toFixed(0)} ms, ${height} px high`;
});
"""


def curves_of(experiment: Experiment, trials: list[Trial]) -> dict[int, dict[str, Curve]]:
    """Plausible curves of the trials that the page shows, each of 60 reports."""
    chance = random.Random(5)
    shown = set(report.curve_numbers(experiment, trials))
    return {
        trial.number: {
            name: _curve(summary.latest, chance)
            for name, summary in (trial.observation.metrics if trial.observation else {}).items()
        }
        for trial in trials
        if trial.number in shown
    }


def _curve(end: float, chance: random.Random) -> Curve:
    values = [end * (1 - 0.6 * math.exp(-index / 8)) + chance.gauss(0, 0.004) for index in range(REPORTS)]
    return Curve(tuple(range(1, REPORTS + 1)), tuple(values))


def opened(page: str, folder: Path) -> str:
    """Tell when the page was loaded, by its own clock."""
    digest = base64.b64encode(hashlib.sha256(WATCH.encode()).digest()).decode()
    allowed = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    file = folder / "page.html"
    file.write_text(allowed.replace("</head>", f"<script>{WATCH}</script></head>", 1), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", "--dump-dom"]
    profile = f"--user-data-dir={folder / 'profile'}"
    shown = subprocess.run([*command, profile, file.as_uri()], capture_output=True, text=True, check=True).stdout
    found = re.search(r'OPENED([^"]*)"', shown)
    return found.group(1) if found else "told nothing"


def measure(count: int, folder: Path) -> None:
    """Print what a page of so many trials costs."""
    experiment, trials, verdict = mixed(count)
    curves = curves_of(experiment, trials)
    spent = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        page = report.html(experiment, trials, verdict, curves=curves)
        spent.append(time.perf_counter() - began)
    print(f"{count} trials: written in {statistics.median(spent):.3f} s, {len(page.encode()):,} bytes")
    for _ in range(3 if CHROMIUM else 0):
        print(f"  opened after {opened(page, folder)}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for count in COUNTS:
            measure(count, Path(folder))


if __name__ == "__main__":
    main()
