"""A gang's part on one node, as the node's agent knows it: its ranks, what of their logs is to be told, how far they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.control.backend import LogChunk, PartStatus, StartPart
from orchestrator.control.kernel_log import boot_time
from orchestrator.control.log_patterns import LogPatterns
from orchestrator.control.masking import values_of
from orchestrator.control.nccl_watch import NcclWatch, rank_of
from orchestrator.control.node_files import AttemptFolder
from orchestrator.control.rank_ends import EndWatch
from orchestrator.control.rank_progress import RankProgress, look

PROGRESS_S = 1.0
"""How often the ranks' progress files are read."""


@dataclass
class Part:
    """A gang's part on this node, while the agent knows of it."""

    run: int
    attempt: int
    folder: AttemptFolder
    log_limit: int
    gpus: tuple[int, ...]
    ranks: dict[int, int | None] = field(default_factory=dict)
    """Each with its exit code; None while it lives."""
    swept: bool = False
    gpu_free: bool = False
    lease_expired: bool = False
    launcher_lost: bool = False
    began: float = 0.0
    """By boot_time()."""
    master_port: int = 0
    world_size: int = 0
    nccl_log: Literal["file", "output"] | None = None
    """Where NCCL writes its log; None where that is not read."""
    nccl: NcclWatch | None = None
    """None where NCCL's log is not read."""
    watching: asyncio.Task[None] | None = None
    looked: float = 0.0
    """When its ranks' progress was read, by time.monotonic()."""
    progress: tuple[RankProgress, ...] = ()
    patterns: LogPatterns = field(default_factory=lambda: LogPatterns({}))
    """Of the job's `throughput:`; rank 0's log is read with them."""

    secrets: tuple[str, ...] = ()
    """The names of the job's secrets, by which the next agent finds their values in the ranks."""

    @property
    def key(self) -> str:
        return f"{self.run}.{self.attempt}"

    @classmethod
    def of_start(cls, start: StartPart, folder: AttemptFolder, master_port: int) -> Part:
        """What is about to be started."""
        folder.secrets = values_of(start.secrets.values())
        return cls(
            start.run,
            start.attempt,
            folder,
            start.log_limit,
            gpus=tuple(rank.gpu for rank in start.ranks) if start.device == "cuda" else (),
            ranks={rank.rank: None for rank in start.ranks},
            began=boot_time(),
            master_port=master_port,
            world_size=start.world_size,
            nccl_log=start.nccl_log,
            patterns=LogPatterns(start.throughput),
            secrets=tuple(start.secrets),
        )

    @classmethod
    def of_note(cls, key: str, note: Mapping[str, Any], folder: AttemptFolder) -> Part:
        """What an agent before this one started, by the note that it left in the folder."""
        run, attempt = map(int, key.split("."))
        part = cls(
            run,
            attempt,
            folder,
            note.get("log_limit", 64 << 20),
            gpus=tuple(note.get("gpus", ())),
            ranks=dict.fromkeys(note.get("ranks", ())),
            began=note.get("began", 0.0),
            master_port=note.get("master_port", 0),
            world_size=note.get("world_size", 0),
            nccl_log=note.get("nccl_log"),
            patterns=LogPatterns(note.get("throughput", {})),
            secrets=tuple(note.get("secrets", ())),
        )
        for rank, shipped in note.get("shipped", {}).items():
            file = folder.log(int(rank))
            file.shipped = file.taken = shipped
        return part

    def note(self) -> dict[str, Any]:
        """What an agent that takes the part over must know of it."""
        return {
            "began": self.began,
            "log_limit": self.log_limit,
            "ranks": sorted(self.ranks),
            "gpus": self.gpus,
            "master_port": self.master_port,
            "world_size": self.world_size,
            "throughput": self.patterns.texts,
            "secrets": self.secrets,
            "nccl_log": self.nccl_log,
            "shipped": {rank: file.shipped for rank, file in self.folder.logs.items()},
        }

    def watch_nccl(self, ranks: Iterable[int], news: Callable[[], None]) -> None:
        """Has NCCL's log of these ranks read until the part's links are known, where it is to be read; calls `news` then."""
        if self.nccl_log is not None:
            outputs = {rank: self.folder.log(rank).path for rank in ranks}
            self.nccl = NcclWatch(self.folder.nccl, outputs, self.world_size, self.nccl_log)
            self.watching = asyncio.create_task(self.nccl.follow(lambda: self.swept, news))

    def lose_launcher(self) -> None:
        """The kernel ends ranks with their launcher."""
        self.launcher_lost |= any(code is None for code in self.ranks.values())
        self.ranks = {rank: -9 if code is None else code for rank, code in self.ranks.items()}

    # -- its logs --------------------------------------------------------------------------------------------------

    def close_logs(self) -> None:
        """Nobody writes to its ranks' logs any more: their last bytes are what they are."""
        for file in map(self.folder.log, self.ranks):
            file.closed = True

    def logs_pending(self) -> bool:
        """Whether the next report would hold something of a log; the end of an overlong one is read when its writer ended."""
        if self.nccl is not None and self.nccl.pending():
            return True
        return any(
            file.pending(self.log_limit) or (self.swept and file.over(self.log_limit) and not file.tail_taken)
            for file in map(self.folder.log, self.ranks)
        )

    def take_logs(self, room: int) -> Iterator[LogChunk]:
        """What is new of its logs, at most about `room` bytes."""
        for rank in self.ranks:
            file = self.folder.log(rank)
            while room > 0 and (taken := file.take(self.log_limit)) is not None:
                room -= len(taken[1])
                yield LogChunk(self.run, self.attempt, rank, *taken, time.time())
                if rank == 0:
                    self.patterns.feed(taken[1])
            if file.over(self.log_limit) and not file.tail_taken:
                file.trim(self.log_limit)
                if self.swept:
                    yield LogChunk(self.run, self.attempt, rank, *file.take_tail(), time.time(), tail=True)
        if self.nccl is not None and room > 0:
            for name, offset, data in self.nccl.take(room):
                yield LogChunk(self.run, self.attempt, rank_of(name), offset, data, time.time(), file=name)

    def logs_shipped(self) -> None:
        """The controller has what was taken of its logs."""
        for file in self.folder.logs.values():
            file.shipped = file.taken
        self.folder.write_note(self.note())

    def from_the_start(self) -> None:
        """Another controller asks: what the one before had not acknowledged is said again."""
        for file in self.folder.logs.values():
            file.taken, file.tail_taken = file.shipped, False
        if self.nccl is not None:
            self.nccl.from_the_start()

    # -- how it is -------------------------------------------------------------------------------------------------

    def progress_now(self, ends: EndWatch) -> tuple[RankProgress, ...]:
        """The newest look at each of its ranks: a second old at most while they live, and their last word after."""
        if self.swept or time.monotonic() - self.looked >= PROGRESS_S:
            self.looked = time.monotonic()
            ends.look(self.key)
            now, patterns = time.monotonic_ns(), self.patterns
            found = (
                look(
                    self.folder.progress(rank),
                    self.run,
                    self.attempt,
                    rank,
                    logged=patterns.values if rank == 0 else None,
                    logged_at=patterns.at if rank == 0 else 0,
                    printed_at=self.folder.log(rank).printed_at(now),
                )
                for rank in self.ranks
            )
            self.progress = tuple(one for one in found if one is not None)
        return self.progress

    @contextmanager
    def not_heeding_output(self, ranks: Iterable[int]) -> Iterator[None]:
        """While the ranks are asked something: what they print of it does not count as a sign of theirs."""
        logs = [self.folder.log(rank) for rank in ranks]
        for log in logs:
            log.printed_at(time.monotonic_ns())
            log.answers = True
        try:
            yield
        finally:
            for log in logs:
                log.printed_at(time.monotonic_ns())
                log.answers = False

    def status(self, ends: EndWatch) -> PartStatus:
        links_told = self.nccl is None or self.nccl.value is not None
        return PartStatus(
            self.run,
            self.attempt,
            dict(self.ranks),
            self.swept and self.gpu_free and links_told and not self.logs_pending(),
            self.master_port,
            self.lease_expired,
            self.launcher_lost,
            boot_time(),
            ends.ends(self.key),
            ends.xids(self.gpus, self.began),
            None if self.nccl is None or self.nccl.sent else self.nccl.value,
        )
