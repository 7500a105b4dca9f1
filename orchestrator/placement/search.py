"""Where a gang goes: of all places that satisfy its wish the one with the best predicted bandwidth that breaks least.

A search asks four things of every split of the gang over nodes: what links a node's best free GPUs have, which domains
have enough such nodes, which narrowest level holds the gang, and what the model makes of it. Then, among the places
that are equally fast: the nodes it had before, the fewest whole pods, leaves, nodes and islands broken (widest first),
the fullest domain, health, the tree's order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.placement.bandwidth import Links, predict
from orchestrator.placement.gang import Part, placement_of, span_at
from orchestrator.placement.reasons import why_not
from orchestrator.placement.subsets import Option
from orchestrator.placement.tree import Free, Kind, Topology
from orchestrator.placement.uneven import Found, Uneven, thresholds
from orchestrator.placement.values import Placement, Rejection, Request
from orchestrator.placement.wishes import Scope, model_groups, scopes

_ENUMERABLE = 64
"""Up to so many equally fast sets of domains are compared in full; beyond, the fullest that suffice are taken."""

Chosen = list[tuple[int, Option]]
State = tuple[int, int]
"""A kind of node, and which of its GPUs are free."""


def place(request: Request, topology: Topology, free: Free) -> Placement | Rejection:
    """The best place for all of the gang, or why there is none. Same input, same answer."""
    parts = find(request, topology, free)
    if parts is not None:
        return placement_of(topology, parts)
    never = find(replace(request, exclude=frozenset(), relax=True), topology, topology.empty) is None
    return why_not(request, topology, topology.empty if never else free, never=never)


def find(request: Request, topology: Topology, free: Free) -> tuple[Part, ...] | None:
    """The parts of the best place, None where there is none."""
    wishes = [request] if request.required or not request.relax else [request, replace(request, near=None)]
    for wish in wishes:
        best: Found | None = None
        for models in model_groups(wish, topology):
            for scope in scopes(wish, topology):
                search = _Search(wish, topology, free, models, scope)
                found = search.run()
                if wish.workers.nodes is None:
                    found = Uneven(search.pool, wish.workers.total, topology, scope, wish.device).better(found)
                if found is not None and (best is None or found[0] < best[0]):
                    best = found
        if best is not None:
            return best[1]
    return None


@dataclass(frozen=True)
class _Split:
    """A gang over `nodes` nodes, `count` ranks on each."""

    nodes: int
    count: int


@dataclass(frozen=True)
class _Fit:
    """Domains that hold a split, equally fast: all of one depth, the gang touching `parts` of the domains below."""

    busbw: float
    split: _Split
    options: dict[State, Option]
    room: list[int]
    depth: int
    parts: int
    domains: tuple[int, ...]


class _Search:
    """One look for one request among GPUs of certain models, inside one scope."""

    def __init__(
        self, request: Request, topology: Topology, free: Free, models: tuple[str | None, ...] | None, scope: Scope
    ) -> None:
        self.request, self.topology, self.free, self.scope = request, topology, free, scope
        self._allowed = {kind.number: self._allowed_mask(kind, models) for kind in topology.kinds}
        self._barred = {topology.index[name] for name in request.exclude if name in topology.index}
        if request.only:
            self._barred |= {node.index for node in topology.nodes if node.name not in request.only}
        self._narrowest = len(topology.levels) - 1

    def _allowed_mask(self, kind: Kind, models: tuple[str | None, ...] | None) -> int:
        if kind.device != self.request.device:
            return 0
        return kind.full if models is None else kind.mask_of_models(models)

    def run(self) -> Found | None:
        """The best place with what to compare it by (less is better)."""
        fits = [fit for split in self._splits() for fit in self._fits(split)]
        fastest = max((fit.busbw for fit in fits), default=-1.0)
        best: Found | None = None
        for fit in fits:
            if fit.busbw == fastest:
                chosen = self._choose(fit)
                found = ((-fit.busbw, self._key(chosen)), self._same_rails(chosen))
                best = found if best is None else min(best, found)
        return best

    def pool(self) -> dict[int, int]:
        """By number, the nodes that may be used and have room, with the bits that are free of them."""
        indices = range(len(self.topology.nodes)) if self.scope.nodes is None else sorted(self.scope.nodes)
        masks = {i: self.free.mask(i) & self._allowed[self.topology.nodes[i].kind.number] for i in indices}
        return {index: mask for index, mask in masks.items() if mask and index not in self._barred}

    def _splits(self) -> Iterator[_Split]:
        workers = self.request.workers
        biggest = max((self._allowed[kind.number].bit_count() for kind in self.topology.kinds), default=0)
        for nodes in range(1, workers.total + 1):
            if workers.nodes not in (None, nodes) or workers.total % nodes or (nodes > 1 and self.scope.single_node):
                continue
            if nodes > len(self.topology.nodes):
                return
            if workers.total // nodes <= biggest:
                yield _Split(nodes, workers.total // nodes)

    # -- which domains hold a split ------------------------------------------------------------------------------------

    def _fits(self, split: _Split) -> Iterator[_Fit]:
        found = self._options(split.count)
        for least in thresholds(option.links for options in found.values() for option in options):
            usable = {
                state: option
                for state, options in found.items()
                if (option := next((o for o in options if o.links.at_least(least)), None)) is not None
            }
            fit = self._narrowest_fit(split, least, usable) if usable else None
            if fit is not None:
                yield fit

    def _options(self, count: int) -> dict[State, tuple[Option, ...]]:
        """By the states that nodes are in: the ways to take `count` GPUs of such a node."""
        found = {}
        for state in self.free.states[0]:
            mask = state[1] & self._allowed[state[0]]
            if mask.bit_count() >= count:
                options = self.topology.kinds[state[0]].subsets.options(mask, count, self.scope.one_island)
                if options:
                    found[state] = options
        return found

    def _narrowest_fit(self, split: _Split, least: Links, options: dict[State, Option]) -> _Fit | None:
        """The narrowest level at which some domain has nodes enough: a wider one is never faster."""
        room = self._count_nodes(options)
        if room[0] < split.nodes:
            return None
        for depth in range(self._narrowest, self.scope.depth - 1, -1):
            domains = [domain.id for domain in self.topology.at_depth[depth] if room[domain.id] >= split.nodes]
            if not domains:
                continue
            below = {domain: self._fewest_below(domain, depth, split.nodes, room) for domain in domains}
            parts = min(below.values())
            kept = tuple(domain for domain in domains if below[domain] == parts)
            kind = self.topology.kinds[next(iter(options))[0]]
            busbw = self._busbw(kind, split, least, depth, parts, kept[0], room)
            return _Fit(busbw, split, options, room, depth, parts, kept)
        return None

    def _count_nodes(self, options: dict[State, Option]) -> list[int]:
        """By domain: how many of its nodes could carry a part."""
        topology, free = self.topology, self.free
        room = [0] * len(topology.domains)
        if self.scope.nodes is not None:
            for index in self.scope.nodes:
                if self._option_of(index, options) is not None:
                    for domain in topology.nodes[index].domains:
                        room[domain] += 1
            return room
        for narrow in topology.at_depth[self._narrowest]:
            counts = free.states[narrow.id]
            room[narrow.id] = sum(count for state, count in counts.items() if state in options)
        for index in self._barred:
            node = topology.nodes[index]
            if (node.kind.number, free.mask(index)) in options:
                room[node.domains[-1]] -= 1
        for below in reversed(topology.domains):
            if below.parent is not None:
                room[below.parent] += room[below.id]
        return room

    def _option_of(self, index: int, options: dict[State, Option]) -> Option | None:
        if index in self._barred or (self.scope.nodes is not None and index not in self.scope.nodes):
            return None
        return options.get((self.topology.nodes[index].kind.number, self.free.mask(index)))

    def _fewest_below(self, domain: int, depth: int, nodes: int, room: Sequence[int]) -> int:
        if depth == self._narrowest or nodes == 1:
            return 1
        return _fewest([room[child] for child in self.topology.children[domain]], nodes)

    def _busbw(
        self, kind: Kind, split: _Split, least: Links, depth: int, parts: int, domain: int, room: Sequence[int]
    ) -> float:
        levels, nccl_nodes = self.topology.levels, split.nodes
        if "nvlink" in levels and split.nodes > 1:
            at = levels.index("nvlink")
            inside = self.topology.domains[domain]
            beneath = [d for d in self.topology.at_depth[at] if inside.first <= d.first < inside.end]
            cliques = [room[d.id] for d in beneath] if depth < at else [split.nodes]
            nccl_nodes = _fewest(cliques, split.nodes)
            if nccl_nodes < split.nodes:
                least = replace(kind.links.in_clique(least), net=least.net * (split.nodes // nccl_nodes))
        span = span_at(self.topology, depth, nccl_nodes, parts)
        between = None if split.nodes == 1 else self.topology.between(kind.links.model, depth, split.count)[0]
        return predict(least, split.nodes * split.count, span, between).busbw

    # -- which of its nodes --------------------------------------------------------------------------------------------

    def _choose(self, fit: _Fit) -> Chosen:
        """The nodes, of the equally fast ones, that break least."""
        domains: Iterable[int] = fit.domains
        if len(fit.domains) > 1 and fit.depth == self._narrowest:
            ordered = sorted((self._glance(domain, fit), domain) for domain in fit.domains)
            domains = [domain for glance, domain in ordered[:_ENUMERABLE] if glance == ordered[0][0]]
        elif len(fit.domains) > 1:
            ordered_wide = sorted(fit.domains, key=lambda d: (self.free.whole(d), self.free.room[d], d))
            domains = ordered_wide[:8]
        return min((c for domain in domains for c in self._choices(domain, fit)), key=self._key)

    def _glance(self, domain: int, fit: _Fit) -> tuple[object, ...]:
        """What taking the gang from a narrowest domain would break, from its counts alone."""
        flags = tuple(self.free.whole(ancestor) for ancestor in self._line(domain))
        left, nodes, numas = fit.split.nodes, 0, 0
        islands: list[int] = []
        preferred = 0
        if self.request.prefer:
            span = self.topology.domains[domain]
            preferred = sum(
                self.topology.nodes[i].name in self.request.prefer and self._option_of(i, fit.options) is not None
                for i in range(span.first, span.end)
            )
        counts = ((fit.options[s].cost, c) for s, c in self.free.states[domain].items() if s in fit.options)
        for cost, count in sorted(counts):
            used = min(left, count)
            nodes, numas, left = nodes + cost[0] * used, numas + cost[2] * used, left - used
            islands.extend(cost[1] * used)
            if not left:
                break
        islands.sort(reverse=True)
        return (-min(preferred, fit.split.nodes), flags, nodes, islands, numas, self.free.room[domain])

    def _line(self, domain: int) -> list[int]:
        """The domain and those above it, widest first, without the cluster."""
        line = []
        current: int | None = domain
        while current:
            line.append(current)
            current = self.topology.domains[current].parent
        return line[::-1]

    def _choices(self, domain: int, fit: _Fit) -> Iterator[Chosen]:
        if fit.depth == self._narrowest or fit.split.nodes == 1:
            yield self._pick([domain], fit)
            return
        for children in self._sets(self.topology.children[domain], fit):
            current = list(children)
            while self.topology.domains[current[0]].depth < self._narrowest:
                below = [grandchild for child in current for grandchild in self.topology.children[child]]
                current = list(next(self._sets(below, fit)))
            yield self._pick(current, fit)

    def _sets(self, domains: Sequence[int], fit: _Fit) -> Iterator[tuple[int, ...]]:
        """Sets of as few of `domains` as hold the gang: all of them where they are few, else one that breaks few whole
        ones."""
        room, need = fit.room, fit.split.nodes
        having = [domain for domain in domains if room[domain]]
        size = _fewest([room[domain] for domain in having], need)
        if math.comb(len(having), size) <= _ENUMERABLE:
            for chosen in itertools.combinations(having, size):
                if sum(room[domain] for domain in chosen) >= need:
                    yield chosen
            return

        def order(domain: int) -> tuple[int, int]:
            return -room[domain], domain

        whole = sorted((d for d in having if self.free.whole(d)), key=order)
        broken = sorted((d for d in having if not self.free.whole(d)), key=order)
        for from_whole in range(size + 1):
            chosen_list = broken[: size - from_whole] + whole[:from_whole]
            if len(chosen_list) == size and sum(room[d] for d in chosen_list) >= need:
                # The last one need only hold the rest: the fullest that does leaves the roomier ones alone.
                pool = whole if from_whole else broken
                last = chosen_list.pop()
                rest = need - sum(room[d] for d in chosen_list)
                yield (
                    *chosen_list,
                    min(
                        (d for d in pool if d not in chosen_list and room[d] >= rest),
                        key=lambda d: (room[d], d),
                        default=last,
                    ),
                )
                return

    def _pick(self, domains: Sequence[int], fit: _Fit) -> Chosen:
        """The nodes of these domains that break least, one part on each."""
        candidates: list[tuple[tuple[object, ...], int, Option]] = []
        for domain in domains:
            span = self.topology.domains[domain]
            for index in range(span.first, span.end):
                option = self._option_of(index, fit.options)
                if option is not None:
                    candidates.append((self._node_key(index, option), index, option))
        candidates.sort(key=lambda candidate: candidate[:2])
        return [(index, option) for _, index, option in candidates[: fit.split.nodes]]

    def _node_key(self, index: int, option: Option) -> tuple[object, ...]:
        preferred = self.topology.nodes[index].name in self.request.prefer
        return (not preferred, option.cost, self.free.mask(index).bit_count(), -self.free.health[index])

    def _key(self, chosen: Chosen) -> tuple[object, ...]:
        """What a place is compared by, after bandwidth: less is better."""
        topology, free = self.topology, self.free
        touched = [{topology.nodes[i].domains[depth] for i, _ in chosen} for depth in range(1, len(topology.levels))]
        return (
            -sum(topology.nodes[i].name in self.request.prefer for i, _ in chosen),
            tuple(sum(free.whole(domain) for domain in domains) for domains in touched),
            sum(option.cost[0] for _, option in chosen),
            sorted((size for _, option in chosen for size in option.cost[1]), reverse=True),
            sum(option.cost[2] for _, option in chosen),
            sum(free.room[domain] for domain in touched[-1]) if touched else 0,
            sum(free.mask(i).bit_count() for i, _ in chosen),
            -sum(free.health[i] for i, _ in chosen),
            [i for i, _ in chosen],
        )

    def _same_rails(self, chosen: Chosen) -> tuple[Part, ...]:
        """The parts, with the same GPUs on every node where that breaks no more: then local ranks share rails."""
        parts = tuple(sorted((i, option.mask) for i, option in chosen))
        masks = [self.free.mask(i) & self._allowed[self.topology.nodes[i].kind.number] for i, _ in chosen]
        for mask in sorted({option.mask for _, option in chosen}) if len(chosen) > 1 else ():
            if all(
                mask & available == mask
                and self.topology.nodes[i].kind.links.of(mask).at_least(option.links)
                and self.topology.nodes[i].kind.subsets.cost(available, mask) <= option.cost
                for (i, option), available in zip(chosen, masks, strict=True)
            ):
                return tuple((i, mask) for i, _ in parts)
        return parts


def _fewest(rooms: Sequence[int], need: int) -> int:
    """How many of these rooms, largest first, it takes to hold `need`. They hold it together."""
    if max(rooms, default=0) >= need:
        return 1
    total = 0
    for number, room in enumerate(sorted(rooms, reverse=True), 1):
        total += room
        if total >= need:
            return number
    return len(rooms) + 1
