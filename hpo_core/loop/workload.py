"""What trials and retraining share: how a workload is made of a template, and what is gathered from its output."""

from __future__ import annotations

from hpo_core.experiment import Experiment
from hpo_core.launch import Job, Output
from hpo_core.manifest import PHASE_RETRAIN, PHASE_TRIAL, render
from hpo_core.metrics import MetricPoint, MetricsReader
from hpo_core.outcome import LogKeeper
from hpo_core.space import Values


def make_job(
    experiment: Experiment, values: Values, name: str, phase: str = PHASE_TRIAL, *, begun: bool = False
) -> Job:
    """Render a workload and say how it is to be run; `begun` when it is known to have run before."""
    spec = experiment.template.trial_spec.get("spec") or {}
    deadline = experiment.settings.trial_deadline_s or spec.get("activeDeadlineSeconds")
    if phase == PHASE_RETRAIN:
        deadline = spec.get("activeDeadlineSeconds")  # a deadline for trials is none for the final model
    return Job(
        name=name,
        manifest=render(experiment, values, name, phase=phase),
        primary_container=experiment.template.primary_container_name,
        deadline_s=float(deadline) if deadline else None,
        begun=begun,
    )


class Follower:
    """What is gathered from one workload's output."""

    def __init__(self, experiment: Experiment, *, every_metric: bool = False) -> None:
        names = () if every_metric else experiment.objective.metric_names
        self.reader = MetricsReader(names, experiment.metric_filters)
        self.log = LogKeeper()
        self._shown = 0

    def feed(self, output: Output) -> None:
        """Take in a piece of output."""
        self.log.feed(output.data, missing=output.missing)
        self.reader.read(output.data, missing=output.missing)

    def feed_and_tell(self, output: Output) -> list[MetricPoint]:
        """Take in a piece of output and return the metric points in it, which costs more."""
        self.log.feed(output.data, missing=output.missing)
        return self.reader.feed(output.data, missing=output.missing)

    def close(self) -> None:
        """Take in that no output follows."""
        self.reader.close()

    @property
    def has_news(self) -> bool:
        """Whether there is output that the last picture did not show."""
        return self.log.size != self._shown

    def picture(self) -> tuple[bytes, str]:
        """Return the log, and the metric points as one JSON object a line."""
        self._shown = self.log.size
        return self.log.content(), self.reader.lines()
