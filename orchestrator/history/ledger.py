"""What GPU time was used for: every allocated millisecond is starting, productive, checkpoint, lost or idle. Pure.

- starting: from the allocation to the first progress (processes, imports, reading the checkpoint, the first step);
- productive: the gang got on, and what it did was kept;
- checkpoint: a save was under way and the gang waited for it;
- lost: the gang got on, and a failure or preemption threw it away: what came after the newest complete checkpoint;
- idle: held without progress, among it the time until ranks that were stopped are gone and a lease has run out.

Goodput is productive time over allocated time. The effective training time ratio also counts the time in the queue:
productive over queue plus allocated wall-clock time (Kokolis et al., "Revisiting Reliability in Large-Scale Machine
Learning Research Clusters", HPCA 2025). Sums are of integers, so they are exact in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Ledger:
    """GPU-milliseconds by use; they sum to what was allocated."""

    starting: int = 0
    productive: int = 0
    checkpoint: int = 0
    lost: int = 0
    idle: int = 0

    @property
    def allocated(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def __mul__(self, gpus: int) -> Ledger:
        return Ledger(*(getattr(self, part.name) * gpus for part in fields(self)))

    @property
    def goodput(self) -> float | None:
        """Productive over allocated, 0 to 1; None where nothing was allocated."""
        return self.productive / self.allocated if self.allocated else None


def total(ledgers: Iterable[Ledger]) -> Ledger:
    return sum(ledgers, Ledger())
