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
    """The CPUs of each local rank, in the order of `gpus`: all of its GPU's NUMA node.

    Not a share of them: data loaders of a small gang would starve beside idle cores. A GPU whose NUMA node is unknown
    or has no CPUs gets every CPU.
    """
    numa = {gpu.index: gpu.numa for gpu in shape.gpus}
    everywhere = tuple(sorted(cpu for cpus in cpus_of_numa.values() for cpu in cpus))
    found = []
    for index in gpus:
        home = numa.get(index)
        near = cpus_of_numa.get(home, ()) if home is not None else ()
        found.append(tuple(sorted(near)) or everywhere)
    return tuple(found)
