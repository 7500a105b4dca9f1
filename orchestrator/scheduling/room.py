"""What a run may take: all that is free, without the places that are kept for runs before it.

A place is kept from every run that might still be there when it is needed. So runs see different views of the same cluster, by how
long they would stay; there are few of them, because few places are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.placement.gang import Part
from orchestrator.placement.tree import Free
from orchestrator.placement.values import Request
from orchestrator.scheduling.decision import Reason
from orchestrator.scheduling.estimates import Bound, gone_in_time
from orchestrator.scheduling.memory import Memory, masks_of
from orchestrator.scheduling.timeline import take


@dataclass(frozen=True, slots=True)
class Kept:
    """A place that is kept for a waiting run."""

    run: int
    parts: tuple[Part, ...]
    start: Bound
    """When the run starts there at the latest."""
    strict: bool
    """Whether only enforced limits count: its run has waited for too long to trust anything else."""

    def lets(self, stay: Bound) -> bool:
        """Whether a run may be there meanwhile that stays so long."""
        return gone_in_time(stay, self.start, strict=self.strict)


@dataclass(slots=True)
class View:
    """What one sort of run may take."""

    free: Free
    without: frozenset[int]
    """The kept places (by number) that are left out."""
    refused: set[int] = field(default_factory=set)
    """The shapes that do not fit: nothing is ever freed while a decision is made."""
    places: dict[tuple[int, frozenset[str]], tuple[Part, ...]] = field(default_factory=dict)
    """By shape and the nodes that are preferred: the best place, until something is taken from the view."""
    reasons: dict[int, Reason] = field(default_factory=dict)
    """Why they do not, as far as it was asked."""
    begin: tuple[int, ...] = ()
    """Its masks before anything was taken from it."""
    notes: tuple[tuple[int, str], ...] = ()
    """Why nodes are not usable: a refusal says it."""
    touched: bool = False


class Room:
    """The views, kept in step."""

    def __init__(self, free: Free, memory: Memory) -> None:
        self._memory = memory
        self.kept: list[Kept] = []
        self._by_stay: dict[Bound, View] = {}
        self._tried: set[int] = set()
        """The shapes that were looked for in all that is free."""
        self._views: dict[frozenset[int], View] = {}
        self.base = self._add(free.copy(), frozenset())

    def view(self, stay: Bound) -> View:
        """What a run may take that holds its GPUs so long."""
        found = self._by_stay.get(stay)
        if found is None:
            without = frozenset(number for number, kept in enumerate(self.kept) if not kept.lets(stay))
            found = self._views.get(without)
            if found is None:
                free = self.base.free.copy()
                for number in without:
                    take(free, self.kept[number].parts)
                found = self._add(free, without)
            self._by_stay[stay] = found
        return found

    def find(self, request: Request, shape: int, view: View) -> tuple[Part, ...] | None:
        """The best place in a view, None where there is none."""
        if shape in view.refused or shape in self.base.refused:
            return None
        if view is not self.base and shape not in self._tried:
            # Where little is free, one look at all of it spares one at each view.
            self._tried.add(shape)
            if self.find(request, shape, self.base) is None:
                return None
        known = view.places.get((shape, request.prefer))
        if known is not None:
            return known
        parts = self._memory.find(request, view.free)
        if parts is None:
            view.refused.add(shape)
        else:
            view.places[shape, request.prefer] = parts
        return parts

    def start(self, parts: Iterable[Part]) -> None:
        for view in self._views.values():
            view.touched = True
            view.places.clear()
            take(view.free, parts)

    def keep(self, kept: Kept) -> None:
        self.kept.append(kept)
        self._by_stay.clear()

    def used(self, parts: Iterable[Part], view: View) -> Kept | None:
        """The first kept place that these GPUs are part of."""
        taken = dict(parts)
        for number, kept in enumerate(self.kept):
            if number not in view.without and any(mask & taken.get(index, 0) for index, mask in kept.parts):
                return kept
        return None

    def all_kept(self) -> dict[int, int]:
        """By node, the bits of all kept places."""
        found: dict[int, int] = {}
        for kept in self.kept:
            for index, mask in kept.parts:
                found[index] = found.get(index, 0) | mask
        return found

    def remember(self) -> None:
        """Leaves what was refused to the next decision."""
        self._memory.remember((masks_of(view.free), view.refused) for view in self._views.values())

    def _add(self, free: Free, without: frozenset[int]) -> View:
        begin = masks_of(free)
        view = View(free, without, self._memory.refused(begin), begin=begin, notes=tuple(sorted(free.notes.items())))
        self._views[without] = view
        return view
