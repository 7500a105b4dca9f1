"""The cluster of a replay where no file describes one, and one with more nodes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from orchestrator.hardware.model import Cluster, Gpu, Nic, Node, Shape, all_to_all

LEAF_NODES = 16
"""Nodes to a leaf, where nobody says it."""


def plain(nodes: int, gpus: int, leaf_nodes: int = LEAF_NODES) -> Cluster:
    """`nodes` machines of `gpus` H100 behind NVSwitch, a 400 Gb/s NIC for each, so many machines to a leaf."""
    shape = Shape(
        tuple(Gpu(i, "H100") for i in range(gpus)),
        all_to_all(gpus, "NV18"),
        tuple(Nic(f"mlx5_{i}", near=(i,), rate_gbps=400.0) for i in range(gpus)),
    )
    return Cluster(tuple(Node(f"node-{i + 1}", shape, {"leaf": f"leaf-{i // leaf_nodes + 1}"}) for i in range(nodes)))


def with_more_nodes(cluster: Cluster, more: int) -> Cluster:
    """The cluster with `more` machines of its commonest shape: first into leaves that are smaller than the largest, then
    into new ones of that size."""
    shape = Counter(node.shape for node in cluster.nodes).most_common(1)[0][0]
    like = next(node for node in cluster.nodes if node.shape == shape)
    leaves = {leaf: len(names) for leaf, names in cluster.members("leaf").items()}
    size = max(leaves.values(), default=0)
    added, domains = [], list(cluster.domains)
    for number in range(1, more + 1):
        labels = {key: value for key, value in like.labels.items() if key not in cluster.levels}
        if size:
            leaf = next((name for name, held in leaves.items() if held < size), f"added-leaf-{len(leaves) + 1}")
            leaves[leaf] = leaves.get(leaf, 0) + 1
            labels["leaf"] = leaf
        added.append(replace(like, name=f"added-{number}", labels=labels, clique=None, uuids=()))
        for i, domain in enumerate(domains):
            if size and domain.level == "leaf" and domain.name == labels["leaf"]:
                domains[i] = replace(domain, members=(*domain.members, added[-1].name))
    return Cluster((*cluster.nodes, *added), tuple(domains), cluster.notes)
