"""The report in a real browser, in a frame that may run scripts and nothing else, as the KFP UI shows it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo_core import report
from hpo_core.experiment import Experiment
from hpo_core.report import Curve
from hpo_core.status import RUNNING, Verdict
from hpo_core.trial import Trial
from tests.unit.test_report import HOSTILE, ended, example, experiment, hostile, list_of, mixed, range_of

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

ATTEMPTS = 3
"""On a busy machine the browser's virtual time may be over before the frame has been loaded: then it is shown again."""

PROBE = """
const told = [];
addEventListener("error", (event) => told.push(event.message));
document.addEventListener("securitypolicyviolation", (event) => told.push(event.violatedDirective));
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const column = (index) => all("tbody tr").map((row) => row.cells[index].textContent);
const numbers = (elements) => elements.map((each) => Number(each.dataset.trial)).sort((one, other) => one - other);
const plot = (name) => document.querySelector(`[data-plot=${name}] svg`);
function sortBy(index) {
  all(".columns th")[index].querySelector("button").click();
  return column(index);
}
const point = (target, type, clientX, clientY) =>
  target.dispatchEvent(new PointerEvent(type, { bubbles: true, button: 0, clientX, clientY }));
const press = (target, key) =>
  target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
// Drags along an axis between two shares of it, from its lower end; the same share twice is a click.
function drag(axis, from, to) {
  const brush = all(".brush")[axis];
  const line = brush.querySelector(".axis").getBoundingClientRect();
  const at = (share) => line.bottom - share * line.height;
  point(brush.querySelector(".area"), "pointerdown", line.left, at(from));
  if (from !== to) point(window, "pointermove", line.left, at(to));
  point(window, "pointerup", line.left, at(to));
}
const handle = (axis, end) => all("[role=slider]", all(".brush")[axis])[end];
function type(text) {
  const field = document.querySelector("input[type=search]");
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true }));
}
const state = () => ({
  lines: numbers(all(".line:not(.off)", plot("parallel"))),
  faded: numbers(all(".line.off", plot("parallel"))),
  marks: numbers(all(".mark:not(.off)", plot("objective"))),
  rows: numbers(all("tbody tr").filter((row) => row.offsetHeight > 0)),
  counts: all("[data-count]").map((each) => each.textContent),
  tip: document.querySelector(".tip.on")?.textContent ?? "",
});
const act = () => { ACT };
addEventListener("load", () => parent.postMessage({
  told,
  origin: self.origin,
  width: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  plots: all("[data-plot] svg[role]").map((each) => ({
    name: each.closest("[data-plot]").dataset.plot,
    marks: all(".mark", each).length,
    ticks: all(".tick", each).length,
    lines: all(".line", each).length,
    winners: all(".winner", each).length,
    texts: all("text", each).map((text) => text.textContent),
    broken: each.outerHTML.includes("NaN") || each.outerHTML.includes("Infinity"),
  })),
  once: all("tbody").length ? sortBy(2) : [],
  first: all("tbody tr")[0]?.cells[0].textContent,
  again: all("tbody").length ? sortBy(2) : [],
  order: all(".columns th").map((heading) => heading.getAttribute("aria-sort")),
  acted: act(),
}, "*"));
"""

WRAPPER = """<!doctype html><body style="margin:0"><pre id="told"></pre>
<script>addEventListener("message", (event) => {{
  document.getElementById("told").textContent = "TOLD" + JSON.stringify(event.data) + "DLOT";
}});</script>
<iframe sandbox="allow-scripts" style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe></body>"""


def probed(page: str, act: str) -> str:
    """The page with a script in front of its own that watches, acts and asks; the policy has to be told of it."""
    probe = PROBE.replace("ACT", act)
    digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()
    allowed = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    return allowed.replace(
        '<script type="application/json"', f'<script>{probe}</script><script type="application/json"', 1
    )


def see(page: str, folder: Path, *, width: int = 1200, act: str = "") -> dict[str, Any]:
    """Show a report in a sandboxed frame and return what the probe saw there, and what `act` returned."""
    wrapper = folder / "wrapper.html"
    wrapper.write_text(WRAPPER.format(width=width, page=html.escape(probed(page, act))), encoding="utf-8")
    for attempt in range(ATTEMPTS):
        profile = f"--user-data-dir={folder / f'profile-{attempt}'}"
        command = [CHROMIUM, *QUIET, profile, "--virtual-time-budget=5000", "--dump-dom", wrapper.as_uri()]
        browser = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        told = re.search("TOLD({.*})DLOT", browser.stdout, re.S)
        if told:
            break
    assert told, f"the page told nothing: {browser.stdout[:500]}\n{browser.stderr[-2000:]}"
    answer: dict[str, Any] = json.loads(html.unescape(told.group(1)))
    assert answer["told"] == [], "the page ran without an error and within its policy"
    return answer


def numbers_where(found: tuple[Experiment, list[Trial], Verdict], holds: Callable[[Trial], bool]) -> list[int]:
    return [trial.number for trial in found[1] if holds(trial)]


def loss(trial: Trial) -> float | None:
    return trial.observation.metrics["loss"].latest if trial.observation else None


def rate(trial: Trial) -> float:
    return float(trial.assignments["lr"])


# --- What is drawn ------------------------------------------------------------------------------------------------


def test_plots_are_drawn_in_a_frame_without_any_rights(tmp_path: Path) -> None:
    """Ten trials with a value are points in each of three plots and lines in one, two without are ticks."""
    seen = see(report.html(*example()), tmp_path)
    assert seen["origin"] == "null", "the frame is opaque"
    points = [plot for plot in seen["plots"] if plot["name"] != "parallel"]
    assert [(plot["marks"], plot["ticks"], plot["winners"]) for plot in points] == [(10, 2, 1)] * 3
    assert {"loss", "trial", "goal 0.001"} <= set(points[0]["texts"])
    assert [plot["texts"][-1] for plot in points[1:]] == ["lr", "momentum"]
    (lines,) = (plot for plot in seen["plots"] if plot["name"] == "parallel")
    assert (lines["lines"], lines["winners"]) == (10, 1)
    assert {"lr", "momentum", "loss"} <= set(lines["texts"])


def test_a_click_on_a_header_sorts_and_a_second_one_turns_it_round(tmp_path: Path) -> None:
    seen = see(report.html(*example()), tmp_path)
    losses = [float(text) for text in seen["once"] if text]
    assert losses == sorted(losses)
    assert seen["first"].startswith("best")
    assert seen["again"][:10] == seen["once"][9::-1]
    assert seen["once"][10:] == seen["again"][10:] == ["", ""], "trials without a value stay last"
    assert seen["order"] == ["none", "none", "descending", *["none"] * 6]


@pytest.mark.parametrize("width", [600, 1200])
def test_every_kind_of_axis_is_drawn_and_the_page_never_scrolls_sideways(tmp_path: Path, width: int) -> None:
    seen = see(report.html(*mixed(60)), tmp_path, width=width)
    assert seen["width"] == 0
    assert len(seen["plots"]) == 7
    assert not any(plot["broken"] for plot in seen["plots"])
    rates, _, _, optimizers, _ = (plot["texts"] for plot in seen["plots"] if plot["name"] == "parameter")
    assert {"1e-5", "0.1", "--learning-rate (log scale)"} <= set(rates)
    assert {"sgd", "adam", "adamw", "rmsprop"} <= set(optimizers)
    (lines,) = (plot["texts"] for plot in seen["plots"] if plot["name"] == "parallel")
    assert {"1e-5", "0.1", "log", "sgd", "rmsprop", "128"} <= set(lines)


def test_hostile_texts_are_shown_and_not_run(tmp_path: Path) -> None:
    seen = see(report.html(*hostile(HOSTILE)), tmp_path)
    assert f"loss{HOSTILE}" in seen["plots"][0]["texts"]


@pytest.mark.parametrize("count", [0, 1, 5], ids=["none", "one", "one without a value among five"])
def test_few_trials_make_no_broken_plot(tmp_path: Path, count: int) -> None:
    asked, trials, verdict = example()
    seen = see(report.html(asked, trials[:count], verdict), tmp_path)
    assert len(seen["plots"]) == (4 if count else 0)
    assert not any(plot["broken"] for plot in seen["plots"])


def test_parameters_with_a_single_value_make_no_broken_plot(tmp_path: Path) -> None:
    asked = experiment([range_of("lr", 0.5, 0.5), range_of("n", 3, 3, kind="int"), list_of("kind", "a")])
    trials = [ended(asked, number, {"lr": 0.5, "n": 3, "kind": "a"}, {"loss": 1.0}) for number in (1, 2)]
    seen = see(report.html(asked, trials, RUNNING), tmp_path)
    assert len(seen["plots"]) == 5
    assert not any(plot["broken"] for plot in seen["plots"])


def test_a_thinned_page_draws_a_thousand_trials(tmp_path: Path) -> None:
    seen = see(report.html(*mixed(3000)), tmp_path)
    objective = next(plot for plot in seen["plots"] if plot["name"] == "objective")
    assert objective["marks"] + objective["ticks"] == 1000
    assert next(plot for plot in seen["plots"] if plot["name"] == "parallel")["lines"] == objective["marks"]


# --- What is selected ---------------------------------------------------------------------------------------------


def test_a_range_drawn_on_an_axis_fades_lines_and_hides_rows(tmp_path: Path) -> None:
    """The upper half of the axis from 0.01 to 0.05; trials without a value have a row and no line."""
    found = example()
    seen = see(report.html(*found), tmp_path, act="drag(0, 0.5, 1); return state();")["acted"]
    upper = numbers_where(found, lambda trial: rate(trial) >= 0.03)
    assert seen["rows"] == upper
    assert seen["lines"] == seen["marks"] == [n for n in upper if n not in (5, 9)]
    assert len(seen["lines"]) + len(seen["faded"]) == 10
    assert seen["counts"] == [f"{len(upper)} of 12 trials selected", f"{len(upper)} of 12 shown"]


def test_ranges_on_several_axes_hold_together(tmp_path: Path) -> None:
    """The objective's axis goes from 0 to 0.4; the upper half of it is 0.2 and above."""
    found = example()
    seen = see(report.html(*found), tmp_path, act="drag(0, 0, 0.5); drag(2, 0.5, 1); return state();")["acted"]
    both = numbers_where(found, lambda trial: rate(trial) <= 0.03 and (loss(trial) or 0) >= 0.2)
    assert 0 < len(both) < 10
    assert seen["rows"] == seen["lines"] == both


@pytest.mark.parametrize(
    "clear",
    [
        "drag(0, 0.7, 0.7)",
        "press(handle(0, 0), 'Escape')",
        "press(document.body, 'Escape')",
        "document.querySelector('.clear').click()",
    ],
    ids=["click on the axis", "Escape on a handle", "Escape", "button"],
)
def test_a_range_is_cleared(tmp_path: Path, clear: str) -> None:
    before, after = see(
        report.html(*example()), tmp_path, act=f"drag(0, 0.5, 1); const was = state(); {clear}; return [was, state()];"
    )["acted"]
    assert len(before["rows"]) < 12
    assert after["rows"] == list(range(1, 13))
    assert after["faded"] == []


def test_a_range_can_be_moved_and_changed_at_its_ends(tmp_path: Path) -> None:
    found = example()
    moved, changed = see(
        report.html(*found),
        tmp_path,
        act="drag(0, 0.2, 0.5); drag(0, 0.35, 0.65); const was = state(); drag(0, 0.8, 0.6); return [was, state()];",
    )["acted"]
    assert moved["rows"] == numbers_where(found, lambda trial: 0.03 <= rate(trial) <= 0.042)
    assert changed["rows"] == numbers_where(found, lambda trial: 0.03 <= rate(trial) <= 0.034)


def test_handles_are_sliders_that_arrow_keys_move(tmp_path: Path) -> None:
    found = example()
    act = """
      const lower = handle(0, 0);
      lower.focus();
      for (let index = 0; index < 25; index += 1) press(document.activeElement, "ArrowUp");
      const names = ["role", "tabindex", "aria-label", "aria-valuenow", "aria-valuetext", "aria-orientation"];
      return { ...state(), slider: names.map((name) => lower.getAttribute(name)) };
    """
    seen = see(report.html(*found), tmp_path, act=act)["acted"]
    assert seen["slider"] == ["slider", "0", "lr, lower end of the selected range", "50", "0.03", "vertical"]
    assert seen["rows"] == numbers_where(found, lambda trial: rate(trial) >= 0.03)


def test_a_range_on_a_list_holds_whole_items(tmp_path: Path) -> None:
    """One step up leaves out `sgd`, the lowest of four; a part of an item that is dragged over stands for all of it."""
    found = mixed(40)
    act = """
      press(handle(3, 0), "ArrowUp");
      const keyed = { ...state(), text: handle(3, 0).getAttribute("aria-valuetext") };
      press(handle(3, 0), "Escape");
      drag(3, 0.4, 0.45);
      return [keyed, state()];
    """
    keyed, dragged = see(report.html(*found), tmp_path, act=act)["acted"]
    assert keyed["text"] == "adam"
    assert keyed["rows"] == numbers_where(found, lambda trial: trial.assignments["--optimizer"] != "sgd")
    assert dragged["rows"] == numbers_where(found, lambda trial: trial.assignments["--optimizer"] == "adam")


def test_typed_text_filters_the_table_and_fades_lines(tmp_path: Path) -> None:
    act = """
      type("memoryerror");
      const one = state();
      type("no such text");
      const none = { ...state(), note: document.querySelector(".none").offsetHeight > 0 };
      type("");
      return [one, none, state()];
    """
    one, none, every = see(report.html(*example()), tmp_path, act=act)["acted"]
    assert (one["rows"], one["lines"], len(one["faded"])) == ([5], [], 10)
    assert one["counts"] == ["1 of 12 trials selected", "1 of 12 shown"]
    assert (none["rows"], none["note"]) == ([], True)
    assert (every["rows"], every["faded"]) == (list(range(1, 13)), [])


def test_conditions_can_be_chosen(tmp_path: Path) -> None:
    act = """
      const choose = (name) => document.querySelector(`[data-only=${name}]`).click();
      choose("Failed");
      const failed = state();
      choose("EarlyStopped");
      const both = state();
      choose("Failed");
      choose("EarlyStopped");
      return [failed, both, state()];
    """
    found = mixed(60)
    failed, both, every = see(report.html(*found), tmp_path, act=act)["acted"]
    assert failed["rows"] == numbers_where(found, lambda trial: trial.condition == "Failed")
    assert both["rows"] == numbers_where(found, lambda trial: trial.condition in ("Failed", "EarlyStopped"))
    assert every["rows"] == list(range(1, 61))


def test_filters_hold_together_and_one_button_clears_them(tmp_path: Path) -> None:
    act = """
      drag(0, 0.5, 1);
      type("adamw");
      document.querySelector("[data-only=Succeeded]").click();
      const was = state();
      document.querySelector(".controls .clear").click();
      const field = document.querySelector("input[type=search]").value;
      return [was, { ...state(), field, pressed: all("[aria-pressed=true]").length }];
    """
    found = mixed(60)
    narrowed, every = see(report.html(*found), tmp_path, act=act)["acted"]
    assert narrowed["rows"] == numbers_where(
        found,
        lambda trial: (
            float(trial.assignments["--learning-rate"]) >= 1e-3
            and trial.assignments["--optimizer"] == "adamw"
            and trial.condition == "Succeeded"
        ),
    )
    assert every["rows"] == list(range(1, 61))
    assert (every["field"], every["pressed"]) == ("", 0)


def test_a_row_under_the_pointer_points_out_its_trial_in_every_plot(tmp_path: Path) -> None:
    act = """
      const row = document.querySelector("tr[data-trial='3']");
      point(row.cells[1], "pointerover", 0, 0);
      const hot = all(".hot").map((each) => [each.localName, each.dataset.trial]);
      const over = plot("parallel").querySelector(".over").getAttribute("points") !== null;
      point(row.cells[1], "pointerout", 0, 0);
      return { hot, over, after: all(".hot, .over[points]").length };
    """
    seen = see(report.html(*example()), tmp_path, act=act)["acted"]
    assert seen["hot"] == [["circle", "3"], ["polyline", "3"], ["circle", "3"], ["circle", "3"], ["tr", "3"]]
    assert (seen["over"], seen["after"]) == (True, 0)


# --- Curves -------------------------------------------------------------------------------------------------------


def curves() -> dict[int, dict[str, Curve]]:
    """Falling losses of trials 1 to 4, the lower the number the lower; accuracies of two of them."""
    steps = tuple(range(1, 6))
    losses = {n: {"loss": Curve(steps, tuple(n + 1 / step for step in steps))} for n in range(1, 5)}
    return losses | {n: losses[n] | {"accuracy": Curve((2, 9), (0.5, 0.6))} for n in (1, 2)}


def test_each_trial_has_its_curve_and_the_metric_can_be_chosen(tmp_path: Path) -> None:
    act = """
      const seen = () => ({
        lines: numbers(all(".line", plot("curves"))),
        texts: all("text", plot("curves")).map((text) => text.textContent),
      });
      const was = seen();
      all("input[name=curve]")[1].click();
      return [was, seen()];
    """
    losses, accuracies = see(report.html(*example(), curves=curves()), tmp_path, act=act)["acted"]
    assert losses["lines"] == [1, 2, 3, 4]
    assert losses["texts"][-1] == "report"
    assert "loss" in losses["texts"]
    assert accuracies["lines"] == [1, 2]
    assert "accuracy" in accuracies["texts"]


def test_a_curve_under_the_pointer_and_one_that_keys_reach_tell_their_trial(tmp_path: Path) -> None:
    """Keys reach the best of the four first."""
    found = example()
    act = """
      const root = plot("curves");
      const line = document.querySelector("[data-plot=curves] .line[data-trial='2']");
      const last = line.points[line.points.length - 1];
      const box = root.getBoundingClientRect();
      point(root, "pointermove", box.left + last.x, box.top + last.y + 3);
      const hovered = state().tip;
      const over = root.querySelector(".over").getAttribute("points") === line.getAttribute("points");
      point(root, "pointerleave", 0, 0);
      const left = state().tip;
      root.focus();
      press(root, "ArrowDown");
      return { hovered, over, left, keyed: state().tip, live: document.querySelector(".unseen").textContent };
    """
    seen = see(report.html(*found, curves=curves()), tmp_path, act=act)["acted"]
    assert "Trial 2 " in seen["hovered"]
    assert seen["over"]
    assert seen["left"] == ""
    best = min(found[1][:4], key=lambda trial: loss(trial) or 0)
    assert f"Trial {best.number} " in seen["keyed"]
    assert seen["live"].startswith(f"Trial {best.number}: loss")
