"""Laws of the page's parts that filter, weigh and bound; the others are in `test_report`."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from hpo_core import report
from hpo_core.report import Curve
from hpo_core.report.html_page import SCRIPTS
from hpo_core.report.summary import Summary
from tests.unit.test_report import example, mixed, page_of


def curves(numbers: list[int], names: tuple[str, ...]) -> dict[int, dict[str, Curve]]:
    curve = Curve(tuple(range(3, 63)), tuple(0.123456 + index / 7 for index in range(60)))
    return {number: dict.fromkeys(names, curve) for number in numbers}


def test_each_condition_can_be_chosen_and_tells_its_count() -> None:
    found = mixed(40)
    page = page_of(found)
    offered = [value for tag, name, value in page.attributes if name == "data-only"]
    counts = Summary.of(*found).counts
    assert offered == list(counts)
    texts = [text for text in page.texts["button"] if text != "Show all"]
    assert [text.rpartition(" ")[2] for text in texts] == [str(count) for count in counts.values()]


def test_without_javascript_no_control_is_shown() -> None:
    css = files("hpo_core.report").joinpath("page.css").read_text("utf-8")
    assert "html:not(.js) .controls { display: none; }" in css
    page = report.html(*mixed(40))
    controls = re.search('<div class="controls">.*?</div>(?=</div><div class="scroll")', page, re.S)
    assert controls
    outside = page.replace(controls.group(), "")
    assert "<input" not in outside
    hidden = '<p class="none muted" hidden>No trial is left. <button type="button" data-clear>'
    assert hidden in outside
    buttons = re.findall("<button [^>]*>", outside.replace(hidden, ""))
    assert buttons == ['<button type="button" class="clear" data-clear hidden>']


def test_the_number_of_selected_trials_is_told_aloud() -> None:
    page = page_of(example())
    assert ("p", ("class", "data-count", "aria-live")) in page.tags


@pytest.mark.parametrize(("count", "words"), [(9, "7 have one"), (2, "2 have one"), (1, "1 has one")])
def test_with_too_few_trials_no_importance_is_claimed(count: int, words: str) -> None:
    asked, trials, verdict = example()
    page = page_of((asked, trials[:count], verdict))
    assert words in page.texts["main"][0]
    assert "bars" not in [value for tag, name, value in page.attributes if name == "class"]


def test_every_parameter_has_its_bar_without_javascript() -> None:
    found = asked, _, _ = mixed(60)
    page = page_of(found)
    bars = [text for text in page.texts["li"] if text.startswith("--")]
    assert [bar.rstrip("%0123456789") for bar in bars] == [parameter.name for parameter in asked.parameters]
    shares = [int(re.findall(r"(\d+)%", bar)[0]) for bar in bars]
    assert shares[0] == max(shares)


def test_the_best_have_the_strongest_colour_and_the_fewest_trials() -> None:
    shown = [trial for trial in page_of(mixed(200)).data["trials"] if trial["objective"] is not None]
    ranked = sorted(shown, key=lambda trial: -trial["objective"])
    shades = [trial["shade"] for trial in ranked]
    assert shades == sorted(shades, reverse=True)
    counts = [shades.count(shade) for shade in range(8)]
    assert counts == sorted(counts, reverse=True)
    assert counts[7] >= 1


def test_a_trial_without_a_value_has_no_colour() -> None:
    lost = [trial for trial in page_of(mixed(40)).data["trials"] if trial["objective"] is None]
    assert {trial["shade"] for trial in lost} == {None}


def test_200_trials_with_curves_stay_below_a_megabyte() -> None:
    asked, trials, verdict = mixed(200)
    shown = curves(report.curve_numbers(asked, trials), asked.objective.metric_names)
    assert len(report.html(asked, trials, verdict, curves=shown).encode()) < 1_000_000


def test_10000_trials_with_curves_stay_below_a_megabyte_and_a_half() -> None:
    asked, trials, verdict = mixed(10_000)
    shown = curves(report.curve_numbers(asked, trials), asked.objective.metric_names)
    assert len(report.html(asked, trials, verdict, curves=shown).encode()) < 1_500_000


def test_every_script_of_the_package_is_on_the_page() -> None:
    shipped = {entry.name for entry in files("hpo_core.report").iterdir() if entry.name.endswith(".js")}
    assert shipped == set(SCRIPTS)
