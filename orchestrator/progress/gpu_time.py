"""What GPU time was used for, as values: uses that sum to the whole, exactly and in any order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from operator import add


@dataclass(frozen=True)
class GpuTime:
    """GPU-milliseconds by use (of CPU slots where there is no GPU)."""

    starting: int = 0
    productive: int = 0
    checkpoint: int = 0
    lost: int = 0
    idle: int = 0

    @property
    def allocated(self) -> int:
        return sum(vars(self).values())

    def __add__(self, other: GpuTime) -> GpuTime:
        return GpuTime(*map(add, vars(self).values(), vars(other).values()))

    def __mul__(self, gpus: int) -> GpuTime:
        return GpuTime(*(part * gpus for part in vars(self).values()))

    @property
    def goodput(self) -> float | None:
        """Productive over allocated, 0 to 1; None where nothing was allocated."""
        return self.productive / self.allocated if self.allocated else None


def total(times: Iterable[GpuTime]) -> GpuTime:
    return sum(times, GpuTime())


@dataclass(frozen=True)
class NodeTime:
    """The GPUs of one attempt on one node, and what they were used for."""

    node: str
    gpus: int
    device: str
    since: datetime
    until: datetime
    """Up to when it is counted: the release, or the latest count of an attempt that lives."""
    time: GpuTime
    model: str | None = None
    price: float | None = None
    """Per GPU-hour, as the configuration had it then."""

    @property
    def cost(self) -> float | None:
        return None if self.price is None else self.time.allocated / 3_600_000 * self.price
