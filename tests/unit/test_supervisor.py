"""A local trial under its supervisor: nothing outlives it, nothing it prints harms anybody, whoever dies is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from hpo_core.launch import Event, Exited, Job, Output, Started
from hpo_core.launch.claims import CHUNK_BYTES, LogTail, read_facts
from hpo_core.launch.local import OUTPUT_BYTES, LocalLauncher
from hpo_core.launch.supervisor import HELD_BYTES, KEPT_SEGMENTS, SEGMENT_BYTES
from hpo_core.metrics import MetricsReader
from hpo_core.outcome import LOG_HEAD_BYTES, LOG_TAIL_BYTES, LogKeeper
from tests.contracts.launcher_suite import (
    exits,
    listen,
    only_exit,
    output,
    process_job,
    run,
    until_ended,
    until_started,
)
from tests.scenarios.folders import eventually
from tests.small_disk import run_on_small_disk

HIDE = """
import os, signal, sys, time
def hide(leave_group):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork(): return
    if leave_group: os.setsid()
    if os.fork(): os._exit(0)
    os.write(1, b"hidden %d\\n" % os.getpid())
    os.close(1); os.close(2)
    time.sleep(60)
    os._exit(0)
hide(True); hide(False)
"""
"""Forks twice, in a session of its own and in the trial's; both processes ignore SIGTERM and have no output."""

BLOCK = 64 << 10
"""Bytes of one block of a numbered output."""


def numbered(blocks: int, *, pause_at: int = -1, then: str = "pass") -> str:
    """A program that prints blocks which hold their number all over, so that every piece tells where it stood."""
    return f"""
import os, sys, time
for n in range({blocks}):
    if n == {pause_at}:
        time.sleep(0.3)
        {then}
    sys.stdout.buffer.write(b"%015d\\n" % n * 4096)
"""


class Machine:
    """A folder in which a test's trials work, and launchers over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"

    def launcher(self) -> LocalLauncher:
        return LocalLauncher(self.scratch, images_root=self.folder / "images", directory=self.folder)

    def processes(self) -> list[int]:
        """Every process that works in the folder: supervisors, trials, and what those left behind."""
        found = []
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and (process / "cwd").readlink() == self.folder:
                    found.append(int(process.name))
            except OSError:
                continue
        return [pid for pid in found if pid != os.getpid()]

    def supervisor(self, name: str) -> int:
        return int(read_facts(self.scratch / name / "claim")["pid"])


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """After each test no process is left, and no supervisor had anything to complain about."""
    machine = Machine(tmp_path)
    yield machine
    eventually(lambda: not machine.processes(), "no process left")
    assert [path.read_text() for path in tmp_path.rglob("supervisor.log") if path.stat().st_size] == []


def python(name: str, program: str, *, deadline_s: float | None = None, grace_s: float = 0.3, memory: str = "") -> Job:
    resources = {"limits": {"memory": memory}} if memory else {}
    pod = {"terminationGracePeriodSeconds": grace_s}
    command = [sys.executable, "-S", "-c", program]
    return process_job(name, command, deadline_s=deadline_s, pod=pod, resources=resources)


def shell(name: str, script: str) -> Job:
    return process_job(name, ["sh", "-c", script])


def is_there(pid: int) -> bool:
    """Whether a process lives; one that only waits to be reaped does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def hidden(events: Iterable[Event], name: str) -> list[int]:
    """The processes that a trial of HIDE told of."""
    return [int(line.split()[1]) for line in output(events, name).splitlines() if line.startswith(b"hidden")]


def test_a_trial_that_forks_twice_and_tries_to_stay_is_ended_and_its_success_counts(machine: Machine) -> None:
    launcher = machine.launcher()
    launcher.submit(python("a", HIDE + "time.sleep(0.2); print('loss=1')"))
    events = until_ended(launcher, "a")
    exited = only_exit(events, "a")
    assert (exited.code, exited.reason) == (0, "")
    assert exited.message == "2 process(es) that it had left behind were ended"
    assert len(hidden(events, "a")) == 2
    assert not any(is_there(pid) for pid in hidden(events, "a"))


def test_what_a_trial_left_behind_cannot_keep_its_end_back_by_holding_its_output_open(machine: Machine) -> None:
    exited, printed = run(machine.launcher(), shell("a", "sleep 60 & echo done"))
    assert (exited.code, printed) == (0, b"done\n")
    assert exited.message == "1 process(es) that it had left behind were ended"


def test_processes_that_had_ended_by_themselves_are_not_told_as_left_behind(machine: Machine) -> None:
    exited, _ = run(machine.launcher(), shell("a", "(true &); (true &); sleep 0.1"))
    assert (exited.code, exited.message) == (0, "")


def test_helpers_that_clean_up_after_the_trial_get_the_time_for_it(machine: Machine) -> None:
    """Python's resource tracker removes shared memory that a crashed trial left; killed at once, it could not."""
    program = """
from multiprocessing.shared_memory import SharedMemory
import os
memory = SharedMemory(create=True, size=1000)
print(memory.name, flush=True)
os._exit(1)
"""
    exited, printed = run(machine.launcher(), python("a", program))
    name = printed.split()[0].decode()
    assert (exited.code, exited.message) == (1, "")
    assert name.startswith("psm_")
    assert not Path("/dev/shm", name).exists()


def test_a_killed_supervisor_is_noticed_and_everything_of_its_trial_ended(machine: Machine) -> None:
    first = machine.launcher()
    job = python("a", HIDE + "time.sleep(60)")
    first.submit(job)
    events = listen(first, lambda taken: len(hidden(taken, "a")) == 2)
    assert all(is_there(pid) for pid in hidden(events, "a"))
    os.kill(machine.supervisor("a"), signal.SIGKILL)
    told = until_ended(first, "a")
    lost = Exited("a", None, "Lost", "its supervisor died, so nobody saw how it ended")
    assert told[-1] == lost
    assert not any(is_there(pid) for pid in hidden(events, "a"))
    other = machine.launcher()
    other.submit(job)
    again = until_ended(other, "a")
    assert again[-1] == lost
    assert output(again, "a") == output([*events, *told], "a")


def test_after_a_crash_of_tuner_and_supervisor_the_next_tuner_clears_up(machine: Machine) -> None:
    job = python("a", HIDE + "time.sleep(60)")
    tuner = start_tuner(machine, job)
    tail = LogTail(machine.scratch / "a")
    printed = bytearray()

    def told() -> bool:
        printed.extend(b"".join(data for data, _ in tail.read()))
        return printed.count(b"hidden") == 2

    eventually(told, "both processes are hidden")
    os.killpg(tuner.pid, signal.SIGKILL)
    tuner.communicate()
    os.kill(machine.supervisor("a"), signal.SIGKILL)
    launcher = machine.launcher()
    launcher.submit(job)
    events = until_ended(launcher, "a")
    assert only_exit(events, "a").reason == "Lost"
    pids = hidden(events, "a")
    assert len(pids) == 2
    assert not any(is_there(pid) for pid in pids)


def test_killing_the_tuners_process_group_leaves_the_trial_alone_and_the_next_tuner_follows_it(
    machine: Machine,
) -> None:
    program = "import os, time\nprint('begun')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('done')"
    job = process_job("a", [sys.executable, "-S", "-c", program])
    tuner = start_tuner(machine, job)
    eventually(lambda: list((machine.scratch / "a").glob("log.*")), "the trial prints")
    os.killpg(tuner.pid, signal.SIGKILL)
    tuner.communicate()
    launcher = machine.launcher()
    launcher.submit(job)
    until_started(launcher, "a")
    (machine.folder / "go").touch()
    events = until_ended(launcher, "a")
    assert (only_exit(events, "a").code, only_exit(events, "a").reason) == (0, "")
    assert b"".join(data for data, _ in LogTail(machine.scratch / "a").read()) == b"begun\ndone\n"


def start_tuner(machine: Machine, job: Job) -> subprocess.Popen[bytes]:
    """Another process, with a group of its own, whose launcher runs a job; returns when that has been claimed."""
    program = f"""
import time
from pathlib import Path
from hpo_core.launch import Job
from hpo_core.launch.local import LocalLauncher
folder = Path({str(machine.folder)!r})
launcher = LocalLauncher(folder / "scratch", images_root=folder / "images", directory=folder)
launcher.submit({job!r})
time.sleep(60)
"""
    tuner = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stderr=subprocess.PIPE)
    eventually(lambda: "started" in read_facts(machine.scratch / job.name / "claim"), "the job is started")
    return tuner


def test_a_claim_that_nobody_holds_means_death_whoever_has_its_process_ids_now(machine: Machine) -> None:
    """The number of the supervisor is this very process's by now, the one of the group a bystander's."""
    folder = machine.scratch / "a"
    folder.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as bystander:
        (folder / "claim").write_text(f"pid={os.getpid()}\ngroup={bystander.pid}\nstarted=1.0\n")
        launcher = machine.launcher()
        launcher.submit(shell("a", "echo never"))
        events = until_ended(launcher, "a")
        assert [type(event) for event in events] == [Started, Exited]
        assert only_exit(events, "a").reason == "Lost"
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.parametrize("claim", ["", "\0" * 20])
def test_a_claim_that_a_power_cut_has_emptied_means_death_too(machine: Machine, claim: str) -> None:
    folder = machine.scratch / "a"
    folder.mkdir(parents=True)
    (folder / "claim").write_text(claim)
    launcher = machine.launcher()
    launcher.submit(shell("a", "echo never"))
    assert only_exit(until_ended(launcher, "a"), "a").reason == "Lost"


def test_of_two_supervisors_that_start_at_once_exactly_one_runs_the_trial(machine: Machine) -> None:
    """Twenty times two processes call the supervisor at the same instant, each having waited for it."""
    program = """
import os, sys, time
from hpo_core.launch import supervisor
for turn in range(20):
    folder = f"{sys.argv[1]}/{turn}"
    os.makedirs(folder)
    instant = time.monotonic() + 0.01
    both = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            while time.monotonic() < instant: pass
            supervisor.main([folder, "0", "0", "1", "--", "sh", "-c", f"echo run >> {folder}/starts; sleep 0.02"])
        both.append(pid)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in both)
    print(*codes, open(f"{folder}/starts").read().split(), *sorted(os.listdir(folder)))
"""
    command = [sys.executable, "-c", program, str(machine.scratch)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["0 75 ['run'] claim exit starts"] * 20


def test_a_trial_that_runs_longer_than_its_deadline_is_stopped(machine: Machine) -> None:
    exited, printed = run(machine.launcher(), python("a", "import time; print(1); time.sleep(60)", deadline_s=0.3))
    assert (exited.code, exited.reason, printed) == (-signal.SIGTERM, "DeadlineExceeded", b"1\n")


def test_a_deadline_may_be_months_away(machine: Machine) -> None:
    exited, _ = run(machine.launcher(), python("a", "import time; time.sleep(0.1)", deadline_s=90 * 86400.0))
    assert (exited.code, exited.reason) == (0, "")


IGNORE = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(60)"


def test_a_trial_that_ignores_sigterm_is_killed_after_its_grace(machine: Machine) -> None:
    exited, _ = run(machine.launcher(), python("late", IGNORE, deadline_s=0.3))
    assert (exited.code, exited.reason) == (-signal.SIGKILL, "DeadlineExceeded")
    launcher = machine.launcher()
    launcher.submit(python("stopped", IGNORE))
    listen(launcher, lambda taken: output(taken, "stopped"))
    launcher.stop("stopped")
    exited = only_exit(until_ended(launcher, "stopped"), "stopped")
    assert (exited.code, exited.reason) == (-signal.SIGKILL, "Stopped")


def test_a_stopped_trial_can_save_its_work_within_its_grace(machine: Machine) -> None:
    program = """
import os, signal, sys, time
def save(number, frame):
    time.sleep(0.1)
    open(os.path.join(os.environ["HPO_OUTPUT_DIR"], "checkpoint"), "w").close()
    print("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready")
time.sleep(60)
"""
    launcher = machine.launcher()
    launcher.submit(python("a", program, grace_s=30))
    listen(launcher, lambda taken: output(taken, "a"))
    launcher.stop("a")
    events = until_ended(launcher, "a")
    exited = only_exit(events, "a")
    assert (exited.code, exited.reason, output(events, "a")) == (0, "Stopped", b"saved\n")
    assert exited.output_dir is not None
    assert [path.name for path in exited.output_dir.iterdir()] == ["checkpoint"]


def test_what_a_stopped_trial_hid_is_ended_with_it(machine: Machine) -> None:
    launcher = machine.launcher()
    launcher.submit(python("a", HIDE + "signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(60)"))
    events = listen(launcher, lambda taken: len(hidden(taken, "a")) == 2)
    launcher.stop("a")
    assert only_exit(until_ended(launcher, "a"), "a").reason == "Stopped"
    assert not any(is_there(pid) for pid in hidden(events, "a"))


def test_a_trial_over_its_memory_limit_is_ended_at_once(machine: Machine) -> None:
    program = "import time; hog = b'x' * (200 << 20); print(len(hog)); time.sleep(60)"
    exited, _ = run(machine.launcher(), python("a", program, grace_s=60, memory="64Mi"))
    assert exited.reason == "OutOfMemory"
    used = int(exited.message.removeprefix("it used ").split()[0])
    assert 64 < used < 260  # it may have been seen while it was still growing
    assert exited.message.endswith("MiB, more than resources.limits.memory")


def test_memory_copied_on_write_counts_once_until_it_is_written(machine: Machine) -> None:
    """Five processes inherit 64 MiB that they only read; then one writes to all of its own, and 128 are too few."""
    program = """
import os, time
data = bytearray(64 << 20)
for _ in range(4):
    if not os.fork():
        sum(data[::4096])
        time.sleep(0.6)
        for at in range(0, len(data) if os.path.exists("write") else 0, 4096): data[at] = 1
        time.sleep(0.6)
        os._exit(0)
for _ in range(4): os.wait()
print("read")
"""
    exited, printed = run(machine.launcher(), python("read", program, memory="128Mi"))
    assert (exited.code, exited.reason, printed) == (0, "", b"read\n")
    (machine.folder / "write").touch()
    exited, _ = run(machine.launcher(), python("write", program, memory="128Mi"))
    assert exited.reason == "OutOfMemory"


def test_where_the_machine_has_no_memory_left_a_trial_goes_before_its_tuner(machine: Machine) -> None:
    _, printed = run(machine.launcher(), shell("a", "cat /proc/self/oom_score_adj"))
    assert printed == b"500\n"


def test_the_children_of_a_trial_count_against_its_limit(machine: Machine) -> None:
    program = """
import os, time
for _ in range(4):
    if not os.fork():
        hog = b"x" * (40 << 20)
        time.sleep(60)
time.sleep(60)
"""
    exited, _ = run(machine.launcher(), python("a", program, memory="128Mi"))
    assert exited.reason == "OutOfMemory"


def test_memory_that_several_processes_share_counts_once(machine: Machine) -> None:
    """Five processes see the same 64 MiB: 320 are resident, 64 are used, and 128 are allowed."""
    program = """
import mmap, os, time
size = 64 << 20
with open("big", "wb") as file:
    file.truncate(size)
with open("big", "rb") as file:
    shared = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
def touch_all():
    return sum(shared[at] for at in range(0, size, 4096))
touch_all()
children = []
for _ in range(4):
    pid = os.fork()
    if not pid:
        touch_all()
        time.sleep(0.7)
        os._exit(0)
    children.append(pid)
time.sleep(0.6)
pages = sum(int(open(f"/proc/{pid}/statm").read().split()[1]) for pid in [os.getpid(), *children])
print(pages * 4096 >> 20)
for pid in children:
    os.waitpid(pid, 0)
"""
    exited, printed = run(machine.launcher(), python("a", program, memory="128Mi"))
    assert (exited.code, exited.reason) == (0, "")
    assert int(printed) > 300


def check_numbered(pieces: Iterable[tuple[bytes, int]]) -> int:
    """Check that every piece of a numbered output is what stood at its place; returns where the last one ends."""
    position = 0
    for data, missing in pieces:
        position += missing
        first, last = position // BLOCK, (position + len(data)) // BLOCK + 1
        expected = b"".join(b"%015d\n" % number * 4096 for number in range(first, last))
        assert expected[position - BLOCK * first :][: len(data)] == data, f"wrong bytes at {position}"
        position += len(data)
    return position


def pieces_of(events: Iterable[Event]) -> list[tuple[bytes, int]]:
    return [(event.data, event.missing) for event in events if isinstance(event, Output)]


def test_of_endless_output_head_and_tail_are_on_disk_and_what_is_missing_is_told(machine: Machine) -> None:
    """200 MiB are printed while nobody reads."""
    launcher = machine.launcher()
    launcher.submit(python("a", numbered(3200)))
    eventually(lambda: (machine.scratch / "a/exit").exists(), "the trial has ended")
    segments = sorted(path.name for path in (machine.scratch / "a").glob("log.*"))
    last = 3200 * BLOCK // SEGMENT_BYTES - 1
    kept = [0, *range(last - KEPT_SEGMENTS + 1, last + 1)]
    assert segments == [f"log.{number * SEGMENT_BYTES:015d}" for number in kept]
    events = until_ended(launcher, "a")
    assert check_numbered(pieces_of(events)) == 3200 * BLOCK
    gaps = [missing for _, missing in pieces_of(events) if missing]
    assert gaps == [(last - KEPT_SEGMENTS) * SEGMENT_BYTES]
    assert only_exit(events, "a").code == 0


def test_output_that_is_read_while_it_comes_is_in_order_and_told_to_the_last_byte(machine: Machine) -> None:
    launcher = machine.launcher()
    launcher.submit(python("a", numbered(1000)))
    assert check_numbered(pieces_of(until_ended(launcher, "a"))) == 1000 * BLOCK


def test_one_that_prints_very_much_keeps_nobody_waiting(machine: Machine) -> None:
    """Each call gives a part of it and goes on without a pause; the others' ends are told between, its own at last."""
    launcher = machine.launcher()
    launcher.submit(python("loud", numbered(400)))
    eventually(lambda: (machine.scratch / "loud/exit").exists(), "all is printed")
    launcher.submit(shell("quick", "echo done"))
    eventually(lambda: (machine.scratch / "quick/exit").exists(), "the quick one has ended")
    calls: list[list[Event]] = []
    until = time.monotonic() + 60.0
    while not any(exited.name == "loud" for call in calls for exited in call if isinstance(exited, Exited)):
        calls.append(launcher.events(60.0))
    assert time.monotonic() < until
    assert max(len(output(call, "loud")) for call in calls) <= OUTPUT_BYTES + CHUNK_BYTES
    assert calls[-1][-1] == only_exit([event for call in calls for event in call], "loud")
    assert check_numbered(pieces_of(e for call in calls for e in call if e.name == "loud")) == 400 * BLOCK
    assert len(calls) >= 400 * BLOCK // OUTPUT_BYTES
    assert any(exits(call, "quick") for call in calls[:5]), "the quick one's end was told late"


def test_a_line_of_100_megabytes_costs_neither_memory_nor_what_comes_behind(machine: Machine) -> None:
    program = "import sys\nfor _ in range(1600): sys.stdout.write('x' * 62500)\nprint('\\nloss=0.5')"
    launcher = machine.launcher()
    launcher.submit(python("a", program))
    reader, log = MetricsReader(("loss",)), LogKeeper()
    exited = None
    while exited is None:
        for event in launcher.events(1.0):
            if isinstance(event, Output):
                reader.feed(event.data, missing=event.missing)
                log.feed(event.data, missing=event.missing)
            exited = event if isinstance(event, Exited) else exited
    assert reader.latest("loss") == 0.5
    assert log.size == 100_000_000 + len("\nloss=0.5\n")
    assert len(log.content()) < LOG_HEAD_BYTES + LOG_TAIL_BYTES + 100


def test_any_bytes_can_be_printed(machine: Machine) -> None:
    program = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 1000)"
    exited, printed = run(machine.launcher(), python("a", program))
    assert (exited.code, printed) == (0, bytes(range(256)) * 1000)


def test_standard_error_and_output_are_one_stream(machine: Machine) -> None:
    _, printed = run(machine.launcher(), shell("a", "echo out; echo err >&2; echo out again"))
    assert printed == b"out\nerr\nout again\n"


def test_a_trial_may_close_its_output_long_before_its_end(machine: Machine) -> None:
    exited, printed = run(machine.launcher(), shell("a", "echo last words; exec >&- 2>&-; sleep 0.3; exit 3"))
    assert (exited.code, printed) == (3, b"last words\n")


def test_a_supervisor_that_waits_uses_no_processor_time(machine: Machine) -> None:
    """Not even when the trial has closed its output: a loop without a pause would use all of the half second."""

    def used_s() -> float:
        fields = Path(f"/proc/{machine.supervisor('a')}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    launcher = machine.launcher()
    launcher.submit(shell("a", "exec >&- 2>&-; touch closed; sleep 60"))
    eventually(lambda: (machine.folder / "closed").exists(), "the output is closed")
    before = used_s()
    time.sleep(0.5)
    assert used_s() - before < 0.1
    launcher.stop("a")
    until_ended(launcher, "a")


def test_a_trial_has_an_empty_standard_input_and_usual_signals(machine: Machine) -> None:
    exited, printed = run(machine.launcher(), shell("a", "cat; yes | head -n 1"))
    assert (exited.code, printed) == (0, b"y\n")


def test_a_trial_inherits_nothing_of_its_supervisor(machine: Machine) -> None:
    """Above all not the file whose lock says that the supervisor lives."""
    _, printed = run(machine.launcher(), python("a", "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"))
    assert printed == b"[0, 1, 2, 3]\n"  # the last one lists


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (["/nowhere/train"], 127, "cannot execute '/nowhere/train': No such file or directory"),
        (["no-such-program"], 127, "cannot execute 'no-such-program': No such file or directory"),
        (["/etc/passwd"], 126, "cannot execute '/etc/passwd': Permission denied"),
        (["/etc"], 126, "cannot execute '/etc': Permission denied"),
    ],
)
def test_a_command_that_cannot_be_executed_says_so(machine: Machine, command: list[str], code: int, told: str) -> None:
    exited, printed = run(machine.launcher(), process_job("a", command))
    assert (exited.code, printed.decode()) == (code, told + "\n")


ON_SMALL_DISK = """
import sys
from pathlib import Path
from hpo_core.errors import TransientError
from hpo_core.launch import Exited, Output
from hpo_core.launch.local import LocalLauncher
from tests.contracts.launcher_suite import process_job
disk = Path(sys.argv[1])
launcher = LocalLauncher(disk / "scratch", images_root=disk, directory=disk)
def run(job):
    launcher.submit(job)
    while True:
        for event in launcher.events(1.0):
            if isinstance(event, Output):
                yield event
            if isinstance(event, Exited):
                print(event.code, event.reason, event.message)
                return
"""


def test_on_a_full_disk_the_trial_goes_on_and_its_end_is_recorded_and_says_so() -> None:
    program = f"""
job = process_job("a", [sys.executable, "-S", "-c", {numbered(80)!r} + "sys.exit(3)"])
printed = b"".join(output.data for output in run(job))
print(printed.startswith(b"%015d\\n" % 0), len(printed) < 2 << 20)
"""
    with tempfile.TemporaryDirectory() as folder:
        end, printed = run_on_small_disk(ON_SMALL_DISK + program, Path(folder), size_kib=2048).splitlines()
    code, lost, *words = end.split(maxsplit=2)
    assert code == "3"
    assert words == ["bytes of its output were lost: the disk is full"]
    assert 80 * BLOCK - (2 << 20) <= int(lost) < 80 * BLOCK
    assert printed == "True True"


def test_what_is_printed_after_a_full_disk_had_room_again_is_read_at_its_place() -> None:
    """The log's own middle goes when it is long, which makes the room: nothing is joined across the gap.

    The trial pauses while the disk is full, so that the launcher looks at what there is just then.
    """
    program = f"""
from tests.unit.test_supervisor import check_numbered
job = process_job("a", [sys.executable, "-S", "-c", {numbered(1000, pause_at=300)!r}])
pieces = [(output.data, output.missing) for output in run(job)]
print(check_numbered(pieces) > 32 << 20, sum(missing > 0 for _, missing in pieces) > 0)
"""
    with tempfile.TemporaryDirectory() as folder:
        end, read = run_on_small_disk(ON_SMALL_DISK + program, Path(folder), size_kib=12 << 10).splitlines()
    assert "the disk is full" in end
    assert read == "True True"


def test_what_is_printed_between_two_gaps_is_not_joined_to_what_stood_before() -> None:
    """The disk is full, has room again a little later, and the log goes on, for its end at the cost of its middle."""
    program = f"""
from tests.unit.test_supervisor import check_numbered
(disk / "filler").write_bytes(b"x" * (2 << 20))
job = process_job("a", [sys.executable, "-S", "-c", {numbered(200, pause_at=60, then="os.unlink('filler')")!r}])
pieces = [(output.data, output.missing) for output in run(job)]
print(check_numbered(pieces) == 200 * {BLOCK}, any(missing for _, missing in pieces), len(pieces[-1][0]) > 0)
"""
    with tempfile.TemporaryDirectory() as folder:
        end, read = run_on_small_disk(ON_SMALL_DISK + program, Path(folder), size_kib=4 << 10).splitlines()
    assert "the disk is full" in end
    assert read == "True True True"


FULL_TO_THE_END = """
import sys
with open("filler", "wb", buffering=0) as filler:
    try:
        while True: filler.write(b"x" * 4096)
    except OSError:
        pass
sys.stdout.write("%015d\\n" % 0 * 4096 + "%015d\\n" % 1 * 4096 + "%015d\\n" % 2 * 4096 + "%015d\\n" % 3 * 4096)
"""


def test_on_a_disk_that_stays_full_there_is_room_for_the_last_words_and_the_others_are_told_as_missing() -> None:
    program = f"""
from tests.unit.test_supervisor import check_numbered
job = process_job("a", [sys.executable, "-S", "-c", {FULL_TO_THE_END!r}])
pieces = [(output.data, output.missing) for output in run(job)]
print(check_numbered(pieces) == 4 * {BLOCK}, len(pieces[-1][0]), pieces[-1][1])
print(*sorted(path.name for path in (disk / "scratch/a").iterdir()))
"""
    with tempfile.TemporaryDirectory() as folder:
        end, read, names = run_on_small_disk(ON_SMALL_DISK + program, Path(folder), size_kib=1024).splitlines()
    lost = 4 * BLOCK - HELD_BYTES
    assert end == f"0  {lost} bytes of its output were lost: the disk is full"
    assert read == f"True {HELD_BYTES} {lost}"
    assert names == f"claim exit log.{lost:015d} output supervisor.log"


FULL_DISK = """
import errno, os
from hpo_core.launch import local
def fill(path):
    with open(path, "wb", buffering=0) as filler:
        try:
            while True: filler.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
"""


def test_a_disk_that_stays_full_is_named() -> None:
    program = """
local.ROOM_S, local.ROOM_PATIENCE_S = 0.1, 0.3
fill(disk / "filler")
list(run(process_job("a", ["true"])))
"""
    with tempfile.TemporaryDirectory() as folder:
        told = run_on_small_disk(ON_SMALL_DISK + FULL_DISK + program, Path(folder), size_kib=256)
    assert told.startswith("None CannotStart")
    assert "No space left on device" in told
    assert f"{folder}/scratch/a" in told


def test_a_trial_that_finds_the_disk_full_starts_when_there_is_room_and_nobody_waits_for_that() -> None:
    """Others start, end and are stopped meanwhile; it is the end of one of them that makes the room."""
    program = """
local.ROOM_S = 0.1
launcher.submit(process_job("a", ["sh", "-c", "while [ ! -e end ]; do sleep 0.02; done"]))
while not launcher.events(0.2): pass
fill(disk / "filler")
for name in ("b", "c"):
    launcher.submit(process_job(name, ["true"]))
launcher.stop("c")
told = []
while len(told) < 3:
    for event in launcher.events(0.2):
        if isinstance(event, Exited):
            told.append((event.name, event.code, event.reason))
            if event.name == "c":
                (disk / "filler").rename(disk / "end")
            if event.name == "a":
                (disk / "end").unlink()
for each in told:
    print(*each)
print(*sorted(path.name for path in (disk / "scratch/b").iterdir()))
"""
    with tempfile.TemporaryDirectory() as folder:
        ended = run_on_small_disk(ON_SMALL_DISK + FULL_DISK + program, Path(folder), size_kib=1024).splitlines()
    assert ended == ["c None Stopped", "a 0 ", "b 0 ", "claim exit output supervisor.log"]
