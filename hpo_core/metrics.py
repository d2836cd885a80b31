"""From what a trial prints to metric points, and from those to its observation.

The filters are Katib's: regular expressions of Go's dialect whose first group is the metric's name and whose second is
its value. Reading is incremental and its memory is bounded, whatever a trainer prints.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import re2

from hpo_core.errors import MetricsError
from hpo_core.experiment import Draft
from hpo_core.trial import MetricSummary, Observation

DEFAULT_FILTER = r"([\w|-]+)\s*=\s*([+-]?(?:(?i:nan|inf(?:inity)?)\b|\d*(\.\d+)?([Ee][+-]?\d+)?))"
"""Katib's default filter, which in addition sees `loss=nan`: there it is recorded as an empty text."""

LINE_BYTES = 64 << 10
"""A longer line is cut there."""
KEPT_POINTS = 10_000
"""Points of one trial that are kept for its curves; beyond that every second one of each metric is dropped, again and
again."""
KEPT_LINES = 5
KEPT_NAMES = 100


@dataclass(frozen=True)
class MetricPoint:
    """One report of one metric.

    Attributes:
        name: The metric.
        value: What was reported; not finite where the trainer printed nan or inf.
        line: Number of the line, from 1.
        time: RFC 3339 time that stood before the first space of the line, "" without one.
    """

    name: str
    value: float
    line: int
    time: str = ""

    def to_json(self) -> str:
        """Write the point as one JSON line; a value that is not finite as its text, which JSON has no number for."""
        value = self.value if math.isfinite(self.value) else str(self.value)
        record: dict[str, object] = {"name": self.name, "value": value, "line": self.line}
        return json.dumps({**record, "time": self.time} if self.time else record)


class _Series:
    """What is remembered of one metric's reports."""

    def __init__(self) -> None:
        self.minimum, self.maximum = math.inf, -math.inf
        self.latest = math.nan
        self._latest_at = -math.inf
        self.count = 0

    def add(self, value: float, at: float) -> None:
        self.count += 1
        if at >= self._latest_at:
            self.latest, self._latest_at = value, at
        if math.isfinite(value):
            self.minimum, self.maximum = min(self.minimum, value), max(self.maximum, value)

    def summary(self) -> MetricSummary | None:
        """The summary; None when no value was finite."""
        if self.minimum > self.maximum:
            return None
        return MetricSummary(self.latest, self.minimum, self.maximum)


class MetricsReader:
    """Reads one trial's output piece by piece.

    Args:
        names: The metrics to find; empty for every metric that is printed, up to KEPT_NAMES of them.
        filters: Regular expressions in Go's dialect; empty for the default one.

    Raises:
        MetricsError: A filter is no such expression or lacks its two groups.
    """

    def __init__(self, names: Sequence[str], filters: Sequence[str] = ()) -> None:
        self._names = tuple(names)
        self._needles = tuple(name.encode() for name in names)
        self.filters = tuple(filters) or (DEFAULT_FILTER,)
        self._patterns = [_compile(text) for text in self.filters]
        self._series = {name: _Series() for name in names}
        self._points: list[tuple[int, MetricPoint]] = []  # each with its place among its metric's reports
        self._stride = 1
        self._partial = b""
        self._cut = False
        self._line = 0
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)

    def feed(self, data: bytes, *, missing: int = 0) -> list[MetricPoint]:
        """Read a piece of output, which may begin and end inside a line.

        Args:
            data: The piece.
            missing: Bytes before it that could not be had; the lines that the gap cuts are left out.

        Returns:
            The points that were found, in order; empty when there are none.
        """
        if missing:
            self._partial, self._cut = b"", True
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        found: list[MetricPoint] = []
        for line in lines:
            found += self._read(line)
        if len(self._partial) > LINE_BYTES:
            # The head of the line is read now; what follows it up to the line's end is left out.
            if not self._cut:
                found += self._read(self._partial[:LINE_BYTES])
            self._partial, self._cut = b"", True
        return found

    def close(self) -> list[MetricPoint]:
        """Read what stood behind the last line break; call it once, after the end of the output."""
        rest, self._partial = self._partial, b""
        return self._read(rest) if rest else []

    @property
    def points(self) -> tuple[MetricPoint, ...]:
        """The points, thinned evenly when there are very many."""
        return tuple(point for _, point in self._points)

    def observation(self) -> Observation:
        """Return what was found so far; a metric without a finite value is absent."""
        summaries = {name: series.summary() for name, series in self._series.items()}
        return Observation({name: summary for name, summary in summaries.items() if summary is not None})

    def latest(self, name: str) -> float | None:
        """Return the last report of a metric, finite or not; None when there was none."""
        series = self._series.get(name)
        return series.latest if series and series.count else None

    def _read(self, line: bytes) -> list[MetricPoint]:
        if self._cut:
            self._cut = False
            return []
        self._line += 1
        if line.strip():
            self.last_lines.append(line[:400].decode(errors="replace").rstrip())
        if self._names and not any(needle in line for needle in self._needles):
            return []
        points = []
        for point in self._points_of(line[:LINE_BYTES].decode(errors="replace")):
            self._keep(point)
            points.append(point)
        return points

    def _points_of(self, line: str) -> Iterator[MetricPoint]:
        stamp, at = _timestamp(line)
        for pattern in self._patterns:
            for match in pattern.finditer(line):
                name, text = (match.group(1) or "").strip(), (match.group(2) or "").strip()
                if name not in self._series and (self._names or len(self._series) >= KEPT_NAMES):
                    continue
                try:
                    value = float(text)
                except ValueError:
                    continue
                self._series.setdefault(name, _Series()).add(value, at)
                yield MetricPoint(name, value, self._line, stamp)

    def _keep(self, point: MetricPoint) -> None:
        place = self._series[point.name].count - 1
        if place % self._stride == 0:
            self._points.append((place, point))
        if len(self._points) > KEPT_POINTS:
            self._stride *= 2
            self._points = [(place, kept) for place, kept in self._points if place % self._stride == 0]


def check(draft: Draft) -> None:
    """Add to a draft's findings what is wrong with its metric filters."""
    path = "spec.metricsCollectorSpec.source.filter.metricsFormat"
    for index, text in enumerate(draft.metric_filters):
        try:
            _compile(text)
        except MetricsError as error:
            draft.findings.problem(f"{path}[{index}]", str(error))


def _compile(text: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    try:
        pattern = re2.compile(text, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error
        raise MetricsError(f"{text!r} is no regular expression of Go's dialect: {reason}") from error
    if pattern.groups < 2:
        raise MetricsError(f"{text!r} needs two groups in brackets, the first for the name, the second for the value")
    return pattern


def _timestamp(line: str) -> tuple[str, float]:
    """The time before the first space, as text and in seconds since 1970; "" and -1 where there is none.

    Reports without a time come before all that have one, in their own order.
    """
    word = line.split(" ", 1)[0]
    if not (len(word) >= 20 and word[4:5] == "-" and word[10:11] in "Tt"):
        return "", -1.0
    try:
        moment = datetime.fromisoformat(word.replace(",", "."))
    except ValueError:
        return "", -1.0
    return (word, moment.timestamp()) if moment.tzinfo else ("", -1.0)
