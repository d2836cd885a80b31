"""Laws of the report: the same facts in every form, and nothing that a user or a log wrote can break out of its place."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from hpo_core import report
from hpo_core.experiment import Experiment, read_draft
from hpo_core.report import RetrainSummary
from hpo_core.space import Value
from hpo_core.status import RUNNING, Tally, Verdict, judge
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
HOSTILE = "</script><script>alert(1)</script><!--\u2028<img src=x onerror=alert(1)>\"'`|\\${x} \x1b[31m\x00\udc80&amp;"


def range_of(name: str, low: float, high: float, kind: str = "double", distribution: str = "uniform") -> dict[str, Any]:
    space = {"min": str(low), "max": str(high), "distribution": distribution}
    return {"name": name, "parameterType": kind, "feasibleSpace": space}


def list_of(name: str, *items: str, kind: str = "categorical") -> dict[str, Any]:
    return {"name": name, "parameterType": kind, "feasibleSpace": {"list": list(items)}}


def experiment(
    parameters: Sequence[Mapping[str, Any]], *, metric: str = "loss", name: str = "mnist", most: int = 12, **changes: Any
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
            log = "Traceback (most recent call last):\n  File \"/app/mnist.py\", line 61, in train\nMemoryError: cannot allocate 512 MB"
            trials.append(ended(asked, number, values, {}, TrialCondition.FAILED, log))
        elif number == 9:
            trials.append(
                ended(
                    asked, number, values, {}, TrialCondition.METRICS_UNAVAILABLE, "No line with loss was found in the log."
                )
            )
        else:
            trials.append(ended(asked, number, values, {"loss": round(loss, 6), "accuracy": round(1 - 0.3 * loss, 4)}))
    return asked, trials, Verdict(judge(asked, Tally(asked.objective)).condition, "", "")


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
