"""From what a trial prints to metric points, and from those to its observation.

The filters are Katib's: regular expressions of Go's dialect whose first group is the metric's name and whose second is
its value. Reading is incremental, its memory is bounded whatever a trainer prints, and lines without a metric, or with
one that the default filter finds, are read many at a time.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

import re2

from hpo_core.errors import MetricsError
from hpo_core.experiment import Draft
from hpo_core.trial import MetricSummary, Observation

_NUMBER = r"[+-]?(?:(?i:nan|inf(?:inity)?)\b|\d*(\.\d+)?([Ee][+-]?\d+)?)"
DEFAULT_FILTER = rf"([\w|-]+)\s*=\s*({_NUMBER})"
"""Katib's default filter, which in addition sees `loss=nan`: there it is recorded as an empty text."""

_SURE_NUMBER = r"[+-]?(?:(?i:nan|inf(?:inity)?)\b|(?=\.?\d)\d*(?:\.\d+)?(?:[Ee][+-]?\d+)?)"
"""The same without what is none: `loss=` and `loss=-` match the filter too."""

LINE_BYTES = 64 << 10
"""A longer line is cut there."""
KEPT_POINTS = 10_000
"""Points of one trial that are kept for its curves; beyond that every second one of each metric is dropped, again and
again."""
KEPT_LINES = 5
KEPT_LINE_BYTES = 400
KEPT_NAMES = 100

_TIME = rb"[^\n ]{4}-[^\n ]{5}[Tt]"
_FIRST_TIME, _NEXT_TIME = re.compile(_TIME), re.compile(rb"\n" + _TIME)


class MetricPoint(NamedTuple):
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

    def add(self, values: Sequence[float], at: float) -> None:
        """Take in reports of one time; there is at least one."""
        self.count += len(values)
        if at >= self._latest_at:
            self.latest, self._latest_at = values[-1], at
        finite = values if all(map(math.isfinite, values)) else [value for value in values if math.isfinite(value)]
        if finite:
            self.minimum, self.maximum = min(self.minimum, *finite), max(self.maximum, *finite)

    def summary(self) -> MetricSummary | None:
        """The summary; None when no value was finite."""
        if self.minimum > self.maximum:
            return None
        return MetricSummary(self.latest, self.minimum, self.maximum)


_Placed: TypeAlias = tuple[int, MetricPoint]
"""A point, and its place among its metric's reports."""


class MetricsReader:
    """Reads one trial's output piece by piece.

    Args:
        names: The metrics to find; empty for every metric that is printed, up to KEPT_NAMES of them.
        filters: Regular expressions in Go's dialect; empty for the default one.

    Attributes:
        filters: Those that are used.
        missed_bytes: Output that could not be had; above 0 the observation may lack reports.
        last_lines: The last lines that are not blank, each up to KEPT_LINE_BYTES.

    Raises:
        MetricsError: A filter is no such expression or lacks its two groups.
    """

    def __init__(self, names: Sequence[str], filters: Sequence[str] = ()) -> None:
        self.filters = tuple(filters) or (DEFAULT_FILTER,)
        self.missed_bytes = 0
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._names = tuple(names)
        self._patterns = [_compile(text) for text in self.filters]
        default = self.filters == (DEFAULT_FILTER,)
        # A line without any of these has no metric.
        self._needles = tuple(name.encode() for name in names) or ((b"=",) if default else ())
        self._quick = _quick_patterns(names) if default else {}
        self._series = {name: _Series() for name in names}
        self._points: list[_Placed] = []
        self._stride = 1
        self._text, self._written = "", 0
        self._partial = b""
        self._cut = False
        self._line = 0

    def feed(self, data: bytes, *, missing: int = 0) -> list[MetricPoint]:
        """Read a piece of output, which may begin and end inside a line.

        Args:
            data: The piece.
            missing: Bytes before it that could not be had; the lines that the gap cuts are left out.

        Returns:
            The points that were found, in order; empty when there are none.
        """
        found: list[MetricPoint] = []
        self._take(data, missing, found)
        return found

    def read(self, data: bytes, *, missing: int = 0) -> None:
        """Do as `feed` does for whoever needs no points: they are made only where they are kept."""
        self._take(data, missing, None)

    def skim(self, data: bytes) -> None:
        """Take in output that holds no metrics; only its last lines are remembered."""
        self.last_lines.extend(_last_lines(data))

    def close(self) -> list[MetricPoint]:
        """Read what stood behind the last line break; call it once, after the end of the output."""
        found: list[MetricPoint] = []
        rest, self._partial = self._partial, b""
        if rest:
            self._read_block(rest, found)
        return found

    @property
    def points(self) -> tuple[MetricPoint, ...]:
        """The points, thinned evenly when there are very many."""
        return tuple(point for _, point in self._points)

    def lines(self) -> str:
        """Write the points, one JSON object a line; only those that came since the last call cost anything."""
        self._text += "".join(point.to_json() + "\n" for _, point in self._points[self._written :])
        self._written = len(self._points)
        return self._text

    def observation(self) -> Observation:
        """Return what was found so far; a metric without a finite value is absent."""
        summaries = {name: series.summary() for name, series in self._series.items()}
        return Observation({name: summary for name, summary in summaries.items() if summary is not None})

    def latest(self, name: str) -> float | None:
        """Return the last report of a metric, finite or not; None when there was none."""
        series = self._series.get(name)
        return series.latest if series and series.count else None

    def _take(self, data: bytes, missing: int, found: list[MetricPoint] | None) -> None:
        if missing:
            self._partial, self._cut = b"", True
            self.missed_bytes += missing
        for at in range(0, len(data), LINE_BYTES):
            self._take_window(data[at : at + LINE_BYTES], found)

    def _take_window(self, window: bytes, found: list[MetricPoint] | None) -> None:
        """Read a piece so short that only its first line can be too long."""
        if self._cut:
            _, ends, window = window.partition(b"\n")
            self._cut = not ends
        block = self._partial + window
        end = block.rfind(b"\n") + 1
        self._partial = block[end:]
        if end:
            first = block.index(b"\n")
            self._read_block(block[: min(first, LINE_BYTES)] + block[first:end], found)
        if len(self._partial) > LINE_BYTES:
            # The head of the line is read now; what follows it up to the line's end is left out.
            self._read_block(self._partial[:LINE_BYTES], found)
            self._partial, self._cut = b"", True

    def _read_block(self, block: bytes, found: list[MetricPoint] | None) -> None:
        """Read whole lines, of which the last one may lack its line break."""
        self.last_lines.extend(_last_lines(block))
        wanted = not self._needles or any(needle in block for needle in self._needles)
        if wanted and not self._read_quickly(block, found):
            self._read_lines(block, found)
        self._line += block.count(b"\n") + (not block.endswith(b"\n"))

    def _read_quickly(self, block: bytes, found: list[MetricPoint] | None) -> bool:
        """Read lines without times by the default filter, all at once; False when only `_read_lines` can."""
        if not self._quick or _has_times(block):
            return False
        matches = {name: list(pattern.finditer(block)) for name, pattern in self._quick.items()}
        texts = {name: [match[1] for match in every] for name, every in matches.items() if every}
        if any(None in every for every in texts.values()):
            return False
        reports: list[tuple[int, int, str, float]] = []
        for name, every in texts.items():
            values, series = list(map(float, every)), self._series[name]
            skip = 1 if found is not None else self._stride
            indices = range(-series.count % skip, len(values), skip)
            reports += [(matches[name][i].start(), series.count + i, name, values[i]) for i in indices]
            series.add(values, _NO_TIME)
        self._keep(_place_in(block, sorted(reports) if len(texts) > 1 else reports, self._line + 1), found)
        return True

    def _read_lines(self, block: bytes, found: list[MetricPoint] | None) -> None:
        points = []
        for number, line in enumerate(block.split(b"\n"), self._line + 1):
            if self._needles and not any(needle in line for needle in self._needles):
                continue
            for point, at in self._points_of(line, number):
                series = self._series.get(point.name) or self._series.setdefault(point.name, _Series())
                points.append((series.count, point))
                series.add((point.value,), at)
        self._keep(points, found)

    def _points_of(self, line: bytes, number: int) -> Iterator[tuple[MetricPoint, float]]:
        """The points of one line with their times in seconds."""
        stamp, at = _timestamp(line)
        if not line.isascii():
            line = line.decode(errors="replace").encode()
        for pattern in self._patterns:
            for match in pattern.finditer(line):
                name = (match[1] or b"").decode().strip()
                if name not in self._series and (self._names or len(self._series) >= KEPT_NAMES):
                    continue
                try:
                    value = float((match[2] or b"").decode().strip())
                except ValueError:
                    continue
                yield MetricPoint(name, value, number, stamp), at

    def _keep(self, points: Sequence[_Placed], found: list[MetricPoint] | None) -> None:
        """Take in the points of one block."""
        if found is not None:
            found += [point for _, point in points]
        self._points += [placed for placed in points if placed[0] % self._stride == 0]
        while len(self._points) > KEPT_POINTS and any(place for place, _ in self._points):
            self._stride *= 2
            self._points = [placed for placed in self._points if placed[0] % self._stride == 0]
            self._text, self._written = "", 0


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


def _quick_patterns(names: Sequence[str]) -> Mapping[str, re.Pattern[bytes]]:
    """For each name a pattern that finds in many lines at once what the default filter finds in each.

    A name behind a letter, `_` or `|` is the end of a longer one. Behind a digit or `-` it may be that, or follow a
    value (`a=1loss=2`): there the pattern matches without its group, and the filter itself must tell.

    Returns:
        Empty when the filter itself is needed for some name: `e5` or `nan` can be a part of another one's value.
    """
    value = re.compile(_NUMBER, re.ASCII)
    plain = all(re.fullmatch(r"[A-Za-z_][\w|-]*", name, re.ASCII) for name in names)
    if not plain or any((found := value.match(name + "=")) and found[0] for name in names):
        return {}
    blank = r"[\t\f\r ]*"
    quick = {}
    for name in names:
        word = re.escape(name)
        text = rf"{word}(?:(?<![\w|-]{word}){blank}={blank}({_SURE_NUMBER})|(?<=[\d-]{word}){blank}=)"
        quick[name] = re.compile(text.encode())
    return quick


def _place_in(block: bytes, reports: Sequence[tuple[int, int, str, float]], line: int) -> list[_Placed]:
    """Make points of reports: where each stands in the block, its place among its metric's, name and value.

    Args:
        block: Where they were found.
        reports: In order.
        line: Number of the block's first line.
    """
    points, counted = [], 0
    for start, place, name, value in reports:
        line += block.count(b"\n", counted, start)
        counted = start
        points.append((place, MetricPoint(name, value, line)))
    return points


def _last_lines(block: bytes) -> list[str]:
    """The last lines of a block that are not blank, at most KEPT_LINES, without what is blank at their ends."""
    found: list[str] = []
    end = len(block.rstrip())
    while end and len(found) < KEPT_LINES:
        start = block.rfind(b"\n", 0, end) + 1
        found.append(block[start : min(end, start + KEPT_LINE_BYTES)].decode(errors="replace").rstrip())
        end = len(block[:start].rstrip())
    return found[::-1]


def _has_times(block: bytes) -> bool:
    """Whether a line may begin with a time."""
    if b"T" not in block and b"t" not in block:
        return False
    return bool(_FIRST_TIME.match(block) or _NEXT_TIME.search(block))


_NO_TIME = -1.0
"""Reports without a time come before all that have one, in their own order."""


def _timestamp(line: bytes) -> tuple[str, float]:
    """The time before the first space, as text and in seconds since 1970; "" and _NO_TIME where there is none."""
    if not (line[4:5] == b"-" and line[10:11] in (b"T", b"t")):
        return "", _NO_TIME
    word = line.split(b" ", 1)[0].decode(errors="replace")
    if len(word) < 20:
        return "", _NO_TIME
    try:
        moment = datetime.fromisoformat(word.replace(",", "."))
    except ValueError:
        return "", _NO_TIME
    return (word, moment.timestamp()) if moment.tzinfo else ("", _NO_TIME)
