"""Laws of the report: the same facts in every form, and nothing that a user or a log wrote breaks out of its place."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest
import yaml

from hpo_core import report
from hpo_core.experiment import Experiment, read_draft
from hpo_core.report import RetrainSummary
from hpo_core.space import Value
from hpo_core.status import MAX_TRIALS_REACHED, RUNNING, TOO_MANY_FAILED, Tally, Verdict, judge
from hpo_core.trial import (
    Assignment,
    MetricSummary,
    Observation,
    Trial,
    TrialCondition,
    TrialVerdict,
    create_trial,
)

EPOCH = datetime(2025, 3, 1, 9, tzinfo=UTC)
HOSTILE = (
    "</script><script>alert(1)</script><!--\u2028</textarea></title><img src=x onerror=alert(1)>\"'`|\\$x *b* &amp;"
)
UNPRINTABLE = "\x1b[31mred\x1b[0m\x00\x08\udc80"


def range_of(name: str, low: float, high: float, kind: str = "double", distribution: str = "uniform") -> dict[str, Any]:
    space = {"min": str(low), "max": str(high), "distribution": distribution}
    return {"name": name, "parameterType": kind, "feasibleSpace": space}


def list_of(name: str, *items: str, kind: str = "categorical") -> dict[str, Any]:
    return {"name": name, "parameterType": kind, "feasibleSpace": {"list": list(items)}}


def experiment(
    parameters: Sequence[Mapping[str, Any]],
    *,
    metric: str = "loss",
    name: str = "mnist",
    most: int = 12,
    **changes: Any,
) -> Experiment:
    """An accepted Experiment; `changes` go into its objective."""
    words = [f"--{p['name'].lstrip('-')}=${{trialParameters.p{index}}}" for index, p in enumerate(parameters)]
    container = {"name": "train", "image": "trainer:1", "command": ["python3", "/app/mnist.py", "--epochs=1", *words]}
    document = {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {"name": name, "namespace": "kubeflow"},
        "spec": {
            "objective": {"type": "minimize", "objectiveMetricName": metric, **changes},
            "algorithm": {"algorithmName": "random"},
            "maxTrialCount": most,
            "parameters": list(parameters),
            "trialTemplate": {
                "primaryContainerName": "train",
                "trialParameters": [{"name": f"p{i}", "reference": p["name"]} for i, p in enumerate(parameters)],
                "trialSpec": {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "spec": {"template": {"spec": {"containers": [container]}}},
                },
            },
        },
    }
    return read_draft(yaml.safe_dump(document)).experiment().accepted("uid-1", "2025-03-01T08:59:58Z")


def moment(seconds: float) -> str:
    return (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def ended(
    asked: Experiment,
    number: int,
    values: Mapping[str, Value],
    metrics: Mapping[str, float],
    condition: TrialCondition = TrialCondition.SUCCEEDED,
    message: str = "",
) -> Trial:
    """A trial that came to its end, with one report of each metric."""
    summaries = {name: MetricSummary(value, value, value) for name, value in metrics.items()}
    verdict = TrialVerdict(condition, f"Trial{condition}", message, Observation(summaries) if metrics else None)
    start = 80 * ((number - 1) // 3)
    trial = create_trial(asked, number, Assignment(values), asked_after=0, now=moment(start)).run(moment(start + 2))
    return trial.finish(verdict, finished_seq=number, log_cursor=0, now=moment(start + 50 + 7 * (number % 3)))


def example() -> tuple[Experiment, list[Trial], Verdict]:
    """Twelve trials of learning rate and momentum: ten with a plausible loss, one that failed, one without metrics."""
    asked = experiment(
        [range_of("lr", 0.01, 0.05), range_of("momentum", 0.5, 0.9)],
        name="mnist-random",
        goal=0.001,
        additionalMetricNames=["accuracy"],
    )
    chance = random.Random(7)
    trials = []
    for number in range(1, 13):
        values = {"lr": chance.uniform(0.01, 0.05), "momentum": chance.uniform(0.5, 0.9)}
        loss = 0.06 + 1.4 * (math.log10(values["lr"] / 0.032)) ** 2 + 1.1 * (values["momentum"] - 0.78) ** 2
        loss += chance.uniform(0, 0.02)
        if number == 5:
            log = 'Traceback (most recent call last):\n  File "/app/mnist.py", line 61\nMemoryError: 512 MB'
            trials.append(ended(asked, number, values, {}, TrialCondition.FAILED, log))
        elif number == 9:
            log = "No line with loss was found in the log."
            trials.append(ended(asked, number, values, {}, TrialCondition.METRICS_UNAVAILABLE, log))
        else:
            trials.append(ended(asked, number, values, {"loss": round(loss, 6), "accuracy": round(1 - 0.3 * loss, 4)}))
    return asked, trials, judge(asked, Tally.of(asked.objective, trials))


def mixed(count: int) -> tuple[Experiment, list[Trial], Verdict]:
    """A space with every kind of axis, two additional metrics, and trials in every condition."""
    asked = experiment(
        [
            range_of("--learning-rate", 1e-5, 1e-1, distribution="logUniform"),
            range_of("--num-layers", 2, 6, kind="int"),
            range_of("--dropout", 0.0, 0.6),
            list_of("--optimizer", "sgd", "adam", "adamw", "rmsprop"),
            list_of("--batch-size", "16", "32", "64", "128", kind="discrete"),
        ],
        name="quick-start",
        most=count,
        metric="validation-accuracy",
        type="maximize",
        goal=0.99,
        additionalMetricNames=["train-accuracy", "val-loss"],
    )
    chance = random.Random(11)
    odd = {7: TrialCondition.EARLY_STOPPED, 13: TrialCondition.FAILED, 17: TrialCondition.KILLED}
    trials = []
    for number in range(1, count + 1):
        values = {p.name: p.decode(chance.random()) for p in asked.parameters}
        rate, dropout = float(values["--learning-rate"]), float(values["--dropout"])
        lost = 0.05 * (math.log10(rate / 2e-3)) ** 2 + 0.35 * (dropout - 0.25) ** 2 + chance.uniform(0, 0.05)
        accuracy = max(0.97 - lost - 0.03 * (values["--optimizer"] == "sgd"), 0.1)
        condition = next((c for every, c in odd.items() if number % every == 0), TrialCondition.SUCCEEDED)
        metrics = {"validation-accuracy": accuracy, "train-accuracy": accuracy + 0.012, "val-loss": 0.1 + 2 * lost}
        has_value = condition in (TrialCondition.SUCCEEDED, TrialCondition.EARLY_STOPPED)
        message = "" if has_value else "The container was killed: it needed more than its 1 GiB of memory."
        trials.append(ended(asked, number, values, metrics if has_value else {}, condition, message))
    return asked, trials, judge(asked, Tally.of(asked.objective, trials), exhausted=True)


class Page(HTMLParser):
    """What a browser's parser makes of a page: its tags with their attributes' names, and texts by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.texts.setdefault(tag, []).append("")
        if tag not in ("meta", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "elements nest"

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        """The JSON block."""
        found: dict[str, Any] = json.loads(self.texts["script"][0])
        return found


def page_of(found: tuple[Experiment, list[Trial], Verdict], **options: Any) -> Page:
    return Page(report.html(*found, **options))


def hostile(text: str) -> tuple[Experiment, list[Trial], Verdict]:
    """An experiment whose every free text holds `text`."""
    asked = experiment(
        [range_of(f"rate{text}", 0.0, 1.0), list_of("kind", f"a{text}", "b")],
        metric=f"loss{text}",
        additionalMetricNames=[f"more{text}"],
    )
    values: dict[str, Value] = {f"rate{text}": 0.5, "kind": f"a{text}"}
    message = f"{text} {UNPRINTABLE}" if text else "it broke"
    trials = [
        ended(asked, 1, values, {f"loss{text}": 0.1, f"more{text}": 2.0}, message=message),
        replace(ended(asked, 2, values, {}, TrialCondition.FAILED, message), reason=f"Why{text}"),
    ]
    return asked, trials, Verdict(MAX_TRIALS_REACHED.condition, "Other", f"because{text}")


# --- The page -----------------------------------------------------------------------------------------------------


def test_the_page_asks_nothing_of_a_network() -> None:
    text = report.html(*mixed(20))
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base", "form", "a"}
    assert not {name for _, name, _ in page.attributes} & {"src", "href", "action", "srcset", "style"}
    assert set(re.findall(r"\w+://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_uses_nothing_that_a_sandboxed_frame_forbids() -> None:
    script = page_of(example()).texts["script"][1]
    assert not re.findall(
        r"localStorage|sessionStorage|cookie|alert\(|open\(|fetch\(|innerHTML|eval\(|clipboard", script
    )


def test_the_policy_lets_exactly_the_own_script_and_style_run() -> None:
    page = page_of(example())
    policy = next(v for tag, name, v in page.attributes if (tag, name) == ("meta", "content") and "default-src" in v)
    hashes = {
        kind: base64.b64encode(hashlib.sha256(page.texts[kind][-1].encode()).digest()).decode()
        for kind in ("script", "style")
    }
    assert policy.startswith("default-src 'none';")
    assert policy.endswith(f"style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'")


def test_the_same_input_gives_the_same_bytes_whatever_the_order_of_the_trials() -> None:
    asked, trials, verdict = mixed(30)
    shuffled = random.Random(1).sample(trials, len(trials))
    for write in (report.html, report.markdown):
        assert write(asked, shuffled, verdict) == write(asked, trials, verdict)


def test_hostile_texts_change_no_element_of_the_page() -> None:
    """Names, values, reasons, messages and a model's address stay texts: the tags are those of a tame experiment."""
    tame = page_of(hostile(""), retrained=RetrainSummary("Succeeded", {"m": 1.0}, "s3", "done"))
    wild = page_of(hostile(HOSTILE), retrained=RetrainSummary(HOSTILE, {f"m{HOSTILE}": 1.0}, HOSTILE, HOSTILE))
    assert wild.tags == tame.tags
    assert len(wild.texts["script"]) == 2
    assert HOSTILE in wild.texts["tbody"][0]


def test_what_no_document_may_hold_is_left_out() -> None:
    text = (
        report.html(*hostile(HOSTILE)) + report.markdown(*hostile(HOSTILE)) + report.trials_csv(*hostile(HOSTILE)[:2])
    )
    assert not set(text.encode("utf-8").decode()) & set("\x00\x08\x1b")
    assert "red\ufffd\ufffd\ufffd" in text


def test_the_data_block_is_plain_ascii_without_markup_and_has_every_trial() -> None:
    asked, trials, _ = found = hostile(HOSTILE)
    page = page_of(found)
    assert page.texts["script"][0].isascii()
    assert not set(page.texts["script"][0]) & set("<>&")
    assert [trial["number"] for trial in page.data["trials"]] == [trial.number for trial in trials]
    assert [axis["name"] for axis in page.data["parameters"]] == [parameter.name for parameter in asked.parameters]


def test_numbers_that_are_not_finite_never_reach_the_data() -> None:
    asked = experiment([range_of("lr", 0.0, 1.0)], metricStrategies=[{"name": "loss", "value": "latest"}])
    trials = [ended(asked, 1, {"lr": 0.1}, {"loss": math.nan}), ended(asked, 2, {"lr": 0.2}, {"loss": -math.inf})]
    data = page_of((asked, trials, MAX_TRIALS_REACHED)).data
    assert [trial["objective"] for trial in data["trials"]] == [None, None]
    assert data["best"] is None
    written = json.loads(report.trials_json(asked, trials), parse_constant=pytest.fail)
    assert [row["metrics"]["loss"]["latest"] for row in written] == [None, None]


def test_best_so_far_follows_the_objective_and_never_gets_worse() -> None:
    for found, pick in ((example(), min), (mixed(40), max)):
        asked, trials, _ = found
        values = [trial.observation.value(asked.objective) if trial.observation else None for trial in trials]
        course = page_of(found).data["bestSoFar"]
        for index, reached in enumerate(course):
            assert reached == pick(value for value in values[: index + 1] if value is not None)


def test_best_trial_and_table_are_there_without_javascript() -> None:
    found = asked, trials, _ = example()
    page = page_of(found)
    best = report.best_parameters(asked, trials)
    assert json.loads(page.texts["textarea"][1]) == best
    assert len(page.texts["tr"]) == 2 + len(trials)
    rows = page.texts["tr"][2:]
    assert [row for row in rows if row.startswith("best")] == [next(row for row in rows if f"{best['lr']:.6g}" in row)]
    assert "MemoryError: 512 MB" in rows[4]


@pytest.mark.parametrize("text", ["", HOSTILE], ids=["tame", "hostile"])
def test_a_shell_reads_the_command_as_the_trial_got_it(text: str) -> None:
    command = page_of(hostile(text)).texts["textarea"][0]
    shell = subprocess.run(["sh", "-c", f"set -- {command}\nprintf '%s\\0' \"$@\""], capture_output=True, check=True)
    words = shell.stdout.decode().split("\0")[:-1]
    assert words == ["python3", "/app/mnist.py", "--epochs=1", f"--rate{text}=0.5", f"--kind=a{text}"]


def test_values_that_travel_in_the_environment_are_shown_before_the_command() -> None:
    asked, trials, verdict = example()
    container = {
        "name": "train",
        "command": ["train me"],
        "env": [{"name": "LR", "value": "${trialParameters.p0}"}, {"name": "HOME", "value": "/"}],
    }
    template = replace(asked.template, trial_spec={"spec": {"template": {"spec": {"containers": [container]}}}})
    command = page_of((replace(asked, template=template), trials, verdict)).texts["textarea"][0]
    assert command == f"LR={report.best_parameters(asked, trials)['lr']} 'train me'"


def test_without_trials_the_page_says_so_and_promises_no_plot() -> None:
    asked, _, _ = example()
    page = page_of((asked, [], RUNNING))
    assert "No trial has been created yet." in page.texts["main"][0]
    assert "0 of 12 trials were done" in page.texts["main"][0]
    assert not [value for _, name, value in page.attributes if name == "data-plot"]


def test_when_all_trials_failed_the_page_tells_why() -> None:
    asked, trials, _ = example()
    failed = [
        ended(asked, t.number, t.assignments, {}, TrialCondition.FAILED, f"step {t.number}\nOOM") for t in trials[:3]
    ]
    page = page_of((asked, failed, TOO_MANY_FAILED))
    assert "3 trials ended, none with a value of loss." in page.texts["main"][0]
    assert "3 × Failed: OOM" in page.texts["li"]
    assert not [value for _, name, value in page.attributes if name == "data-plot"]


def test_a_running_trial_is_in_the_table_and_is_never_the_best() -> None:
    asked, trials, _ = example()
    running = create_trial(asked, 2, Assignment(trials[1].assignments), asked_after=0, now=moment(0)).run(moment(1))
    page = page_of((asked, [trials[0], running], RUNNING))
    assert page.data["best"] == 1
    assert page.texts["tr"][3].startswith("2Running")


def test_the_final_model_is_shown_when_there_is_one() -> None:
    final = RetrainSummary("Succeeded", {"loss": 0.0511}, "s3://models/final")
    assert "s3://models/final" in page_of(example(), retrained=final).texts["main"][0]
    assert "Final model" not in page_of(example()).texts["main"][0]


def test_the_page_stays_small_at_200_trials_with_long_messages() -> None:
    asked, trials, verdict = mixed(200)
    chatty = [replace(trial, message="Warning: this line is repeated. " * 200) for trial in trials]
    assert len(report.html(asked, chatty, verdict).encode()) < 300_000


def test_a_long_message_keeps_its_end_on_the_page_and_all_of_it_in_json() -> None:
    asked, trials, verdict = example()
    message = "first words " + "x" * 5000 + " last words"
    trials[4] = replace(trials[4], message=message)
    page = report.html(asked, trials, verdict)
    assert "last words" in page
    assert "first words" not in page
    assert json.loads(report.trials_json(asked, trials))[4]["message"] == message


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_text_and_mark_stands_out_from_its_card(theme: int) -> None:
    """WCAG 2: a contrast of 4.5 for text and 3 for marks."""
    css = files("hpo_core.report").joinpath("page.css").read_text("utf-8")
    colours = [
        dict(re.findall(r"--(\w[\w-]*): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    assert len(colours) == 2
    found = colours[theme]
    for name in ("ink", "muted", "best"):
        for ground in ("card", "page", "soft", "best-soft"):
            assert contrast(found[name], found[ground]) >= 4.5, (name, ground)
    for name in ("ok", "failed", "lost", "early", "killed", "running", "created", "s5", "s6", "s7"):
        assert contrast(found[name], found["card"]) >= 3, name


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_better_a_trial_the_more_its_line_stands_out(theme: int) -> None:
    css = files("hpo_core.report").joinpath("page.css").read_text("utf-8")
    block = re.findall(r":root \{(.*?)\}", css, re.S)[theme]
    found = dict(re.findall(r"--(\w[\w-]*): (#\w{6})", block))
    strengths = [contrast(found[f"s{shade}"], found["card"]) for shade in range(8)]
    assert strengths == sorted(set(strengths))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, as WCAG 2 defines it."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
