"""A cluster drawn as a tree of lines: domains, nodes, islands, GPUs, NICs.

Equal nodes below one domain share a line, and of many equal siblings the first few stand for the rest, so that 10,000
nodes are a page and one node is drawn whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from orchestrator.hardware.formats.hostlist import compress
from orchestrator.hardware.model import Cluster, Nic, Node, Shape, nvlinks

MOST_LINES = 100
"""A drawing longer than that shows fewer siblings."""
_WHOLE = 4
"""A cluster of so many nodes or fewer is drawn with every GPU."""
_WIDEST_NAMES = 60


@dataclass
class _Branch:
    """One place of the tree and what is directly in it."""

    branches: dict[tuple[str, str], _Branch] = field(default_factory=dict)
    """By (level, name)."""
    nodes: list[Node] = field(default_factory=list)

    def all_nodes(self) -> Iterator[Node]:
        yield from self.nodes
        for branch in self.branches.values():
            yield from branch.all_nodes()


def draw(cluster: Cluster) -> list[str]:
    """The tree that placement sees, as lines without colour."""
    root = _tree(cluster)
    whole = len(cluster.nodes) <= _WHOLE
    lines: list[str] = []
    for siblings in (16, 8, 4, 2):
        lines = [_totals(cluster.nodes), *_branch_lines(root, siblings, whole)]
        if len(lines) <= MOST_LINES:
            break
    return lines


def draw_node(cluster: Cluster, node: Node) -> list[str]:
    """One node whole, with where it is: its islands, their GPUs with the NICs near each, and the other NICs."""
    where = [f"{level} {place}" for level in cluster.levels if (place := cluster.place(node.name, level))]
    return [
        f"{node.name}: {describe(node.shape)}",
        *([f"in {', '.join(where)}"] if where else []),
        *_inside(node.shape),
    ]


def describe(shape: Shape) -> str:
    """A machine in a phrase: `8 x H100 in one NVLink island (NV18), 8 NICs of 400 Gb/s`."""
    parts = [_gpus(shape)] if shape.gpus else []
    if shape.nics:
        rates = Counter(nic.rate_gbps for nic in shape.nics)
        rate = "" if len(rates) > 1 or None in rates else f" of {next(iter(rates)):g} Gb/s"
        parts.append(f"{len(shape.nics)} NIC{'s' if len(shape.nics) > 1 else ''}{rate}")
    if not shape.gpus and shape.cpus is not None:
        parts.insert(0, f"{shape.cpus} CPUs")
    return ", ".join(parts) or "nothing known of its inside"


def _gpus(shape: Shape) -> str:
    models = Counter(gpu.model for gpu in shape.gpus)
    what = " + ".join(f"{count} x {model}" if model else _counted(count, "GPU") for model, count in models.items())
    bonds = sorted({link for _, _, link in shape.pairs() if nvlinks(link)}, key=nvlinks)
    others = sorted({link for _, _, link in shape.pairs() if not nvlinks(link)})
    islands = [len(island) for island in shape.islands]
    if bonds and len(islands) == 1:
        return f"{what} in one NVLink island ({', '.join(bonds)})"
    if bonds:
        between = f"; {', '.join(others)} between" if others else ""
        return f"{what} in NVLink islands of {'+'.join(map(str, islands))} ({', '.join(bonds)}{between})"
    return f"{what} without NVLink ({', '.join(others)})" if others else what


def _tree(cluster: Cluster) -> _Branch:
    root = _Branch()
    for node in cluster.nodes:
        branch = root
        for level in cluster.levels:
            if place := cluster.place(node.name, level):
                branch = branch.branches.setdefault((level, place), _Branch())
        branch.nodes.append(node)
    return root


def _totals(nodes: Iterable[Node]) -> str:
    held = list(nodes)
    gpus = sum(len(node.gpus) for node in held)
    return ", ".join([_counted(len(held), "node"), *([_counted(gpus, "GPU")] if gpus else [])])


def _branch_lines(branch: _Branch, siblings: int, whole: bool) -> list[str]:
    """Everything below `branch`, indented by the lines of the tree."""
    items: list[tuple[str, Callable[[], list[str]]]] = []
    for (level, name), below in list(branch.branches.items())[:siblings]:
        items.append(_item(level, name, below, siblings, whole))
    rest = list(branch.branches.items())[siblings:]
    if rest:
        levels = Counter(level for (level, _), _ in rest)
        what = ", ".join(f"{count} more of level {level}" for level, count in levels.items())
        nodes = [node for _, below in rest for node in below.all_nodes()]
        items.append((f"... {what}: {_totals(nodes)}", list))
    groups: dict[Shape, list[Node]] = {}
    for node in branch.nodes:
        groups.setdefault(node.shape, []).append(node)
    if whole:
        items += [(f"{node.name}: {describe(node.shape)}", partial(_inside, node.shape)) for node in branch.nodes]
    else:
        grouped = list(groups.items())
        items += [(f"{_names(held)}: {describe(shape)}", list) for shape, held in grouped[:siblings]]
        if more := [node for _, held in grouped[siblings:] for node in held]:
            items.append((f"... {_totals(more)} more", list))
    lines = []
    for position, (text, inside) in enumerate(items):
        last = position == len(items) - 1
        lines.append(f"{'└─' if last else '├─'} {text}")
        lines += [f"{'  ' if last else '│ '} {line}" for line in inside()]
    return lines


def _item(level: str, name: str, below: _Branch, siblings: int, whole: bool) -> tuple[str, Callable[[], list[str]]]:
    """A domain's own line and what makes the lines below it; a domain of equal nodes needs no lines below."""
    shapes = {node.shape for node in below.nodes}
    title = f"{level} {_short(name)}: {_totals(below.all_nodes())}"
    if not below.branches and len(shapes) == 1 and not whole:
        inside = describe(below.nodes[0].shape)
        each = "" if inside.startswith("nothing") else f", each {inside}"
        return f"{title}{each}: {_names(below.nodes)}", list
    return title, lambda: _branch_lines(below, siblings, whole)


def _inside(shape: Shape) -> list[str]:
    """The islands of a machine with their GPUs, then the NICs that are near none."""
    near: dict[int, list[Nic]] = {}
    for nic in shape.nics:
        for index in nic.near:
            near.setdefault(index, []).append(nic)
    lines = []
    gpus = {gpu.index: gpu for gpu in shape.gpus}
    for island in shape.islands:
        joined = len(island) > 1
        if joined:
            bonds = sorted(
                {link for a, b, link in shape.pairs() if a in island and b in island and nvlinks(link)}, key=nvlinks
            )
            how = "through NVSwitch" if shape.nvswitch else "direct"
            lines.append(
                f"  island {compress([str(index) for index in island]).strip('[]')}  {', '.join(bonds)}, {how}"
            )
        for index in island:
            gpu = gpus[index]
            facts = [gpu.model, f"{gpu.memory_mib} MiB" if gpu.memory_mib else None]
            facts += [f"NUMA {gpu.numa}" if gpu.numa is not None else None]
            facts += [f"near {', '.join(map(_nic, near[index]))}" if index in near else None]
            lines.append(f"  {'  ' if joined else ''}GPU {index}  {'  '.join(fact for fact in facts if fact)}".rstrip())
    lines += [
        f"  NIC {_nic(nic)}{'  near no GPU' if shape.gpus else ''}{_cabled(nic)}" for nic in shape.nics if not nic.near
    ]
    blocked = [f"{a}-{b} {word}" for a, b, word in shape.peer_pairs() if word != "OK"]
    if shape.peer_access:
        lines.append(f"  peer access: {'all pairs' if not blocked else 'not between ' + ', '.join(blocked[:8])}")
    return lines


def _nic(nic: Nic) -> str:
    port = f":{nic.port}" if nic.port > 1 else ""
    rate = f" {nic.rate_gbps:g} Gb/s" if nic.rate_gbps else ""
    return f"{nic.name}{port}{rate}{f' {nic.state}' if nic.state not in (None, 'ACTIVE') else ''}"


def _cabled(nic: Nic) -> str:
    return f"  on {nic.switch}" if nic.switch else ""


def _names(nodes: Sequence[Node]) -> str:
    text = compress([node.name for node in nodes])
    if len(text) <= _WIDEST_NAMES:
        return text
    more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    return f"{_short(nodes[0].name)}{more}"


def _short(name: str) -> str:
    return name if len(name) <= _WIDEST_NAMES // 2 else f"{name[: _WIDEST_NAMES // 2 - 3]}..."


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
