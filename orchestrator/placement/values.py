"""What placement takes and gives: the free view, a request, and a Placement or a Rejection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.spec import Workers

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Request:
    """What a run needs of the cluster: `workers` ranks, one GPU (or CPU slot) each, all or nothing."""

    workers: Workers
    device: Device


@dataclass(frozen=True)
class NodeView:
    """One node as the placer sees it: which of its GPUs (or CPU slots, where it has no GPU) nobody holds."""

    name: str
    device: Device
    total: int
    free: tuple[int, ...]
    usable: bool = True
    note: str | None = None
    """Why the node is not usable now: unhealthy, drained, held by other Ray work."""


@dataclass(frozen=True)
class NodePlacement:
    """A gang's part on one node: rank `ranks[i]` has GPU (or CPU slot) `gpus[i]`; i is its local rank."""

    node: str
    gpus: tuple[int, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Placement:
    """Where a gang goes, whole."""

    device: Device
    level: str
    """The tightest level of the cluster that holds the gang: node, leaf, pod, cluster."""
    nodes: tuple[NodePlacement, ...]

    @property
    def world_size(self) -> int:
        return sum(len(part.ranks) for part in self.nodes)


@dataclass(frozen=True)
class Rejection:
    """Why there is no place, with numbers."""

    reason: str
    never: bool = False
    """True where the cluster could not hold it even if it were empty."""
