"""The verdict on a trial in words that a person understands, and the log that is kept of it."""

from __future__ import annotations

import random
import re
import signal
from dataclasses import replace

import pytest

from hpo_core.launch import Exited
from hpo_core.metrics import DEFAULT_FILTER, MetricsReader
from hpo_core.outcome import LOG_HEAD_BYTES, LOG_TAIL_BYTES, LogKeeper, explain_exit, is_success, trial_verdict
from hpo_core.trial import MetricSummary, StopRequest, Trial, TrialCondition, TrialVerdict
from tests.experiments import make_experiment

EXPERIMENT = make_experiment()
TRIAL = Trial(1, {"lr": 0.02, "momentum": 0.5})
WELL = Exited("a", 0)
LATEST = [{"name": "loss", "value": "latest"}]


def printed(text: str) -> MetricsReader:
    reader = MetricsReader(EXPERIMENT.objective.metric_names)
    reader.feed(text.encode())
    reader.close()
    return reader


def judge(exited: Exited, text: str, trial: Trial = TRIAL) -> TrialVerdict:
    return trial_verdict(EXPERIMENT, trial, exited, printed(text))


def test_a_trial_that_ends_well_and_printed_its_metric_succeeded() -> None:
    verdict = judge(WELL, "loss=0.5\nloss=0.25\n")
    assert (verdict.condition, verdict.reason, verdict.message) == (TrialCondition.SUCCEEDED, "TrialSucceeded", "")
    assert verdict.observation is not None
    assert verdict.observation.metrics == {"loss": MetricSummary(0.25, 0.25, 0.5)}


def test_what_the_launcher_noticed_about_a_success_is_told() -> None:
    message = "2 process(es) that it had left behind were ended"
    verdict = judge(replace(WELL, message=message), "loss=0.5\n")
    assert (verdict.condition, verdict.message) == (TrialCondition.SUCCEEDED, message)


def test_without_its_metric_the_filter_and_the_last_lines_are_told() -> None:
    verdict = judge(WELL, "epoch 1\naccuracy=0.5\ndone\n")
    assert (verdict.condition, verdict.reason) == (TrialCondition.METRICS_UNAVAILABLE, "MetricNotFound")
    assert verdict.message == (
        f"no line with loss=<number> was printed (looked for {DEFAULT_FILTER}); "
        "last lines: epoch 1 | accuracy=0.5 | done"
    )
    assert verdict.observation is None


def test_a_trial_that_printed_nothing_is_told_so() -> None:
    assert judge(WELL, "").message.endswith("; it printed nothing")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_metric_that_is_not_finite_is_told_as_it_was_printed(value: str) -> None:
    verdict = judge(WELL, f"loss={value}\n")
    assert (verdict.condition, verdict.reason) == (TrialCondition.METRICS_UNAVAILABLE, "MetricNotFinite")
    assert verdict.message == f"the trainer printed loss={value}; last lines: loss={value}"


def test_one_finite_report_among_others_is_enough_where_the_best_one_counts() -> None:
    assert judge(WELL, "loss=0.5\nloss=nan\n").condition is TrialCondition.SUCCEEDED


def test_where_the_latest_report_counts_it_must_be_finite() -> None:
    experiment = make_experiment(changes={"spec.objective.metricStrategies": LATEST})
    verdict = trial_verdict(experiment, TRIAL, WELL, printed("loss=0.5\nloss=nan\n"))
    assert (verdict.condition, verdict.reason) == (TrialCondition.METRICS_UNAVAILABLE, "MetricNotFinite")


@pytest.mark.parametrize(
    ("exited", "reason", "message"),
    [
        (Exited("a", 1), "ExitCode", "exit code 1; last lines: oh no"),
        (Exited("a", 126), "ExitCode", "exit code 126; last lines: oh no"),
        (Exited("a", 127), "CommandNotFound", "its command was not found; last lines: oh no"),
        (Exited("a", 128), "ExitCode", "exit code 128; last lines: oh no"),
        (
            Exited("a", 137),
            "KilledBySignal",
            "was ended by SIGKILL, as when memory runs out: let it use less, or give it more; last lines: oh no",
        ),
        (Exited("a", 200), "ExitCode", "exit code 200; last lines: oh no"),
        (Exited("a", 255), "ExitCode", "exit code 255; last lines: oh no"),
        (Exited("a", -signal.SIGSEGV), "KilledBySignal", "was ended by SIGSEGV; last lines: oh no"),
        (Exited("a", -40), "KilledBySignal", "was ended by signal 40; last lines: oh no"),
        (Exited("a", None), "Unknown", "how it ended is not known; last lines: oh no"),
        (
            Exited("a", -9, "DeadlineExceeded"),
            "DeadlineExceeded",
            "ran longer than its deadline and was stopped; raise it or make the trial shorter; last lines: oh no",
        ),
        (
            Exited("a", -9, "OutOfMemory", "it used 300 MiB"),
            "OutOfMemory",
            "was stopped for its memory; raise the limit or make the trial smaller; it used 300 MiB; last lines: oh no",
        ),
        (Exited("a", None, "CannotStart", "no disk"), "CannotStart", "no disk; last lines: oh no"),
        (Exited("a", None, "Lost", "its supervisor died"), "Lost", "its supervisor died; last lines: oh no"),
    ],
)
def test_every_end_has_a_reason_and_a_sentence(exited: Exited, reason: str, message: str) -> None:
    reader = printed("loss=0.5\noh no\n")
    reader.last_lines.popleft()
    assert not is_success(exited)
    assert explain_exit(exited, reader) == (reason, message)
    assert trial_verdict(EXPERIMENT, TRIAL, exited, reader) == TrialVerdict(TrialCondition.FAILED, reason, message)


def test_an_exit_code_of_0_with_a_reason_is_no_success() -> None:
    assert is_success(WELL)
    assert not is_success(Exited("a", 0, "DeadlineExceeded"))
    assert judge(Exited("a", 0, "DeadlineExceeded"), "loss=0.5\n").condition is TrialCondition.FAILED


@pytest.mark.parametrize("exited", [WELL, Exited("a", 1), Exited("a", -15, "Stopped"), Exited("a", None, "Lost")])
def test_a_stop_that_was_asked_for_decides_whatever_the_exit(exited: Exited) -> None:
    killed = TRIAL.request_stop(StopRequest(TrialCondition.KILLED, "TrialKilled", "somebody asked"))
    assert judge(exited, "loss=0.5\n", killed) == TrialVerdict(TrialCondition.KILLED, "TrialKilled", "somebody asked")
    stopped = TRIAL.request_stop(StopRequest(TrialCondition.EARLY_STOPPED, "TrialEarlyStopped", "no good", "median", 3))
    verdict = judge(exited, "loss=0.5\n", stopped)
    assert (verdict.condition, verdict.reason) == (TrialCondition.EARLY_STOPPED, "TrialEarlyStopped")
    assert verdict.observation is not None
    assert verdict.observation.metrics == {"loss": MetricSummary(0.5, 0.5, 0.5)}


def test_an_interruption_decides_nothing() -> None:
    interrupted = TRIAL.request_stop(StopRequest(TrialCondition.CREATED, "Suspended"))
    assert judge(WELL, "loss=0.5\n", interrupted).condition is TrialCondition.SUCCEEDED


def numbered(count: int) -> bytes:
    return b"".join(b"%07d\n" % number for number in range(count))


def keep(text: bytes, piece: int) -> LogKeeper:
    log = LogKeeper()
    for at in range(0, len(text), piece):
        log.feed(text[at : at + piece])
    return log


@pytest.mark.parametrize("size", [0, 8, LOG_HEAD_BYTES, LOG_HEAD_BYTES + 8, LOG_HEAD_BYTES + LOG_TAIL_BYTES])
def test_a_log_that_fits_is_kept_whole(size: int) -> None:
    text = numbered(size // 8)
    assert keep(text, 1000).content() == text


@pytest.mark.parametrize("piece", [777, LOG_TAIL_BYTES, 1 << 20])
@pytest.mark.parametrize("more", [8, LOG_TAIL_BYTES, 10 * LOG_TAIL_BYTES])
def test_of_a_longer_log_head_and_tail_are_kept_and_the_gap_is_told(more: int, piece: int) -> None:
    text = numbered((LOG_HEAD_BYTES + LOG_TAIL_BYTES + more) // 8)
    log = keep(text, piece)
    gap = b"\n[... %d bytes left out ...]\n" % more
    assert log.content() == text[:LOG_HEAD_BYTES] + gap + text[-LOG_TAIL_BYTES:]
    assert log.size == len(text)


def test_what_could_not_be_had_is_told_where_it_is_missing() -> None:
    log = LogKeeper()
    log.feed(b"head " * 20_000)
    log.feed(b"after the gap", missing=1000)
    content = log.content()
    assert content[:LOG_HEAD_BYTES] == (b"head " * 20_000)[:LOG_HEAD_BYTES]
    left_out = 100_000 - LOG_HEAD_BYTES + 1000
    assert content[LOG_HEAD_BYTES:] == b"\n[... %d bytes left out ...]\nafter the gap" % left_out
    assert log.size == 100_000 + 1000 + len(b"after the gap")


def test_what_is_missing_at_the_end_takes_nothing_from_what_stands_before() -> None:
    log = LogKeeper()
    log.feed(b"loss=0.5\n")
    log.feed(b"", missing=1000)
    assert log.content() == b"loss=0.5\n\n[... 1000 bytes left out ...]\n"
    log.feed(b"more", missing=5)
    assert log.content() == b"loss=0.5\n\n[... 1005 bytes left out ...]\nmore"


def test_kept_and_left_out_bytes_add_up_whatever_comes() -> None:
    for seed in range(30):
        rng, log, missing_in_all = random.Random(seed), LogKeeper(), 0
        for _ in range(rng.randrange(1, 20)):
            missing = rng.choice([0, 0, 0, rng.randrange(1, 10**6)])
            log.feed(b"x" * rng.randrange(LOG_TAIL_BYTES), missing=missing)
            missing_in_all += missing
        content = log.content()
        notes = re.findall(rb"\n\[\.\.\. (\d+) bytes left out \.\.\.\]\n", content)
        left_out = sum(map(int, notes))
        note = sum(len(b"\n[... %d bytes left out ...]\n" % int(number)) for number in notes)
        assert len(content) - note + left_out == log.size
        assert left_out >= missing_in_all
