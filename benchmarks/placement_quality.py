"""How good placements are beside other ways to choose: the same random work, four ways to place it.

Every way has its own copy of the cluster and sees the same gangs come and go. `python benchmarks/placement_quality.py
[--write]` prints a table; with `--write` it replaces the one in docs/performance.md.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.hardware.model import Cluster
from orchestrator.placement.gang import Part, predict_parts
from orchestrator.placement.search import find
from orchestrator.placement.tree import Free, Topology
from orchestrator.placement.values import Request
from orchestrator.spec_values import Workers
from orchestrator.testing.hardware import cluster, node

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- table: benchmarks/placement_quality.py --write -->", "<!-- end of table -->"

SEEDS = (11, 12, 13)

Policy = Callable[[Request, Topology, Free], Sequence[Part] | None]


def lowest(mask: int, count: int) -> int:
    """The lowest free GPUs by index, as everything that only counts GPUs hands them out."""
    taken = 0
    for _ in range(count):
        bit = mask & -mask
        taken, mask = taken | bit, mask ^ bit
    return taken


def roomy(request: Request, topology: Topology, free: Free) -> list[tuple[int, int]]:
    """(node, free GPUs) of every node that can carry its part."""
    need = request.workers.per_node or 1
    masks = ((n.index, free.mask(n.index).bit_count()) for n in topology.nodes)
    return [(index, count) for index, count in masks if count >= need]


def take(request: Request, free: Free, nodes: Iterable[tuple[int, int]]) -> list[Part] | None:
    """Parts on these nodes in this order: one each of a fixed shape, all that is there of a total."""
    left, parts = request.workers.total, []
    for index, count in nodes:
        part = min(left, request.workers.per_node or count)
        parts.append((index, lowest(free.mask(index), part)))
        left -= part
        if not left:
            return parts
    return None


def first_fit(request: Request, topology: Topology, free: Free) -> list[Part] | None:
    """Ray's PACK: nodes in their order, the lowest GPU indices."""
    nodes = roomy(request, topology, free)
    if request.workers.nodes is None:
        one = [pair for pair in nodes if pair[1] >= request.workers.total]
        nodes = one[:1] or nodes
    return take(request, free, nodes)


def best_fit(request: Request, topology: Topology, free: Free) -> list[Part] | None:
    """Fewest nodes, the fullest that fit: looks at counts alone, not at the fabric."""
    nodes = sorted(roomy(request, topology, free), key=lambda pair: (pair[1], pair[0]))
    if request.workers.nodes is None:
        one = [pair for pair in nodes if pair[1] >= request.workers.total]
        nodes = one[:1] or sorted(nodes, key=lambda pair: (-pair[1], pair[0]))
    return take(request, free, nodes)


def kueue(request: Request, topology: Topology, free: Free) -> list[Part] | None:
    """Kueue's topology-aware scheduling: count bottom-up, the tightest domain of the lowest level that holds it, then
    descend."""
    room = dict(roomy(request, topology, free))
    unit = request.workers.nodes is not None
    need = request.workers.nodes or request.workers.total

    def held(index: int) -> int:
        return min(room.get(index, 0), 1) if unit else room.get(index, 0)

    def count(domain: int) -> int:
        return sum(held(i) for i in range(topology.domains[domain].first, topology.domains[domain].end))

    def few(items: list[tuple[int, int]], wanted: int) -> list[int]:
        """The fewest of (count, id): the largest first, and as the last the smallest that suffices."""
        chosen: list[int] = []
        items = sorted(items, key=lambda item: (-item[0], item[1]))
        while wanted > 0 and items:
            fitting = [item for item in items if item[0] >= wanted]
            pick = min(fitting) if fitting else items[0]
            items.remove(pick)
            chosen.append(pick[1])
            wanted -= pick[0]
        return chosen if wanted <= 0 else []

    single = [(held(i), i) for i in room if not unit and held(i) >= need]
    if single:
        return take(request, free, [(min(single)[1], room[min(single)[1]])])
    for depth in range(len(topology.levels) - 1, -1, -1):
        fitting = [(count(d.id), d.id) for d in topology.at_depth[depth] if count(d.id) >= need]
        if not fitting:
            continue
        current = [min(fitting)[1]]
        while topology.domains[current[0]].depth < len(topology.levels) - 1:
            current = few([(count(c), c) for d in current for c in topology.children[d]], need)
        inside = (i for d in current for i in range(topology.domains[d].first, topology.domains[d].end))
        nodes = few([(held(i), i) for i in inside if held(i)], need)
        return take(request, free, [(i, room[i]) for i in nodes])
    return None


POLICIES: dict[str, Policy] = {
    "orch": find,
    "first fit (Ray's PACK)": first_fit,
    "fewest nodes, best fit": best_fit,
    "Kueue's algorithm": kueue,
}


def h100() -> Cluster:
    """128 nodes of 8 H100 with 8 rails, 8 nodes to a leaf, 4 leaves to a pod."""
    return cluster(*(node(f"n{i}", 8, nics=8, leaf=f"l{i // 8}", pod=f"p{i // 32}") for i in range(128)))


def pairs() -> Cluster:
    """96 nodes of 4 A100 in two NVLink pairs, two NICs, 8 nodes to a leaf, 3 leaves to a pod."""
    shape = {"islands": ((0, 2), (1, 3)), "nvlink": "NV12", "model": "A100", "nics": 2, "rate_gbps": 200.0}
    return cluster(*(node(f"n{i}", 4, **shape, leaf=f"l{i // 8}", pod=f"p{i // 24}") for i in range(96)))  # type: ignore[arg-type]


WORK = {
    "H100": ("1x1", "1x1", "1x2", "1x4", "1x4", "1x8", "1x8", "2x8", "4x8", "8x8", "2x4", "4x4", "12", "6"),
    "A100": ("1x1", "1x2", "1x2", "1x2", "1x4", "2x2", "2x4", "4x4", "8x2", "3", "6"),
}


def workers(text: str) -> Workers:
    nodes, _, count = text.partition("x")
    return Workers(total=int(nodes) * int(count), nodes=int(nodes)) if count else Workers(total=int(text))


@dataclass
class Tally:
    """What one way made of the work."""

    of_possible: list[float] = field(default_factory=list)
    of_empty: list[float] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)
    islands: list[int] = field(default_factory=list)
    refused: int = 0
    refused_with_room: int = 0

    def row(self, name: str) -> str:
        def mean(values: Sequence[float]) -> float:
            return sum(values) / len(values)

        return (
            f"{name} | {mean(self.of_possible):.1%} | {min(self.of_possible):.0%} | {mean(self.of_empty):.1%} | "
            f"{mean(self.leaves):.2f} | {mean(self.islands):.2f} | {self.refused} | {self.refused_with_room}"
        )


def replay(
    topology: Topology, policy: Policy, work: Sequence[str], steps: int, load: float, seed: int, tally: Tally
) -> None:
    """One gang comes at every step, stays for a random while and goes; what does not fit at once is refused."""
    rng, free = random.Random(seed), Free(topology)
    mean_size = sum(workers(text).total for text in work) / len(work)
    mean_stay = load * free.room[0] / mean_size
    ends: list[tuple[float, Sequence[Part]]] = []
    for step in range(steps):
        request = Request(workers(rng.choice(work)), "cuda")
        stay = rng.expovariate(1 / mean_stay)
        for _, parts in [end for end in ends if end[0] <= step]:
            for index, mask in parts:
                each = topology.nodes[index]
                free.give(each.name, each.kind.gpus_of(mask))
        ends = [end for end in ends if end[0] > step]
        found = policy(request, topology, free)
        if found is None:
            tally.refused += 1
            tally.refused_with_room += free.room[0] >= request.workers.total
            continue
        record(tally, topology, free, request, found)
        for index, mask in found:
            each = topology.nodes[index]
            free.take(each.name, each.kind.gpus_of(mask))
        ends.append((step + stay, found))


def record(tally: Tally, topology: Topology, free: Free, request: Request, found: Sequence[Part]) -> None:
    if request.workers.total > 1:
        best, empty = find(request, topology, free), find(request, topology, topology.empty)
        assert best is not None
        assert empty is not None
        busbw = predict_parts(topology, found).busbw
        tally.of_possible.append(busbw / predict_parts(topology, best).busbw)
        tally.of_empty.append(min(1.0, busbw / predict_parts(topology, empty).busbw))
    if len(found) > 1:
        tally.leaves.append(len({topology.nodes[index].domains[-1] for index, _ in found}))
    islands = [
        (index, island)
        for index, mask in found
        for island in topology.nodes[index].kind.subsets.islands
        if island & mask
    ]
    tally.islands.append(len(islands))


def table(steps: int) -> str:
    rows = [
        "| cluster | way | bandwidth, of the best then possible | worst | of an empty cluster's "
        "| leaves a multi-node gang spans | islands a gang spans | refused | of those, with as many GPUs free |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, world in (("H100", h100()), ("A100", pairs())):
        topology = Topology(world, oversubscription={"leaf": 2.0})
        for way, policy in POLICIES.items():
            tally = Tally()
            for seed in SEEDS:
                replay(topology, policy, WORK[name], steps, 0.85, seed, tally)
            rows.append(f"| {name} | {tally.row(way)} |")
            print(rows[-1], flush=True)
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the table in docs/performance.md")
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    text = table(arguments.steps)
    print(text)
    if arguments.write:
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
