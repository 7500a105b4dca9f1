"""A gang's part on one node, as the node's agent knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.control.backend import PartStatus
from orchestrator.control.kernel_log import boot_time
from orchestrator.control.log_patterns import LogPatterns
from orchestrator.control.nccl_watch import NcclWatch
from orchestrator.control.node_files import AttemptFolder
from orchestrator.control.rank_ends import EndWatch
from orchestrator.control.rank_progress import RankProgress


@dataclass
class Part:
    """A gang's part on this node, while the agent knows of it."""

    run: int
    attempt: int
    folder: AttemptFolder
    log_limit: int
    gpus: tuple[int, ...]
    ranks: dict[int, int | None] = field(default_factory=dict)
    swept: bool = False
    gpu_free: bool = False
    lease_expired: bool = False
    launcher_lost: bool = False
    began: float = 0.0
    """By boot_time()."""
    warm: int = 0
    master_port: int = 0
    world_size: int = 0
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
            "nccl_log": None if self.nccl is None else self.nccl.source,
            "shipped": {rank: file.shipped for rank, file in self.folder.logs.items()},
        }

    def watch_nccl(self, source: Literal["file", "output"], ranks: Iterable[int]) -> None:
        """NCCL's log of these ranks is read from now on."""
        outputs = {rank: self.folder.log(rank).path for rank in ranks}
        self.nccl = NcclWatch(self.folder.nccl, outputs, self.world_size, source)

    def close_logs(self) -> None:
        """Nobody writes to its ranks' logs any more: their last bytes are what they are."""
        for file in map(self.folder.log, self.ranks):
            file.closed = True

    def logs_shipped(self) -> bool:
        if self.nccl is not None and (self.nccl.value is None or self.nccl.pending()):
            return False
        return not any(
            log.pending(self.log_limit) or (log.over(self.log_limit) and not log.tail_taken)
            for log in map(self.folder.log, self.ranks)
        )

    def status(self, ends: EndWatch) -> PartStatus:
        return PartStatus(
            self.run,
            self.attempt,
            dict(self.ranks),
            self.swept and self.gpu_free and self.logs_shipped(),
            self.master_port,
            self.lease_expired,
            self.launcher_lost,
            boot_time(),
            ends.ends(self.key),
            ends.xids(self.gpus, self.began),
            None if self.nccl is None or self.nccl.sent else self.nccl.value,
        )
