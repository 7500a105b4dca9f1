"""A part's NCCL logs on its node: read as they grow until the first collective has connected, then left alone.

NCCL writes a file for each process (NCCL_DEBUG_FILE), or into the rank's own log where the job asked for that itself. What it
warns of goes into the rank's log all the same: nobody looks for warnings in another file.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from orchestrator.control.node_files import LogFile
from orchestrator.health.nccl_lines import said
from orchestrator.health.nccl_log import NcclLog
from orchestrator.health.node_log import NodeLog

log = logging.getLogger("orch.agent")

LOOK_S, SLOW_LOOK_S = 0.02, 0.1
"""How often files are looked at until the verdict: closely for the first minute, and while something comes."""
CLOSELY_S = 60.0
PATIENCE_S, LONG_PATIENCE_S = 3.0, 30.0
"""How long one communicator of all ranks is waited for: a job may have only smaller ones. The first once every rank has connected
some communicator, the second once any rank has."""
READ = 64 << 10
LIMIT = 4 << 20
"""Bytes of a process's file that are read and kept: 24 channels of a node of eight are about 0.1 MB."""
FILES_PER_RANK = 4
WARNINGS = 20
"""Warnings of one rank that are put into its log."""


@dataclass
class _Tail:
    """A file that is read as it grows; a last line without its end waits for it."""

    path: Path
    at: int = 0
    rest: str = ""
    behind: bool = False
    """There was more than was read at once."""

    def lines(self) -> list[str]:
        self.behind = False
        try:
            if self.path.stat().st_size <= self.at or self.at >= LIMIT:
                return []
            with self.path.open("rb") as file:
                file.seek(self.at)
                data = file.read(READ)
        except OSError:
            return []
        self.at += len(data)
        self.behind = len(data) == READ
        *whole, self.rest = (self.rest + data.decode("utf-8", "replace")).split("\n")
        return whole


@dataclass
class NcclWatch:
    """What is known of one part's NCCL logs."""

    folder: Path
    outputs: dict[int, Path]
    """By rank, its own log."""
    world: int
    source: Literal["file", "output"]
    value: NcclLog | None = None
    """Set once; nothing is read for it afterwards."""
    sent: bool = False
    """The value was in a report that has been acknowledged."""
    files: dict[str, LogFile] = field(default_factory=dict)
    """By name, what is to be shipped: each as far as `due` says."""
    due: dict[str, int] = field(default_factory=dict)
    _tails: dict[Path, tuple[int, _Tail]] = field(default_factory=dict)
    _told: dict[str, int] = field(default_factory=dict)
    """By file: how far its warnings have been told."""
    _warned: dict[int, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._log = NodeLog(self.outputs, self.world)
        self._begun: float | None = None
        self._all_begun: float | None = None

    async def follow(self, ended: Callable[[], bool], news: Callable[[], None]) -> None:
        """Reads until there is a verdict's worth, or `ended` says that no more comes; calls `news` then."""
        try:
            await self._until_enough(ended)
        except Exception:
            # A part whose links are never told would never be seen to end.
            log.exception("NCCL's log in %s could not be read", self.folder)
        self.conclude()
        news()

    async def _until_enough(self, ended: Callable[[], bool]) -> None:
        began = time.monotonic()
        while True:
            over = ended()
            came = self._take()
            now = time.monotonic()
            if self._log.settled or self._has_waited(now) or (over and not came):
                return
            # Only who is behind goes on at once: a rank that prints without end is not to keep this busy.
            behind = any(tail.behind for _, tail in self._tails.values())
            await asyncio.sleep(0 if behind else LOOK_S if now - began < CLOSELY_S else SLOW_LOOK_S)

    def _has_waited(self, now: float) -> bool:
        if self._begun is None and self._log.begun:
            self._begun = now
        if self._all_begun is None and self._log.all_begun:
            self._all_begun = now
        return (self._begun is not None and now - self._begun > LONG_PATIENCE_S) or (
            self._all_begun is not None and now - self._all_begun > PATIENCE_S
        )

    def conclude(self) -> None:
        """What has been said so far is the value."""
        try:
            self.value = self._log.value()
        except Exception:
            log.exception("NCCL's log in %s could not be summed up", self.folder)
            self.value = NcclLog()
        self.tell_warnings()
        self.ship()

    def _take(self) -> bool:
        """Reads what is new; whether anything was."""
        for rank, path in self._paths():
            self._tails.setdefault(path, (rank, _Tail(path)))
        new: dict[int, list[str]] = {}
        for rank, tail in self._tails.values():
            if lines := tail.lines():
                new.setdefault(rank, []).extend(lines)
        if new:
            self._log.take(new)
        return bool(new)

    def _paths(self) -> Iterable[tuple[int, Path]]:
        if self.source == "output":
            return self.outputs.items()
        return self._files()

    def _files(self) -> list[tuple[int, Path]]:
        return [(rank, path) for rank, path in nccl_files(self.folder) if rank in self.outputs]

    # -- what the user is told, and keeps ------------------------------------------------------------------------

    def tell_warnings(self) -> None:
        """Puts what NCCL has newly warned of into the ranks' logs."""
        if self.source == "output":
            return
        for rank, path in self._files():
            known = self._warned.setdefault(rank, set())
            at, texts = _warnings(path, self._told.get(path.name, 0))
            self._told[path.name] = at
            fresh = [text for text in dict.fromkeys(texts) if text not in known][: WARNINGS - len(known)]
            known.update(fresh)
            if fresh:
                with suppress(OSError), self.outputs[rank].open("a") as output:
                    output.writelines(f"[orch] NCCL warns: {text}\n" for text in fresh)

    def ship(self) -> None:
        """What is in the files now is to be sent to the head."""
        if self.source == "output":
            return
        for _, path in self._files():
            with suppress(OSError):
                size = path.stat().st_size
                self.files.setdefault(path.name, LogFile(path))
                self.due[path.name] = min(LIMIT, size)

    def pending(self) -> bool:
        return any(file.taken < self.due[name] for name, file in self.files.items())

    def take(self, room: int) -> Iterator[tuple[str, int, bytes]]:
        """What is to be shipped, at most about `room` bytes, piece by piece: the file's name, the offset and the bytes."""
        for name, file in self.files.items():
            while file.taken < self.due[name] and room > 0:
                taken = None
                with suppress(OSError):
                    taken = file.take(self.due[name])
                if taken is None:
                    self.due[name] = file.taken  # it was made shorter, or is gone
                    break
                room -= len(taken[1])
                yield name, *taken

    def from_the_start(self) -> None:
        """Another controller asks: what the one before had not acknowledged is said again."""
        self.sent = False
        for file in self.files.values():
            file.taken = file.shipped

    def acknowledged(self, value: bool) -> None:
        self.sent |= value
        for file in self.files.values():
            file.shipped = file.taken


def rank_of(name: str) -> int:
    """Whose file of NCCL's that is: `nccl-3.4711.log` is rank 3's. ValueError for another name."""
    return int(name.removeprefix("nccl-").partition(".")[0])


def nccl_files(folder: Path) -> list[tuple[int, Path]]:
    """NCCL's files with their ranks, at most FILES_PER_RANK of each, by name."""
    found: dict[int, list[Path]] = {}
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    for path in entries:
        rank = path.name.removeprefix("nccl-").partition(".")[0]
        if path.name.startswith("nccl-") and rank.isdecimal() and path.is_file():
            found.setdefault(int(rank), []).append(path)
    return [(rank, path) for rank, paths in sorted(found.items()) for path in paths[:FILES_PER_RANK]]


def _warnings(path: Path, start: int) -> tuple[int, list[str]]:
    """What NCCL warns of in whole lines from byte `start` on, and where they end."""
    try:
        size = path.stat().st_size
        if size <= start:
            return start, []
        with path.open("rb") as file:
            # Of a log that has run away its end is what matters.
            start = max(start, size - LIMIT)
            file.seek(start)
            data = file.read(LIMIT)
    except OSError:
        return start, []
    whole = data[: data.rfind(b"\n") + 1]
    found = [line for line in whole.split(b"\n") if b"NCCL WARN" in line]
    texts = [message.text for line in found for message in said(line.decode("utf-8", "replace")) if message.warning]
    return start + len(whole), texts
