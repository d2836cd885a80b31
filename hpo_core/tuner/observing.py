"""Whoever is not the writer: waiting for an experiment, asking its tuner for something, reading what it published."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from hpo_core.errors import LaunchError, TransientError
from hpo_core.experiment import Experiment
from hpo_core.launch.command import grace_s
from hpo_core.loop import Patience, SystemClock
from hpo_core.publish import Published, read_status
from hpo_core.status import RUNNING, ExperimentCondition, Progress, Tally, edit_budgets, judge
from hpo_core.store import EDIT, EDITING, STOP, STOP_TRIAL, TUNING, ExperimentStore, Request
from hpo_core.tuner.background import last_words, start_tuner
from hpo_core.tuner.foreground import describe_owner, remove_tuner
from hpo_core.tuner.interruption import pause
from hpo_core.tuner.place import Place, launched_place

POLL_S = 0.1
"""How often is looked whether the tuner has dealt with a request."""
ATTEND_S = 10.0
"""How often a waiting process says that it waits."""
ANSWER_S = 30.0
"""How long the tuner may take to deal with a request."""

_log = logging.getLogger(__name__)


def wait(
    store: ExperimentStore,
    place: Place,
    *,
    show: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Published | None:
    """Wait until an experiment is over or suspended; a tuner that died is started once more.

    Args:
        store: Its records.
        place: Where they are, for a tuner that must be started again.
        show: Told of every progress.
        should_stop: Asked several times a second; true ends the waiting, not the experiment.

    Returns:
        How it ended; None when the waiting was ended.

    Raises:
        NotFound: There is no such experiment.
        LaunchError: Its tuner died twice.
        TransientError: The store was out of reach for minutes.
    """
    try:
        return _wait(store, place, show, should_stop)
    except TransientError:
        if should_stop():
            return None  # nothing is tried again any more
        raise


def _wait(
    store: ExperimentStore, place: Place, show: Callable[[Progress], None], should_stop: Callable[[], bool]
) -> Published | None:
    patiently = Patience(SystemClock(), gave_up=should_stop)
    experiment = patiently(store.load)
    restarted = False
    shown: Progress | None = None
    attend_at = 0.0
    while not should_stop():
        if time.monotonic() >= attend_at:
            attend_at = time.monotonic() + ATTEND_S
            patiently(store.attend)
        held = patiently(store.is_held)  # asked before the status is read: who is gone has written his last
        seen = patiently(read_status, store)
        if seen is not None and seen.progress != shown:
            restarted = restarted and shown is not None and seen.progress.completed == shown.completed
            shown = seen.progress
            show(seen.progress)
        if not held:
            if seen is not None and seen.verdict.condition is not ExperimentCondition.RUNNING:
                return seen
            if restarted:
                words = last_words(place, experiment)
                raise LaunchError(f"the tuner of {experiment.name!r} died twice; {words}; `hpo run` shows more")
            _log.warning("tuner.restarted experiment=%s", experiment.name)
            there = patiently(launched_place, store, place)
            patiently(start_tuner, patiently(store.load), there, goes_on=False, should_stop=should_stop)
            restarted = True
        pause(store.objects.poll_s, should_stop)
    return None


def request_stop(store: ExperimentStore, by: str, *, ahead: bool = False) -> bool:
    """Ask the tuner to suspend the experiment; False when none is running it.

    Args:
        store: The experiment's records.
        by: Who asks, for the log.
        ahead: Whether one that is being started is asked too. Whoever launches the experiment again drops that.
    """
    held = store.is_held()
    if held or ahead:
        store.inbox.send(Request(STOP, by))
    return held


def wait_for_stop(store: ExperimentStore, place: Place, margin_s: float = 60.0) -> Published | None:
    """Wait until the tuner that was asked to stop has gone, and remove what it leaves in a cluster.

    Args:
        store: The experiment's records.
        place: Where they are.
        margin_s: Seconds that it may take beyond the grace that its trials get.

    Raises:
        LaunchError: It is still there after that time.
    """
    experiment = store.load()
    timeout_s = grace_s(experiment.template.trial_spec) + margin_s
    until = time.monotonic() + timeout_s
    while store.is_held():
        if time.monotonic() >= until:
            raise LaunchError(f"the tuner of {store.name!r} has not stopped within {timeout_s:g} s; try again")
        time.sleep(store.objects.poll_s)
    remove_tuner(experiment, launched_place(store, place))
    return read_status(store)


def stop_trial(store: ExperimentStore, number: int, by: str) -> bool:
    """Ask the tuner to end one trial as Killed, and wait until it has taken that up; False when none is running it.

    Raises:
        LaunchError: It has not within half a minute.
    """
    return _is_tuned(store) and _ask(store, Request(STOP_TRIAL, by, trial=number))


def edit(store: ExperimentStore, place: Place, budgets: Mapping[str, int], by: str) -> tuple[Experiment, bool]:
    """Change an experiment's budget: through its tuner while there is one, else here.

    An experiment that was over, and under its new budget is not, goes on in the background.

    Args:
        store: Its records.
        place: Where they are, for a tuner that must be started.
        budgets: The new value of each field that is to change, by its name in the spec.
        by: Who asks, for the log.

    Returns:
        The experiment with its new budget, and whether a tuner runs it.

    Raises:
        SpecError: The budget makes no sense, or none by now; nothing was changed.
        Conflict: It is being retrained or deleted.
        LaunchError: The tuner has not taken it up within half a minute.
    """
    seen = read_status(store)
    edit_budgets(store.load(), budgets, completed=seen.progress.completed if seen else 0)
    if _is_tuned(store) and _ask(store, Request(EDIT, by, budgets=budgets)):
        return store.load(), True
    with store.lease(describe_owner(EDITING)):
        before, recorded = read_status(store), store.load()
        tally = Tally.of(recorded.objective, store.trials())
        edited = edit_budgets(recorded, budgets, completed=tally.completed)
        store.save_experiment(edited)
        goes_on = judge(edited, tally) == RUNNING
    if before is None or not before.verdict.condition.is_terminal or not goes_on:
        return edited, False
    start_tuner(edited, launched_place(store, place))
    return edited, True


def _is_tuned(store: ExperimentStore) -> bool:
    return store.is_held() and store.holder().get("purpose") == TUNING


def _ask(store: ExperimentStore, request: Request) -> bool:
    """Send a request and wait until the tuner has dealt with it; False, and nothing is asked, when it went before.

    The answer may come in the very instant in which it is no longer waited for, and is looked for then, too.

    Raises:
        SpecError: The tuner has refused it.
        LaunchError: It has not dealt with it in time.
    """
    sent = store.inbox.send(request)
    until = time.monotonic() + ANSWER_S
    while store.inbox.is_pending(sent):
        if not store.is_held():
            store.inbox.consume(sent)
            store.inbox.check_fulfilled(sent)
            return False
        if time.monotonic() >= until:
            store.inbox.consume(sent)
            store.inbox.check_fulfilled(sent)
            holder = store.holder()
            who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
            raise LaunchError(f"the tuner of {store.name!r}, {who}, has not answered within {ANSWER_S:g} s; try again")
        time.sleep(POLL_S)
    store.inbox.check_fulfilled(sent)
    return True
