"""Fewest nodes, lowest free indices: the placement that looks at counts alone."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.placement.values import NodePlacement, NodeView, Placement, Rejection, Request


def place(request: Request, nodes: Sequence[NodeView]) -> Placement | Rejection:
    """All of the gang on as few nodes as will hold it, the fullest fitting nodes first; or why not.

    Deterministic: nodes with equal room are taken in the order of their names.
    """
    candidates = sorted((n for n in nodes if n.device == request.device), key=lambda n: n.name)
    if not candidates:
        what = "GPU" if request.device == "cuda" else "CPU slot"
        return Rejection(f"no node of the cluster has a {what}", never=True)
    counts = _shape(request, [(n.name, len(n.free)) for n in candidates if n.usable])
    if counts is None:
        whole = _shape(request, [(n.name, n.total) for n in candidates])
        return Rejection(_why_not(request, candidates, never=whole is None), never=whole is None)
    by_name = {n.name: n for n in candidates}
    parts, rank = [], 0
    for name, count in counts:
        parts.append(NodePlacement(name, by_name[name].free[:count], tuple(range(rank, rank + count))))
        rank += count
    return Placement(request.device, "node" if len(parts) == 1 else "cluster", tuple(parts))


def _shape(request: Request, room: list[tuple[str, int]]) -> list[tuple[str, int]] | None:
    """How many workers go to which node, given the room on each; None where they don't fit."""
    workers = request.workers
    if workers.nodes is not None:
        need = workers.total // workers.nodes
        # The tightest nodes that still fit keep the roomy ones whole for who needs them.
        fitting = sorted((free, name) for name, free in room if free >= need)[: workers.nodes]
        return sorted((name, need) for _, name in fitting) if len(fitting) == workers.nodes else None
    one = min(((free, name) for name, free in room if free >= workers.total), default=None)
    if one is not None:
        return [(one[1], workers.total)]
    taken, left = [], workers.total
    for free, name in sorted(((f, n) for n, f in room if f), key=lambda pair: (-pair[0], pair[1])):
        taken.append((name, min(free, left)))
        left -= taken[-1][1]
        if not left:
            return sorted(taken)
    return None


def _why_not(request: Request, nodes: Sequence[NodeView], *, never: bool) -> str:
    unit = "GPUs" if request.device == "cuda" else "CPU slots"
    workers = request.workers
    room = [n.total if never else len(n.free) if n.usable else 0 for n in nodes]
    size = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    if workers.nodes is None:
        have = f"{sum(room)} of {sum(n.total for n in nodes)} {unit} on {size} are free"
        text = f"needs {workers.total} {unit}; " + (f"the cluster has {sum(room)} {unit} on {size}" if never else have)
    else:
        need = workers.total // workers.nodes
        wanted = f"{workers.nodes} node{'s' if workers.nodes > 1 else ''} with {need} {unit} each"
        fitting = sum(free >= need for free in room)
        text = f"needs {wanted}; {fitting} of {size} {'are large enough' if never else 'have that many free'}"
    out = [f"{n.name}: {n.note}" for n in nodes if not n.usable and n.note]
    return text if never or not out else f"{text} ({'; '.join(out[:4])})"
