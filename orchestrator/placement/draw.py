"""The cluster as it stands, in lines: for each place which GPUs are free, busy or not to be given, and to whom they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from orchestrator.hardware.formats.hostlist import compress
from orchestrator.placement.tree import Free, Topology, TreeDomain, TreeNode
from orchestrator.units import format_spans

FREE, BUSY, UNUSABLE = "□", "■", "×"
LEGEND = f"{FREE} free  {BUSY} busy  {UNUSABLE} not usable; NVLink islands are between |"
MOST_NODES = 64
"""Beyond so many nodes only those are drawn one by one on which something is: the rest are counted."""

Busy = Mapping[str, Mapping[int, int]]
"""node -> GPU (or CPU slot) -> the run that has it."""


def draw_free(free: Free, busy: Busy) -> list[str]:
    """The tree of `free`'s topology with what is on it."""
    topology = free.topology
    if not topology.nodes:
        return ["no node has joined the cluster yet"]
    root = topology.domains[0]
    return [_count(free, root, "cluster"), *_below(free, busy, root), LEGEND]


def _below(free: Free, busy: Busy, domain: TreeDomain) -> Iterator[str]:
    topology = free.topology
    children = topology.children[domain.id]
    items: list[tuple[TreeDomain | None, TreeNode | None]] = [(topology.domains[child], None) for child in children]
    if not children:
        items = [(None, node) for node in topology.nodes[domain.first : domain.end]]
    quiet: list[TreeNode] = []
    if not children and len(topology.nodes) > MOST_NODES:
        quiet = [
            node for _, node in items if node is not None and not busy.get(node.name) and node.index not in free.notes
        ]
        items = [(None, node) for _, node in items if node not in quiet]
    total = len(items) + bool(quiet)
    for position, (below, node) in enumerate(items, 1):
        last = position == total
        branch, stem = ("└─ ", "   ") if last else ("├─ ", "│  ")
        if node is not None:
            yield branch + _node(free, busy, node)
        elif below is not None:
            yield branch + _count(free, below, topology.levels[below.depth])
            yield from (stem + line for line in _below(free, busy, below))
    if quiet:
        places = sum(node.kind.size for node in quiet)
        yield f"└─ {_names([node.name for node in quiet])}: all {places} free"


def _count(free: Free, domain: TreeDomain, level: str) -> str:
    name = "" if level == "cluster" else f" {domain.name}"
    nodes = domain.end - domain.first
    kinds = {free.topology.nodes[index].kind.device for index in range(domain.first, domain.end)}
    unit = {"cuda": "GPUs", "cpu": "CPU slots"}[kinds.pop()] if len(kinds) == 1 else "GPUs and CPU slots"
    many = f"{nodes} node{'' if nodes == 1 else 's'}"
    return f"{level}{name}: {many}, {free.room[domain.id]} of {free.total[domain.id]} {unit} free"


def _node(free: Free, busy: Busy, node: TreeNode) -> str:
    held, kind = busy.get(node.name, {}), node.kind
    islands = kind.shape.islands if kind.shape.gpus else (tuple(range(kind.size)),)
    if all(len(island) == 1 for island in islands):
        islands = (tuple(index for island in islands for index in island),)
    cells = "|".join("".join(_cell(free, node, held, index) for index in island) for island in islands)
    runs = sorted(set(held.values()))
    on = f"  run{'s' if len(runs) > 1 else ''} {', '.join(map(str, runs[:6]))}" if runs else ""
    more = f" and {len(runs) - 6} more" if len(runs) > 6 else ""
    model = f"  {kind.models[0]}" if kind.models and kind.models[0] else ""
    note = f"  ({free.notes[node.index]})" if node.index in free.notes else ""
    return f"{node.name}  {cells}{model}{on}{more}{note}"


def _cell(free: Free, node: TreeNode, held: Mapping[int, int], index: int) -> str:
    if index in held:
        return BUSY
    return FREE if free.mask(node.index) & node.kind.mask_of([index]) else UNUSABLE


def _names(names: Sequence[str]) -> str:
    text = compress(names)
    return text if len(text) <= 60 else f"{names[0]} and {len(names) - 1} more"


def draw_placement(topology: Topology, nodes: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> list[str]:
    """Where a gang would lie: (node, GPUs, ranks) of each part, with the places that the node is in."""
    lines = []
    for name, gpus, ranks in nodes:
        path = topology.cluster.path(name)
        where = " / ".join(f"{level} {place}" for level, place in zip(topology.cluster.levels, path, strict=True))
        device = "GPU" if topology.nodes[topology.index[name]].kind.device == "cuda" else "slot"
        lines.append(
            f"{where + ' / ' if where else ''}{name}: {device} {format_spans(gpus)} = rank {format_spans(ranks)}"
        )
    return lines
