"""Which ranks hold the others up without standing still, and which GPUs are held and not used. Pure.

Ranks that train together wait for each other, so their steps take equally long; what tells them apart is each rank's own
work of a step. What is told is told when it becomes true and when it ends, and kills nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median_low

FACTOR = 1.5
"""A rank whose own work takes so many times as long as the usual one's is slow: less is batches of unequal length."""
LEAST_S = 0.001
"""And at least so much longer: what is measured of shorter steps is mostly the measuring."""
WINDOWS = 3
"""For so many windows in a row, before it is told; as many without, before it is over."""
IDLE_PERCENT = 1.0
"""A GPU that is used less than that does nothing."""


@dataclass(frozen=True)
class Slow:
    """A rank beside the others."""

    rank: int
    time: float
    """Its own work of a step, in seconds."""
    others: float
    """The ranks' median."""

    @property
    def factor(self) -> float:
        return self.time / self.others


def slow_ranks(times: Mapping[int, float]) -> dict[int, Slow]:
    """The slow ones of one window, by each rank's own work of a step in seconds."""
    if len(times) < 2:
        return {}
    # The lower one: of two ranks the faster is the measure, and of four at most two can be slow.
    usual = median_low(times.values())
    return {
        rank: Slow(rank, time, usual)
        for rank, time in times.items()
        if usual > 0 and time >= FACTOR * usual and time - usual >= LEAST_S
    }


@dataclass
class Stragglers:
    """Window after window of one gang."""

    slow: dict[int, Slow] = field(default_factory=dict)
    """The ranks that are told of as slow, as they were when that began."""
    _streak: dict[int, int] = field(default_factory=dict)
    """By rank: for how many windows in a row it has been other than it is told of."""

    def observe(self, times: Mapping[int, float]) -> tuple[list[Slow], list[int]]:
        """The ranks that are slow from this window on, and those that are so no more."""
        now = slow_ranks(times)
        began, ended = [], []
        for rank in times:
            if (rank in now) == (rank in self.slow):
                self._streak.pop(rank, None)
                continue
            self._streak[rank] = self._streak.get(rank, 0) + 1
            if self._streak[rank] < WINDOWS:
                continue
            del self._streak[rank]
            if rank in now:
                self.slow[rank] = now[rank]
                began.append(now[rank])
            else:
                del self.slow[rank]
                ended.append(rank)
        return began, ended


@dataclass
class IdleGpus:
    """Looks at the GPUs of one gang, by node and index. Looks are counted, not timed: they come in at any pace."""

    patience: int
    """Looks without work before a GPU counts as idle."""
    _looks: dict[tuple[str, int], int] = field(default_factory=dict)

    def look(self, node: str, gpu: int, utilization: float | None) -> None:
        """Percent; None, where the driver does not tell, says nothing either way."""
        if utilization is not None:
            idle = utilization < IDLE_PERCENT
            self._looks[node, gpu] = self._looks.get((node, gpu), 0) + 1 if idle else 0

    @property
    def idle(self) -> list[tuple[str, int]]:
        return sorted(gpu for gpu, looks in self._looks.items() if looks >= self.patience)

    @property
    def known(self) -> int:
        return len(self._looks)
