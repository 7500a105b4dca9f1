"""What the launcher knows of an attempt: its ranks, its lease, and how far its end has come."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from process_table import tag_of
from wire import Message, Reply


def now() -> float:
    """Seconds since boot, suspended time included: a lease runs out while the machine sleeps, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class Rank:
    pid: int
    warm: bool
    why_cold: str | None
    exit: int | None = None
    at: float | None = None
    """When it ended, by now()."""
    told_at: float | None = None
    """When it was told to end, or its killing began, if that was before its end."""


@dataclass
class Attempt:
    name: str
    mark: str
    lease_end: float
    ranks: dict[str, Rank] = field(default_factory=dict)
    kill_at: float | None = None
    told_at: float | None = None
    """When its ranks were told to end, or their killing began."""
    killing: bool = False
    ended: bool = False
    lease_expired: bool = False
    killed: set[tuple[int, int]] = field(default_factory=set)
    clean_looks: int = 0
    refusal: tuple[str, list[Reply]] | None = None
    """Set where a start failed halfway: the reason, and whom to tell it once nothing of it is left."""

    @property
    def tag(self) -> int:
        return tag_of(self.mark)

    @property
    def over(self) -> bool:
        """No rank can do anything any more, or none may."""
        return self.killing or all(rank.exit is not None for rank in self.ranks.values())


def started(attempt: Attempt) -> Message:
    return {
        key: {"pid": rank.pid, "warm": rank.warm, **({"why_cold": rank.why_cold} if rank.why_cold else {})}
        for key, rank in attempt.ranks.items()
    }
