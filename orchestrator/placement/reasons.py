"""Why there is no place for a gang: which level falls short, by how much, and whether it could ever fit."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.placement.tree import CLUSTER, NODE, Free, Topology
from orchestrator.placement.values import Rejection, Request
from orchestrator.placement.wishes import ANY, NVLINK, Scope, is_known, model_groups, scopes


def why_not(request: Request, topology: Topology, free: Free, *, never: bool) -> Rejection:
    """The reason in words. `free` is what the request was held against: the empty cluster where it can never fit."""
    return Rejection(_reason(request, topology, free, never), never)


def _reason(request: Request, topology: Topology, free: Free, never: bool) -> str:
    unit = "GPU" if request.device == "cuda" else "CPU slot"
    kinds = [kind for kind in topology.kinds if kind.device == request.device]
    if not kinds:
        return f"no node of the cluster has a {unit}"
    binding = request.near if request.required or not request.relax else None
    if never and binding is not None and not is_known(binding, topology):
        have = ", ".join([*topology.levels[1:], NODE, NVLINK])
        return f"the cluster has no level or label '{binding}' to stay within; it has {have}"
    groups = model_groups(request, topology)
    if not groups:
        have = ", ".join(sorted({str(model) for kind in kinds for model in kind.models}))
        return f"no node has GPUs of model {' or '.join(request.gpu)}; the cluster has {have}"
    return max((_shortfall(request, topology, free, models, binding, never) for models in groups), key=lambda r: r[0])[
        1
    ]


def _shortfall(
    request: Request,
    topology: Topology,
    free: Free,
    models: tuple[str | None, ...] | None,
    binding: str | None,
    never: bool,
) -> tuple[int, str]:
    """How many workers the best domain has room for, and the sentence about it."""
    workers, unit = request.workers, "GPUs" if request.device == "cuda" else "CPU slots"
    of = (
        f" of {models[0]}"
        if models and len(models) == 1 and len({m for k in topology.kinds for m in k.models}) > 1
        else ""
    )
    per_node = workers.per_node
    room = _room_by_node(request, topology, free, models, one_island=binding == NVLINK)
    fullest = max(room.values(), default=0)
    if per_node is not None and fullest < per_node:
        most = next((i for i, count in room.items() if count == fullest), None)
        name = f"; {topology.nodes[most].name} has the most, {fullest}" if most is not None and fullest else ""
        what = "joined by NVLink" if binding == NVLINK else "" if never else "free"
        return fullest, f"no node has {per_node} {unit}{of} {what}".rstrip() + name + _unusable(
            request, topology, free, never
        )
    best, where, level = 0, "the cluster", CLUSTER
    within = scopes(request if binding is not None else Request(workers, request.device), topology)
    # A single node satisfies any level, but the sentence is about the level where that holds as much.
    for scope in sorted(within, key=lambda scope: scope.single_node):
        for label, indices in _domains(scope, topology, binding):
            have = _workers(request, [room.get(i, 0) for i in indices], single=scope.single_node)
            if have > best:
                best, where = have, label
                level = binding if binding not in (None, ANY) else CLUSTER
    size = f"{workers.total} workers"
    if level == CLUSTER:
        even = ", even if it were empty," if never else ""
        parts = f" in parts of {per_node} to a node" if per_node is not None else ""
        text = f"the cluster{even} has room for {best} of {size}{of}{parts}"
        total = sum(room.values())
        if per_node is not None and total != best:
            text += (
                f" ({total} {unit} {'in all' if never else 'are free'} on {sum(1 for r in room.values() if r)} nodes)"
            )
    elif best:
        text = f"{where} has room for {best} of {size}{of}; no other {level} has more"
        text = f"even if the cluster were empty, {text}" if never else text
    else:
        text = f"no {level} has room for one of {size}{of}"
    return best, text + _unusable(request, topology, free, never)


def _room_by_node(
    request: Request, topology: Topology, free: Free, models: tuple[str | None, ...] | None, *, one_island: bool
) -> dict[int, int]:
    room = {}
    allowed = [kind.full if models is None else kind.mask_of_models(models) for kind in topology.kinds]
    for node in topology.nodes:
        if node.kind.device != request.device or node.name in request.exclude:
            continue
        if request.only and node.name not in request.only:
            continue
        mask = free.mask(node.index) & allowed[node.kind.number]
        islands = [(mask & island).bit_count() for island in node.kind.subsets.islands] if one_island else []
        room[node.index] = max(islands, default=min(mask.bit_count(), 1)) if one_island else mask.bit_count()
    return room


def _domains(scope: Scope, topology: Topology, binding: str | None) -> Iterable[tuple[str, list[int]]]:
    """What the scope allows a gang to stay within, named: `leaf l3`, with the numbers of its nodes."""
    if scope.single_node:
        return [(node.name, [node.index]) for node in topology.nodes]
    if scope.nodes is not None and binding != NVLINK:
        first = min(scope.nodes)
        label = topology.cluster.place(topology.nodes[first].name, str(binding))
        return [(f"{binding} {label}", sorted(scope.nodes))]
    level = topology.levels[scope.depth]
    return [
        ("the cluster" if scope.depth == 0 else f"{level} {domain.name}", list(range(domain.first, domain.end)))
        for domain in topology.at_depth[scope.depth]
    ]


def _workers(request: Request, room: list[int], *, single: bool) -> int:
    """How many workers fit on nodes with so much room."""
    per_node = request.workers.per_node
    if per_node is None:
        return min(request.workers.total, max(room, default=0) if single else sum(room))
    return min(request.workers.total, per_node * sum(1 for count in room if count >= per_node))


def _unusable(request: Request, topology: Topology, free: Free, never: bool) -> str:
    """What is left out for another reason than being taken."""
    out = [f"the run takes only {_some(sorted(request.only))}"] if request.only else []
    if never:
        return f" ({out[0]})" if out else ""
    barred = sum(1 for node in topology.nodes if node.name in request.exclude)
    if barred:
        out.append(f"{barred} node{'s' if barred > 1 else ''} excluded by the run")
    noted = [
        (topology.nodes[index].name, note)
        for index, note in sorted(free.notes.items())
        if topology.nodes[index].kind.device == request.device
        and (not request.only or topology.nodes[index].name in request.only)
    ]
    out.extend(f"{name}: {note}" for name, note in noted[:3])
    if len(noted) > 3:
        out.append(f"{len(noted) - 3} more nodes are not usable")
    return f" ({'; '.join(out)})" if out else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
