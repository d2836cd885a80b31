"""From printed text to metric points and observations: Katib's filters, every way to cut a stream, bounded memory."""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from collections.abc import Iterator

import pytest

from hpo_core import metrics
from hpo_core.errors import MetricsError
from hpo_core.metrics import KEPT_NAMES, KEPT_POINTS, LINE_BYTES, MetricPoint, MetricsReader
from hpo_core.trial import MetricSummary
from tests.experiments import make_draft

NAMES = ("loss", "accuracy")
LONG = "x" * 200 + " loss=7 " + "y" * (2 * LINE_BYTES) + " loss=8"
TEXT = (
    "\n".join(
        [
            "epoch 1: loss=0.5, accuracy=0.25",
            "2024-05-01T12:00:00Z loss=0.4",
            "größer: loss=0.3 ✓ accuracy = 1e-2",
            "",
            "loss=nan",
            LONG,
            "\x00\x1b[31mbinary\x07 accuracy=0.75",
            "loss=0.125\r",
            "no line break behind: loss=0.25",
        ]
    ).encode()
    + b"\xff\xfe"
)


def read(text: str | bytes, names: tuple[str, ...] = NAMES, filters: tuple[str, ...] = ()) -> MetricsReader:
    reader = MetricsReader(names, filters)
    reader.feed(text.encode() if isinstance(text, str) else text)
    reader.close()
    return reader


def values(text: str, name: str = "loss") -> list[float]:
    return [point.value for point in read(text, (name,)).points]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("loss=0.3", [0.3]),
        ("loss = 0.3", [0.3]),
        ("  epoch 3 | loss=0.3, lr=0.01", [0.3]),
        ("{metricName: loss=0.3; ...}", [0.3]),
        ("loss=-1.5e-3", [-0.0015]),
        ("loss=+.5", [0.5]),
        ("loss=5.", [5.0]),
        ("loss=12E2", [1200.0]),
        ("loss=1 loss=2", [1.0, 2.0]),
        ("loss=0.3%", [0.3]),
        ("loss=", []),
        ("loss=abc", []),
        ("loss=-", []),
        ("loss: 0.3", []),
        ("val_loss=0.3", []),
        ("loss_total=0.3", []),
        ("Loss=0.3", []),
        ("loss=nano", []),
        ("loss=information", []),
        ("loss=inf", [math.inf]),
        ("loss=-Infinity", [-math.inf]),
    ],
)
def test_the_default_filter_finds_what_katib_finds_and_infinities(line: str, found: list[float]) -> None:
    assert values(line) == found


@pytest.mark.parametrize("line", ["loss=nan", "loss=NaN", "loss = -nan, next"])
def test_the_default_filter_finds_nan(line: str) -> None:
    (value,) = values(line)
    assert math.isnan(value)


def test_a_name_may_have_what_katib_allows_in_it() -> None:
    assert values("Validation-accuracy=0.9", "Validation-accuracy") == [0.9]


def test_points_come_in_order_with_their_lines_and_times() -> None:
    reader = read("\nloss=1 accuracy=2\n2024-05-01T12:00:00Z loss=3\n")
    assert reader.points == (
        MetricPoint("loss", 1.0, 2),
        MetricPoint("accuracy", 2.0, 2),
        MetricPoint("loss", 3.0, 3, "2024-05-01T12:00:00Z"),
    )


def test_feeding_returns_the_new_points_and_closing_those_of_the_last_line() -> None:
    reader = MetricsReader(("loss",))
    assert reader.feed(b"loss=1\nlo") == [MetricPoint("loss", 1.0, 1)]
    assert reader.feed(b"ss=2") == []
    assert reader.close() == [MetricPoint("loss", 2.0, 2)]
    assert reader.close() == []


def test_an_observation_has_latest_minimum_and_maximum_and_leaves_out_what_was_never_reported() -> None:
    assert read("loss=3\nloss=1\nloss=2\n").observation().metrics == {"loss": MetricSummary(2.0, 1.0, 3.0)}
    assert read("nothing").observation().metrics == {}


def test_values_that_are_not_finite_count_as_the_latest_only() -> None:
    observed = read("loss=3\nloss=inf\nloss=1\nloss=nan\n").observation().metrics["loss"]
    assert (observed.minimum, observed.maximum) == (1.0, 3.0)
    assert math.isnan(observed.latest)


def test_a_metric_without_a_finite_value_is_not_observed_but_known_by_its_latest_report() -> None:
    reader = read("loss=nan\nloss=inf\n")
    assert reader.observation().metrics == {}
    assert reader.latest("loss") == math.inf
    assert reader.latest("accuracy") is None
    assert reader.latest("unheard-of") is None


@pytest.mark.parametrize(
    ("text", "latest"),
    [
        ("loss=1\nloss=2", 2.0),
        ("2024-05-01T12:00:02Z loss=1\n2024-05-01T12:00:01Z loss=2", 1.0),
        ("2024-05-01T12:00:00+02:00 loss=1\n2024-05-01T11:00:00Z loss=2", 2.0),
        ("2024-05-01T12:00:00.000000002Z loss=1\n2024-05-01T12:00:00.000000001Z loss=2", 2.0),
        ("2024-05-01T12:00:00Z loss=1\nloss=2", 1.0),
        ("loss=1\n2024-05-01T12:00:00Z loss=2", 2.0),
        ("2024-05-01T12:00:02 loss=1\n2024-05-01T12:00:01 loss=2", 2.0),
        ("2024-13-01T12:00:00Z loss=1\nloss=2", 2.0),
        ("2024-05-01 12:00:02 loss=1\n2024-05-01 12:00:01 loss=2", 2.0),
    ],
)
def test_the_latest_report_is_told_by_times_where_lines_begin_with_one(text: str, latest: float) -> None:
    """As in Katib: RFC 3339 before the first space; without a time zone it is none, without a time lines count."""
    assert read(text).latest("loss") == latest


def test_without_names_every_metric_is_read_up_to_a_bound() -> None:
    text = "".join(f"m{number}={number}\n" for number in range(KEPT_NAMES + 50)) + "m0=7\n"
    observed = read(text, ()).observation().metrics
    assert list(observed) == [f"m{number}" for number in range(KEPT_NAMES)]
    assert observed["m0"].latest == 7.0


def test_own_filters_replace_the_default_one_and_are_all_tried() -> None:
    filters = (r'"(\w+)": ([0-9.]+)', r"(\w+)\s+is\s+(\S+)")
    reader = read('{"loss": 0.5}\nloss is 0.25\nloss=9\n', filters=filters)
    assert [point.value for point in reader.points] == [0.5, 0.25]
    assert reader.filters == filters


def test_a_filter_whose_groups_take_no_part_finds_nothing_there() -> None:
    reader = read("accuracy=3 loss=4\n", filters=(r"(loss)=(\d+)|(accuracy)=(\d+)",))
    assert reader.points == (MetricPoint("loss", 4.0, 1),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (r"(\w+)=(", r"is no regular expression of Go's dialect: missing \)"),
        (r"(?=x)(a)(b)", r"is no regular expression of Go's dialect: invalid perl operator"),
        (r"(\w+)=\d+", "needs two groups in brackets, the first for the name, the second for the value"),
    ],
)
def test_a_filter_that_cannot_be_used_is_refused_with_the_reason(text: str, told: str) -> None:
    with pytest.raises(MetricsError, match=told):
        MetricsReader(NAMES, (text,))


def test_a_draft_lists_every_filter_that_cannot_be_used() -> None:
    field = "spec.metricsCollectorSpec"
    draft = make_draft(changes={field: {"source": {"filter": {"metricsFormat": ["(", r"(\w+)=(\d+)", "x"]}}}})
    metrics.check(draft)
    path = f"{field}.source.filter.metricsFormat"
    assert [problem.path for problem in draft.findings.problems] == [f"{path}[0]", f"{path}[2]"]


def cuts(text: bytes) -> Iterator[list[bytes]]:
    for size in (1, 2, 3, 7) if len(text) < LINE_BYTES else (5000, LINE_BYTES - 1, LINE_BYTES, LINE_BYTES + 1):
        yield [text[at : at + size] for at in range(0, len(text), size)]
    for seed in range(20):
        rng = random.Random(seed)
        at = sorted(rng.randrange(len(text)) for _ in range(rng.randrange(1, 12)))
        yield [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


@pytest.mark.parametrize("text", [TEXT, TEXT.replace(LONG.encode(), b"loss=7")], ids=["long line", "short lines"])
def test_however_the_output_is_cut_into_pieces_the_same_is_read(text: bytes) -> None:
    whole = read(text)
    assert [point.line for point in whole.points if point.value == 7] == [6]
    for pieces in cuts(text):
        reader, found = MetricsReader(NAMES), []
        for piece in pieces:
            found += reader.feed(piece)
        found += reader.close()
        assert repr(reader.points) == repr(whole.points) == repr(tuple(found))
        assert repr(reader.observation()) == repr(whole.observation())
        assert reader.last_lines == whole.last_lines


def test_of_an_overlong_line_only_the_head_is_read() -> None:
    text = f"loss=1 {'x' * LINE_BYTES} loss=2\nloss=3\n"
    assert [(point.value, point.line) for point in read(text).points] == [(1.0, 1), (3.0, 2)]


def test_a_line_without_end_takes_no_memory() -> None:
    reader = MetricsReader(NAMES)
    piece = b"x" * (1 << 20)
    tracemalloc.start()
    try:
        for _ in range(100):
            reader.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One piece, beside what was kept of the one before, and once more as the list that it is split into.
    assert peak < 3 * (len(piece) + LINE_BYTES)


def test_lines_that_a_gap_cuts_are_left_out() -> None:
    """`loss=0.1`, a gap and `5` are not 0.15."""
    reader = MetricsReader(NAMES)
    reader.feed(b"loss=1\nloss=0.1")
    reader.feed(b"5\nloss=2\n", missing=1000)
    assert [point.value for point in reader.points] == [1.0, 2.0]
    reader.feed(b"7 loss=3\n", missing=1)
    reader.feed(b"loss=4\n")
    assert [point.value for point in reader.points] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf, -math.inf])
def test_a_point_is_one_line_of_plain_json(value: float) -> None:
    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    line = MetricPoint("loss", value, 3, "2024-05-01T12:00:00Z").to_json()
    record = json.loads(line, parse_constant=refuse)
    assert repr(float(record.pop("value"))) == repr(value)
    assert record == {"name": "loss", "line": 3, "time": "2024-05-01T12:00:00Z"}
    assert "time" not in json.loads(MetricPoint("loss", 0.5, 3).to_json())


@pytest.mark.parametrize("reports", [KEPT_POINTS // 2, KEPT_POINTS // 2 + 1, KEPT_POINTS, 2 * KEPT_POINTS])
def test_very_many_points_are_thinned_evenly_for_each_metric(reports: int) -> None:
    """Two metrics that take turns both keep their curves, and a rare one keeps its first point."""
    text = "start=1\n" + "".join(f"loss={number}\naccuracy={-number}\n" for number in range(reports))
    reader = read(text, (*NAMES, "start"))
    assert KEPT_POINTS / 2 - 2 < len(reader.points) <= KEPT_POINTS
    for name, sign in (("loss", 1), ("accuracy", -1)):
        kept = [sign * point.value for point in reader.points if point.name == name]
        stride = 1 if len(kept) == reports else int(kept[1])
        assert kept == [float(number) for number in range(0, reports, stride)]
    assert [point.value for point in reader.points if point.name == "start"] == [1.0]


def test_thinning_takes_nothing_from_the_observation() -> None:
    numbers = [random.Random(5).uniform(0, 1) for _ in range(3 * KEPT_POINTS)]
    numbers[KEPT_POINTS + 1] = -7.0
    observed = read("".join(f"loss={number!r}\n" for number in numbers)).observation().metrics["loss"]
    assert observed == MetricSummary(numbers[-1], -7.0, max(numbers))


def test_the_last_lines_are_kept_without_blank_ones_and_not_endlessly_long() -> None:
    reader = read("one\ntwo\nthree  \n\nfour\n \nfive\n" + "x" * 1000 + "\n")
    assert list(reader.last_lines) == ["two", "three", "four", "five", "x" * 400]
