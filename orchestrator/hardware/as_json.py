"""A cluster as the JSON of `orch topo --json`."""

from __future__ import annotations

from typing import Any

from orchestrator.hardware.model import Cluster, Node


def to_json(cluster: Cluster) -> dict[str, Any]:
    """`{"nodes": [...], "domains": [...]}`. Pairs of GPUs whose link is unknown are left out of `links`."""
    return {
        "nodes": [node_to_json(node) for node in cluster.nodes],
        "domains": [
            {"level": domain.level, "name": domain.name, "parent": domain.parent, "members": list(domain.members)}
            for domain in cluster.all_domains
        ],
    }


def node_to_json(node: Node) -> dict[str, Any]:
    """One node of it; `p2p` is there only where `nvidia-smi topo -p2p` was read."""
    shape = node.shape
    found: dict[str, Any] = {
        "name": node.name,
        "gpus": [{"index": gpu.index, "model": gpu.model} for gpu in shape.gpus],
        "islands": [list(island) for island in shape.islands],
        "links": [{"a": a, "b": b, "type": link} for a, b, link in shape.pairs()],
        "nics": [{"name": nic.name, "near": list(nic.near)} for nic in shape.nics],
    }
    if shape.peer_access:
        found["p2p"] = [{"a": a, "b": b, "type": word} for a, b, word in shape.peer_pairs()]
    return found
