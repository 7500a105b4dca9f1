"""Who holds a SQLite database's lock? Read from the kernel's table of locks."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

WAL_WRITE_LOCK = 120
"""The byte of the -shm file that a writer locks (sqlite.org/walformat.html, "WAL Locks")."""


def holder(database: Path) -> str | None:
    """`process 4711 (python)`: who may write to it now; None where the kernel does not tell."""
    files = {key for path in (Path(f"{database}-shm"), database) if (key := _key(path)) is not None}
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.replace("-> ", "").split()
            if len(words) < 8 or words[3] != "WRITE" or words[5] not in files:
                continue
            first, last = int(words[6]), int(words[7]) if words[7] != "EOF" else WAL_WRITE_LOCK
            if first <= WAL_WRITE_LOCK <= last or first > WAL_WRITE_LOCK + 8:
                return _named(int(words[4]))
    return None


def _key(path: Path) -> str | None:
    with suppress(OSError):
        found = path.stat()
        return f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return None


def _named(pid: int) -> str | None:
    if pid <= 0:
        return None  # of another container
    with suppress(OSError):
        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return f"process {pid}"
