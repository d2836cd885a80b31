"""What an exit and its output mean: the verdict on a trial in words that a person understands, and the log to keep.

Pure functions of (experiment, trial, exit, metrics); they stand apart from `loop`, which only acts on them.
"""

from __future__ import annotations

import math
import signal

from hpo_core.experiment import Experiment
from hpo_core.launch import Exited
from hpo_core.metrics import MetricsReader
from hpo_core.trial import Trial, TrialCondition, TrialVerdict

LOG_HEAD_BYTES, LOG_TAIL_BYTES = 64 << 10, 256 << 10


class LogKeeper:
    """Keeps the head and the tail of what a workload prints, in bounded memory."""

    def __init__(self) -> None:
        self._head, self._tail = bytearray(), bytearray()
        self._left_out = self._gap = 0
        self.size = 0

    def feed(self, data: bytes, *, missing: int = 0) -> None:
        """Take in a piece of output; `missing` bytes before it could not be had."""
        self.size += missing + len(data)
        self._gap += missing
        if self._gap and data:  # the tail is what comes behind the last gap, so that it has none inside
            self._left_out += self._gap + len(self._tail)
            self._gap = 0
            self._tail.clear()
        room = max(LOG_HEAD_BYTES - len(self._head), 0) if not self._left_out else 0
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * LOG_TAIL_BYTES:
            self._left_out += len(self._tail) - LOG_TAIL_BYTES
            del self._tail[:-LOG_TAIL_BYTES]

    def content(self) -> bytes:
        """Return what was kept; a line says how much was left out between head and tail, and behind it."""
        left_out = self._left_out + max(len(self._tail) - LOG_TAIL_BYTES, 0)
        return b"".join([self._head, _note(left_out), self._tail[-LOG_TAIL_BYTES:], _note(self._gap)])


def _note(left_out: int) -> bytes:
    return b"\n[... %d bytes left out ...]\n" % left_out if left_out else b""


def is_success(exited: Exited) -> bool:
    """Tell whether a workload ended well by itself."""
    return exited.code == 0 and not exited.reason


def trial_verdict(experiment: Experiment, trial: Trial, exited: Exited, reader: MetricsReader) -> TrialVerdict:
    """Judge a trial whose attempt is over and is not followed by another one.

    Args:
        experiment: Its objective.
        trial: With the stop that was requested, if any; that decides, whatever the exit.
        exited: How the workload ended.
        reader: All that it printed.
    """
    request = trial.stop_requested
    if request is not None and request.condition.is_terminal:
        kept = reader.observation() if request.condition is TrialCondition.EARLY_STOPPED else None
        return TrialVerdict(request.condition, request.reason, request.message, kept)
    if not is_success(exited):
        return TrialVerdict(TrialCondition.FAILED, *explain_exit(exited, reader))
    observation = reader.observation()
    value = observation.value(experiment.objective)
    if value is None or not math.isfinite(value):
        return TrialVerdict(TrialCondition.METRICS_UNAVAILABLE, *_explain_missing_metric(experiment, exited, reader))
    message = sentence(exited.message, _missed(reader))
    return TrialVerdict(TrialCondition.SUCCEEDED, "TrialSucceeded", message, observation)


def explain_exit(exited: Exited, reader: MetricsReader) -> tuple[str, str]:
    """Say why a workload did not end well.

    Returns:
        The reason in one word, and a message with the last lines that it printed.
    """
    reason, message = _name_exit(exited)
    return reason, sentence(message, exited.message, _last_lines(reader))


def _name_exit(exited: Exited) -> tuple[str, str]:
    if exited.reason == "DeadlineExceeded":
        return exited.reason, "ran longer than its deadline and was stopped; raise it or make the trial shorter"
    if exited.reason == "OutOfMemory":
        return exited.reason, "was stopped for its memory; raise the limit or make the trial smaller"
    if exited.reason:
        return exited.reason, ""
    code = exited.code
    if code is None:
        return "Unknown", "how it ended is not known"
    if code == 127:
        return "CommandNotFound", "its command was not found"
    number = -code if code < 0 else code - 128  # as a shell tells it
    if code < 0 or number in set(signal.Signals):
        usually = ", as when memory runs out: let it use less, or give it more" if number == signal.SIGKILL else ""
        return "KilledBySignal", f"was ended by {_signal_name(number)}{usually}"
    return "ExitCode", f"exit code {code}"


def _explain_missing_metric(experiment: Experiment, exited: Exited, reader: MetricsReader) -> tuple[str, str]:
    metric = experiment.objective.metric_name
    latest = reader.latest(metric)
    if latest is not None:
        told = f"the trainer printed {metric}={latest}"
        return "MetricNotFinite", sentence(told, exited.message, _missed(reader), _last_lines(reader))
    where = f"written to {experiment.metrics_file}" if experiment.metrics_file else "printed"
    told = f"no line with {metric}=<number> was {where} (looked for {' or '.join(reader.filters)})"
    printed = _last_lines(reader) or "it printed nothing"
    return "MetricNotFound", sentence(told, exited.message, _missed(reader), printed)


def sentence(*parts: str) -> str:
    """Join what is to be said, without what is empty."""
    return "; ".join(part for part in parts if part)


def _missed(reader: MetricsReader) -> str:
    return f"{reader.missed_bytes} bytes of its output could not be read for metrics" if reader.missed_bytes else ""


def _last_lines(reader: MetricsReader) -> str:
    return "last lines: " + " | ".join(reader.last_lines) if reader.last_lines else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
