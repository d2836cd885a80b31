"""The small process that owns one local trial from its start to the end of its last descendant.

    python -S -E supervisor.py DIR DEADLINE_S MEMORY_BYTES GRACE_S -- COMMAND [ARG ...]

Working directory and environment are the trial's. It is started once per trial, so it imports only what the interpreter
brings compiled: the public `signal` alone would cost 4 ms and a megabyte. In DIR it leaves

    claim        who supervises this trial, one `fact=value` a line. It appears already locked, and the lock is held
                 for life: locked means alive, and a claim without a lock can only mean death
    log.0...0    what the trial printed, in segments of at most SEGMENT_BYTES; the name tells where in all of the output
                 a segment begins; the first and the last KEPT_SEGMENTS stay, fewer where the disk is full
    exit         how it ended, one `fact=value` a line; appears whole, by rename, when the last descendant is gone

SIGTERM asks it to stop the trial: SIGTERM to the trial's group, GRACE_S later SIGKILL to every descendant. A deadline
or memory limit of 0 is none. It exits with CLAIMED when somebody else has claimed the trial, who then owns it alone,
and with the system's error number when it cannot claim it.
"""

import _signal  # the public module builds enums, see above
import ctypes
import fcntl
import os
import select
import sys
import time

CLAIMED = 75
SEGMENT_BYTES = 8 << 20
KEPT_SEGMENTS = 16
PIECE_BYTES, PIPE_BYTES = 256 << 10, 1 << 20
RESERVE_BYTES = 64 << 20  # of the disk, or a sixteenth of a small one, that logs of more than SMALL_BYTES leave free
SMALL_BYTES = 1 << 20
HELD_BYTES = 64 << 10  # so much waits in memory for room, which its end finds in a file that is there from the start
RETRY_S = 0.25  # how often a full disk is tried again
SOON_S, PAUSE_S = 0.005, 0.002  # output that comes again so soon is let gather for that long
F_SETPIPE_SZ = 1031
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SIGKILL, SIGTERM, SIGPIPE = 9, 15, 13
MEMORY_CHECK_S = 0.25
LINGER_S, GIVE_UP_S = 0.2, 30.0


class Log:
    """The trial's output on disk, bounded: the head and the tail stay, what lies between goes.

    On a full disk its own middle goes first. Then what the trial prints waits for room, of which only the end can be
    held in memory: the rest is dropped and counted. For that end there is always room.

    Raises:
        OSError: There is none from the start.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._spare = f"{folder}/spare.{os.getpid()}"
        self._file = -1
        self._written = 0  # in the segment that is written to
        self._segments: list[str] = []
        self._held = b""
        self._retry_at = 0.0
        self.size = self.dropped = 0  # dropped bytes count for the size
        with open(self._spare, "wb") as spare:
            os.posix_fallocate(spare.fileno(), 0, HELD_BYTES)

    def write(self, data: memoryview) -> None:
        if self._held:
            data, self._held = memoryview(self._held + data), b""
        while data:
            count = self._append(data)
            if not count:
                self._drop(len(data) - HELD_BYTES)
                self._held = bytes(data[-HELD_BYTES:])
                return
            self.size += count
            data = data[count:]

    def close(self) -> None:
        """Writes what waits, once more to the log, else to the spare file, which becomes its last segment."""
        self._retry_at = 0.0
        self.write(memoryview(b""))
        self._close()
        try:
            if self._held:
                self._file = os.open(self._spare, os.O_WRONLY | os.O_CLOEXEC)
                self._written = os.write(self._file, self._held)
                os.ftruncate(self._file, self._written)
                os.rename(self._spare, f"{self._folder}/log.{self.size:015d}")
                self.size += self._written
        except OSError:
            pass
        self._drop(len(self._held) - self._written)
        remove(self._spare)

    def _drop(self, count: int) -> None:
        self.size += max(count, 0)
        self.dropped += max(count, 0)

    def _append(self, data: memoryview) -> int:
        """Writes a piece; returns its length, 0 when there is no room on the disk."""
        if self._file < 0 and time.monotonic() < self._retry_at:
            return 0
        while True:
            try:
                if self._file < 0 or self._written == SEGMENT_BYTES:
                    self._next_segment()
                room = 0 if self._must_save() else SEGMENT_BYTES - self._written
                count = os.write(self._file, data[:room]) if room else 0
            except OSError:
                count = 0
            if count:
                self._written += count
                return count
            if not self._drop_middle():
                self._give_up_segment()
                return 0

    def _must_save(self) -> bool:
        """Whether what room there is must be left to others."""
        if self.size - self.dropped < SMALL_BYTES:
            return False
        disk = os.fstatvfs(self._file)
        return disk.f_bavail * disk.f_frsize < min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize >> 4)

    def _next_segment(self) -> None:
        self._close()
        path = f"{self._folder}/log.{self.size:015d}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._segments.append(path)
        if len(self._segments) > KEPT_SEGMENTS + 1:
            self._drop_middle()

    def _drop_middle(self) -> bool:
        """Removes the oldest segment between the first and the last; False when there is none."""
        if len(self._segments) < 3:
            return False
        remove(self._segments.pop(1))
        return True

    def _give_up_segment(self) -> None:
        if self._file >= 0 and not self._written:
            remove(self._segments.pop())
        self._close()
        self._retry_at = time.monotonic() + RETRY_S

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self._written = -1, 0


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # somebody has cleared up while the trial ran


def claim(folder: str) -> int:
    """Lock a new claim and link it to its name; returns its descriptor, or -1 when the trial is claimed already."""
    temporary = f"{folder}/claim.{os.getpid()}"
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.write(file, b"pid=%d\n" % os.getpid())
    try:
        os.link(temporary, f"{folder}/claim")
    except FileExistsError:
        file = -1
    os.unlink(temporary)
    return file


def start(command: list[str], output: int) -> tuple[int, int]:
    """Fork the trial into a session of its own; it waits for a byte, so that its group is on record before it runs.

    Returns:
        Its process id, which is its group's too, and the descriptor that the byte goes to.
    """
    wait, go = os.pipe()
    pid = os.fork()
    if pid:
        os.close(wait)
        return pid, go
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
    os.close(go)
    os.setsid()
    if not os.read(wait, 1):  # the supervisor died in between
        os._exit(0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # where the machine has no memory left, the trial goes before its tuner
    except OSError:
        pass
    for number in (SIGTERM, SIGPIPE):
        _signal.signal(number, _signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot execute {command[0]!r}: {error.strerror}\n".encode())
        os._exit(127 if error.errno == 2 else 126)


def descendants(pid: int) -> list[int]:
    """Every process below this one, parents before children."""
    found = [pid]
    for parent in found:
        try:
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:
                    found += map(int, file.read().split())
        except OSError:
            continue  # it ended while we looked
    return found[1:]


def memory_bytes(limit: int) -> int:
    """Memory of all descendants: what is resident; over the limit, with the proportional share of what is shared."""
    pids = descendants(os.getpid())
    resident = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                resident += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    if resident <= limit:
        return resident
    used = sum(proportional_bytes(pid) for pid in pids)
    if used <= limit:
        return used
    # Shares of one that ended in between counted twice: with its own, and with those it left them to.
    return min(used, sum(proportional_bytes(pid) for pid in pids))


def proportional_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return sum(int(line.split()[1]) << 10 for line in file if line.startswith(b"Pss:"))
    except OSError:
        return 0


def kill_all() -> int:
    """End every descendant, whoever it hid from, and reap it; returns how many had to be ended.

    Their orphans become children of this process, which is a subreaper, so that the loop ends when nobody is left.
    Those that go by themselves when the trial has, as Python's resource tracker does after cleaning up, get the time.
    What the kernel itself holds, as on a dead network disk, is given up after a while.
    """
    strays: set[int] = set()
    kill_at = time.monotonic() + LINGER_S
    give_up_at = kill_at + GIVE_UP_S
    while time.monotonic() < give_up_at:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return len(strays)
        for pid in descendants(os.getpid()) if time.monotonic() >= kill_at else ():
            strays.add(pid)
            try:
                os.kill(pid, SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.002)
    return len(strays)


def signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:  # its first process, which is not reaped yet, has not come to making the group
        os.kill(group, number)


class Watch:
    """Waits for the trial's end, for a stop, a deadline or too much memory, and moves its output along meanwhile."""

    def __init__(self, pid: int, output: int, log: Log, limits: tuple[float, int, float]) -> None:
        self._pid, self._output, self._log = pid, output, log
        deadline_s, self._memory_limit, self._grace_s = limits
        self._deadline = time.monotonic() + deadline_s if deadline_s else float("inf")
        self._kill_at = float("inf")
        self._check_at = time.monotonic() + MEMORY_CHECK_S if self._memory_limit else float("inf")
        self._poll = select.poll()
        self._wakeup, wake = os.pipe()
        os.set_blocking(wake, False)
        _signal.set_wakeup_fd(wake)
        _signal.signal(SIGTERM, self._on_stop)
        self._poll.register(self._wakeup, select.POLLIN)
        self._poll.register(output, select.POLLIN)
        self._end = os.pidfd_open(pid)
        self._poll.register(self._end, select.POLLIN)
        self._buffer = memoryview(bytearray(PIECE_BYTES))
        self._count, self._pumped = 0, 0.0
        self.reason = ""
        self.peak = 0

    def _on_stop(self, number: int, frame: object) -> None:
        self._stop("Stopped")

    def _stop(self, reason: str, grace_s: float | None = None) -> None:
        if self.reason:
            return
        self.reason = reason
        self._deadline = self._check_at = float("inf")
        self._kill_at = time.monotonic() + (self._grace_s if grace_s is None else grace_s)
        signal_group(self._pid, SIGTERM)

    def until_end(self) -> int:
        """Returns the trial's wait status."""
        while True:
            until = min(self._deadline, self._kill_at, self._check_at)
            # At most a minute at once: poll counts in milliseconds and an int, and a deadline may be a month away.
            wait_ms = None if until == float("inf") else min(max((until - time.monotonic()) * 1000, 0) + 1, 60_000)
            ready = [file for file, _ in self._poll.poll(wait_ms)]
            if self._output in ready and not self.pump_calmly():
                self._poll.unregister(self._output)
            if self._wakeup in ready:
                os.read(self._wakeup, 64)
            if self._end in ready:
                _signal.signal(SIGTERM, _signal.SIG_IGN)  # too late to stop it
                return os.waitpid(self._pid, 0)[1]
            self._act(time.monotonic())

    def _act(self, now: float) -> None:
        if now >= self._kill_at:
            self._kill_at = float("inf")
            for pid in [self._pid, *descendants(os.getpid())]:
                try:
                    os.kill(pid, SIGKILL)
                except ProcessLookupError:
                    continue
        if now >= self._deadline:
            self._stop("DeadlineExceeded")
        if now >= self._check_at:
            used = memory_bytes(self._memory_limit)
            took_s = time.monotonic() - now  # shares of very much memory are slow to tell
            self._check_at = now + max(MEMORY_CHECK_S, 5 * took_s)
            self.peak = max(self.peak, used)
            if used > self._memory_limit:
                self._stop("OutOfMemory", grace_s=0.0)

    def pump(self) -> bool:
        """Moves a piece of output to the log; False at its end."""
        self._count = os.readv(self._output, [self._buffer])
        self._log.write(self._buffer[: self._count])
        return self._count > 0

    def pump_calmly(self) -> bool:
        """Does so, and lets a trial that prints in little pieces go on a while before the next one."""
        if self._count < PIECE_BYTES and time.monotonic() - self._pumped < SOON_S:
            time.sleep(PAUSE_S)
        going_on = self.pump()
        self._pumped = time.monotonic()
        return going_on

    def drain(self) -> None:
        """Moves what is left; everyone who could write more is gone."""
        os.set_blocking(self._output, False)
        try:
            while self.pump():
                pass
        except BlockingIOError:
            pass


def main(arguments: list[str]) -> None:
    folder, deadline_s, memory_limit, grace_s, _, *command = arguments
    try:
        # Room for the last word is taken before the disk can be full.
        last_word = os.open(f"{folder}/exit.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(last_word, b"\n" * 512)
        log = Log(folder)
        claimed = claim(folder)
    except OSError as error:
        for name in ("exit", "claim", "spare"):
            remove(f"{folder}/{name}.{os.getpid()}")
        os._exit(error.errno or 1)  # in words it could not be written where the disk is full
    if claimed < 0:
        for name in ("exit", "spare"):
            remove(f"{folder}/{name}.{os.getpid()}")
        os._exit(CLAIMED)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    output, trial_output = os.pipe()
    try:
        fcntl.fcntl(output, F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass  # the user has too many; it only holds the trial up more
    pid, go = start(command, trial_output)
    os.close(trial_output)
    watch = Watch(pid, output, log, (float(deadline_s), int(memory_limit), float(grace_s)))
    started = time.time()
    os.write(claimed, b"group=%d\nstarted=%.6f\n" % (pid, started))
    if not watch.reason:
        os.write(go, b"1")
    os.close(go)
    status = watch.until_end()
    ended = time.time()
    strays = kill_all()
    watch.drain()
    log.close()
    facts = {
        "code": os.waitstatus_to_exitcode(status),
        "reason": watch.reason,
        "started": f"{started:.6f}",
        "ended": f"{ended:.6f}",
        "strays": strays,
        "printed": log.size,
        "dropped": log.dropped,
        "peak_memory_bytes": watch.peak,
    }
    text = "".join(f"{name}={value}\n" for name, value in facts.items()).encode()
    os.pwrite(last_word, text.ljust(512, b"\n"), 0)
    os.rename(f"{folder}/exit.{os.getpid()}", f"{folder}/exit")
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
