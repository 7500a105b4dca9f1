"""What a looser or tighter wish would give, and what an empty cluster would: for `orch plan` and `orch why`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.placement.search import place
from orchestrator.placement.tree import CLUSTER, NODE, Free, Topology
from orchestrator.placement.values import Placement, Rejection, Request
from orchestrator.placement.wishes import NVLINK
from orchestrator.units import format_bandwidth


@dataclass(frozen=True)
class Alternative:
    """What the same gang would get if it had to stay within `level`."""

    level: str
    answer: Placement | Rejection

    @property
    def busbw(self) -> float | None:
        return self.answer.busbw_predicted if isinstance(self.answer, Placement) else None

    def __str__(self) -> str:
        if isinstance(self.answer, Rejection):
            return f"{self.level}: {'never: ' if self.answer.never else ''}{self.answer.reason}"
        if self.answer.busbw_predicted is None:
            return f"{self.level}: {self.answer.nodes[0].node}"
        bound = f", bounded by {self.answer.busbw_bottleneck}" if self.answer.busbw_bottleneck else ""
        return f"{self.level}: {format_bandwidth(self.answer.busbw_predicted)}{bound}"


def hint_levels(topology: Topology) -> tuple[str, ...]:
    """The levels that a wish can name here, tightest first; `cluster` stands for no wish."""
    fabric = [level for level in reversed(topology.levels) if level not in (CLUSTER, NVLINK)]
    return (NVLINK, NODE, *fabric, CLUSTER)


def alternatives(request: Request, topology: Topology, free: Free) -> tuple[Alternative, ...]:
    """The answer at every level of the cluster, tightest first, everything else of the request unchanged."""
    return tuple(
        Alternative(level, place(replace(request, near=level, required=level != CLUSTER), topology, free))
        for level in hint_levels(topology)
    )


def at_best(request: Request, topology: Topology) -> Placement | Rejection:
    """Where the gang would go if the cluster were empty and well: what waiting could give at most."""
    return place(replace(request, exclude=frozenset()), topology, topology.empty)
