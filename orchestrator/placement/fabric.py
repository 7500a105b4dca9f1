"""What a placement's nodes are made of and cabled to: the leaf and the GPU model of each, for the history."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.placement.tree import Topology
from orchestrator.placement.values import Placement


@dataclass(frozen=True)
class NodeFabric:
    """One node of a placement, as the cluster's description has it."""

    leaf: str | None = None
    """The narrowest piece of fabric above the node; None where no source says."""
    gpu: str | None = None
    """The model of its GPUs that were taken; None for CPU slots, and where the driver does not say."""


def fabric_of(topology: Topology, placement: Placement) -> dict[str, NodeFabric]:
    """By node. A node that the topology no longer has is left out."""
    cluster = topology.cluster
    # An NVLink domain over several nodes is part of the machine, not of the fabric between machines.
    level = next((level for level in reversed(cluster.levels) if level != "nvlink"), None)
    found = {}
    for part in placement.nodes:
        if part.node not in topology.index:
            continue
        gpus = {gpu.index: gpu.model for gpu in topology.nodes[topology.index[part.node]].kind.shape.gpus}
        models = {gpus.get(gpu) for gpu in part.gpus} - {None}
        leaf = cluster.place(part.node, level) if level else None
        found[part.node] = NodeFabric(leaf, "+".join(sorted(map(str, models))) or None)
    return found
