"""The contract of `Launcher`, proven of every launcher: the one with processes, and the scripted one of other tests."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from hpo_core.launch import Event, Exited, Launcher, Output, Started
from tests.contracts.cluster_machine import ClusterMachine, cluster_machine
from tests.contracts.launcher_suite import (
    MACHINES,
    Machine,
    Workload,
    exits,
    listen,
    only_exit,
    output,
    process_job,
    run,
    until_ended,
    until_started,
)
from tests.contracts.scripted_launcher import Play, ScriptedLauncher, ScriptedMachine

ENDLESS = Workload(["begun"], endless=True)


@pytest.fixture(params=[*MACHINES, pytest.param("cluster", marks=pytest.mark.e2e)])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    if request.param == "cluster":
        with cluster_machine() as found:
            yield found
    else:
        yield MACHINES[request.param](tmp_path)


@pytest.fixture
def keeping_machine(machine: Machine) -> Machine:
    """A machine whose launchers hand over what workloads leave; in a cluster they bring it to the store themselves."""
    if isinstance(machine, ClusterMachine):
        pytest.skip("what workloads leave in a cluster is no part of the launcher's events")
    return machine


@pytest.fixture
def launcher(machine: Machine) -> Iterator[Launcher]:
    """A launcher; whatever a test named `endless…` is stopped at its end."""
    launcher = machine.launcher()
    yield launcher
    for name in ("endless", "endless-2"):
        if machine.starts(name):
            launcher.submit(machine.job(name, ENDLESS))
            launcher.stop(name)
            until_ended(launcher, name)


def signed(exited: Exited) -> int | None:
    """The exit code, a signal below 0 also where it was told as a shell tells it, by 128 and its number."""
    code = exited.code
    return 128 - code if code is not None and 128 < code < 128 + signal.NSIG else code


def of(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event.name == name]


def test_a_workload_is_told_as_started_then_what_it_prints_then_its_end_once(
    machine: Machine, launcher: Launcher
) -> None:
    launcher.submit(machine.job("a", Workload(["one", "two", "three"])))
    events = until_ended(launcher, "a")
    assert isinstance(events[0], Started)
    assert all(isinstance(event, Output) for event in events[1:-1])
    assert events[-1] == Exited("a", 0, at=only_exit(events, "a").at)
    assert output(events, "a") == b"one\ntwo\nthree\n"
    assert of(launcher.events(0.3), "a") == []


def test_output_is_complete_and_in_order(machine: Machine, launcher: Launcher) -> None:
    lines = [f"line {number}" for number in range(5000)]
    exited, printed = run(launcher, machine.job("a", Workload(lines)))
    assert exited.code == 0
    assert printed.decode().splitlines() == lines


def test_what_was_printed_comes_while_the_workload_runs(machine: Machine, launcher: Launcher) -> None:
    launcher.submit(machine.job("endless", ENDLESS))
    events = listen(launcher, lambda taken: output(taken, "endless") == b"begun\n")
    assert exits(events, "endless") == []


@pytest.mark.parametrize("code", [0, 1, 3, 255, -signal.SIGKILL, -signal.SIGSEGV])
def test_exit_codes_and_signals_are_told(machine: Machine, launcher: Launcher, code: int) -> None:
    exited, _ = run(launcher, machine.job("a", Workload(code=code)))
    assert (signed(exited), exited.reason) == (code, "")


def test_a_command_that_does_not_exist_ends_with_127(machine: Machine, launcher: Launcher) -> None:
    exited, _ = run(launcher, machine.job("a", Workload(missing_command=True)))
    assert (exited.code, exited.reason) == (127, "")


def test_what_it_leaves_in_its_output_directory_is_given(keeping_machine: Machine, launcher: Launcher) -> None:
    exited, _ = run(launcher, keeping_machine.job("a", Workload(files={"model.txt": "weights"})))
    assert exited.output_dir is not None
    assert [(path.name, path.read_text()) for path in exited.output_dir.iterdir()] == [("model.txt", "weights")]


def test_a_workload_that_leaves_nothing_has_no_output_directory(machine: Machine, launcher: Launcher) -> None:
    exited, _ = run(launcher, machine.job("a", Workload()))
    assert exited.output_dir is None


def test_several_run_beside_each_other_and_each_gets_its_own_events(machine: Machine, launcher: Launcher) -> None:
    names = ["a", "b", "c", "d"]
    for number, name in enumerate(names):
        launcher.submit(machine.job(name, Workload([f"I am {name}"], code=number)))
    events = until_ended(launcher, *names)
    assert [only_exit(events, name).code for name in names] == [0, 1, 2, 3]
    assert [output(events, name) for name in names] == [f"I am {name}\n".encode() for name in names]


def test_several_may_be_submitted_at_the_same_time(machine: Machine, launcher: Launcher) -> None:
    names = [f"w{number}" for number in range(12)]
    jobs = [machine.job(name, Workload([f"I am {name}"])) for name in names]
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(launcher.submit, jobs))
    events = until_ended(launcher, *names)
    assert [output(events, name) for name in names] == [f"I am {name}\n".encode() for name in names]
    assert [machine.starts(name) for name in names] == [1] * len(names)


def test_submitting_a_running_name_again_starts_nothing(machine: Machine, launcher: Launcher) -> None:
    job = machine.job("endless", ENDLESS)
    for _ in range(3):
        launcher.submit(job)
    listen(launcher, lambda taken: output(taken, "endless"))
    launcher.submit(job)
    assert machine.starts("endless") == 1
    launcher.stop("endless")
    events = until_ended(launcher, "endless")
    assert len(exits(events, "endless")) == 1


def test_submitting_an_ended_name_again_starts_nothing_and_tells_all_of_it_again(
    machine: Machine, launcher: Launcher
) -> None:
    job = machine.job("a", Workload(["one", "two"], code=4, files={"model": "m"}))
    first, _ = run(launcher, job)
    again, printed = run(launcher, job)
    assert again == first
    assert printed == b"one\ntwo\n"
    assert machine.starts("a") == 1


def test_another_launcher_follows_a_running_workload_from_its_first_byte(machine: Machine, launcher: Launcher) -> None:
    job = machine.job("endless", ENDLESS)
    launcher.submit(job)
    listen(launcher, lambda taken: output(taken, "endless"))
    other = machine.launcher()
    other.submit(job)
    events = listen(other, lambda taken: output(taken, "endless") == b"begun\n")
    assert isinstance(events[0], Started)
    assert machine.starts("endless") == 1
    other.stop("endless")
    assert only_exit(until_ended(other, "endless"), "endless").reason == "Stopped"


def test_another_launcher_tells_an_ended_workload_whole(machine: Machine, launcher: Launcher) -> None:
    job = machine.job("a", Workload(["one", "two"], code=2, files={"model": "m"}))
    first, _ = run(launcher, job)
    again, printed = run(machine.launcher(), job)
    assert again == first
    assert printed == b"one\ntwo\n"
    assert machine.starts("a") == 1


def test_two_launchers_that_follow_one_workload_are_both_told_its_end(machine: Machine, launcher: Launcher) -> None:
    job = machine.job("endless", ENDLESS)
    other = machine.launcher()
    launcher.submit(job)
    other.submit(job)
    listen(launcher, lambda taken: output(taken, "endless"))
    assert machine.starts("endless") == 1
    other.stop("endless")
    for each in (other, launcher):
        events = until_ended(each, "endless")
        assert only_exit(events, "endless").reason == "Stopped"


def test_a_stopped_workload_ends_with_the_reason_stopped(machine: Machine, launcher: Launcher) -> None:
    launcher.submit(machine.job("endless", ENDLESS))
    until_started(launcher, "endless")
    launcher.stop("endless")
    exited = only_exit(until_ended(launcher, "endless"), "endless")
    assert (exited.reason, signed(exited)) == ("Stopped", -signal.SIGTERM)


def test_stopping_twice_is_stopping_once(machine: Machine, launcher: Launcher) -> None:
    launcher.submit(machine.job("endless", ENDLESS))
    until_started(launcher, "endless")
    launcher.stop("endless")
    launcher.stop("endless")
    events = until_ended(launcher, "endless")
    launcher.stop("endless")
    assert len(exits([*events, *launcher.events(0.3)], "endless")) == 1


@pytest.mark.parametrize("wait_s", [0.0, 0.004, 0.008, 0.012, 0.016, 0.02])
def test_a_workload_stopped_while_it_is_being_started_ends_as_stopped_too(
    machine: Machine, launcher: Launcher, wait_s: float
) -> None:
    launcher.submit(machine.job("endless", ENDLESS))
    time.sleep(wait_s)
    launcher.stop("endless")
    assert only_exit(until_ended(launcher, "endless"), "endless").reason == "Stopped"


def test_stopping_an_unknown_or_ended_name_is_harmless(machine: Machine, launcher: Launcher) -> None:
    launcher.stop("never-seen")
    exited, _ = run(launcher, machine.job("a", Workload(code=5)))
    launcher.stop("a")
    assert exited.reason == ""
    assert launcher.events(0.0) == []
    assert run(launcher, machine.job("a", Workload(code=5)))[0] == exited


def test_stopping_one_leaves_the_others_alone(machine: Machine, launcher: Launcher) -> None:
    launcher.submit(machine.job("endless", ENDLESS))
    launcher.submit(machine.job("endless-2", ENDLESS))
    until_started(launcher, "endless", "endless-2")
    launcher.stop("endless-2")
    until_ended(launcher, "endless-2")
    assert exits(launcher.events(0.3), "endless") == []


def test_events_of_nothing_is_empty_after_its_time(machine: Machine, launcher: Launcher) -> None:
    assert launcher.events(0.0) == []
    assert launcher.events(0.2) == []
    launcher.submit(machine.job("endless", Workload(endless=True)))
    until_started(launcher, "endless")
    assert launcher.events(0.2) == []


def test_an_end_wakes_whoever_waits_for_events(machine: Machine, launcher: Launcher) -> None:
    """However long it would have waited: the patience of these tests is shorter than this timeout."""
    launcher.submit(machine.job("a", Workload()))
    taken: list[Event] = []
    until = time.monotonic() + 60.0
    while not exits(taken, "a"):
        taken += launcher.events(60.0)
    assert time.monotonic() < until


def test_forgetting_is_idempotent_and_leaves_the_others(machine: Machine, launcher: Launcher) -> None:
    run(launcher, machine.job("a", Workload()))
    run(launcher, machine.job("b", Workload()))
    launcher.forget("a")
    launcher.forget("a")
    launcher.forget("never-seen")
    machine.launcher().forget("a")
    assert run(launcher, machine.job("b", Workload()))[0].code == 0


def test_forgetting_takes_what_was_left_behind(keeping_machine: Machine, launcher: Launcher) -> None:
    exited, _ = run(launcher, keeping_machine.job("a", Workload(files={"model": "m"})))
    launcher.forget("a")
    assert exited.output_dir is not None
    assert not exited.output_dir.exists()


def scripted(play: Play, *names: str, order: Callable[[Sequence[str]], Sequence[str]] = sorted) -> ScriptedMachine:
    """A scripted machine on which all of these have been started and play the same."""
    machine = ScriptedMachine(lambda job: play, order)
    for name in names:
        machine.start(process_job(name, []))
    return machine


def test_a_scripted_workload_prints_a_line_a_turn_and_the_rest_in_its_last_one() -> None:
    launcher = ScriptedLauncher(scripted(Play(("1", "2", "3"), turns=2)))
    launcher.submit(process_job("a", []))
    assert launcher.events(0) == [Started("a"), Output("a", b"1\n")]
    assert launcher.events(0) == [Output("a", b"2\n"), Output("a", b"3\n"), Exited("a", 0)]


def test_the_events_of_a_scripted_turn_come_in_the_order_that_the_test_wants() -> None:
    launcher = ScriptedLauncher(scripted(Play(), order=lambda names: names[::-1]))
    for name in "abc":
        launcher.submit(process_job(name, []))
    assert [event.name for event in launcher.events(0) if isinstance(event, Exited)] == ["c", "b", "a"]


def test_a_scripted_workload_can_be_lost_and_its_start_stays_counted() -> None:
    machine = scripted(Play(turns=None), "a")
    launcher = ScriptedLauncher(machine)
    launcher.submit(process_job("a", []))
    assert launcher.events(0) == [Started("a")]
    machine.lose("a")
    assert [event.reason for event in launcher.events(0) if isinstance(event, Exited)] == ["Lost"]
    assert (machine.starts["a"], machine.running) == (1, [])


def test_a_scripted_workload_that_cannot_start_is_never_told_as_started() -> None:
    launcher = ScriptedLauncher(scripted(Play(("line",), None, "CannotStart", "no room")))
    launcher.submit(process_job("a", []))
    assert launcher.events(0) == [Exited("a", None, "CannotStart", "no room")]


def test_a_scripted_machine_notices_what_a_real_one_would_let_pass() -> None:
    machine = scripted(Play(), "a")
    launcher = ScriptedLauncher(machine)
    with pytest.raises(AssertionError, match="a is forgotten, and still runs"):
        launcher.forget("a")
    run(launcher, process_job("a", []))
    launcher.forget("a")
    with pytest.raises(AssertionError, match="a was forgotten, and is submitted again"):
        launcher.submit(process_job("a", []))


def test_what_is_known_to_have_begun_and_is_not_there_is_lost_and_not_started(
    machine: Machine, launcher: Launcher
) -> None:
    job = replace(machine.job("a", Workload(["one"])), begun=True)
    launcher.submit(job)
    events = until_ended(launcher, "a")
    assert (only_exit(events, "a").code, only_exit(events, "a").reason) == (None, "Lost")
    assert machine.starts("a") == 0


def test_what_is_known_to_have_begun_and_is_there_is_followed(machine: Machine, launcher: Launcher) -> None:
    launcher.submit(machine.job("a", Workload(["one"])))
    until_started(launcher, "a")
    other = machine.launcher()
    other.submit(replace(machine.job("a", Workload(["one"])), begun=True))
    assert only_exit(until_ended(other, "a"), "a").code == 0
    assert machine.starts("a") == 1
