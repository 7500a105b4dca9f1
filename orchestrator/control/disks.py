"""How much room there is where orch and its runs write; a disk that does not answer, as a server of files may, blocks nobody."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.health.vitals import Disk

ASK_S = 0.5
"""How long a look waits for the answers of all disks; what comes later is told by the next look."""


@dataclass
class _Asked:
    """A question to one disk."""

    since: float
    thread: threading.Thread


class Disks:
    """The disks below some folders, each asked in a thread of its own, which may hang for as long as the disk does."""

    def __init__(
        self,
        paths: Mapping[str, Path],
        room: Callable[[Path], tuple[int, int, int]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`paths` by what they are for. `room` gives a folder's device, and the free and all bytes of it; raises OSError."""
        self._paths, self._room, self._monotonic = paths, room or _room, monotonic
        self._asked: dict[str, _Asked] = {}
        self._told: dict[str, tuple[int, Disk] | None] = {}

    def look(self) -> tuple[Disk, ...]:
        """Each disk once, by the first of its folders. A folder that is not there is left out."""
        for what, path in self._paths.items():
            if what not in self._asked or not self._asked[what].thread.is_alive():
                thread = threading.Thread(target=self._ask, args=(what, path), daemon=True)
                self._asked[what] = _Asked(self._monotonic(), thread)
                thread.start()
        deadline = self._monotonic() + ASK_S
        found: list[Disk] = []
        devices: set[int] = set()
        for what, path in self._paths.items():
            asked = self._asked[what]
            asked.thread.join(max(0.0, deadline - self._monotonic()))
            if asked.thread.is_alive():
                found.append(Disk(what, str(path), silent_s=max(0.001, self._monotonic() - asked.since)))
            elif (told := self._told.get(what)) is not None and told[0] not in devices:
                devices.add(told[0])
                found.append(told[1])
        return tuple(found)

    def join(self) -> None:
        """Waits until every disk has answered."""
        for asked in self._asked.values():
            asked.thread.join()

    def _ask(self, what: str, path: Path) -> None:
        try:
            device, free, total = self._room(path)
        except OSError:
            self._told[what] = None
        else:
            self._told[what] = device, Disk(what, str(path), free, total)


def free_bytes(path: str) -> int | None:
    """What a user may write there; None where there is no such thing."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _room(path: Path) -> tuple[int, int, int]:
    found = os.statvfs(path)
    return path.stat().st_dev, found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
