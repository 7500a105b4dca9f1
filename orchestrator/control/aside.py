"""Processes of orch's own on the nodes of a run that has no attempt there: what their agents say of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from orchestrator.control.backend import LogChunk, PartStatus
from orchestrator.control.gang import Gang


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
