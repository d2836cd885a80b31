"""From printed text to metric points and observations: Katib's filters, every way to cut a stream, bounded memory."""

from __future__ import annotations

import itertools
import json
import math
import random
import tracemalloc
from collections.abc import Iterator

import pytest
import re2

from hpo_core import metrics
from hpo_core.errors import MetricsError
from hpo_core.metrics import DEFAULT_FILTER, KEPT_NAMES, KEPT_POINTS, LINE_BYTES, MetricPoint, MetricsReader
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


def by_the_filter_itself(text: bytes, names: tuple[str, ...]) -> list[MetricPoint]:
    """What Katib's way finds: the expression by RE2, line by line, in text whose broken characters are replaced."""
    pattern = re2.compile(DEFAULT_FILTER)
    found = []
    for number, line in enumerate(text.split(b"\n"), 1):
        for match in pattern.finditer(line[:LINE_BYTES].decode(errors="replace")):
            if match[1] in names and match[2] not in ("", "+", "-") and match[2][:1] not in "eE":
                found.append(MetricPoint(match[1], float(match[2]), number))
    return found


PLAIN = ("loss", "val_loss", "x|y", "epoch", "a-b")
ODD = ("loss", "e5", "nan", "inf", "-a", "|b", "7", "größe", "e")
TOKENS = [
    *(name.encode() for name in (*PLAIN, *ODD)),
    *(b"=", b" = ", b"=", b"0.5", b"-1e-3", b"+.25", b"5.", b"1E5", b"nan", b"NaN", b"-inf", b"Infinity", b"1e", b"."),
    *(b" ", b"\t", b"\v", b"\f", b"\r", b"\n", b"\n", b"\0", b"\xff", b"\xe2\x82", "é".encode(), "\u2028".encode()),
    *(b"|", b"-", b"_", b"+", b"x", b"3", b",", b":", b"train-", b"2loss=1", b"loss=1loss=2", b"\x85", b"\x1c", b"T"),
]
"""Whatever a name or a value can be glued to, and bytes that some expressions take for blanks or letters."""


@pytest.mark.parametrize("names", [PLAIN, PLAIN[:1], ODD, ODD[-1:]], ids=["plain", "one", "odd", "odd one"])
def test_lines_that_are_read_many_at_a_time_mean_what_the_filter_says(names: tuple[str, ...]) -> None:
    for seed in range(3000):
        rng = random.Random(seed)
        text = b"".join(rng.choices(TOKENS, k=rng.randrange(1, 40)))
        reader = MetricsReader(names)
        assert repr(reader.feed(text + b"\n")) == repr(by_the_filter_itself(text, names)), text


def signs(*more: bytes) -> list[bytes]:
    """Every byte that is no line break, and what else may stand before a name."""
    return [bytes([number]) for number in range(256) if number != ord("\n")] + list(more)


SURE, UNSURE = (b"", b" ", b"=", b"a=", b"a=nan", b"a=1.", b"_", b"|", b"\xff"), (b"1", b"-", b"a=1", b"a=-")


@pytest.mark.parametrize("unsure", [False, True], ids=["sure", "unsure"])
@pytest.mark.parametrize("value", [b"", b"1", b"+", b"nan", b"1.", b" 2e3"])
def test_every_sign_around_a_report_means_what_the_filter_says(
    monkeypatch: pytest.MonkeyPatch, value: bytes, unsure: bool
) -> None:
    """A value and what stands around it, behind every byte; line by line it is read only where it must be."""
    few = SURE + UNSURE if unsure else SURE
    every = signs(*few) if unsure else [sign for sign in signs(*few) if sign not in UNSURE and not sign.isdigit()]
    pairs = [*itertools.product(every, few), *itertools.product(few, every)]
    text = b"\n".join(b"%sloss=%s%sloss=2" % (before, value, behind) for before, behind in pairs)
    expected = by_the_filter_itself(text, PLAIN)
    if not unsure and value[-1:] not in b"123":
        monkeypatch.delattr(MetricsReader, "_read_lines")
    assert repr(MetricsReader(PLAIN).feed(text + b"\n")) == repr(expected)


def test_reading_without_points_keeps_the_same() -> None:
    rng = random.Random(3)
    text = b"".join(b"%sloss=%d\n" % (rng.choice([b"", b"\n", b"a "]), rng.randrange(99)) for _ in range(50_000))
    fed, read_only = MetricsReader(NAMES), MetricsReader(NAMES)
    for at in range(0, len(text), 100_000):
        fed.feed(text[at : at + 100_000])
        read_only.read(text[at : at + 100_000])
    assert read_only.points == fed.points
    assert read_only.observation() == fed.observation()
    assert len({point.line for point in fed.points}) == len(fed.points)
    assert all(text.split(b"\n")[p.line - 1].endswith(b"loss=%d" % p.value) for p in fed.points[::97])


def test_written_lines_are_those_of_the_points_however_often_they_are_asked_for() -> None:
    reader = MetricsReader(NAMES)
    assert reader.lines() == ""
    for number in range(10):
        reader.feed(b"loss=0.5\naccuracy=nan\n" * 10 ** (number % 5))
        assert reader.lines() == "".join(point.to_json() + "\n" for point in reader.points)
        assert reader.lines() is reader.lines()


def test_bytes_that_could_not_be_had_are_counted() -> None:
    reader = MetricsReader(NAMES)
    reader.feed(b"loss=1\n")
    assert reader.missed_bytes == 0
    reader.feed(b"2\nloss=3\n", missing=1000)
    reader.read(b"", missing=7)
    assert reader.missed_bytes == 1007
    assert reader.observation().metrics["loss"].latest == 3.0


@pytest.mark.parametrize(
    "piece",
    [b"\n" * 100, b"x" * 1000, b"loss" * 250, b"loss=1\n" * 150, b"=" * 1000, b"loss=" + b" " * 1000, b"\xff\0" * 500],
    ids=["blank", "one line", "needles", "metrics", "signs", "spaces", "broken"],
)
def test_whatever_is_printed_takes_little_memory(piece: bytes) -> None:
    """A MiB at once: beside the piece itself only its windows, and the kept points, each of some 250 bytes."""
    reader, data = MetricsReader(NAMES), piece * ((1 << 20) // len(piece))
    tracemalloc.start()
    try:
        reader.read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * LINE_BYTES + 2 * 250 * (KEPT_POINTS + LINE_BYTES // 7)


def test_more_metrics_than_points_are_kept_are_read_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thinning cannot take the first point of each: it must not try for ever."""
    monkeypatch.setattr(metrics, "KEPT_POINTS", 5)
    names = tuple(f"m{number}" for number in range(10))
    reader = MetricsReader(names)
    reader.feed("".join(f"{name}=1\n" for name in names).encode() * 2)
    assert [point.name for point in reader.points] == list(names)


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
