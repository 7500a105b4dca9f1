"""Small clusters for tests, said in a line: `cluster(node("a", leaf="l1", gpus=8), node("b", leaf="l1", gpus=8))`."""

from __future__ import annotations

from functools import lru_cache

from orchestrator.hardware.model import Cluster, Gpu, Nic, Node, Shape, all_to_all, triangle_position


def node(
    name: str,
    gpus: int = 0,
    *,
    model: str | None = "H100",
    nvlink: str | None = "NV18",
    islands: tuple[tuple[int, ...], ...] | None = None,
    nics: int = 0,
    rate_gbps: float = 400.0,
    cpus: int | None = 64,
    clique: str | None = None,
    **labels: str,
) -> Node:
    """A node of `gpus` GPUs in one NVLink island, or in `islands` that are SYS from each other.

    `nvlink=None` makes a node without NVLink (all pairs SYS). NIC i of `nics` is near the GPUs of its share, in order.
    `labels` may name levels: `leaf="l1", pod="p1"`.
    """
    return Node(name, _shape(gpus, model, nvlink, islands, nics, rate_gbps, cpus), labels, clique)


def cluster(*nodes: Node) -> Cluster:
    """The cluster of these nodes, its levels taken from their labels."""
    return Cluster(nodes)


@lru_cache(maxsize=256)
def _shape(
    gpus: int,
    model: str | None,
    nvlink: str | None,
    islands: tuple[tuple[int, ...], ...] | None,
    nics: int,
    rate_gbps: float,
    cpus: int | None,
) -> Shape:
    links = list(all_to_all(gpus, nvlink or "SYS"))
    if islands is not None:
        links = ["SYS"] * len(links)
        for island in islands:
            for position, a in enumerate(sorted(island)):
                for b in sorted(island)[position + 1 :]:
                    links[triangle_position(a, b, gpus)] = nvlink
    adapters = tuple(
        Nic(f"mlx5_{i}", near=tuple(range(i * gpus // nics, (i + 1) * gpus // nics)), rate_gbps=rate_gbps)
        for i in range(nics)
    )
    return Shape(tuple(Gpu(i, model) for i in range(gpus)), tuple(links), adapters, cpus)
