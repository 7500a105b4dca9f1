"""What there is to place on: a static tree of domains, nodes and GPUs, and apart from it a count of what is free.

The tree is built once from a Cluster: cluster > pod > leaf > ... > node > NVLink island > GPU. `Free` follows every
take and give with a few additions for each level, so that a search never counts the cluster anew. GPUs of a node are
bits of an int, by their position in the node's shape; nodes of one kind (equal shape and size) share one table of best
subsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from orchestrator.hardware.model import Cluster, Shape
from orchestrator.hardware.names import natural
from orchestrator.placement.bandwidth import LIKE_OTHERS, Figure, Measured, Own, ShapeLinks, figure_of
from orchestrator.placement.subsets import Subsets
from orchestrator.placement.values import Device

CLUSTER, NODE = "cluster", "node"


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A node's place in the tree."""

    index: int
    """Its number in the tree's order: nodes that are near each other have numbers near each other."""
    name: str
    kind: Kind
    domains: tuple[int, ...]
    """The ids of the domains that it is in, widest (the cluster) first."""
    clique: str | None = None


@dataclass(frozen=True, slots=True)
class TreeDomain:
    """The nodes under one piece of fabric: those numbered from `first` up to, without, `end`."""

    id: int
    depth: int
    """0 is the cluster; the highest is the narrowest level above nodes."""
    name: str
    first: int
    end: int
    parent: int | None


class Kind:
    """One shape of machine with so many places for ranks: GPUs, or CPU slots where it has no GPU."""

    def __init__(self, number: int, shape: Shape, size: int, measured: Measured | None, own: Own = LIKE_OTHERS) -> None:
        self.number, self.shape, self.size = number, shape, size
        self.device: Device = "cuda" if shape.gpus else "cpu"
        self.full = (1 << size) - 1
        self.links = ShapeLinks(shape, measured, own)
        self.plain = ShapeLinks(shape)
        """As the model has them without measurements."""
        self.subsets = Subsets(self.links, size)
        self.models = tuple(dict.fromkeys(gpu.model for gpu in shape.gpus))
        self._position = {gpu.index: position for position, gpu in enumerate(shape.gpus)}

    def mask_of(self, gpus: Iterable[int]) -> int:
        """The bits of GPU indices (or CPU slots). KeyError for one that the node has not."""
        mask = 0
        for gpu in gpus:
            position = self._position[gpu] if self.shape.gpus else gpu
            if not 0 <= position < self.size:
                raise KeyError(gpu)
            mask |= 1 << position
        return mask

    def gpus_of(self, mask: int) -> tuple[int, ...]:
        """The GPU indices (or CPU slots) of bits, ascending."""
        positions = (position for position in range(self.size) if mask >> position & 1)
        return tuple(self.shape.gpus[p].index for p in positions) if self.shape.gpus else tuple(positions)

    def mask_of_models(self, models: Iterable[str | None]) -> int:
        wanted = set(models)
        return sum(1 << position for position, gpu in enumerate(self.shape.gpus) if gpu.model in wanted)


class Topology:
    """The static tree of a cluster, read-only and shared by every search.

    `slots` gives the CPU slots of nodes without GPUs (default: their CPUs). `oversubscription` says by level what the
    nodes of a domain could send over what its uplinks carry (default 1). `measured` corrects the bandwidth model by class
    of link, `own` says which nodes stay behind their class.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        slots: Mapping[str, int] | None = None,
        oversubscription: Mapping[str, float] | None = None,
        measured: Measured | None = None,
        own: Mapping[str, Own] | None = None,
    ) -> None:
        self.cluster = cluster
        self.measured: Measured = measured or {}
        self._own = own or {}
        self.levels = (CLUSTER, *cluster.levels)
        """The levels above nodes, widest first."""
        self.kinds: list[Kind] = []
        self.nodes: list[TreeNode] = []
        self.domains: list[TreeDomain] = []
        self._build(slots or {})
        self.index = {node.name: node.index for node in self.nodes}
        self.ceilings: dict[tuple[Device, int], float] = {}
        """By device and number of workers, a bandwidth that no place on several nodes exceeds; filled by searches."""
        ratios = oversubscription or {}
        self.oversubscription = [1.0] * len(self.levels)
        """By depth: what a message pays that climbs to that level, through the uplinks of all levels below it."""
        for depth in range(len(self.levels) - 2, -1, -1):
            below = self.levels[depth + 1]
            self.oversubscription[depth] = self.oversubscription[depth + 1] * ratios.get(below, 1.0)

    def _build(self, slots: Mapping[str, int]) -> None:
        paths = {node.name: self.cluster.path(node.name) for node in self.cluster.nodes}
        ordered = sorted(self.cluster.nodes, key=lambda node: (*map(natural, paths[node.name]), natural(node.name)))
        kinds: dict[tuple[Shape, int, Own], Kind] = {}
        open_domains: list[tuple[str, int]] = []  # name and id, by depth
        ends: dict[int, int] = {}
        firsts: list[tuple[int, str, int, int | None]] = []  # depth, name, first, parent
        for index, node in enumerate(ordered):
            path = (CLUSTER, *paths[node.name])
            shared = 0
            while shared < len(open_domains) and open_domains[shared][0] == path[shared]:
                shared += 1
            del open_domains[shared:]
            for depth in range(shared, len(path)):
                parent = open_domains[-1][1] if open_domains else None
                open_domains.append((path[depth], len(firsts)))
                firsts.append((depth, path[depth], index, parent))
            for _, identity in open_domains:
                ends[identity] = index + 1
            size = len(node.gpus) or slots.get(node.name) or node.shape.cpus or 1
            own = self._own.get(node.name, LIKE_OTHERS)
            kind = kinds.get((node.shape, size, own))
            if kind is None:
                kind = kinds[node.shape, size, own] = Kind(len(self.kinds), node.shape, size, self.measured, own)
                self.kinds.append(kind)
            clique = self.cluster.place(node.name, "nvlink")
            self.nodes.append(TreeNode(index, node.name, kind, tuple(i for _, i in open_domains), clique))
        self.domains = [
            TreeDomain(i, d, name, first, ends[i], parent) for i, (d, name, first, parent) in enumerate(firsts)
        ]

    @cached_property
    def at_depth(self) -> list[list[TreeDomain]]:
        """The domains of each level, widest level first, in the tree's order."""
        found: list[list[TreeDomain]] = [[] for _ in self.levels]
        for domain in self.domains:
            found[domain.depth].append(domain)
        return found

    @cached_property
    def children(self) -> list[list[int]]:
        """The ids of the domains right below each domain; empty for the narrowest."""
        found: list[list[int]] = [[] for _ in self.domains]
        for domain in self.domains:
            if domain.parent is not None:
                found[domain.parent].append(domain.id)
        return found

    @cached_property
    def empty(self) -> Free:
        """The cluster with nothing on it and every node in order: what can fit at all."""
        return Free(self)

    def between(self, model: str, depth: int, per_node: int | None) -> tuple[float, Figure | None]:
        """What was measured between nodes that meet at `depth`, over the model; and the figure, where it is for just that.

        What was measured at narrower levels, or with other numbers of ranks, may lower it: those links are on the way too.
        """
        if not self.measured:
            return 1.0, None
        factor, figure = figure_of(self.measured, f"{model}/between/{self.levels[depth]}", per_node)
        if figure is not None:
            return factor, figure
        inner = [figure_of(self.measured, f"{model}/between/{level}", None)[0] for level in self.levels[depth:]]
        return min(factor, *inner), None

    def meeting_depth(self, indices: Iterable[int]) -> int:
        """The depth of the narrowest domain that holds all these nodes."""
        ordered = sorted(indices)
        first, last = self.nodes[ordered[0]].domains, self.nodes[ordered[-1]].domains
        return max(depth for depth, (a, b) in enumerate(zip(first, last, strict=True)) if a == b)

    def height(self, depth: int) -> int:
        """How many levels of switches above the narrowest a message climbs to meet at `depth`."""
        return len(self.levels) - 1 - depth


class Free:
    """What nobody holds, node by node and domain by domain; changes with every take and give.

    A GPU can be free and yet not usable: unhealthy, on a drained node, or held by somebody else. Only usable ones are
    given.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.unheld = [node.kind.full for node in topology.nodes]
        self.usable = [node.kind.full for node in topology.nodes]
        self.health = [1.0] * len(topology.nodes)
        """A node's score between 0 and 1: among equal places the healthier node is taken."""
        self.notes: dict[int, str] = {}
        """Why a node, or a part of it, is not usable."""
        self.room = [0] * len(topology.domains)
        """By domain: the GPUs and slots that are free and usable."""
        self.total = [0] * len(topology.domains)
        """By domain: what it would have if it were empty and well. Free of all of it, a domain is whole."""
        self.states: list[dict[tuple[int, int], int]] = [{} for _ in topology.domains]
        """By domain: how many nodes there are of each (kind, free mask); nodes with nothing free are not counted."""
        for node in topology.nodes:
            for domain in node.domains:
                self.total[domain] += node.kind.size
            self._count(node, node.kind.full, 1)

    def mask(self, index: int) -> int:
        """The bits of what can be given of a node."""
        return self.unheld[index] & self.usable[index]

    def whole(self, domain: int) -> bool:
        return self.room[domain] == self.total[domain]

    def take(self, name: str, gpus: Iterable[int]) -> None:
        """Marks GPUs as held. ValueError if one of them is held already."""
        node = self.topology.nodes[self.topology.index[name]]
        self.take_bits(node.index, node.kind.mask_of(gpus))

    def give(self, name: str, gpus: Iterable[int]) -> None:
        """Marks GPUs as free again. ValueError if one of them was not held."""
        node = self.topology.nodes[self.topology.index[name]]
        self.give_bits(node.index, node.kind.mask_of(gpus))

    def take_bits(self, index: int, mask: int) -> None:
        """`take` of a node by number and its GPUs as bits."""
        node, unheld = self.topology.nodes[index], self.unheld[index]
        if mask & ~unheld:
            raise ValueError(f"{node.name}: {node.kind.gpus_of(mask & ~unheld)} are held already")
        self._change(node, unheld & ~mask, self.usable[index])

    def give_bits(self, index: int, mask: int) -> None:
        """`give` of a node by number and its GPUs as bits."""
        node, unheld = self.topology.nodes[index], self.unheld[index]
        if mask & unheld:
            raise ValueError(f"{node.name}: {node.kind.gpus_of(mask & unheld)} are not held")
        self._change(node, unheld | mask, self.usable[index])

    def set_usable(self, name: str, gpus: Iterable[int] | None, note: str | None = None) -> None:
        """Says which GPUs of a node may be given: all (None), some, or none (drained, down); and why not the others."""
        node = self.topology.nodes[self.topology.index[name]]
        usable = node.kind.full if gpus is None else node.kind.mask_of(gpus)
        self._change(node, self.unheld[node.index], usable)
        self.notes.pop(node.index, None)
        if note is not None:
            self.notes[node.index] = note

    def copy(self) -> Free:
        """An independent copy, for asking what if."""
        other = object.__new__(Free)
        other.topology = self.topology
        other.unheld, other.usable, other.health = self.unheld[:], self.usable[:], self.health[:]
        other.notes, other.room, other.total = dict(self.notes), self.room[:], self.total
        other.states = [dict(counts) for counts in self.states]
        return other

    def _change(self, node: TreeNode, unheld: int, usable: int) -> None:
        self._count(node, self.mask(node.index), -1)
        self.unheld[node.index], self.usable[node.index] = unheld, usable
        self._count(node, self.mask(node.index), 1)

    def _count(self, node: TreeNode, mask: int, sign: int) -> None:
        if not mask:
            return
        state, bits = (node.kind.number, mask), sign * mask.bit_count()
        for domain in node.domains:
            self.room[domain] += bits
            counts = self.states[domain]
            left = counts.get(state, 0) + sign
            if left:
                counts[state] = left
            else:
                del counts[state]
