"""Which of a node's free GPUs to take: the subsets of a size that are fastest, and among those the ones that break
least.

Answers depend on the shape and the free mask alone, so all nodes of a kind share them and each is worked out once.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from orchestrator.placement.bandwidth import Links, ShapeLinks

_ENUMERABLE = 1000
"""Up to so many subsets are all looked at; beyond, only those that follow islands and NUMA nodes."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to take GPUs of a node."""

    links: Links
    mask: int
    cost: tuple[int, tuple[int, ...], int, int, int]
    """What it breaks, to be compared: whether a whole node; sizes of whole islands, largest first; whole NUMA nodes;
    NUMA nodes it is spread over; GPUs that stay free in the islands and NUMA nodes it touches. Less is better."""


class Subsets:
    """The options of one kind of node."""

    def __init__(self, links: ShapeLinks, size: int) -> None:
        shape = links.shape
        self._links, self._full = links, (1 << size) - 1
        position = {gpu.index: place for place, gpu in enumerate(shape.gpus)}
        self.islands = tuple(sum(1 << position[i] for i in island) for island in shape.islands if len(island) > 1)
        numa: dict[int | None, int] = {}
        for gpu in shape.gpus:
            numa[gpu.numa] = numa.get(gpu.numa, 0) | 1 << position[gpu.index]
        self.numas = tuple(numa.values())
        self._order = sorted(range(size), key=lambda p: self._group(p)) if shape.gpus else list(range(size))
        self._known: dict[tuple[int, int, bool], tuple[Option, ...]] = {}

    def options(self, free: int, count: int, one_island: bool = False) -> tuple[Option, ...]:
        """The ways to take `count` of the `free` GPUs worth considering: none is both slower and more costly than
        another.

        With `one_island` only subsets that NVLink joins. Cheapest first.
        """
        key = (free, count, one_island)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._find(free, count, one_island)
        return found

    def best(self, free: int, count: int, least: Links, one_island: bool = False) -> Option | None:
        """The cheapest option that has at least these links."""
        for option in self.options(free, count, one_island):
            if option.links.at_least(least):
                return option
        return None

    def cost(self, free: int, mask: int) -> tuple[int, tuple[int, ...], int, int, int]:
        broken = sorted((i.bit_count() for i in self.islands if i & free == i and i & mask), reverse=True)
        touched = [group for group in self.numas if group & mask]
        numa_broken = sum(1 for group in touched if group & free == group)
        left = (free & ~mask & self._union(touched)).bit_count()
        left += sum((free & ~mask & island).bit_count() for island in self.islands if island & mask)
        return (int(free == self._full), tuple(broken), numa_broken, len(touched), left)

    def _find(self, free: int, count: int, one_island: bool) -> tuple[Option, ...]:
        if free.bit_count() < count:
            return ()
        cheapest: dict[Links, Option] = {}
        for mask in self._candidates(free, count):
            if one_island and count > 1 and not any(mask & island == mask for island in self.islands):
                continue
            option = Option(self._links.of(mask), mask, self.cost(free, mask))
            known = cheapest.get(option.links)
            if known is None or (option.cost, mask) < (known.cost, known.mask):
                cheapest[option.links] = option
        found = sorted(cheapest.values(), key=lambda o: (o.cost, o.mask))
        return tuple(
            option
            for position, option in enumerate(found)
            if not any(other.links.at_least(option.links) for other in found[:position])
        )

    def _candidates(self, free: int, count: int) -> list[int]:
        positions = [p for p in self._order if free >> p & 1]
        if not self._links.shape.gpus:
            return [sum(1 << p for p in positions[:count])]
        if math.comb(len(positions), count) <= _ENUMERABLE:
            return [sum(1 << p for p in chosen) for chosen in itertools.combinations(positions, count)]
        starts = range(len(positions))
        return list(dict.fromkeys(sum(1 << positions[(s + i) % len(positions)] for i in range(count)) for s in starts))

    def _group(self, position: int) -> tuple[int, int, int]:
        def containing(groups: tuple[int, ...]) -> int:
            return next((number for number, group in enumerate(groups) if group >> position & 1), len(groups))

        return containing(self.islands), containing(self.numas), position

    @staticmethod
    def _union(groups: list[int]) -> int:
        mask = 0
        for group in groups:
            mask |= group
        return mask
