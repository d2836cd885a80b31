"""A tuner whose clock is neither the cluster's nor the store's: lease, deadlines and reasons are right all the same.

S3 takes no request signed by a clock that is off by 15 minutes; below that everything goes on, beyond it is told.
KUBECONFIG names the cluster, AWS_* the store, HPO_E2E_HPO_IMAGE the engine's image, HPO_E2E_IMAGE one with `sh`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.contracts.cluster_machine import left
from tests.e2e.cluster_runs import KUBERNETES, cluster_run
from tests.scenarios.folders import eventually
from tests.skewed_clock import skewed

pytestmark = pytest.mark.e2e

LITTLE_S, MUCH_S = 14 * 60, 3600
FULL = {"requests": {"cpu": "1000"}}
a_little = pytest.mark.parametrize("ahead_s", [LITTLE_S, -LITTLE_S], ids=["ahead", "behind"])
much = pytest.mark.parametrize("ahead_s", [MUCH_S, -MUCH_S], ids=["ahead", "behind"])


@much
def test_the_clock_of_such_a_process_is_wrong_and_its_waits_are_right(tmp_path: Path, ahead_s: int) -> None:
    """Or the tests below show nothing."""
    program = "import threading, time; threading.Event().wait(0.1); print(time.time())"
    before_s = time.time()
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **skewed(tmp_path, ahead_s)},
        capture_output=True,
        timeout=60,
    )
    assert before_s <= float(done.stdout) - ahead_s <= time.time()


@pytest.fixture
def sidecars(monkeypatch: pytest.MonkeyPatch) -> None:
    """With these, trials' deadlines are kept by the tuner."""
    image = os.environ.get("HPO_E2E_HPO_IMAGE")
    if not image:
        pytest.skip(
            "HPO_E2E_HPO_IMAGE names no image of the engine: that deadlines are kept by a wrong clock is unproven"
        )
    monkeypatch.setenv("HPO_IMAGE", image)


@a_little
@pytest.mark.usefixtures("sidecars")
def test_a_tuner_of_another_time_respects_the_lease_and_then_takes_over_with_the_deadlines_there_are(
    tmp_path: Path, ahead_s: int
) -> None:
    wrong = skewed(tmp_path, ahead_s)
    with cluster_run(tmp_path, trials=4, seconds=12, annotations={"kfp-hpo/trial-deadline": "10m"}) as place:
        place.tell_store()
        with place.start() as first:
            try:
                eventually(lambda: "Running" in place.conditions(), "a trial runs", 180.0)
                refused = place.folder.hpo("run", "small.yaml", *KUBERNETES, env=wrong)
            finally:
                first.kill()
        assert refused.returncode == 2
        assert "is being run by process" in refused.stderr
        assert "Running" in place.conditions()
        place.finish(place.start(wrong), {})


@a_little
def test_a_trial_that_waits_is_told_and_given_up_by_a_tuner_of_another_time(tmp_path: Path, ahead_s: int) -> None:
    waits = {"kfp-hpo/pending-deadline": "5s"}
    with cluster_run(tmp_path, trials=2, seconds=0, annotations=waits, resources=FULL) as place:
        done = place.folder.hpo("run", "small.yaml", *KUBERNETES, env=skewed(tmp_path, ahead_s), timeout_s=180.0)
        assert done.returncode == 3, done.stderr
        record = place.folder.records(place.name)[0]
        assert (record["condition"], record["reason"]) == ("Failed", "Unschedulable")
        assert "given up after 5 s" in record["message"]


@much
def test_a_clock_that_is_off_by_an_hour_is_told_before_anything_is_started(tmp_path: Path, ahead_s: int) -> None:
    with cluster_run(tmp_path, trials=2, seconds=0) as place:
        done = place.folder.hpo("run", "small.yaml", *KUBERNETES, env=skewed(tmp_path, ahead_s))
        assert done.returncode == 4, done.stderr
        assert "the clock of this machine differs from the server's by more than 15 minutes; set it" in done.stderr
        assert left(place.kube, place.name) == []
