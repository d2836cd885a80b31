"""What a reader wants to know first: how it went in words, how many trials of each kind, how long, and what to run.

The page and the Markdown show the same facts; this module finds the words, they find the layout.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hpo_core.experiment import Experiment, ObjectiveType
from hpo_core.experiment.model import pod_templates
from hpo_core.experiment.template import PLACEHOLDER
from hpo_core.report.rows import (
    TrialRow,
    condition_text,
    number_text,
    objective_value,
    parameter_texts,
    printable,
    seconds_between,
    trial_row,
)
from hpo_core.status import ExperimentCondition, Tally, Verdict
from hpo_core.trial import Trial, TrialCondition

_COMMAND_LENGTH = 40
_MESSAGE_LENGTH = 160


@dataclass(frozen=True)
class Summary:
    """An experiment, its verdict and its trials, with the facts that follow from them.

    Attributes:
        trials: All trials, ordered by number; a place is an index into them.
        values: What each of them is judged by; None where there is none, or none that is finite.
        tally: The trials' count, and the best of them.
    """

    experiment: Experiment
    verdict: Verdict
    trials: tuple[Trial, ...]
    values: tuple[float | None, ...]
    tally: Tally

    @classmethod
    def of(cls, experiment: Experiment, trials: Iterable[Trial], verdict: Verdict) -> Summary:
        """Order the trials, judge them and find the best one."""
        ordered = tuple(sorted(trials, key=lambda trial: trial.number))
        values = tuple(objective_value(experiment.objective, trial) for trial in ordered)
        return cls(experiment, verdict, ordered, values, Tally.of(experiment.objective, ordered))

    def rows(self, places: Iterable[int]) -> list[TrialRow]:
        """Return the rows of the trials at these places."""
        chosen = [self.trials[place] for place in places]
        return [trial_row(self.experiment, trial, is_best=trial is self.tally.best) for trial in chosen]

    @cached_property
    def best(self) -> TrialRow | None:
        """The best trial's row; None when no trial has a value yet."""
        best = self.tally.best
        return trial_row(self.experiment, best, is_best=True) if best else None

    @cached_property
    def ranking(self) -> list[int]:
        """Places of the trials that have a value, the best first, equal ones by number."""
        sign = 1 if self.experiment.objective.type is ObjectiveType.MINIMIZE else -1
        return [place for _, place in sorted((sign * v, place) for place, v in enumerate(self.values) if v is not None)]

    @cached_property
    def best_so_far(self) -> list[float | None]:
        """By place, the best value among that trial and those before it; None before the first one."""
        best: float | None = None
        reached = []
        for trial, value in zip(self.trials, self.values, strict=True):
            if value is not None and trial.condition.is_terminal:
                best = value if best is None or self.experiment.objective.is_better(value, best) else best
            reached.append(best)
        return reached

    @property
    def metric(self) -> str:
        """The objective's metric name."""
        return printable(self.experiment.objective.metric_name)

    @property
    def counts(self) -> dict[TrialCondition, int]:
        """Number of trials in each condition that occurs, in the order of the conditions."""
        return {condition: count for condition, count in self.tally.counts.items() if count}

    @property
    def completed(self) -> int:
        """Trials that have ended."""
        return self.tally.completed

    @property
    def elapsed_s(self) -> float | None:
        """Seconds from the first trial's start to the last one's end; None while trials may follow."""
        if not self.verdict.condition.is_terminal or not self.trials:
            return None
        started = min((trial.started for trial in self.trials if trial.started), default="")
        return seconds_between(started, max(trial.completed for trial in self.trials))

    @property
    def progress(self) -> str:
        """How many trials are done, of how many."""
        most = self.experiment.max_trial_count
        return f"{self.completed:,} of {most:,}" if most is not None else f"{self.completed:,}"

    @property
    def goal(self) -> str:
        """The goal as a relation, such as `≤ 0.001`; "" when there is none."""
        objective = self.experiment.objective
        if objective.goal is None:
            return ""
        return f"{'≤' if objective.type is ObjectiveType.MINIMIZE else '≥'} {number_text(objective.goal)}"

    @property
    def direction(self) -> str:
        """Which values are good, in words."""
        minimizes = self.experiment.objective.type is ObjectiveType.MINIMIZE
        return "lower is better" if minimizes else "higher is better"

    @property
    def sentence(self) -> str:
        """The verdict in a sentence; what is not told here keeps the words that it came with."""
        if self.verdict.condition is ExperimentCondition.RUNNING:
            return f"{self.progress} trials were done when this report was written."
        done = _trials(self.completed)
        known = {
            "ExperimentGoalReached": f"The goal {self.metric} {self.goal} was reached after {done}.",
            "ExperimentMaxTrialsReached": f"The budget of {done} is used up.",
            "ExperimentSuggestionEndReached": f"The search had nothing more to try after {done}.",
        }
        return known.get(self.verdict.reason, printable(self.verdict.message))

    @property
    def why_none(self) -> str:
        """Why there is no best trial, in a sentence; "" when there is one."""
        if self.best is not None:
            return ""
        if not self.trials:
            return "No trial has been created yet."
        if self.completed < len(self.trials):
            return f"No trial has reported {self.metric} yet."
        return f"{_trials(len(self.trials))} ended, none with a value of {self.metric}."

    @property
    def reasons(self) -> list[str]:
        """Why trials ended without a value: how often, condition, reason and message; the five most frequent ones."""
        judged = enumerate(zip(self.trials, self.values, strict=True))
        lost = [place for place, (trial, value) in judged if trial.condition.is_terminal and value is None]
        found = Counter(_explain(row) for row in self.rows(lost))
        return [f"{count:,} × {what}" for what, count in found.most_common(5)]


def _trials(count: int) -> str:
    return f"{count} trial" if count == 1 else f"{count:,} trials"


def _explain(row: TrialRow) -> str:
    """Condition, reason and the last line of the message, which in a log is the one that tells."""
    last = row.message.strip().rpartition("\n")[2].strip()
    shown = last if len(last) <= _MESSAGE_LENGTH else f"{last[:_MESSAGE_LENGTH]}…"
    return ": ".join(part for part in (condition_text(row.condition), reason_text(row), shown) if part)


def reason_text(row: TrialRow) -> str:
    """Return the reason where it says more than the condition, as `TrialFailed` does not of Failed; else ""."""
    return "" if row.reason.removeprefix("Trial") == row.condition else row.reason


def command_line(experiment: Experiment, row: TrialRow) -> str:
    """Write the primary container's command with this trial's values filled in, ready to paste into a shell.

    Args:
        experiment: Its template has the command.
        row: The trial whose values are filled in.

    Returns:
        Environment variables that hold a value, then the command; "" when the template shows the values in neither.
    """
    container = _primary_container(experiment)
    texts = parameter_texts(experiment, row)
    known = {p.name: texts.get(p.reference, p.reference) for p in experiment.template.trial_parameters}
    words = [str(word) for part in ("command", "args") for word in container.get(part) or ()]
    variables = [item for item in container.get("env") or () if _is_filled(item)]
    if not variables and not any(PLACEHOLDER.search(word) for word in words):
        return ""
    shown = [f"{item.get('name')}={shlex.quote(_fill(str(item['value']), known))}" for item in variables]
    return printable(_folded([*shown, *(shlex.quote(_fill(word, known)) for word in words)]))


def _folded(words: list[str]) -> str:
    """Join a command's words; a long one has each option on a line of its own, as one writes it in a shell."""
    line = " ".join(words)
    if len(line) <= _COMMAND_LENGTH:
        return line
    return " ".join(f"\\\n  {word}" if word.startswith("-") else word for word in words)


def _is_filled(variable: object) -> bool:
    return isinstance(variable, Mapping) and bool(PLACEHOLDER.search(str(variable.get("value", ""))))


def _fill(text: str, known: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda match: known.get(match.group(1), match.group()), text)


def _primary_container(experiment: Experiment) -> Mapping[str, Any]:
    template = experiment.template
    for _, pod in pod_templates(template.trial_spec, ""):
        for container in pod["containers"]:
            if container.get("name") == template.primary_container_name:
                found: Mapping[str, Any] = container
                return found
    return {}
