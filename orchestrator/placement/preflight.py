"""Whether the nodes of a gang are fit to start it, by what is known of each and how they compare: problems as values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from orchestrator.hardware.model import Node, nvlinks
from orchestrator.placement.bandwidth import is_rdma
from orchestrator.placement.values import NodePlacement, Placement

V = TypeVar("V")


@dataclass(frozen=True)
class Problem:
    """Why a node should not have this gang."""

    node: str
    text: str

    def __str__(self) -> str:
        return f"{self.node}: {self.text}"


def compare(placement: Placement, nodes: Mapping[str, Node]) -> tuple[Problem, ...]:
    """What is wrong with nodes of a gang beside their like: nodes with as many GPUs of the same models.

    Adapters that are there and up must be the same, since NCCL on nodes whose adapters differ may initialise and then spin for
    ever (NVIDIA/nccl issue 2428); so must be the NVLinks between the chosen GPUs, where one that is down slows the whole gang.
    Nodes that differ in their GPUs are taken to be meant so.
    """
    if placement.device != "cuda" or len(placement.nodes) < 2:
        return ()
    alike: dict[object, list[NodePlacement]] = {}
    for part in placement.nodes:
        if (node := nodes.get(part.node)) is not None:
            alike.setdefault(tuple(gpu.model for gpu in node.gpus), []).append(part)
    return tuple(problem for parts in alike.values() for problem in _odd(parts, nodes))


def _odd(parts: list[NodePlacement], nodes: Mapping[str, Node]) -> Iterable[Problem]:
    adapters = {part.node: _adapters(nodes[part.node]) for part in parts}
    usual = _usual(adapters.values(), len)
    for name, has in adapters.items():
        if has != usual:
            yield Problem(name, _difference(nodes[name], has, usual))
    links = {(part.node, len(part.gpus)): _fewest_nvlinks(part, nodes[part.node]) for part in parts}
    for (name, gpus), fewest in links.items():
        most = _usual((count for (_, size), count in links.items() if size == gpus), int)
        if fewest < most:
            yield Problem(name, f"only {fewest} of the {most} NVLinks that its like have join two of the chosen GPUs")


def _adapters(node: Node) -> frozenset[tuple[str, int]]:
    return frozenset((nic.name, nic.port) for nic in node.nics if is_rdma(nic) and nic.state in (None, "ACTIVE"))


def _difference(node: Node, has: frozenset[tuple[str, int]], usual: frozenset[tuple[str, int]]) -> str:
    states = {(nic.name, nic.port): nic.state for nic in node.nics}
    if lacks := sorted(usual - has):
        said = [f"{name}:{port} is {states.get((name, port)) or 'missing'}" for name, port in lacks]
        return f"{', '.join(said[:4])}, where all {len(usual)} are up on its like"
    return f"it has {', '.join(f'{name}:{port}' for name, port in sorted(has - usual)[:4])}, which its like have not"


def _fewest_nvlinks(part: NodePlacement, node: Node) -> int:
    has = [gpu for gpu in part.gpus if gpu in node.shape.indices]
    return min((nvlinks(node.link(a, b)) for a, b in combinations(has, 2)), default=0)


def _usual(values: Iterable[V], size: Callable[[V], int]) -> V:
    """What most have; of as many, the most that any has: a lack is a fault sooner than a surplus."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], size(value)))
