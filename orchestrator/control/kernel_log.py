"""The node's kernel log as its agent reads it: which processes were killed for want of memory, and what the GPUs told.

Read from /dev/kmsg, whose records are `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT` (Documentation/ABI/testing/dev-kmsg), or from any
file of lines, with or without that head. Where it may not be read (`kernel.dmesg_restrict`, a container), nothing is seen.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from orchestrator.health.evidence import Xid
from orchestrator.health.kernel_lines import Killed, OomReader, xid_of

VARIABLE = "ORCH_KERNEL_LOG"
"""Another file to read than /dev/kmsg."""
KEPT = 256
"""Kills, and errors of GPUs, that are remembered."""
RECORD = 8192
"""The longest record of the kernel's, with room to spare."""
MOST_RECORDS = 20_000
"""Read in one go: the ring holds fewer."""
_HEAD = re.compile(r"^\d+,\d+,(\d+),[^;]*;")


def boot_time() -> float:
    """Seconds since boot, suspended time included: the clock of all ends of ranks."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class KernelLog:
    """Follows the log from what it holds at the beginning on. Times are by `boot_time`."""

    def __init__(self, path: Path) -> None:
        self._lines = _Ring(path) if path.exists() and stat.S_ISCHR(path.stat().st_mode) else _File(path)
        self._oom = OomReader()
        self._following = False
        self._reading = threading.Lock()
        self.kills: deque[tuple[float, Killed]] = deque(maxlen=KEPT)
        self.xids: deque[Xid] = deque(maxlen=KEPT)

    def read(self, gpus: Mapping[str, int]) -> None:
        """Takes in what has come since; `gpus`: index by bus address, as `0000:3b:00`."""
        with self._reading:
            self._read(gpus)

    def _read(self, gpus: Mapping[str, int]) -> None:
        now = boot_time()
        for line in self._lines.take():
            at = now
            if (head := _HEAD.match(line)) is not None:
                line = line[head.end() :]
                if not self._following:
                    # What was there before: its own clock, which is not corrected as others are, will do for that.
                    at = now - time.monotonic() + int(head[1]) / 1e6
            if (killed := self._oom.take(line)) is not None:
                self.kills.append((at, killed))
            elif (xid := xid_of(line, at, gpus)) is not None:
                self.xids.append(xid)
        self._following = True

    def close(self) -> None:
        self._lines.close()


class _Ring:
    """/dev/kmsg: a read gives one record."""

    def __init__(self, path: Path) -> None:
        self._handle: int | None = None
        with suppress(OSError):
            self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def take(self) -> list[str]:
        lines: list[str] = []
        while self._handle is not None and len(lines) < MOST_RECORDS:
            try:
                record = os.read(self._handle, RECORD)
            except BrokenPipeError:
                continue  # records were overwritten before they were read; the next one is there
            except OSError:
                break  # nothing new (EAGAIN), or nothing to be read
            if not record:
                break
            # What follows the first line are the device's properties.
            lines.append(record.split(b"\n", 1)[0].decode("utf-8", "replace"))
        return lines

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class _File:
    """A file of lines that grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def take(self) -> list[str]:
        with suppress(OSError), self._path.open("rb") as file:
            file.seek(self._at)
            *lines, _ = file.read().split(b"\n")
            self._at += sum(len(line) + 1 for line in lines)
            return [line.decode("utf-8", "replace") for line in lines]
        return []

    def close(self) -> None:
        pass
