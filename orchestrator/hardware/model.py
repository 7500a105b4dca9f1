"""What machines there are and how they hang together: the words that every other part uses for hardware.

From small to large:

- a **Gpu** is one device of a node, known by its `index`, which is the order of the PCI bus (nvidia-smi, NVML and
  CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID agree on it);
- a **link** joins two GPUs of one node and is said in nvidia-smi's words: `NV#` (# bonded NVLinks, direct or through an
  NVSwitch), `PIX` (at most one PCIe switch), `PXB` (several), `PHB` (the CPU's host bridge), `NODE` (between host
  bridges of one NUMA node), `SYS` (between NUMA nodes);
- an **island** is a connected component over NVLink; a GPU without NVLink is an island of its own;
- a **Nic** is one port of a network adapter, `near` the GPUs that it reaches without crossing a CPU (PIX or PXB);
- a **Shape** is all that of one machine, without its name: equal machines share one Shape;
- a **Node** is a machine: a name, a shape, its labels, and the NVLink clique it belongs to where NVLink leaves the
  node;
- a **Domain** is a set of nodes or of smaller domains that one piece of fabric joins: a leaf switch, a pod of leaves;
- a **Cluster** is nodes and domains. Its levels go from the widest to the narrowest.

Levels have names. Those that orch knows, widest first: `core`, `spine`, `pod`, `leaf` (the switches that nodes are
cabled to) and `nvlink` (an NVLink domain over several nodes, such as an NVL72 rack). Any label of the nodes can be
asked for as a level too.

Everything here is frozen and pure. Unknown is None, or an absent pair; it is never a guess.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

from orchestrator.hardware.groups import Groups, merged_places

FABRIC_LEVELS = ("core", "spine", "pod", "leaf", "nvlink")
"""The levels above a node whose names orch knows, widest first."""

NEAR_WORDS = frozenset({"PIX", "PXB"})
"""The links that do not cross a CPU: what GPUDirect RDMA wants between a GPU and a NIC."""

MOST_GPUS = 256
"""A source that gives one machine more GPUs than that is mistaken."""

_NVLINK = re.compile(r"NV([0-9]{1,3})")
_PCIE_WORDS = frozenset({"PIX", "PXB", "PHB", "NODE", "SYS"})

_NVLINKS_PER_GPU = 18
"""The most NVLinks that one GPU has had so far (Hopper, Blackwell). Over all its peers: more mean a switch."""


def nvlinks(link: str | None) -> int:
    """How many NVLinks a link bonds: 12 for `NV12`, 0 for PCIe and for an unknown link."""
    match = _NVLINK.fullmatch(link) if link else None
    return int(match[1]) if match else 0


def is_link(word: str) -> bool:
    """Whether nvidia-smi would call a link that: `NV4`, `PIX`, `SYS`, ..."""
    return word in _PCIE_WORDS or _NVLINK.fullmatch(word) is not None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as far as it is the same in every machine of its kind (its UUID is the Node's)."""

    index: int
    model: str | None = None
    """As the source says it: `H100`, `NVIDIA H100 80GB HBM3`."""
    memory_mib: int | None = None
    sm: int | None = None
    """Compute capability times ten: 80 for A100, 90 for H100. NCCL's constants go by it."""
    numa: int | None = None
    bus_id: str | None = None


@dataclass(frozen=True, slots=True)
class Nic:
    """One port of a network adapter."""

    name: str
    """The device's name: `mlx5_0`, `eth0`; the PCI address where the source gives no name."""
    port: int = 1
    near: tuple[int, ...] = ()
    """Indices of the GPUs at PIX or PXB."""
    rate_gbps: float | None = None
    """Gigabits per second, one direction."""
    link_layer: str | None = None
    """InfiniBand or Ethernet."""
    state: str | None = None
    """As sysfs says it: ACTIVE, DOWN, INIT, ARMED."""
    numa: int | None = None
    switch: str | None = None
    """The leaf switch that the port is cabled to. On a rail-optimised fabric each NIC of a node has another."""
    bus_id: str | None = None


@dataclass(frozen=True)
class Shape:
    """A machine without its name. Equal machines share one Shape, so that 12,500 nodes keep one matrix and not
    12,500."""

    gpus: tuple[Gpu, ...] = ()
    """By ascending index; indices need not be contiguous."""
    links: tuple[str | None, ...] = ()
    """The upper triangle of the matrix of links, row by row, in the order of `gpus`; None where unknown. Empty: all
    unknown."""
    nics: tuple[Nic, ...] = ()
    cpus: int | None = None
    memory_mib: int | None = None
    numas: int | None = None
    """How many NUMA nodes."""
    peer_access: tuple[str | None, ...] = ()
    """In the form of `links`: what `nvidia-smi topo -p2p` says of each pair (OK, CNS, GNS, TNS, NS, U)."""

    def __post_init__(self) -> None:
        pairs = len(self.gpus) * (len(self.gpus) - 1) // 2
        for what, triangle in (("links", self.links), ("peer_access", self.peer_access)):
            if triangle and len(triangle) != pairs:
                raise ValueError(f"{what}: {len(self.gpus)} GPUs have {pairs} pairs, not {len(triangle)}")
        indices = [gpu.index for gpu in self.gpus]
        if indices != sorted(set(indices)):
            raise ValueError(f"GPU indices must be distinct and ascending, not {indices}")

    def link(self, a: int, b: int) -> str | None:
        """The link between the GPUs with indices `a` and `b`; None where it is unknown. KeyError for an unknown
        index."""
        return self._pair(self.links, a, b)

    def peer(self, a: int, b: int) -> str | None:
        """What `topo -p2p` said of the GPUs with indices `a` and `b`; None where nothing is known."""
        return self._pair(self.peer_access, a, b)

    def pairs(self) -> list[tuple[int, int, str]]:
        """Every pair of GPU indices whose link is known, with it."""
        return _named_pairs(self.indices, self.links)

    def peer_pairs(self) -> list[tuple[int, int, str]]:
        """Every pair of GPU indices whose peer access is known, with it."""
        return _named_pairs(self.indices, self.peer_access)

    @cached_property
    def indices(self) -> tuple[int, ...]:
        return tuple(gpu.index for gpu in self.gpus)

    @cached_property
    def islands(self) -> tuple[tuple[int, ...], ...]:
        """GPU indices by connected component over NVLink, in order of their first GPU."""
        groups = Groups(self.indices)
        for a, b, link in self.pairs():
            if nvlinks(link):
                groups.join(a, b)
        return tuple(sorted(tuple(sorted(group)) for group in groups.all()))

    @cached_property
    def nvswitch(self) -> bool:
        """Whether NVLink goes through switches here: then a pair's links are shared with all other pairs of the GPU."""
        total: Counter[int] = Counter()
        for a, b, link in self.pairs():
            total[a] += nvlinks(link)
            total[b] += nvlinks(link)
        return any(count > _NVLINKS_PER_GPU for count in total.values())

    @cached_property
    def _position(self) -> dict[int, int]:
        return {index: position for position, index in enumerate(self.indices)}

    def _pair(self, triangle: tuple[str | None, ...], a: int, b: int) -> str | None:
        first, second = sorted((self._position[a], self._position[b]))
        if first == second or not triangle:
            return None
        return triangle[triangle_position(first, second, len(self.gpus))]


@dataclass(frozen=True)
class Node:
    """One machine."""

    name: str
    shape: Shape = Shape()
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What the operator or the source says of it. A label can be asked for as a level: `{"leaf": "l1", "row": "7"}`."""
    clique: str | None = None
    """`ClusterUUID.CliqueId` of the NVLink fabric that joins it to other nodes; None where NVLink stays in the node."""
    uuids: tuple[str, ...] = field(default=(), compare=False)
    """The GPUs' UUIDs in the order of `gpus`, where they are known."""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return self.shape.gpus

    @property
    def nics(self) -> tuple[Nic, ...]:
        return self.shape.nics

    @property
    def islands(self) -> tuple[tuple[int, ...], ...]:
        return self.shape.islands

    def link(self, a: int, b: int) -> str | None:
        """The link between the GPUs with indices `a` and `b`; None where it is unknown."""
        return self.shape.link(a, b)


@dataclass(frozen=True)
class Domain:
    """What one piece of fabric joins: a leaf switch and its nodes, a pod and its leaves."""

    level: str
    name: str
    parent: str | None = None
    """The name of the domain above, None at the top."""
    members: tuple[str, ...] = ()
    """Names of nodes, or of the domains below."""


@dataclass(frozen=True)
class Cluster:
    """Nodes and what joins them.

    A node may be in several domains of one level: on a rail-optimised fabric each of its NICs is cabled to another
    leaf. The tree that placement sees takes such leaves, when they share at least half of the smaller one's nodes,
    for one place: two nodes with the same set of leaves are under the same leaf on every rail.
    """

    nodes: tuple[Node, ...] = ()
    domains: tuple[Domain, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader should know of the sources: contradictions resolved, things left out. Sentences."""

    @cached_property
    def levels(self) -> tuple[str, ...]:
        """The names of the levels above a node, widest first: those of the domains, and of the labels whose names
        orch knows."""
        used = {domain.level for domain in self.domains}
        used |= {level for level in FABRIC_LEVELS if any(level in node.labels for node in self.nodes)}
        if any(node.clique for node in self.nodes):
            used.add("nvlink")
        unknown = [
            level for level in dict.fromkeys(domain.level for domain in self.domains) if level not in FABRIC_LEVELS
        ]
        return (*unknown, *(level for level in FABRIC_LEVELS if level in used))

    def node(self, name: str) -> Node:
        """The node of that name. KeyError if there is none."""
        return self._by_name[name]

    def place(self, node: str, level: str) -> str | None:
        """The name of the place that holds `node` at `level` (a level, or any label); None where no source says it."""
        found = self._places(level).get(node)
        if found is not None:
            return found
        known = self._by_name[node]
        label = known.labels.get(level)
        return known.clique if label is None and level == "nvlink" else label

    def path(self, node: str) -> tuple[str, ...]:
        """Where the node sits: one name for each of `levels`, widest first.

        Nodes whose paths begin alike are together at those levels, so prefixes of paths are the tree. Where no source
        places the node at a level it stands alone there: the name is that of the narrower place it is in, at last its
        own.
        """
        return self._paths[node]

    def members(self, level: str) -> dict[str, tuple[str, ...]]:
        """Node names by place at `level` (a level, or any label); nodes without a place there are left out."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            place = self.place(node.name, level)
            if place is not None:
                found.setdefault(place, []).append(node.name)
        return {place: tuple(names) for place, names in found.items()}

    @cached_property
    def all_domains(self) -> tuple[Domain, ...]:
        """`domains`, and those that only the nodes' labels and cliques say, widest first."""
        said = {domain.level for domain in self.domains}
        found: list[Domain] = []
        for position, level in enumerate(self.levels):
            if level in said:
                found += [domain for domain in self.domains if domain.level == level]
                continue
            for place, held in self.members(level).items():
                above = {self.place(node, self.levels[position - 1]) for node in held} if position else {None}
                below = self.levels[position + 1 : position + 2]
                members = dict.fromkeys((self.place(node, below[0]) if below else None) or node for node in held)
                found.append(Domain(level, place, above.pop() if len(above) == 1 else None, tuple(members)))
        return tuple(found)

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _paths(self) -> dict[str, tuple[str, ...]]:
        paths = {}
        for node in self.nodes:
            path, current = [], node.name
            for level in reversed(self.levels):
                current = self.place(node.name, level) or current
                path.append(current)
            paths[node.name] = tuple(reversed(path))
        return paths

    @cached_property
    def _place_cache(self) -> dict[str, dict[str, str]]:
        return {}

    def _places(self, level: str) -> dict[str, str]:
        """Place by node name, from the domains of `level`; domains that hold the same nodes are one place."""
        if level not in self._place_cache:
            self._place_cache[level] = merged_places(self._held(level))
        return self._place_cache[level]

    def _held(self, level: str) -> dict[str, tuple[str, ...]]:
        """The nodes under each domain of `level`, through all levels below."""
        # A domain may have a node's name, and two levels may use one name: what a member means follows from the
        # levels below.
        order = {name: rank for rank, name in enumerate(self.levels)}
        narrower = {
            domain.name: domain
            for domain in sorted(self.domains, key=lambda d: order[d.level])
            if order[domain.level] > order.get(level, -1)
        }
        held = {}
        for domain in self.domains:
            if domain.level == level:
                held[domain.name] = tuple(_nodes_under(domain, narrower, self._by_name))
        return held


def triangle_position(first: int, second: int, size: int) -> int:
    """Where the pair (first, second), first < second, of `size` things stands in the upper triangle, row by row."""
    return first * size - first * (first + 1) // 2 + second - first - 1


def all_to_all(gpus: int, link: str | None) -> tuple[str | None, ...]:
    """The links of `gpus` GPUs of which every pair has the same."""
    return (link,) * (gpus * (gpus - 1) // 2)


def _named_pairs(indices: Sequence[int], triangle: Sequence[str | None]) -> list[tuple[int, int, str]]:
    return [(a, b, word) for (a, b), word in zip(combinations(indices, 2), triangle, strict=False) if word is not None]


def _nodes_under(domain: Domain, narrower: Mapping[str, Domain], nodes: Mapping[str, Node]) -> Iterable[str]:
    seen: dict[str, None] = {}
    stack, visited = [domain], {id(domain)}
    while stack:
        for member in stack.pop().members:
            below = narrower.get(member)
            if below is not None and id(below) not in visited:
                visited.add(id(below))
                stack.append(below)
            elif member in nodes:
                seen[member] = None
    return seen
