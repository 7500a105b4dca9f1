"""How long one placement takes: CPU time of single decisions on big clusters that are 70 % full at random.

`python benchmarks/placement_speed.py [--hosts CSV]` prints a table. The CSV (columns ip, DSW, PSW, ASW) is the topology
of 847 GPU hosts that Alibaba published with its Lingjun traces (alibaba/alibaba-lingjun-dataset-2023, topo.csv).
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

from orchestrator.hardware.model import Cluster
from orchestrator.placement.search import place
from orchestrator.placement.tree import Free, Topology
from orchestrator.placement.values import Placement, Request
from orchestrator.spec_values import Workers
from orchestrator.testing.hardware import cluster, node

GANGS = (2, 4, 8, 16, 32, 64)
DECISIONS = 300


def clos(nodes: int, per_leaf: int = 16, leaves_per_pod: int = 16) -> Cluster:
    """A three-level Clos of nodes with eight H100 and eight NICs."""
    return cluster(
        *(
            node(f"n{i}", 8, nics=8, leaf=f"l{i // per_leaf}", pod=f"p{i // per_leaf // leaves_per_pod}")
            for i in range(nodes)
        )
    )


def lingjun(path: Path) -> Cluster:
    with path.open() as source:
        rows = list(csv.DictReader(source))
    return cluster(
        *(
            node(row["ip"][:12], 8, nics=8, leaf=f"{row['PSW']}-{row['ASW']}", pod=row["PSW"], core=row["DSW"])
            for row in rows
        )
    )


def fill(topology: Topology, share: float, seed: int, whole: bool) -> Free:
    """Takes that share of the GPUs: whole nodes, or single GPUs anywhere."""
    free, rng = Free(topology), random.Random(seed)
    for each in topology.nodes:
        taken = [g for g in range(each.kind.size) if rng.random() < share]
        if whole:
            taken = list(range(each.kind.size)) if rng.random() < share else []
        free.take(each.name, taken)
    return free


def requests(rng: random.Random, whole: bool) -> Iterator[Request]:
    while True:
        nodes = rng.choice(GANGS)
        per_node = 8 if whole else rng.choice((1, 2, 4))
        # Every fourth gang leaves its shape to us.
        shape = nodes if rng.random() < 0.75 else None
        yield Request(Workers(total=nodes * per_node, nodes=shape), "cuda")


def measure(topology: Topology, free: Free, whole: bool, seed: int = 1) -> tuple[list[float], int]:
    """Milliseconds of each decision; a placed gang is taken and the oldest given back, so that the fill stays as it
    is."""
    rng, times, placed, live = random.Random(seed), [], 0, []
    for request, _ in zip(requests(rng, whole), range(DECISIONS), strict=False):
        begin = time.process_time()
        answer = place(request, topology, free)
        times.append((time.process_time() - begin) * 1000)
        if isinstance(answer, Placement):
            placed += 1
            for part in answer.nodes:
                free.take(part.node, part.gpus)
            live.append(answer)
        if len(live) > 4:
            for part in live.pop(0).nodes:
                free.give(part.node, part.gpus)
    return times, placed


def row(name: str, topology: Topology, whole: bool) -> str:
    times, placed = measure(topology, fill(topology, 0.7, 7, whole), whole)
    times.sort()
    kind = "whole nodes taken, gangs 2x8 to 64x8" if whole else "GPUs taken, gangs 2x1 to 64x4"
    p99 = times[int(len(times) * 0.99)]
    return f"| {name}, {kind} | {placed}/{len(times)} | {statistics.median(times):.2f} | {p99:.2f} | {times[-1]:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=Path, help="Lingjun's topo.csv")
    arguments = parser.parse_args()
    print("| cluster, 70 % full | placed | p50 ms | p99 ms | worst ms |\n|---|---|---|---|---|")
    worlds = [("1,250 nodes x 8", clos(1250)), ("12,500 nodes x 8", clos(12500))]
    if arguments.hosts:
        worlds.append(("Lingjun, 847 hosts x 8", lingjun(arguments.hosts)))
    for name, world in worlds:
        for whole in (True, False):
            print(row(name, Topology(world), whole), flush=True)
    topology = Topology(clos(1250))
    for nodes, free in ((512, Free(topology)), (512, fill(topology, 0.3, 3, True))):
        begin = time.process_time()
        answer = place(Request(Workers(total=nodes * 8, nodes=nodes), "cuda"), topology, free)
        spent = (time.process_time() - begin) * 1000
        print(f"one gang of {nodes}x8 among 1,250 nodes: {spent:.1f} ms, {type(answer).__name__}")
    world = clos(12500)
    tracemalloc.start()
    topology = Topology(world)
    static = tracemalloc.get_traced_memory()[0]
    free = fill(topology, 0.7, 7, False)
    counted = tracemalloc.get_traced_memory()[0]
    print(
        f"memory per node: {static / 12500:.0f} bytes for the tree, {(counted - static) / 12500:.0f} for the free view"
    )
    return 0 if free.room else 1


if __name__ == "__main__":
    sys.exit(main())
