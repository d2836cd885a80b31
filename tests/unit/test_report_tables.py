"""Laws of the report as Markdown, CSV, JSON and rows: they tell the same facts, and no text breaks out of its cell."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from hpo_core import report
from hpo_core.status import RUNNING, TOO_MANY_FAILED, Tally, Verdict
from tests.unit.test_report import HOSTILE, ended, example, experiment, hostile, list_of, mixed, moment, range_of

# --- Markdown -----------------------------------------------------------------------------------------------------


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Every table's rows of cells as a Markdown parser sees them, header first; anything but plain text is refused."""
    tables: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        assert token.type != "html_block"
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and token.level == 4:
            assert {child.type for child in token.children or []} <= {"text", "text_special"}
            tables[-1][-1].append("".join(child.content for child in token.children or []))
    return tables


def test_markdown_tables_parse_back_to_the_facts() -> None:
    asked, trials, verdict = example()
    best, table = markdown_tables(report.markdown(asked, trials, verdict))
    assert best[1:] == [[name, str(value)] for name, value in report.best_parameters(asked, trials).items()]
    assert table[0] == ["Trial", "Condition", "loss", "accuracy", "lr", "momentum", "Duration", "Reason"]
    assert len(table) == 1 + len(trials)
    losses = [float(row[2]) for row in table[1:] if row[2]]
    assert losses == sorted(losses)
    assert table[1][0].endswith("(best)")
    assert [row[2] for row in table[-2:]] == ["", ""]


def test_markdown_keeps_hostile_texts_as_texts() -> None:
    best, table = markdown_tables(report.markdown(*hostile(HOSTILE)))
    plain = " ".join(HOSTILE.split())
    assert best[1:] == [[f"rate{plain}", "0.5"], ["kind", f"a{plain}"]]
    assert table[0][2] == f"loss{plain}"
    assert {len(row) for row in table} == {8}


def test_markdown_shows_the_best_fifty_and_says_how_many_are_left_out() -> None:
    text = report.markdown(*mixed(60))
    table = markdown_tables(text)[1]
    assert len(table) == 51
    assert "The best 50 of 60 trials; 10 are left out." in text
    values = [float(row[2]) for row in table[1:] if row[2]]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("count", "verdict", "words"), [(0, RUNNING, "No trial has been"), (1, TOO_MANY_FAILED, "none with")]
)
def test_markdown_without_a_best_trial_says_why(count: int, verdict: Verdict, words: str) -> None:
    asked, trials, _ = example()
    text = report.markdown(asked, trials[4 : 4 + count], verdict)
    assert "## No best trial" in text
    assert words in text


# --- Tables for programs ------------------------------------------------------------------------------------------


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def test_csv_reads_back() -> None:
    asked, trials, _ = mixed(20)
    rows = read_csv(report.trials_csv(asked, reversed(trials)))
    assert [int(row["number"]) for row in rows] == list(range(1, 21))
    for row, trial in zip(rows, trials, strict=True):
        assert row["name"] == trial.name
        assert row["condition"] == trial.condition
        for parameter in asked.parameters:
            assert row[f"parameter.{parameter.name}"] == parameter.format(trial.assignments[parameter.name])
        metrics = trial.observation.metrics if trial.observation else {}
        latest = str(metrics["val-loss"].latest) if metrics else ""
        assert row["metric.val-loss.latest"] == latest


def test_csv_holds_no_formula() -> None:
    """What a spreadsheet would run gets an apostrophe in front; a number, also a negative one, is left alone."""
    asked = experiment([list_of("kind", "=cmd()", "-1.5", "@x", "+a", "plain")])
    items = asked.parameters[0].space.items
    trials = [
        ended(asked, n, {"kind": item}, {"loss": -0.5}, message=f"{item}\nmore") for n, item in enumerate(items, 1)
    ]
    rows = read_csv(report.trials_csv(asked, trials))
    assert [row["parameter.kind"] for row in rows] == ["'=cmd()", "-1.5", "'@x", "'+a", "plain"]
    assert [row["message"][0] for row in rows] == ["'", "'", "'", "'", "p"]
    assert {row["objective"] for row in rows} == {"-0.5"}


def test_csv_and_json_agree_and_survive_hostile_texts() -> None:
    asked, trials, _ = hostile(HOSTILE)
    rows, documents = read_csv(report.trials_csv(asked, trials)), json.loads(report.trials_json(asked, trials))
    for row, document in zip(rows, documents, strict=True):
        assert row["message"] == document["message"]
        assert row[f"parameter.rate{HOSTILE}"] == str(document["parameters"][f"rate{HOSTILE}"])
    assert documents[0]["metrics"][f"loss{HOSTILE}"] == {"min": 0.1, "max": 0.1, "latest": 0.1}


def test_json_keeps_types_and_times() -> None:
    asked, trials, _ = mixed(3)
    document = json.loads(report.trials_json(asked, trials))[0]
    assert [type(value) for value in document["parameters"].values()] == [float, int, float, str, int]
    assert (document["started"], document["completed"]) == (trials[0].started, trials[0].completed)
    assert document["durationSeconds"] == 55


def test_best_parameters_are_typed_and_follow_the_direction() -> None:
    asked = experiment([range_of("layers", 1, 9, kind="int")], type="maximize")
    trials = [
        ended(asked, number, {"layers": number}, {"loss": loss}) for number, loss in ((1, 0.5), (2, 0.9), (3, 0.9))
    ]
    assert report.best_parameters(asked, trials) == {"layers": 2}
    assert isinstance(report.best_parameters(asked, trials)["layers"], int)
    assert report.best_parameters(asked, []) == {}


# --- Rows ---------------------------------------------------------------------------------------------------------


def test_rows_are_ordered_by_number_and_mark_one_best() -> None:
    asked, trials, _ = mixed(30)
    rows = report.trial_rows(asked, random.Random(2).sample(trials, 30))
    assert [row.number for row in rows] == list(range(1, 31))
    tally = Tally.of(asked.objective, trials)
    assert tally.best is not None
    assert [row.number for row in rows if row.is_best] == [tally.best.number]


def test_a_trial_without_a_usable_time_has_no_duration() -> None:
    asked, trials, _ = example()
    odd = [
        replace(trials[0], started="yesterday"),
        replace(trials[1], completed=""),
        replace(trials[2], started=moment(-1)),
    ]
    assert [row.duration_s for row in report.trial_rows(asked, odd)][:2] == [None, None]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.0, "0 s"),
        (0.123, "0.12 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (7200, "2 h"),
        (100_000, "1 d 3 h"),
    ],
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert report.duration_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (12345678, "12345678"),
        (0.1 + 0.2, "0.3"),
        (-2606826.8, "-2606827"),
        (1e300, "1e+300"),
        (1e-5, "1e-05"),
        (math.nan, "nan"),
    ],
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert report.number_text(value) == text
