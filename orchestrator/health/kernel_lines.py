"""What lines of the kernel's log say: which process was killed for want of memory, and which GPU told an error.

The texts are those of mm/oom_kill.c (Linux 4.19 and later) and of NVIDIA's driver (docs.nvidia.com/deploy/xid-errors).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.health.evidence import Xid
from orchestrator.health.xid_meanings import BROKEN

HARDWARE_XIDS = frozenset({*BROKEN, 94})
"""Errors of the GPU, its memory or NVLink that end what runs on it: a contained one too, though the GPU works on."""
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 69})
"""Errors that a program's own kernels cause; 45 follows from any end of a process."""

_KILLED = re.compile(r"([Mm]emory cgroup out of memory|Out of memory[^:]*): Killed process (\d+) \((.*?)\)(.*)")
_LIMIT = re.compile(r"memory: usage (\d+)kB, limit (\d+)kB")
_RSS = re.compile(r"(?:anon|file|shmem)-rss:(\d+)kB")
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)[^)]*\): (\d+)")
_SXID = re.compile(r"SXid \((?:PCI:)?([0-9a-fA-F:.]+)[^)]*\): (\d+)")
_UNLIMITED_KB = 1 << 50


@dataclass(frozen=True)
class Killed:
    """A process that the kernel killed for want of memory. Bytes."""

    pid: int
    held: int
    """What it held itself."""
    usage: int | None
    limit: int | None
    """Of the group whose limit was reached; None where the node's memory was at its end."""
    line: str


class OomReader:
    """Reads kills out of the kernel's log, line by line: the figures of a group come before the line that names the process."""

    def __init__(self) -> None:
        self._group: tuple[int, int] | None = None

    def take(self, line: str) -> Killed | None:
        """The kill that this line tells of."""
        if found := _LIMIT.search(line):
            # The first of several lines; the ones after it are of swap and of the kernel's own memory.
            if self._group is None and " memory+swap" not in line and "kmem" not in line:
                used, most = int(found[1]), int(found[2])
                self._group = (used << 10, most << 10) if most < _UNLIMITED_KB else None
            return None
        found = _KILLED.search(line)
        if found is None:
            return None
        group, self._group = self._group, None
        held = sum(int(size) << 10 for size in _RSS.findall(found[4]))
        of_group = found[1].lower().startswith("memory cgroup")
        usage, limit = group if group is not None and of_group else (None, None)
        return Killed(int(found[2]), held, usage, limit, line.strip())


def xid_of(line: str, at: float, gpus: Mapping[str, int]) -> Xid | None:
    """The GPU driver's error that the line tells; `gpus`: index by bus address, as `0000:3b:00`."""
    if found := _XID.search(line):
        address = found[1].lower().partition(".")[0]
        return Xid(at, int(found[2]), line.strip(), gpus.get(address))
    if found := _SXID.search(line):
        return Xid(at, int(found[2]), line.strip(), switch=True)
    return None
