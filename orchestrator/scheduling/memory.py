"""What one decision leaves for the next to be quick: derived values that hold as long as what they were derived from does."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace

from orchestrator.placement.gang import Part, placement_of
from orchestrator.placement.reasons import why_not
from orchestrator.placement.search import find
from orchestrator.placement.tree import Free, Topology
from orchestrator.placement.values import Placement, Request
from orchestrator.policy import Policy
from orchestrator.scheduling.ask import Ask, ask_of
from orchestrator.scheduling.quota import account_of
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.service import standing
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.timeline import parts_of

MOST_RUNS = 100_000
MOST_PLACEMENTS = 10_000
MOST_VIEWS = 32
MOST_STATES = 512


class Memory:
    """Opaque to everybody but `plan`. A decision with it is the same as without it."""

    def __init__(self, topology: Topology, policy: Policy) -> None:
        self.topology, self.policy = topology, policy
        self._asks: dict[int, Ask] = {}
        self._shapes: dict[Request, int] = {}
        self._requests: dict[int, Request] = {}
        self._numbers = itertools.count()
        self._never: dict[int, str | None] = {}
        self._best: dict[tuple[int, str], Placement | None] = {}
        self._parts: dict[tuple[int, int], tuple[Part, ...]] = {}
        self._found: dict[tuple[tuple[int, ...], tuple[float, ...]], dict[Request, tuple[Part, ...] | None]] = {}
        """By what can be given of each node and how well it is: where requests go."""
        self._placements: dict[tuple[Part, ...], Placement] = {}
        self._refused: list[tuple[tuple[int, ...], frozenset[int]]] = []
        self._texts: dict[object, dict[int, str]] = {}

    def serves(self, snapshot: Snapshot) -> bool:
        return self.topology is snapshot.free.topology and self.policy is snapshot.policy

    # -- runs ----------------------------------------------------------------------------------------------------

    def asks(self, snapshot: Snapshot) -> list[Ask]:
        """What the waiting runs ask."""
        if len(self._asks) > MOST_RUNS:
            self._asks.clear()
        known, unfit, none = self._asks, snapshot.unfit, _NONE
        found = []
        for run in snapshot.waiting:
            ask = known.get(run.id)
            lacking = unfit.get(run.id, none) if unfit else none
            if ask is None or ask.run is not run or (ask.unfit is not lacking and ask.unfit != lacking):
                ask = known[run.id] = self.ask(run, lacking)
            found.append(ask)
        return found

    def ask(self, run: Run, unfit: Mapping[str, str]) -> Ask:
        """What one run asks."""
        ask = ask_of(run, account_of(run, self.policy), self.topology, unfit)
        ask.priority = standing(run, self.policy)
        ask.shape = self.shape(ask.request)
        if ask.patient is not None:
            ask.patient_shape = self.shape(ask.patient)
        return ask

    def parts(self, run: Run) -> tuple[Part, ...]:
        """Where the run's last attempt is or was."""
        attempt = run.attempt
        if attempt is None:
            return ()
        found = self._parts.get((run.id, attempt.number))
        if found is None:
            if len(self._parts) > MOST_RUNS:
                self._parts.clear()
            found = parts_of(((part.node, part.gpus) for part in attempt.placement.nodes), self.topology)
            self._parts[run.id, attempt.number] = found
        return found

    def placement(self, parts: tuple[Part, ...]) -> Placement:
        """What these parts are as a placement."""
        found = self._placements.get(parts)
        if found is None:
            if len(self._placements) > MOST_PLACEMENTS:
                self._placements.clear()
            found = self._placements[parts] = placement_of(self.topology, parts)
        return found

    # -- shapes --------------------------------------------------------------------------------------------------

    def shape(self, request: Request) -> int:
        """A number for what is asked; which nodes it had before does not change whether it fits."""
        key = replace(request, prefer=frozenset()) if request.prefer else request
        found = self._shapes.get(key)
        if found is None:
            # `why` is asked in another thread than `plan`: a number is never given to two requests.
            number = next(self._numbers)
            self._requests[number] = key
            found = self._shapes.setdefault(key, number)
        return found

    def never(self, shape: int) -> str | None:
        """Why the empty cluster could not hold it either; None where it could."""
        if shape not in self._never:
            request, topology = self._requests[shape], self.topology
            wish = replace(request, exclude=frozenset(), relax=True)
            fits = find(wish, topology, topology.empty) is not None
            self._never[shape] = None if fits else why_not(request, topology, topology.empty, never=True).reason
        return self._never[shape]

    def best(self, shape: int, level: str) -> Placement | None:
        """What it would get within `level` on the empty cluster."""
        if (shape, level) not in self._best:
            request = replace(self._requests[shape], near=level, required=True, exclude=frozenset())
            parts = find(request, self.topology, self.topology.empty)
            self._best[shape, level] = None if parts is None else self.placement(parts)
        return self._best[shape, level]

    # -- places -----------------------------------------------------------------------------------------------------

    def find(self, request: Request, free: Free) -> tuple[Part, ...] | None:
        """The best place in what is free; remembered by all that a search looks at."""
        seen = masks_of(free), tuple(free.health)
        known = self._found.get(seen)
        if known is None:
            if len(self._found) >= MOST_STATES:
                self._found.clear()
            known = self._found[seen] = {}
        if request not in known:
            known[request] = find(request, self.topology, free)
        return known[request]

    # -- what was refused ----------------------------------------------------------------------------------------

    def refused(self, masks: tuple[int, ...]) -> set[int]:
        """The shapes that are known not to fit where no more than these bits are free."""
        found: set[int] = set()
        for had, shapes in self._refused:
            if had == masks or all(now & ~then == 0 for now, then in zip(masks, had, strict=True)):
                found |= shapes
        return found

    def remember(self, views: Iterable[tuple[tuple[int, ...], set[int]]]) -> None:
        self._refused = [(masks, frozenset(shapes)) for masks, shapes in views if shapes][:MOST_VIEWS]

    def text(self, seen: object, shape: int) -> str | None:
        """The reason that was given for a shape when just this was free, for these reasons."""
        return self._texts.get(seen, {}).get(shape)

    def keep_text(self, seen: object, shape: int, text: str) -> None:
        if seen not in self._texts and len(self._texts) >= MOST_VIEWS:
            self._texts.clear()
        self._texts.setdefault(seen, {})[shape] = text


def masks_of(free: Free) -> tuple[int, ...]:
    """What can be given of each node."""
    return tuple(unheld & usable for unheld, usable in zip(free.unheld, free.usable, strict=True))


_NONE: Mapping[str, str] = {}
