"""Processes of orch's own on the nodes of a run that has no attempt there: what their agents say of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from orchestrator.control.backend import LogChunk, PartStatus
from orchestrator.control.gang import Gang

_EACH = 1_000_000


def number_of(epoch: int, count: int) -> int:
    """Stands for an attempt's number; no controller but that of the epoch has used it."""
    return -(epoch * _EACH + count)


def is_left(part: PartStatus, epoch: int) -> bool:
    """Whether it lives, is no attempt, and was started by another controller than that of the epoch."""
    return part.attempt < 0 and not part.ended and -part.attempt // _EACH != epoch


@dataclass
class Aside:
    """Kept apart from the run's attempts, and in no history, by a negative number in place of an attempt's."""

    gang: Gang
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there is something new."""
    output: dict[int, bytes] = field(default_factory=dict)
    """By rank, what it has printed."""

    def take(self, chunk: LogChunk) -> None:
        known = self.output.get(chunk.rank, b"")
        if chunk.file is None and chunk.offset == len(known):
            self.output[chunk.rank] = known + chunk.data
            self.news.set()

    def observe(self, node: str, status: PartStatus) -> None:
        self.gang.observe(node, status)
        self.news.set()

    def lines(self, rank: int) -> list[str]:
        return self.output.get(rank, b"").decode(errors="replace").splitlines()
