"""Which rank goes on which GPU, and which CPUs are its own: the order of ranks follows the fabric.

Nodes come in the order of the tree, so that neighbours in rank are neighbours in the fabric. Within a node local ranks
follow NVLink's ring where NVLink is a mesh, else islands and NUMA nodes. Equal sets of GPUs give equal orders, so that
local rank i has the same rail on every node.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from orchestrator.hardware.model import Shape, nvlinks

if TYPE_CHECKING:
    from orchestrator.placement.tree import Kind

_CLOSENESS = {"PIX": 0.9, "PXB": 0.8, "PHB": 0.5, "NODE": 0.4, "SYS": 0.1}


def local_order(kind: Kind, mask: int) -> tuple[int, ...]:
    """The GPU indices (or CPU slots) of `mask` in the order of local ranks."""
    gpus = kind.gpus_of(mask)
    if kind.device == "cpu" or len(gpus) < 3:
        return gpus
    return _ordered(kind.shape, gpus)


@lru_cache(maxsize=8192)
def _ordered(shape: Shape, gpus: tuple[int, ...]) -> tuple[int, ...]:
    if not shape.nvswitch and any(nvlinks(shape.link(a, b)) for a, b in itertools.combinations(gpus, 2)):
        return _ring(shape, gpus)
    numa = {gpu.index: gpu.numa for gpu in shape.gpus}
    island = {index: number for number, group in enumerate(shape.islands) for index in group}
    return tuple(
        sorted(gpus, key=lambda g: (island[g] if not shape.nvswitch else 0, -1 if numa[g] is None else numa[g], g))
    )


def _ring(shape: Shape, gpus: tuple[int, ...]) -> tuple[int, ...]:
    """The ring from the first GPU whose weakest link is strongest, then with most links in all, then lowest in
    order."""

    def weight(a: int, b: int) -> float:
        link = shape.link(a, b)
        return float(nvlinks(link)) or _CLOSENESS.get(link or "", 0.0)

    first, *rest = gpus
    if len(gpus) > 8:
        order = [first]
        while rest:
            order.append(max(rest, key=lambda g: (weight(order[-1], g), -g)))
            rest.remove(order[-1])
        return tuple(order)

    def strength(order: Sequence[int]) -> tuple[float, float]:
        links = [weight(a, b) for a, b in itertools.pairwise((first, *order, first))]
        return min(links), sum(links)

    # max keeps the first of equals, and permutations come in ascending order.
    return (first, *max(itertools.permutations(rest), key=strength))


def cpu_affinity(
    shape: Shape, gpus: Sequence[int], cpus_of_numa: Mapping[int, Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """The CPUs of each local rank, in the order of `gpus`: its GPU's NUMA node, shared evenly among all GPUs of that
    NUMA node.

    Shares are cut for every GPU of the node and not only for the gang's, so that two gangs on one node never get the
    same CPU. A GPU whose NUMA node is unknown or has no CPUs of its own shares all CPUs of the node with the others of
    that kind. Empty where no CPUs are known.
    """
    home: dict[int, int | None] = {}
    for gpu in shape.gpus:
        home[gpu.index] = gpu.numa if gpu.numa is not None and cpus_of_numa.get(gpu.numa) else None
    everywhere = sorted(cpu for cpus in cpus_of_numa.values() for cpu in cpus)
    found = []
    for gpu_index in gpus:
        numa = home.get(gpu_index)
        cpus = sorted(cpus_of_numa[numa]) if numa is not None else everywhere
        sharers = sorted(index for index, place in home.items() if place == numa) if numa is not None else sorted(home)
        place, count = sharers.index(gpu_index), len(sharers)
        share = cpus[len(cpus) * place // count : len(cpus) * (place + 1) // count]
        # More GPUs than CPUs: sharing beats having none.
        found.append(tuple(share or cpus))
    return tuple(found)
