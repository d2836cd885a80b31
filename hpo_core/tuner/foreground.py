"""An experiment run, retrained or deleted by this process, under the lease of its records."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpo_core import images, loop
from hpo_core.errors import NotFound, Problem, SpecError, TransientError
from hpo_core.experiment import Experiment
from hpo_core.lint import KUBERNETES, LOCAL
from hpo_core.objects import folder_of
from hpo_core.objects.lease import LEASE_S
from hpo_core.publish import Publisher, publish_report, read_status
from hpo_core.search import make_search
from hpo_core.status import Progress
from hpo_core.store import DELETING, RETRAINING, STOP, TUNING, ExperimentStore, is_record
from hpo_core.tuner.place import Place, launched_place

START_S = 15.0
"""How long a cluster is waited for that does not answer, or not rightly, when nothing has been started yet."""

_log = logging.getLogger(__name__)


def run_experiment(
    experiment: Experiment,
    place: Place,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    should_leave: Callable[[], bool] = lambda: False,
    goes_on: bool = True,
    watched: bool = True,
    show: Callable[[Progress], None] = lambda progress: None,
    ready: Callable[[Experiment], None] = lambda experiment: None,
) -> loop.Snapshot:
    """Run an experiment in this process until it is over or suspended; goes on with one that was begun.

    Args:
        experiment: As loaded.
        place: Where its records are.
        should_stop: Asked several times a second; true suspends it.
        should_leave: Asked as often; true leaves it, with its trials running, to another tuner.
        goes_on: Whether somebody means it to go on, whatever was asked before; see `ExperimentStore.lease`.
        watched: Whether somebody sees it run; else one that asks for it is suspended when nobody waits for it any more.
        show: Told of progress at every change.
        ready: Called once the lease is held, the experiment is recorded and its status can be read.

    Raises:
        SpecError: It was begun with another spec.
        BuildError: Its local image is not on this machine.
        Conflict: Another process is running it, or has taken it over while this one was paused.
        Left: It was left.
        StoreError, LaunchError, TransientError: Our own work failed; it can be resumed.
    """
    clock = loop.SystemClock()
    store = place.store(experiment.namespace, experiment.name)
    there = launched_place(store, place)
    _check_place(there, experiment, should_stop)
    with store.lease(describe_owner(TUNING, there.site), goes_on=goes_on), Publisher(store, clock) as publisher:
        store.inbox.drop_refusals()
        accepted = store.accept(experiment, now=clock.now())
        _tell_launch(store, there, experiment, accepted)
        with contextlib.closing(there.launcher(accepted, parallel=accepted.parallel_trial_count)) as launcher:
            run = loop.Run(
                accepted,
                store,
                launcher,
                make_search(accepted),
                clock=clock,
                should_stop=should_stop,
                unattended_s=None if watched else accepted.settings.unattended_timeout_s,
            )
            publisher.write(run.snapshot())
            ready(accepted)

            def after_turn(job: loop.Run, changed: bool) -> None:
                publisher.offer(job, changed)
                if changed:
                    show(job.progress())

            final = loop.run(run, after_turn, should_leave)
        publisher.publish(final)
    return final


def _check_place(place: Place, experiment: Experiment, should_stop: Callable[[], bool]) -> None:
    """Make sure that an experiment can run there, before anything is recorded."""
    check_store(place)
    if place.backend == LOCAL:
        images.find_local_image(experiment.template.primary_image, place.images_root)
    else:
        check_permissions(place, experiment, gave_up=should_stop)


def check_store(place: Place) -> None:
    """Make sure that an experiment's tuner can reach its store from wherever it runs.

    Raises:
        SpecError: It is a folder of this machine, and trials run in a cluster.
    """
    if place.backend != LOCAL and folder_of(place.uri) is not None:
        message = f"{place.uri} is a folder of this machine; for trials in a cluster give s3://BUCKET/PREFIX"
        raise SpecError([Problem("--store", message)])


def check_permissions(
    place: Place, experiment: Experiment, *, launching: bool = False, gave_up: Callable[[], bool] = lambda: False
) -> None:
    """Make sure that nothing will be refused in the cluster half-way.

    Args:
        place: Whose backend is a cluster.
        experiment: What is to be run.
        launching: Whether only a tuner's Job is to be started.
        gave_up: Asked while the cluster is waited for; true ends that.

    Raises:
        SpecError: We may not do all that is needed; each sentence says what grants it.
        TransientError: The cluster is out of reach.
    """
    from hpo_core.launch.cluster import permissions

    patiently = loop.Patience(loop.SystemClock(), patience_s=START_S, gave_up=gave_up)
    ask = permissions.missing_to_launch if launching else permissions.missing
    told = ask(place.kube(experiment), experiment, patiently)
    if told:
        raise SpecError([Problem("", sentence) for sentence in told])


def run(experiment: Experiment, store: str = "", directory: str | Path = ".") -> loop.Snapshot:
    """Run an experiment in this process until it is over, from Python; goes on with one that was begun.

    Args:
        experiment: As `load_experiment` gives it.
        store: Where records are kept: a directory, or `s3://BUCKET/PREFIX`; "" for the usual one, as with `hpo run`.
        directory: Working directory of trials whose image is no local image.

    Raises:
        HpoError: See `run_experiment`; the experiment can be resumed.
    """
    return run_experiment(experiment, Place.of(store, directory))


def retrain(
    store: ExperimentStore,
    place: Place,
    values: Mapping[str, Any],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    model_dir: Path | None = None,
    show: Callable[[str], None] = lambda line: None,
) -> loop.Retraining:
    """Train the final model of an experiment in this process; see `loop.retrain`.

    A store or a cluster that does not answer is waited for; a report that cannot be written is only told.

    Raises:
        Conflict: The experiment is being run or retrained by another process.
    """
    patiently = loop.Patience(loop.SystemClock(), gave_up=should_stop)
    experiment = patiently(store.load)
    there = patiently(launched_place, store, place)
    launcher = patiently(there.launcher, experiment, parallel=1)
    requests_at = 0.0

    def stop_asked() -> bool:
        nonlocal requests_at
        if should_stop():
            return True
        if time.monotonic() < requests_at:
            return False
        requests_at = time.monotonic() + loop.INBOX_S
        try:
            return any(request.kind == STOP for request in store.inbox.requests())
        except TransientError:
            return False  # asked again in a second

    with contextlib.closing(launcher), contextlib.ExitStack() as leased:
        patiently(lambda: leased.enter_context(store.lease(describe_owner(RETRAINING, launcher.site))))
        done = loop.retrain(experiment, values, store, launcher, should_stop=stop_asked, model_dir=model_dir, show=show)
        _report_again(store, experiment, patiently)
    return done


def _report_again(store: ExperimentStore, experiment: Experiment, patiently: loop.Patience) -> None:
    """Write the report anew after a retraining, whose outcome is recorded; that this fails is told, and no more."""
    try:
        seen = patiently(read_status, store)
        if seen is not None:
            patiently(publish_report, store, experiment, seen.verdict)
    except Exception as error:  # noqa: BLE001  what is derived must not have hours of training done again
        _log.warning("publish.failed experiment=%s reason=%s", experiment.name, error)


def await_lease(store: ExperimentStore, should_stop: Callable[[], bool]) -> None:
    """Wait while the lease of somebody who has died runs out; who lives on renews it, and is left alone after that."""
    until = time.monotonic() + 2 * LEASE_S
    while store.is_held() and time.monotonic() < until and not should_stop():
        time.sleep(store.objects.poll_s)


def delete(store: ExperimentStore, place: Place) -> None:
    """Remove an experiment: what a tuner that died has left running, and every record.

    Raises:
        NotFound: There is none of that name.
        Conflict: It is being run or retrained.
    """
    experiment = store.load()
    there = launched_place(store, place)
    launcher = there.launcher(experiment, parallel=1)
    with store.lease(describe_owner(DELETING, launcher.site)):
        launcher.sweep()
        remove_tuner(experiment, there)
        _remove_log(place.tuner_log(experiment.namespace, experiment.name))
        store.delete()


def _remove_log(log: Path) -> None:
    """Remove what background tuners said, with the folders that are empty then."""
    with contextlib.suppress(OSError):
        log.unlink(missing_ok=True)
        log.parent.rmdir()
        log.parent.parent.rmdir()


def clear(experiment: Experiment, place: Place) -> None:
    """Remove from a cluster what an experiment that nobody runs has left there, other than what its template retains.

    Its records stay, and launching it again goes on. Idempotent; nothing is done for trials on this machine, which end
    with their tuner.

    Args:
        experiment: As loaded; it need not have been begun.
        place: Where its records are.

    Raises:
        SpecError: The store is a folder of this machine: no tuner in a cluster has its records or its lease there.
        Conflict: It is being run or retrained.
    """
    store = place.store(experiment.namespace, experiment.name)
    there = launched_place(store, place)
    if there.backend != KUBERNETES:
        return
    check_store(there)
    with store.lease(describe_owner(DELETING, there.site)):
        remove_tuner(experiment, there)
        try:
            accepted = store.load()
        except NotFound:
            return
        if not accepted.template.retain:
            there.launcher(accepted, parallel=1).sweep()


def remove_tuner(experiment: Experiment, place: Place) -> None:
    """Remove what a tuner that has ended has left in a cluster: its Job, its pods, its order. Idempotent."""
    if place.backend == KUBERNETES:
        from hpo_core.tuner import cluster_job

        cluster_job.remove(place.kube(experiment), experiment)


def _tell_launch(store: ExperimentStore, place: Place, experiment: Experiment, accepted: Experiment) -> None:
    """Record how an experiment is run, and with which budget its document was given last."""
    given = store.derived_json("launch.json").get("given") if is_record(experiment, accepted) else None
    told = {
        "directory": place.directory,
        "backend": place.backend,
        "pod": place.pod,
        "given": given or experiment.budgets,
    }
    store.save_derived("launch.json", json.dumps(told))


def describe_owner(purpose: str, site: str = "") -> dict[str, Any]:
    """What the holder of a lease tells of itself."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": loop.SystemClock().now(),
        "purpose": purpose,
        "site": site,
    }
