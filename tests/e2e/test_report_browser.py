"""The report in a real browser, in a frame that may run scripts and nothing else, as the KFP UI shows it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpo_core import report
from hpo_core.experiment import Experiment
from hpo_core.status import Verdict
from hpo_core.trial import Trial
from tests.unit.test_report import HOSTILE, example, hostile, mixed

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Virtual time stands still for a frame that lives in another process.
    "--disable-features=IsolateSandboxedIframes",
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM, reason="NO BROWSER: install chromium to prove that the report's plots are drawn"),
]

PROBE = """
const told = [];
addEventListener("error", (event) => told.push(event.message));
document.addEventListener("securitypolicyviolation", (event) => told.push(event.violatedDirective));
const count = (selector) => document.querySelectorAll(selector).length;
const column = (index) => [...document.querySelector("tbody").rows].map((row) => row.cells[index].textContent);
function sortBy(index) {
  document.querySelectorAll(".columns th")[index].querySelector("button").click();
  return column(index);
}
addEventListener("load", () => parent.postMessage({
  told,
  origin: self.origin,
  width: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  plots: [...document.querySelectorAll("[data-plot] > svg")].map((plot) => ({
    marks: plot.querySelectorAll(".mark").length,
    ticks: plot.querySelectorAll(".tick").length,
    winners: plot.querySelectorAll(".winner").length,
    texts: [...plot.querySelectorAll("text")].map((text) => text.textContent),
    broken: plot.outerHTML.includes("NaN") || plot.outerHTML.includes("Infinity"),
  })),
  once: count("tbody") ? sortBy(2) : [],
  again: count("tbody") ? sortBy(2) : [],
  order: [...document.querySelectorAll(".columns th")].map((heading) => heading.getAttribute("aria-sort")),
}, "*"));
"""

WRAPPER = """<!doctype html><body style="margin:0"><pre id="told"></pre>
<script>addEventListener("message", (event) => {{
  document.getElementById("told").textContent = "TOLD" + JSON.stringify(event.data) + "DLOT";
}});</script>
<iframe sandbox="allow-scripts" style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe></body>"""


def probed(page: str) -> str:
    """The page with a script in front of its own that watches and asks; the policy has to be told of it."""
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    allowed = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    return allowed.replace(
        '<script type="application/json"', f'<script>{PROBE}</script><script type="application/json"', 1
    )


def see(found: tuple[Experiment, list[Trial], Verdict], folder: Path, width: int = 1200) -> dict[str, Any]:
    """Show the report in a sandboxed frame and return what the probe saw there."""
    wrapper = folder / "wrapper.html"
    wrapper.write_text(WRAPPER.format(width=width, page=html.escape(probed(report.html(*found)))), encoding="utf-8")
    command = [CHROMIUM, *QUIET, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    browser = subprocess.run([*command, wrapper.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    told = re.search("TOLD({.*})DLOT", browser.stdout, re.S)
    assert told, f"the page told nothing: {browser.stdout[:500]}\n{browser.stderr[-2000:]}"
    answer: dict[str, Any] = json.loads(html.unescape(told.group(1)))
    return answer


def test_plots_are_drawn_in_a_frame_without_any_rights(tmp_path: Path) -> None:
    """Ten trials with a value are points in each of three plots, two without are ticks, one is the best."""
    seen = see(example(), tmp_path)
    assert seen["origin"] == "null", "the frame is opaque"
    assert seen["told"] == []
    assert [(plot["marks"], plot["ticks"], plot["winners"]) for plot in seen["plots"]] == [(10, 2, 1)] * 3
    assert {"loss", "trial", "goal 0.001"} <= set(seen["plots"][0]["texts"])
    assert [plot["texts"][-1] for plot in seen["plots"][1:]] == ["lr", "momentum"]


def test_a_click_on_a_header_sorts_and_a_second_one_turns_it_round(tmp_path: Path) -> None:
    seen = see(example(), tmp_path)
    losses = [float(text) for text in seen["once"] if text]
    assert losses == sorted(losses)
    assert seen["again"][:10] == seen["once"][9::-1]
    assert seen["once"][10:] == seen["again"][10:] == ["", ""], "trials without a value stay last"
    assert seen["order"] == ["none", "none", "descending", *["none"] * 6]


@pytest.mark.parametrize("width", [600, 1200])
def test_every_kind_of_axis_is_drawn_and_the_page_never_scrolls_sideways(tmp_path: Path, width: int) -> None:
    seen = see(mixed(60), tmp_path, width)
    assert seen["told"] == []
    assert seen["width"] == 0
    assert len(seen["plots"]) == 6
    assert not any(plot["broken"] for plot in seen["plots"])
    assert {"1e-5", "0.1", "--learning-rate (log scale)"} <= set(seen["plots"][1]["texts"])
    assert {"sgd", "adam", "adamw", "rmsprop"} <= set(seen["plots"][4]["texts"])


def test_hostile_texts_are_shown_and_not_run(tmp_path: Path) -> None:
    seen = see(hostile(HOSTILE), tmp_path)
    assert seen["told"] == []
    assert f"loss{HOSTILE}" in seen["plots"][0]["texts"]


@pytest.mark.parametrize("count", [0, 1, 5], ids=["none", "one", "one without a value among five"])
def test_few_trials_make_no_broken_plot(tmp_path: Path, count: int) -> None:
    asked, trials, verdict = example()
    seen = see((asked, trials[:count], verdict), tmp_path)
    assert seen["told"] == []
    assert len(seen["plots"]) == (3 if count else 0)
    assert not any(plot["broken"] for plot in seen["plots"])
