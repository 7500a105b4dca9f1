"""What a chosen set of GPUs amounts to: its level, its predicted bandwidth, the link that bounds it, and the
Placement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from functools import reduce

from orchestrator.placement import ranks
from orchestrator.placement.bandwidth import GLOO_GB_S, Figure, Links, Prediction, Span, allreduce_time_us, predict
from orchestrator.placement.nccl_cost import busbw_factor
from orchestrator.placement.tree import NODE, Topology
from orchestrator.placement.values import NodePlacement, Placement

Part = tuple[int, int]
"""A node's number in the tree, and the bits of the GPUs taken of it."""


def level_of(topology: Topology, parts: Sequence[Part]) -> str:
    """The tightest level that holds the parts: `nvlink` where NVLink alone joins them, else node, or a level of the
    fabric."""
    if len(parts) == 1:
        index, mask = parts[0]
        islands = topology.nodes[index].kind.subsets.islands
        joined = mask & (mask - 1) and any(mask & island == mask for island in islands)
        return "nvlink" if joined else NODE
    return topology.levels[topology.meeting_depth(index for index, _ in parts)]


def links_of(topology: Topology, parts: Sequence[Part], *, plain: bool = False) -> tuple[Links, Span]:
    """The worst links of the gang and how far it spans. Nodes of one NVLink clique count as one node, as NCCL counts
    them. With `plain` as the model has them without measurements."""
    groups: dict[str, list[Part]] = {}
    for index, mask in parts:
        node = topology.nodes[index]
        groups.setdefault(node.clique or node.name, []).append((index, mask))
    merged = []
    for members in groups.values():
        of_kind = [topology.nodes[index].kind for index, _ in members]
        kinds = [kind.plain if plain else kind.links for kind in of_kind]
        links = [kind.of(mask) for kind, (_, mask) in zip(kinds, members, strict=True)]
        if len(members) > 1:
            net = sum(link.net for link in links)
            links = [replace(kind.in_clique(link), net=net) for kind, link in zip(kinds, links, strict=True)]
        merged.append(reduce(Links.worst, links))
    worst = reduce(Links.worst, merged)
    if len(parts) == 1:
        return worst, Span(1)
    depth = topology.meeting_depth(index for index, _ in parts)
    return worst, span_at(topology, depth, len(groups), parts_below(topology, depth, parts))


def parts_below(topology: Topology, depth: int, parts: Sequence[Part]) -> int:
    """How many domains of the next narrower level the parts touch; 1 where nodes come next."""
    if depth + 1 >= len(topology.levels):
        return 1
    return len({topology.nodes[index].domains[depth + 1] for index, _ in parts})


def span_at(topology: Topology, depth: int, nodes: int, parts: int) -> Span:
    """The span of a gang that meets at `depth`, over `nodes` NCCL nodes and `parts` domains below."""
    if nodes == 1:
        return Span(1, level=topology.levels[depth])
    return Span(nodes, topology.height(depth), parts, topology.oversubscription[depth], topology.levels[depth])


def predict_parts(topology: Topology, parts: Sequence[Part]) -> Prediction:
    """The bandwidth of a gang on these GPUs."""
    links, span = links_of(topology, parts)
    return predict(links, sum(mask.bit_count() for _, mask in parts), span, between_of(topology, parts)[0])


def between_of(topology: Topology, parts: Sequence[Part]) -> tuple[float | None, Figure | None]:
    """What was measured between the nodes of such a gang, over the model (None for one node); and the figure that it is."""
    if len(parts) == 1:
        return None, None
    counts = {mask.bit_count() for _, mask in parts}
    models = {topology.nodes[index].kind.links.model for index, _ in parts}
    depth = topology.meeting_depth(index for index, _ in parts)
    per_node = counts.pop() if len(counts) == 1 else None
    found = [topology.between(model, depth, per_node if len(models) == 1 else None) for model in models]
    return min(found, key=lambda one: one[0])


def time_us(topology: Topology, parts: Sequence[Part], size_bytes: int) -> float:
    """Microseconds that an all-reduce of `size_bytes` would take on these GPUs."""
    links, span = links_of(topology, parts)
    return allreduce_time_us(size_bytes, links, sum(mask.bit_count() for _, mask in parts), span)


def expected(
    topology: Topology, parts: Sequence[Part], collective: str, backend: str, size_bytes: int, *, plain: bool = False
) -> float | None:
    """GB/s of bus bandwidth that a collective of `size_bytes` should reach on these GPUs; None for a single rank.

    Bus bandwidth is defined so that a ring gives every collective the same one: another than an all-reduce is expected to
    reach what an all-reduce does without the switch's help. With `plain` measurements are left out.
    """
    ranks = sum(mask.bit_count() for _, mask in parts)
    if ranks < 2:
        return None
    links, span = links_of(topology, parts, plain=plain)
    native = "nccl" if links.sm else "gloo"
    if backend != native:
        if backend == "nccl":
            return None
        links = Links(GLOO_GB_S, 0.0, min(GLOO_GB_S, links.net), 0)
    elif collective != "all_reduce":
        links = replace(links, nvls=0.0)
    between = between_of(topology, parts)[0]
    factor = 1.0 if plain or backend != native else links.factor if between is None else between
    time = allreduce_time_us(size_bytes, links, ranks, span)
    return size_bytes * busbw_factor(ranks) / (time * 1000) * factor


def measured_on(topology: Topology, parts: Sequence[Part]) -> date | None:
    """When the links of such a gang were measured, where its prediction is from that; None where it is the model's alone."""
    figure = between_of(topology, parts)[1]
    if len(parts) == 1:
        index, mask = parts[0]
        figure = topology.nodes[index].kind.links.figure(mask)[1]
    if figure is not None:
        return figure.on
    return max((own.on for index, _ in parts if (own := topology.nodes[index].kind.links.own).on), default=None)


def bottleneck(topology: Topology, parts: Sequence[Part], limit: str) -> str:
    """The limiting link in words: `gpu-01 <-> gpu-02: 400 Gb/s x 8`, `gpu-01: NVLink among 8 GPUs`."""
    ordered = sorted(parts)
    if limit in ("net", "fabric", "gloo") and len(ordered) > 1:
        # The slowest node, and its neighbour across the widest level: that is the edge of the ring which decides.
        slow = min(range(len(ordered)), key=lambda i: topology.nodes[ordered[i][0]].kind.links.of(ordered[i][1]).net)
        depth = topology.meeting_depth(index for index, _ in ordered)
        edge = _crossing(topology, ordered, depth) if limit == "fabric" else None
        a, b = edge if edge is not None else (slow, slow + 1) if slow + 1 < len(ordered) else (slow - 1, slow)
        first, second = (topology.nodes[ordered[i][0]] for i in (a, b))
        text = f"{first.name} <-> {second.name}: {first.kind.links.nic_text(ordered[slow][1])}"
        if limit == "fabric" and topology.oversubscription[depth] > 1:
            text += f", {topology.oversubscription[depth]:g}:1 oversubscribed below the {topology.levels[depth]}"
        return text if limit != "gloo" else f"{first.name} <-> {second.name}: Gloo"
    index, mask = min(ordered, key=lambda part: topology.nodes[part[0]].kind.links.of(part[1]).intra)
    kind, name = topology.nodes[index].kind, topology.nodes[index].name
    count = mask.bit_count()
    if limit == "gloo":
        return f"{name}: Gloo among {count} ranks"
    among = f"among {count} GPUs" if count > 1 else "between nodes"
    words = {"nvlink": "NVLink", "pcie": "PCIe", "shm": "shared memory", "none": "NVLink"}
    return f"{name}: {words[kind.links.intra_kind(mask)]} {among}"


def _crossing(topology: Topology, ordered: Sequence[Part], depth: int) -> tuple[int, int] | None:
    """The first two neighbours in rank order that are in different domains below `depth`."""
    if depth + 1 >= len(topology.levels):
        return None
    below = [topology.nodes[index].domains[depth + 1] for index, _ in ordered]
    return next(((i, i + 1) for i in range(len(below) - 1) if below[i] != below[i + 1]), None)


def placement_of(topology: Topology, parts: Sequence[Part]) -> Placement:
    """The Placement of these GPUs: ranks in the order of the fabric, bandwidth and bottleneck filled in."""
    ordered = sorted(parts)
    found = predict_parts(topology, ordered)
    nodes, rank = [], 0
    for index, mask in ordered:
        node = topology.nodes[index]
        gpus = ranks.local_order(node.kind, mask)
        nodes.append(NodePlacement(node.name, gpus, tuple(range(rank, rank + len(gpus)))))
        rank += len(gpus)
    alone = rank < 2
    on = measured_on(topology, ordered)
    return Placement(
        topology.nodes[ordered[0][0]].kind.device,
        level_of(topology, ordered),
        tuple(nodes),
        None if alone else round(found.busbw, 2),
        None if alone else bottleneck(topology, ordered, found.limit) + (f", measured on {on}" if on else ""),
    )
