"""Where a total goes that no even split serves as well: different numbers of ranks on different nodes, as level as can
be."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, reduce

from orchestrator.placement.bandwidth import Links, Span, predict
from orchestrator.placement.gang import Part, predict_parts
from orchestrator.placement.tree import Kind, Topology
from orchestrator.placement.values import Device
from orchestrator.placement.wishes import Scope

Found = tuple[tuple[float, tuple[object, ...]], tuple[Part, ...]]
"""A place, after what it is compared by (less is better): minus its bandwidth, then what it breaks."""


_MOST_NODES = 32
"""Up to so many every number of nodes is tried; beyond, only the fewest that hold the total."""


_Domain = tuple[list[int], list[int]]
"""Nodes of a domain, roomiest first, and the sums of their rooms."""


class Uneven:
    """A search for one total over a pool: the free bits of nodes, by their number in the tree."""

    def __init__(
        self, pool: Callable[[], Mapping[int, int]], total: int, topology: Topology, scope: Scope, device: Device
    ) -> None:
        self._make_pool, self._total, self._topology, self._scope, self._device = pool, total, topology, scope, device
        self._sorted: dict[Links, tuple[list[list[_Domain]], dict[int, tuple[int, int]]]] = {}

    def better(self, even: Found | None) -> Found | None:
        """A place that is faster than the best even one, if there is one; else that one."""
        if self._total < 2 or self._scope.single_node:
            return even
        if even is not None and self._total <= _MOST_NODES and self._ceiling <= -even[0][0]:
            return even
        room = sum(mask.bit_count() for mask in self._pool.values())
        if room < self._total:
            return even
        best = even
        most = min(self._total - 1, len(self._pool), _MOST_NODES)
        bounds = [(-self._bound(nodes, self._kinds), nodes) for nodes in range(2, most + 1)]
        for bound, nodes in sorted(bounds):
            if best is not None and bound >= best[0][0]:
                break
            for least in self._floors:
                if best is not None and -self._predict(least, nodes) >= best[0][0]:
                    continue
                for parts in self._places(least, nodes):
                    best = self._faster(parts, best)
        if best is None or self._total > _MOST_NODES:
            many = self._many()
            best = self._faster(many, best) if many is not None else best
        return best

    def _faster(self, parts: tuple[Part, ...], best: Found | None) -> Found:
        busbw = predict_parts(self._topology, parts).busbw
        return ((-busbw, (1,)), parts) if best is None or -busbw < best[0][0] else best

    def _many(self) -> tuple[Part, ...] | None:
        """A place on more nodes than are tried above: as few as hold the total, in the narrowest level that does."""
        if not self._floors:
            return None
        loosest = reduce(Links.worst, self._floors)
        levels, ranges = self._levels(loosest)
        for domains in levels:
            for members, sums in domains:
                if sums[-1] >= self._total:
                    parts = self._fill(members[: bisect_left(sums, self._total) + 1], ranges, loosest)
                    if parts is not None:
                        return parts
        return None

    def _predict(self, links: Links, nodes: int) -> float:
        """No less than a place on so many nodes gives whose parts have just these links."""
        if "nvlink" in self._topology.levels:
            # How the nodes fall into cliques is not known yet: any of them might count as one.
            return math.inf
        return predict(links, self._total, Span(nodes), between=1.0).busbw

    @cached_property
    def _pool(self) -> Mapping[int, int]:
        return self._make_pool()

    @property
    def _ceiling(self) -> float:
        """No less than any place on several nodes gives, whatever is free: the same for every search of so many."""
        known, key = self._topology.ceilings, (self._device, self._total)
        if key not in known:
            kinds = self._links_of(kind for kind in self._topology.kinds if kind.device == self._device)
            most = min(self._total - 1, len(self._topology.nodes))
            known[key] = max((self._bound(nodes, kinds) for nodes in range(2, most + 1)), default=-1.0)
        return known[key]

    def _bound(self, nodes: int, kinds: Sequence[tuple[int, Links]]) -> float:
        """No less than any place on so many nodes gives.

        Its largest part has at least the mean of ranks, its smallest at most: the one bounds what a ring inside a node
        carries, the other the NICs.
        """
        mean = self._total / nodes
        large = [links for count, links in kinds if count >= mean]
        small = [links for count, links in kinds if count <= mean]
        if not large or not small:
            return -1.0
        best = Links(
            max(links.intra for links in large),
            max(links.nvls for links in large),
            max(links.net for links in small),
            max(links.sm for links in large),
            max(links.factor for links in large),
        )
        return self._predict(best, nodes)

    @cached_property
    def _kinds(self) -> list[tuple[int, Links]]:
        """What so many GPUs of a node have at best, of every kind of node in the pool."""
        return self._links_of({self._topology.nodes[index].kind for index in self._pool})

    def _links_of(self, kinds: Iterable[Kind]) -> list[tuple[int, Links]]:
        return [
            (count, option.links)
            for kind in kinds
            for count in range(1, min(kind.size, self._total - 1) + 1)
            for option in kind.subsets.options(kind.full, count)
        ]

    @cached_property
    def _floors(self) -> list[Links]:
        """What every part may be asked to have at the least."""
        states = {(self._topology.nodes[index].kind.number, mask) for index, mask in self._pool.items()}
        return thresholds(
            option.links
            for number, mask in states
            for count in range(1, min(mask.bit_count(), self._total - 1) + 1)
            for option in self._topology.kinds[number].subsets.options(mask, count, self._scope.one_island)
        )

    def _places(self, least: Links, nodes: int) -> Iterable[tuple[Part, ...]]:
        """The places on so many nodes, no part worse than `least`, of the narrowest level that has one."""
        levels, ranges = self._levels(least)
        for domains in levels:
            roomy = (m for m, sums in domains if len(m) >= nodes and sums[nodes - 1] >= self._total)
            filled = [parts for members in roomy if (parts := self._fill(members[:nodes], ranges, least))]
            if filled:
                return filled[:8]
        return []

    def _levels(self, least: Links) -> tuple[list[list[_Domain]], dict[int, tuple[int, int]]]:
        """By level, narrowest first, the domains with nodes that can give such links; how many GPUs each node can."""
        if least in self._sorted:
            return self._sorted[least]
        counts: dict[tuple[int, int], tuple[int, int]] = {}
        ranges: dict[int, tuple[int, int]] = {}
        for index, mask in self._pool.items():
            state = (self._topology.nodes[index].kind.number, mask)
            if state not in counts:
                counts[state] = self._range(*state, least)
            if counts[state][1]:
                ranges[index] = counts[state]
        roomiest_first = sorted(ranges, key=lambda i: (-ranges[i][1], i))
        levels = []
        for depth in range(len(self._topology.levels) - 1, self._scope.depth - 1, -1):
            inside: dict[int, list[int]] = {}
            for index in roomiest_first:
                inside.setdefault(self._topology.nodes[index].domains[depth], []).append(index)
            levels.append([(m, list(itertools.accumulate(ranges[i][1] for i in m))) for _, m in sorted(inside.items())])
        self._sorted[least] = (levels, ranges)
        return levels, ranges

    def _range(self, number: int, mask: int, least: Links) -> tuple[int, int]:
        """The fewest and the most GPUs that such a node can give with links no worse than `least`; (0, 0) if none."""
        subsets = self._topology.kinds[number].subsets
        most = min(mask.bit_count(), self._total - 1)
        fitting = [k for k in range(1, most + 1) if subsets.best(mask, k, least, self._scope.one_island)]
        return (fitting[0], fitting[-1]) if fitting else (0, 0)

    def _fill(
        self, chosen: Sequence[int], ranges: Mapping[int, tuple[int, int]], least: Links
    ) -> tuple[Part, ...] | None:
        """The total over these nodes, which have room for it, as level as can be; None where that is too few."""
        give = {index: ranges[index][0] for index in chosen}
        left = self._total - sum(give.values())
        if left < 0:
            return None
        while left:
            low = min((i for i in chosen if give[i] < ranges[i][1]), key=lambda i: (give[i], i))
            give[low] += 1
            left -= 1
        parts = []
        for index, count in sorted(give.items()):
            subsets = self._topology.nodes[index].kind.subsets
            option = subsets.best(self._pool[index], count, least, self._scope.one_island)
            if option is None:
                return None
            parts.append((index, option.mask))
        return tuple(parts)


def thresholds(links: Iterable[Links]) -> list[Links]:
    """Every combination of what nodes can have at the least: a gang is as slow as its worst part in each respect."""
    distinct = set(links)
    if len(distinct) < 2:
        return list(distinct)
    columns = [sorted({getattr(link, name) for link in distinct}) for name in ("intra", "nvls", "net", "sm", "factor")]
    every = (Links(*values) for values in itertools.product(*columns))
    return [least for least in every if any(link.at_least(least) for link in distinct)]
