"""A real API server behind bad weather: overloaded, cut off, answering by halves; the run completes all the same.

KUBECONFIG names the cluster, AWS_* the store, HPO_E2E_HPO_IMAGE the engine's image, HPO_E2E_IMAGE one with `sh`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster_runs import PARALLEL, Place, cluster_run
from tests.stormy_proxy import StormyProxy, Weather, stormy_proxy

pytestmark = pytest.mark.e2e

TRIALS = 4
CALM = Weather()
WEATHERS = {
    "half of all requests are refused": Weather(refused=0.5),
    "every stream is cut after a second": Weather(streams_s=1.0),
    "every third answer breaks off": Weather(broken=1 / 3),
    "no creation is answered at first": Weather(loses_creates=True),
    "all of it": Weather(refused=0.3, broken=0.1, streams_s=1.0, loses_creates=True),
}
AT_FIRST = 60
"""Requests of a run in fair weather, besides those of its trials: 25 reviews, the kinds, the anchor, three watches."""
FOR_A_TRIAL = 6
"""A creation, a deletion, the log: followed, read on, its tail; one to spare."""
ASKERS = 3 + 2 * PARALLEL
"""Who asks at the same time: three watches, the loop, a log for each trial, and one that is being read to its end."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with cluster_run(tmp_path, trials=TRIALS, seconds=1) as made:
        yield made


def check(proxy: StormyProxy, took_s: float) -> None:
    """Nothing may be asked again without a cause, a watch by a list and a watch; and nobody may ask in a hurry.

    In the long run each asks in vain at most once a second: a stream that began lasts for one, and the loop waits for
    one; a stream that does not begin is tried again after a fifth of one at first, then later and later.
    """
    came, troubles = proxy.requests.total(), proxy.troubles.total()
    print(f"requests {dict(proxy.requests)}, troubles {dict(proxy.troubles)}, {took_s:.0f} s")
    assert came <= AT_FIRST + FOR_A_TRIAL * TRIALS + 2 * troubles
    assert troubles <= AT_FIRST + ASKERS * took_s


@pytest.mark.parametrize("weather", WEATHERS.values(), ids=WEATHERS)
def test_bad_weather_all_the_time_costs_time_only(place: Place, tmp_path: Path, weather: Weather) -> None:
    with stormy_proxy(weather) as proxy:
        began = time.monotonic()
        process = place.start({"KUBECONFIG": str(proxy.kubeconfig(tmp_path))})
        place.finish(process, {})
        took_s = time.monotonic() - began
    assert proxy.troubles.total() > TRIALS
    check(proxy, took_s)


def test_a_storm_in_which_nothing_gets_through_is_waited_for(place: Place, tmp_path: Path) -> None:
    with stormy_proxy(CALM) as proxy:
        began = time.monotonic()
        process = place.start({"KUBECONFIG": str(proxy.kubeconfig(tmp_path))})
        before = place.await_over(1)
        proxy.weather = Weather(refused=1.0)
        time.sleep(30)
        proxy.weather = CALM
        place.finish(process, before)
        took_s = time.monotonic() - began
    assert proxy.troubles["refused"] > TRIALS
    check(proxy, took_s)


def test_a_launch_in_bad_weather_starts_one_tuner(place: Place, tmp_path: Path) -> None:
    with stormy_proxy(Weather(refused=0.3, broken=0.1, loses_creates=True)) as proxy:
        process = place.launch({"KUBECONFIG": str(proxy.kubeconfig(tmp_path))})
        assert len(place.tuner("Job")) == 1
        place.finish(process, {})
    assert proxy.troubles["lost"] > 1
