"""A gang's part on one node, as the node's agent knows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.control.backend import PartStatus
from orchestrator.control.log_patterns import LogPatterns
from orchestrator.control.node_files import AttemptFolder
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
    first_failed: int | None = None
    warm: int = 0
    master_port: int = 0
    looked: float = 0.0
    """When its ranks' progress was read, by time.monotonic()."""
    progress: tuple[RankProgress, ...] = ()
    patterns: LogPatterns = field(default_factory=lambda: LogPatterns({}))
    """Of the job's `throughput:`; rank 0's log is read with them."""

    @property
    def key(self) -> str:
        return f"{self.run}.{self.attempt}"

    def logs_shipped(self) -> bool:
        return not any(
            log.pending(self.log_limit) or (log.over(self.log_limit) and not log.tail_taken)
            for log in map(self.folder.log, self.ranks)
        )

    def status(self) -> PartStatus:
        return PartStatus(
            self.run,
            self.attempt,
            dict(self.ranks),
            self.swept and self.gpu_free and self.logs_shipped(),
            self.master_port,
            self.lease_expired,
            self.first_failed,
            self.warm,
        )
