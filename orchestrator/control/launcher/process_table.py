"""Which processes there are, which of them belong to an attempt, and how one is killed without hitting another.

Which processes belong to an attempt is not guessed. Every rank carries two signs that its descendants inherit: the
marker in its environment, and a number of the attempt as its soft limit RLIMIT_LOCKS, which the kernel keeps, shows
in /proc/PID/limits, and has had no use for since Linux 2.4. The second survives `env -i`, `setsid`, a double fork and
a close of all files; only a process that sets that very limit anew escapes. So several attempts side by side, and
daemons without any tie to their rank, are told apart at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One row of the process table; `pid` and `began` (ticks since boot) together name a process for good."""

    pid: int
    parent: int
    began: int
    alive: bool


def process(pid: int) -> Process | None:
    """The process as it is at this moment; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(b")")[2].split()
    # A process whose first thread has ended is shown as a zombie while its other threads run.
    alive = fields[0] not in (b"Z", b"X") or int(fields[17]) > 1
    return Process(pid, int(fields[1]), int(fields[19]), alive)


def processes() -> dict[int, Process]:
    found = (process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {one.pid: one for one in found if one is not None}


def kill(pid: int, began: int) -> bool:
    """SIGKILL to that very process, never to another that has come by its pid; false if it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        found = process(pid)
        if found is None or found.began != began or not found.alive:
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(handle)


def tag_of(mark: str) -> int:
    """The limit that the attempt's processes have: 49 bits of the marker's hash."""
    return int.from_bytes(hashlib.sha256(mark.encode()).digest()[:6], "big") | 1 << 48


def signs_of(pid: int) -> tuple[str | None, int | None]:
    """The marker and the number by which a process of this user belongs to an attempt, each None where it has none."""
    mark, tag = None, None
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"ORCH_MARK="):
                mark = os.fsdecode(entry[10:])
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/limits").read_bytes().splitlines():
            if line.startswith(b"Max file locks"):
                soft = line.split()[3]
                tag = int(soft) if soft.isdigit() else None
    return mark, tag


def of_this_user(pid: int) -> bool:
    try:
        return os.getuid() in (0, os.stat(f"/proc/{pid}").st_uid)
    except FileNotFoundError:
        return False
