"""What placement takes and gives: a request, and a Placement or a Rejection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.spec_values import Workers

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Request:
    """What a run needs of the cluster: `workers` ranks, one GPU (or CPU slot) each, all or nothing."""

    workers: Workers
    device: Device
    near: str | None = None
    """The widest level that the gang should span: nvlink, node, a level or a label of the cluster; None or `any`: no
    wish."""
    required: bool = False
    """Whether `near` is a must (`leaf!`) and not a wish."""
    relax: bool = True
    """Whether a wish may be given up now; False while the run still has patience (`leaf~30m`)."""
    gpu: tuple[str, ...] = ()
    """Acceptable GPU models. One model to a gang, unless several are listed: then they may be mixed."""
    exclude: frozenset[str] = frozenset()
    """Nodes that this run must not get."""
    only: frozenset[str] = frozenset()
    """The only nodes that it may get; empty: any."""
    prefer: frozenset[str] = frozenset()
    """Nodes that this run had before: taken again where nothing faster is free."""


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
    """The tightest level of the cluster that holds the gang: nvlink, node, leaf, pod, cluster."""
    nodes: tuple[NodePlacement, ...]
    busbw_predicted: float | None = None
    """GB/s of bus bandwidth expected of an all-reduce of 1 GiB; None for a single rank."""
    busbw_bottleneck: str | None = None
    """The link that bounds it: `gpu-01 <-> gpu-02: 400 Gb/s x 8`."""

    @property
    def world_size(self) -> int:
        return sum(len(part.ranks) for part in self.nodes)


@dataclass(frozen=True)
class Rejection:
    """Why there is no place, with numbers."""

    reason: str
    never: bool = False
    """True where the cluster could not hold it even if it were empty."""
