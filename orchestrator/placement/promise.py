"""What links a placement promises its ranks: what its predicted bandwidth counts on, and NCCL's log is held against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations

from orchestrator.hardware.groups import Groups
from orchestrator.hardware.model import NEAR_WORDS, Cluster, Nic, Node
from orchestrator.health.verdict import PlannedLinks, PlannedNode, Promise
from orchestrator.placement.bandwidth import is_rdma
from orchestrator.placement.values import NodePlacement, Placement


def promised(placement: Placement, cluster: Cluster) -> PlannedLinks:
    """The links between the ranks of `placement`: NVLink within an island; P2P where PCIe is close enough for NCCL (its
    NCCL_P2P_LEVEL is PXB) and nothing forbids it, else shared memory; between nodes NVLink where one domain joins them all,
    RDMA where each has an adapter that is up, straight to the GPUs where each chosen GPU has one beside it, else TCP.

    Of a node that is not in the cluster any more nothing is promised but shared memory and TCP.
    """
    known = {node.name: node for node in cluster.nodes}
    nodes = [known.get(part.node, Node(part.node)) for part in placement.nodes]
    return PlannedLinks(
        tuple(_node(part, node) for part, node in zip(placement.nodes, nodes, strict=True)),
        _across(placement, nodes),
    )


def _node(part: NodePlacement, node: Node) -> PlannedNode:
    rank_of = dict(zip(part.gpus, part.ranks, strict=True))
    has = [gpu for gpu in part.gpus if gpu in node.shape.indices]
    close = Groups(has)
    for a, b in combinations(has, 2):
        if node.link(a, b) in NEAR_WORDS and node.shape.peer(a, b) in (None, "OK"):
            close.join(a, b)
    return PlannedNode(
        part.node,
        part.ranks,
        islands=_ranks(node.islands, rank_of),
        close=_ranks(close.all(), rank_of),
    )


def _ranks(groups: Iterable[Iterable[int]], rank_of: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
    chosen = [tuple(sorted(rank_of[gpu] for gpu in group if gpu in rank_of)) for group in groups]
    return tuple(sorted(group for group in chosen if len(group) > 1))


def _across(placement: Placement, nodes: list[Node]) -> Promise:
    if placement.level == "nvlink" and len(nodes) > 1:
        return "P2P/NVLink"
    if not all(any(map(_up, node.nics)) for node in nodes):
        return "Socket"
    beside = all(
        any(gpu in nic.near for nic in node.nics if _up(nic))
        for part, node in zip(placement.nodes, nodes, strict=True)
        for gpu in part.gpus
    )
    return "RDMA+GDR" if beside else "RDMA"


def _up(nic: Nic) -> bool:
    return is_rdma(nic) and nic.state in (None, "ACTIVE")
