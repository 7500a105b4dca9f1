"""Whether a checkpoint folder is one folder on all nodes of a gang: a node leaves a token there, and the others look for it."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LOOK_EVERY_S = 0.25
MOST_ENTRIES = 10_000


@dataclass(frozen=True)
class Tokens:
    """What an agent is to do in the folder: leave a token of that name, wait so long for another, take those away."""

    leave: str | None = None
    expect: str | None = None
    wait_s: float = 0.0
    remove: str | None = None


@dataclass(frozen=True)
class FolderLook:
    """What a node finds."""

    seen: bool = False
    """The expected token is there."""
    error: str | None = None
    """Why nothing can be written there."""
    free: int | None = None
    """Bytes that are free."""
    newest: int = 0
    """Bytes of the newest entry: the next checkpoint will hardly be smaller."""


def look(folder: Path, tokens: Tokens) -> FolderLook:
    """Does so, in a thread: storage that stalls holds up its caller. Leaves nothing but what is to be left."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if tokens.remove is not None:
            (folder / tokens.remove).unlink(missing_ok=True)
        if tokens.leave is not None:
            (folder / tokens.leave).touch()
        seen = _await(folder, tokens.expect, tokens.wait_s)
        return FolderLook(seen, free=_free(folder), newest=_size_of_newest(folder))
    except OSError as error:
        return FolderLook(error=error.strerror or str(error))


def _await(folder: Path, expected: str | None, wait_s: float) -> bool:
    """Whether the token comes to be seen. Raises OSError where nothing can be written."""
    deadline = time.monotonic() + wait_s
    probe = folder / f".orch-{socket.gethostname()}-{os.getpid()}"
    while True:
        # A client of NFS that has changed a folder itself asks the server anew what is in it; else it may be half a minute late.
        probe.touch()
        probe.unlink()
        if expected is not None and (folder / expected).exists():
            return True
        if expected is None or time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_EVERY_S)


def _free(folder: Path) -> int:
    told = os.statvfs(folder)
    return told.f_bavail * told.f_frsize


def _size_of_newest(folder: Path) -> int:
    newest, when = None, 0.0
    for _, path in zip(range(MOST_ENTRIES), folder.iterdir(), strict=False):
        with suppress(OSError):
            if not path.name.startswith(".") and (at := path.stat().st_mtime) >= when:
                newest, when = path, at
    if newest is None:
        return 0
    files = (
        [newest]
        if newest.is_file()
        else (path for _, path in zip(range(MOST_ENTRIES), newest.rglob("*"), strict=False))
    )
    total = 0
    for path in files:
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
