"""What trials and retraining share: how a workload is made of a template, and what is gathered from its output."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hpo_core.errors import HpoError, StoreError
from hpo_core.experiment import Experiment
from hpo_core.launch import LOG, METRICS, Exited, Job, Launcher, Output
from hpo_core.launch.outputs import find, first, not_kept
from hpo_core.loop.clock import Clock
from hpo_core.loop.patience import Patience
from hpo_core.manifest import PHASE_RETRAIN, PHASE_TRIAL, render
from hpo_core.metrics import MetricPoint, MetricsReader
from hpo_core.objects import SourceError
from hpo_core.outcome import LogKeeper, is_success
from hpo_core.space import Values
from hpo_core.store import ExperimentStore

ABANDON_S = 30.0
"""How long workloads are waited for that are ended because our own work failed."""
ABANDON_TURN_S = 0.2

_log = logging.getLogger(__name__)


def make_job(
    experiment: Experiment, values: Values, name: str, phase: str = PHASE_TRIAL, *, begun: bool = False, label: str = ""
) -> Job:
    """Render a workload and say how it is to be run.

    Args:
        experiment: Whose template is rendered.
        values: One value for each parameter.
        name: The workload's name.
        phase: Of which phase it is.
        begun: Whether it is known to have run before.
        label: What its output is filed under, where it is kept from where it runs.
    """
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
        label=label,
    )


def settle(store: ExperimentStore, exited: Exited) -> Exited:
    """Return an end as it counts: one whose output was to be kept from where it ran is none, while that is not kept."""
    if not exited.has_receipt or not is_success(exited):
        return exited
    receipt = store.derived_json(f"uploads/{exited.name}.json")
    if receipt and not receipt.get("error"):
        return exited
    told = receipt.get("error") or exited.message or "its pod ended before all of it was in the store"
    return replace(exited, reason="OutputNotKept", message=f"what it left in HPO_OUTPUT_DIR is not kept: {told}")


def keep_output(store: ExperimentStore, label: str, folder: Path, patiently: Patience) -> str:
    """Keep what a workload has left in its output directory; what cannot be read of it is the workload's affair.

    Returns:
        What is not kept, and why, for people; "" when all is.
    """
    try:
        found = find(folder)
    except StoreError as error:
        return f"what it left in HPO_OUTPUT_DIR is not kept: {error}"
    for name, file in found.files.items():
        try:
            patiently(store.save_output, label, name, file)
        except SourceError as error:
            found.left_out.append(f"{name} ({error})")
    return not_kept(first(found.left_out))


def abandon(launcher: Launcher, names: Iterable[str], clock: Clock) -> None:
    """End workloads after our own work failed, and wait for that, but not for ever; raises no HpoError."""
    running, until = set(names), clock.monotonic() + ABANDON_S
    for name in sorted(running):
        if clock.monotonic() >= until:
            break  # whoever follows it next ends it
        try:
            launcher.stop(name)
        except HpoError as error:
            _log.warning("workload.left_running name=%s reason=%s", name, error)
    try:
        while running and clock.monotonic() < until:
            running -= {event.name for event in launcher.events(ABANDON_TURN_S) if isinstance(event, Exited)}
    except HpoError as error:
        _log.warning("workload.unwatched reason=%s", error)
    if running:
        _log.warning("workload.not_ended names=%s", ", ".join(sorted(running)))


class Follower:
    """What is gathered from one workload's output."""

    def __init__(self, experiment: Experiment, *, every_metric: bool = False) -> None:
        names = () if every_metric else experiment.objective.metric_names
        self.reader = MetricsReader(names, experiment.metric_filters)
        self.log = LogKeeper()
        self._taken = self._shown = 0

    def feed(self, output: Output) -> None:
        """Take in a piece of output."""
        if self._keep(output):
            self.reader.read(output.data, missing=output.missing)

    def feed_and_tell(self, output: Output) -> list[MetricPoint]:
        """Take in a piece of output and return the metric points in it, which costs more."""
        return self.reader.feed(output.data, missing=output.missing) if self._keep(output) else []

    def _keep(self, output: Output) -> bool:
        """Keep what belongs to the log; tells whether there may be metrics in it."""
        self._taken += len(output.data) + output.missing
        if output.stream != METRICS:
            self.log.feed(output.data, missing=output.missing)
        if output.stream == LOG:
            self.reader.skim(output.data)
        return output.stream != LOG

    def close(self) -> None:
        """Take in that no output follows."""
        self.reader.close()

    @property
    def has_news(self) -> bool:
        """Whether there is output that the last picture did not show."""
        return self._taken != self._shown

    def picture(self) -> tuple[bytes, str]:
        """Return the log, and the metric points as one JSON object a line."""
        self._shown = self._taken
        return self.log.content(), self.reader.lines()
