"""A lock on a server that knows none: an object that its holder renews, by conditional writes, as long as it lives.

Whether a lease has run out is told by the server's clock alone, which dates the object and every answer; the holder
counts from before it sent its renewal, so that it gives up its certainty before anybody else gives it up. An age is
never told too high, so that no allowance for clocks is needed. A holder on this very machine that has died is known at
once. A holder that was paused past its time may wake up: it has to `confirm` before what only a holder may do, and its
writes of records are conditional anyway.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo_core.errors import Conflict, NotFound, StoreError, TransientError
from hpo_core.objects.protocol import ABSENT, Blob, ObjectStore

LEASE_S = 20.0
"""How long a holder elsewhere that no longer renews is waited for."""
RENEWALS = 3
"""How often a lease is renewed within its time."""
HURRY = 20
"""How often within its time a renewal that failed is tried again."""

_ours: set[str] = set()
"""The ids of what this process holds, or is about to: a lease of this process that is none of them was never taken."""

_log = logging.getLogger(__name__)


class Lease:
    """A lease that is held, renewed by a thread of its own until it is released."""

    def __init__(
        self, objects: ObjectStore, key: str, content: Mapping[str, Any], etag: str, *, sent_at: float
    ) -> None:
        self._objects, self._key = objects, key
        self._content = dict(content)
        self._lease_s = float(content["leaseSeconds"])
        self._etag = etag
        self._valid_until = sent_at + self._lease_s
        self._lost = ""
        self._renewing = threading.Lock()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def take(
        cls, objects: ObjectStore, key: str, owner: Mapping[str, Any], *, lease_s: float = LEASE_S
    ) -> Lease | None:
        """Take the lease of that key; None when somebody holds it. See `Locks.lock`."""
        content = {**owner, **_this_process(), "id": secrets.token_hex(8), "leaseSeconds": lease_s, "renewals": 0}
        sent_at = now_s()
        try:
            present = objects.get(key)
        except NotFound:
            expect = ABSENT
        else:
            if cls.is_held(present):
                return None
            expect = present.etag
        with contextlib.ExitStack() as on_failure:
            _ours.add(content["id"])
            on_failure.callback(_ours.discard, content["id"])
            try:
                etag = objects.put(key, _text(content), expect=expect)
            except Conflict:
                return None
            lease = cls(objects, key, content, etag, sent_at=sent_at)
            on_failure.pop_all()
        return lease

    @staticmethod
    def is_held(present: Blob) -> bool:
        """Tell of the object of a lease whether somebody holds it."""
        holder = _parsed(present)
        if holder.get("released") or _is_dead(holder):
            return False
        return present.age_s <= float(holder.get("leaseSeconds", LEASE_S))

    def confirm(self) -> None:
        """See `Lock.confirm`; asks the server only when the last renewal is too long ago."""
        if self._lost:
            raise Conflict(self._lost)
        if now_s() >= self._valid_until:
            self._renew()

    def release(self) -> None:
        """See `Lock.release`; what cannot be told to the server now runs out by itself."""
        if self._released.is_set():
            return
        self._released.set()
        self._thread.join()
        try:
            with self._renewing:
                self._put({"released": True})
        except Conflict:
            return  # somebody else has it, or has removed it together with all else
        except (StoreError, TransientError) as error:
            _log.warning("lease.unreleased key=%s reason=%s", self._key, error)
        finally:
            _ours.discard(self._content["id"])

    def _keep(self) -> None:
        pause_s = self._lease_s / RENEWALS
        while not self._released.wait(pause_s):
            try:
                self._renew()
                pause_s = self._lease_s / RENEWALS
            except Conflict as error:
                _log.warning("lease.lost key=%s reason=%s", self._key, error)
                return
            except (StoreError, TransientError) as error:
                _log.info("lease.unrenewed key=%s reason=%s", self._key, error)
                pause_s = self._lease_s / HURRY

    def _renew(self) -> None:
        with self._renewing:
            sent_at = now_s()
            self._content["renewals"] += 1
            self._put({})
            self._valid_until = sent_at + self._lease_s

    def _put(self, changes: Mapping[str, Any]) -> None:
        """Write the lease anew, unless somebody else has; an earlier write whose answer was lost is none of theirs."""
        content = _text({**self._content, **changes})
        for _ in range(RENEWALS):
            if self._lost:
                raise Conflict(self._lost)
            try:
                self._etag = self._objects.put(self._key, content, expect=self._etag)
                return
            except Conflict:
                self._look()
        raise TransientError(f"the lease {self._key} changes all the time; waiting for it")

    def _look(self) -> None:
        """Find out who has written the lease last."""
        try:
            present = self._objects.get(self._key)
        except NotFound:
            self._lost = f"the lease {self._key} was removed, since this process was thought dead"
            return
        holder = _parsed(present)
        if holder.get("id") == self._content["id"]:
            self._etag = present.etag
        else:
            who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
            self._lost = f"the lease {self._key} was taken over by {who}, since this process was thought dead"


def now_s() -> float:
    """Seconds of a clock that goes on while this process is paused, and while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def _text(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode()


def _parsed(blob: Blob) -> dict[str, Any]:
    """What the holder wrote; empty for what nobody can read, which is held until it runs out."""
    try:
        content = json.loads(blob.data)
    except ValueError:
        return {}
    understood = (
        isinstance(content, dict)
        and isinstance(content.get("leaseSeconds"), int | float)
        and isinstance(content.get("pid"), int)
    )
    return content if understood else {}


def _this_process() -> dict[str, Any]:
    """What tells this process from every other one, here and elsewhere."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_of(os.getpid()), "machine": _machine()}


@functools.cache
def _machine() -> str:
    """This boot of this machine and, within it, this world of process ids; "" where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process started, in the system's ticks since boot; "" when there is none or it is dead, None if hidden."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if _exists(pid) else ""
    return "" if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """Tell whether a holder was a process of this very machine that is no more, or this one, which knows it is none."""
    if not holder.get("machine") or holder["machine"] != _machine():
        return False
    started = _start_of(holder["pid"])
    if holder["pid"] == os.getpid() and holder.get("started") == started:
        return holder.get("id") not in _ours
    return started is not None and started != holder.get("started")
