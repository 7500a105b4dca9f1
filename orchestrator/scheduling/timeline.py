"""What becomes free when: the ends of what runs, in the order in which they can be relied on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from orchestrator.placement.gang import Part
from orchestrator.placement.tree import NODE, Free, Topology
from orchestrator.placement.values import Request
from orchestrator.placement.wishes import matches
from orchestrator.scheduling.estimates import Bound

Find = Callable[[Request, Free], tuple[Part, ...] | None]


@dataclass(frozen=True, slots=True)
class Holding:
    """GPUs that are not free now, and by when they are."""

    run: int
    parts: tuple[Part, ...]
    """Nodes by number, and the bits of the GPUs."""
    bound: Bound
    since: float
    """When it began: of those that nobody can say the end of, the oldest is taken to end first."""
    kept: bool = False
    """Whether it is a place that is kept for a waiting run, and not one that a run holds."""


def in_order(holdings: Iterable[Holding]) -> list[Holding]:
    """By their ends; those that nobody can say the end of last, by age.

    By age, and not by a guess: then whatever starts later comes later, and the number of ends that the first waiting run waits
    for never grows.
    """

    def key(one: Holding) -> tuple[bool, float, float, int]:
        end = one.bound.seconds
        return (end is None, 0.0 if end is None else max(0.0, end), one.since, one.run)

    return sorted(holdings, key=key)


@dataclass(frozen=True)
class Opening:
    """The first moment at which a request fits."""

    parts: tuple[Part, ...]
    bound: Bound
    """0 seconds: it fits now."""
    waits_for: tuple[int, ...]
    """The runs that hold some of the place until then."""


@dataclass(frozen=True, slots=True)
class _Tried:
    """What a look ahead has found."""

    parts: tuple[Part, ...] | None
    """The place, None where there is none."""
    ends: int
    """After so many ends it fits; where there is no place, after none of so many."""


class Timeline:
    """The ends ahead (`in_order`), over a view of what is free now.

    `kept`: by node, the bits that are for others when they become free. `find`: the search for a place.
    """

    def __init__(self, free: Free, holdings: Sequence[Holding], kept: Mapping[int, int], find: Find) -> None:
        self._free, self._find = free, find
        self._topology = free.topology
        self._holdings = holdings
        self._kept = kept
        self._tried: dict[tuple[Request, int], _Tried] = {}
        """By what was asked, and the first number of ends that would do."""

    def first(self, request: Request, *, within: float | None = None, not_before: float = 0.0) -> Opening | None:
        """When and where the request fits first; None where it never does, or not `within` so many seconds.

        Freeing GPUs never makes a request fit worse, so the first end after which it fits is found by halving. And it is the
        same, however far one looks.
        """
        count, low = len(self._holdings) if within is None else self._count_until(within), self._count_until(not_before)
        tried = self._tried.get((request, low))
        if tried is None or (tried.parts is None and tried.ends < count):
            tried = self._tried[request, low] = self._try(request, low, count)
        if tried.parts is None or tried.ends > count:
            return None
        return self._opening(tried.parts, tried.ends, not_before)

    def _try(self, request: Request, low: int, count: int) -> _Tried:
        """The first end after which it fits, of the first `count`."""
        known = self._holdings[:count]
        nowhere = _Tried(None, count)
        start = self._could_fit(request, known, low)
        if start is None:
            return nowhere
        view, at = self._view(0, start, self._free.copy()), start
        parts = self._find(request, view)
        failed, before = at, view
        step = 1
        while parts is None:
            if at == len(known):
                return nowhere
            failed, before = at, view
            at = min(len(known), at + step)
            step *= 4
            view = self._view(failed, at, view.copy())
            parts = self._find(request, view)
        while at - failed > 1:
            middle = (failed + at) // 2
            halfway = self._view(failed, middle, before.copy())
            found = self._find(request, halfway)
            if found is None:
                failed, before = middle, halfway
            else:
                at, parts = middle, found
        return _Tried(parts, at)

    def _opening(self, parts: tuple[Part, ...], count: int, not_before: float) -> Opening:
        taken = dict(parts)
        over = self._holdings[:count]
        mine = [one for one in over if any(mask & taken.get(index, 0) for index, mask in one.parts)]
        seconds = [one.bound.seconds for one in mine]
        if None in seconds:
            bound = Bound(None)
        else:
            ends = [max(0.0, end) for end in seconds if end is not None]
            bound = Bound(max([not_before, *ends]), all(one.bound.sure for one in mine))
        return Opening(parts, bound, tuple(sorted({one.run for one in mine})))

    def _count_until(self, seconds: float) -> int:
        return bisect_right(self._ends, seconds)

    @cached_property
    def _ends(self) -> list[float]:
        return [one.bound.seconds for one in self._holdings if one.bound.seconds is not None]

    def _view(self, first: int, end: int, free: Free) -> Free:
        """`free`, which has the ends before `first`, with those up to `end`."""
        for one in self._holdings[first:end]:
            give(free, one.parts, {} if one.kept else self._kept)
        return free

    def _could_fit(self, request: Request, known: Sequence[Holding], low: int) -> int | None:
        """After how many ends there are GPUs enough, wherever they are: before that nothing need be tried."""
        count = Counting(request, self._topology, self._free)
        for at, one in enumerate(known):
            if at >= low and count.enough:
                return at
            for index, mask in one.parts:
                count.add(index, mask if one.kept else mask & ~self._kept.get(index, 0))
        return len(known) if count.enough else None


class Counting:
    """GPUs (or nodes with enough of them) that a request could use, in the domain that has most."""

    def __init__(self, request: Request, topology: Topology, free: Free) -> None:
        self._topology, self._free = topology, free
        self._allowed = [
            0
            if kind.device != request.device
            else kind.full
            if not request.gpu or request.device == "cpu"
            else kind.mask_of_models(m for m in kind.models if any(matches(wanted, m) for wanted in request.gpu))
            for kind in topology.kinds
        ]
        self._per_node = request.workers.per_node
        self._need = request.workers.nodes or request.workers.total
        binding = request.near if request.required or not request.relax else None
        self._depth = topology.levels.index(binding) if binding in topology.levels else 0
        self._single = binding == NODE
        self._barred = {topology.index[name] for name in request.exclude if name in topology.index}
        self._masks = [
            free.mask(node.index) & self._allowed[node.kind.number] if node.index not in self._barred else 0
            for node in topology.nodes
        ]
        self._rooms: dict[int, int] = {}
        self.enough = False
        for node in topology.nodes:
            self._count(node.index, self._worth(self._masks[node.index]))

    def add(self, index: int, mask: int) -> None:
        if index in self._barred:
            return
        before = self._masks[index]
        after = before | mask & self._free.usable[index] & self._allowed[self._topology.nodes[index].kind.number]
        self._masks[index] = after
        self._count(index, self._worth(after) - self._worth(before))

    def would_do(self, parts: Iterable[Part]) -> bool:
        """Whether there were enough if these were free too."""
        more: dict[int, int] = {}
        for index, mask in parts:
            if index not in self._barred:
                where, before = self._where(index), self._masks[index]
                after = (
                    before | mask & self._free.usable[index] & self._allowed[self._topology.nodes[index].kind.number]
                )
                more[where] = more.get(where, 0) + self._worth(after) - self._worth(before)
        return any(self._rooms.get(where, 0) + room >= self._need for where, room in more.items())

    def _where(self, index: int) -> int:
        return index if self._single else self._topology.nodes[index].domains[self._depth]

    def _worth(self, mask: int) -> int:
        count = mask.bit_count()
        return count if self._per_node is None else int(count >= self._per_node)

    def _count(self, index: int, more: int) -> None:
        if more:
            where = self._where(index)
            room = self._rooms[where] = self._rooms.get(where, 0) + more
            self.enough = self.enough or room >= self._need


def give(free: Free, parts: Iterable[Part], kept: Mapping[int, int]) -> None:
    """Frees what is held of these GPUs and not kept for somebody."""
    for index, mask in parts:
        bits = mask & ~free.unheld[index] & ~kept.get(index, 0)
        if bits:
            free.give_bits(index, bits)


def take(free: Free, parts: Iterable[Part]) -> None:
    """Takes what of these GPUs nobody holds yet."""
    for index, mask in parts:
        bits = mask & free.unheld[index]
        if bits:
            free.take_bits(index, bits)


def parts_of(nodes: Iterable[tuple[str, Iterable[int]]], topology: Topology) -> tuple[Part, ...]:
    """GPUs by node name as parts; what the cluster does not have (any more) is left out."""
    found = []
    for name, gpus in nodes:
        index = topology.index.get(name)
        if index is None:
            continue
        kind = topology.nodes[index].kind
        mask = 0
        for gpu in gpus:
            try:
                mask |= kind.mask_of((gpu,))
            except KeyError:
                continue
        found.append((index, mask))
    return tuple(found)
