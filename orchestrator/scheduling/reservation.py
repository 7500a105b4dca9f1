"""Which place is kept for a run that does not fit yet, and from when it is there: by waiting for ends, or by making some.

Of the ends that can be waited for, those that are enforced come first: a promise, once given, is then never taken back for a
better hope. Each decision works the place out anew, and finds one at least as early: whatever was let in meanwhile is gone by
then. Where no promise can be given, what runs of the same names took decides; and for a run that is overdue not even that, but
the age of what it waits for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from functools import cached_property

from orchestrator.placement.gang import Part
from orchestrator.scheduling.ask import Ask
from orchestrator.scheduling.estimates import UNKNOWN, Bound, bound_of_running
from orchestrator.scheduling.memory import Memory
from orchestrator.scheduling.preemption import Clearing, candidates, clearing
from orchestrator.scheduling.quota import protected
from orchestrator.scheduling.room import Kept, Room
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.service import standing
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.timeline import Holding, Opening, Timeline, in_order

NOBODY = 0
"""The id of a run that there is not."""
SOON_S = 60.0
"""Nobody is preempted for a run whose place is promised within so many seconds."""


class Future:
    """What will become free, as far as this decision has settled it."""

    def __init__(self, snapshot: Snapshot, now: datetime, memory: Memory, room: Room) -> None:
        self._snapshot, self._now, self._memory, self._room = snapshot, now, memory, room
        self._timelines: dict[str, Timeline] = {}
        """By what is trusted; until anything starts, is kept or is told to give way."""
        self._settled: dict[int, Holding] = {}
        """What this decision has changed of what is held."""
        self._told: set[int] = set()
        """The runs that this decision tells to give way."""

    # -- waiting for ends ----------------------------------------------------------------------------------------

    def first(self, ask: Ask, *, not_before: float = 0.0) -> Opening | None:
        """Where and when there is a place for it that can be kept; None where no end of what runs makes one."""
        for trust in ("sure",) + (("age",) if self.overdue(ask) else ("all",)):
            opening = self.timeline(trust).first(ask.request, not_before=not_before)
            if opening is not None:
                return opening
        return None

    def overdue(self, ask: Ask) -> bool:
        return self._now.timestamp() - ask.queued >= self._snapshot.policy.overdue

    def timeline(self, trust: str = "all") -> Timeline:
        """The ends over what nobody has taken and nothing is kept of.

        `sure`: those that are enforced; `all`: those that are expected too, and those of which nothing is known; `age`: as
        `all`, but nothing is expected.
        """
        found = self._timelines.get(trust)
        if found is None:
            holdings = list(self._holdings.values())
            if trust == "sure":
                holdings = [one for one in holdings if one.bound.sure]
            elif trust == "age":
                holdings = [one if one.bound.sure else replace(one, bound=UNKNOWN) for one in holdings]
            found = Timeline(
                self._room.view(UNKNOWN).free, in_order(holdings), self._room.all_kept(), self._memory.find
            )
            self._timelines[trust] = found
        return found

    @property
    def _holdings(self) -> dict[int, Holding]:
        """By run: what it holds. A place that is kept has minus its run's id."""
        return {**self._held, **self._settled}

    @cached_property
    def _held(self) -> dict[int, Holding]:
        """What is held before anything is decided."""
        snapshot, now, memory = self._snapshot, self._now, self._memory
        found = {}
        for run in snapshot.running:
            if (attempt := run.attempt) is not None:
                bound = bound_of_running(run, snapshot, now)
                found[run.id] = Holding(run.id, memory.parts(run), bound, attempt.started_at.timestamp())
        for run in snapshot.waiting if snapshot.blocked else ():
            block = snapshot.blocked.get(run.id)
            if block is not None and block.kind == "lease" and run.attempt is not None:
                left = Bound((block.until - now).total_seconds(), sure=True) if block.until is not None else UNKNOWN
                found[run.id] = Holding(run.id, memory.parts(run), left, run.attempt.started_at.timestamp())
        found[NOBODY] = Holding(NOBODY, self._unaccounted(found.values()), UNKNOWN, 0.0)
        return found

    def _unaccounted(self, holdings: Iterable[Holding]) -> tuple[Part, ...]:
        """What is held by nobody that is known: attempts that have ended and whose lease has not run out."""
        unheld = self._snapshot.free.unheld
        left = {node.index: node.kind.full & ~unheld[node.index] for node in self._memory.topology.nodes}
        for one in holdings:
            for index, mask in one.parts:
                left[index] &= ~mask
        return tuple((index, mask) for index, mask in left.items() if mask)

    def started(self, ask: Ask, parts: tuple[Part, ...], stay: Bound) -> None:
        """A run that starts now holds its place from now on."""
        self._put(ask.id, Holding(ask.id, parts, stay, self._now.timestamp()))

    def keep(self, ask: Ask, opening: Opening, stay: Bound) -> Bound:
        """Keeps the place for its run, which goes on to hold it for as long as it stays."""
        self._room.keep(Kept(ask.id, opening.parts, opening.bound, self.overdue(ask)))
        self._timelines.clear()
        if opening.bound.seconds is not None and stay.seconds is not None:
            end = Bound(opening.bound.seconds + stay.seconds, opening.bound.sure and stay.sure)
            self._put(-ask.id, Holding(ask.id, opening.parts, end, self._now.timestamp(), kept=True))
        return opening.bound

    def _put(self, key: int, holding: Holding) -> None:
        self._settled[key] = holding
        self._timelines.clear()

    def quota_free(self, runs: Iterable[Run], over: int) -> Bound:
        """When so many GPUs of these runs have been given back."""
        holdings = self._holdings
        mine = in_order(holdings[run.id] for run in runs if run.id in holdings)
        sure, end = True, 0.0
        for one in mine:
            if over <= 0:
                break
            if one.bound.seconds is None:
                return UNKNOWN
            over -= sum(mask.bit_count() for _, mask in one.parts)
            sure, end = sure and one.bound.sure, max(end, one.bound.seconds)
        return Bound(end, sure) if over <= 0 else UNKNOWN

    # -- making ends ---------------------------------------------------------------------------------------------

    @cached_property
    def _guarded(self) -> dict[int, str]:
        return protected(self._snapshot.running, self._snapshot.policy)

    @cached_property
    def _standings(self) -> dict[int, float]:
        """By run that holds a place: what is compared as its priority."""
        snapshot = self._snapshot
        return {run.id: standing(run, snapshot.policy, self._now) for run in snapshot.running}

    @cached_property
    def _lowest(self) -> float:
        """Nobody gives way to a run that stands no higher than this, but by quota."""
        return min(self._standings.values(), default=math.inf)

    def clear(self, ask: Ask, entitled: bool, opening: Opening | None) -> tuple[Clearing | None, float | None]:
        """Whom to preempt for it, and in how many seconds there may be more to choose from."""
        end = opening.bound if opening is not None else UNKNOWN
        if end.sure and end.seconds is not None and end.seconds <= SOON_S:
            return None, None
        snapshot = self._snapshot
        if not entitled and ask.priority <= self._lowest:
            return None, None
        able, later = candidates(ask, entitled, self._guarded, self._standings, snapshot, self._memory, self._now)
        able = [one for one in able if one.run.id not in self._told]
        if not able:
            return None, later
        free, kept = self._room.view(UNKNOWN).free, self._room.all_kept()
        found = clearing(ask, able, free, kept, snapshot, self._memory)
        for victim in found.victims if found is not None else ():
            held = self._holdings[victim.run.id]
            self._told.add(victim.run.id)
            self._put(victim.run.id, replace(held, bound=Bound(victim.gone_in, sure=True)))
        return found, later
