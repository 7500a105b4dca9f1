"""Which waiting runs start now, which give way, what is kept for whom: a snapshot in, a Plan out; nothing is done here.

The runs are looked at in the order of the queue (order.py). One that fits starts. For one of the first that do not, a place is
kept (reservation.py), which others may use only if they are gone in time (room.py), or cleared (preemption.py).
docs/scheduling.md says what is guaranteed, and how that is tested.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from orchestrator.placement.gang import Part
from orchestrator.placement.reasons import why_not
from orchestrator.placement.values import Placement, Request
from orchestrator.scheduling import choice
from orchestrator.scheduling.ask import Ask
from orchestrator.scheduling.decision import Choice, Kind, Plan, Preemption, Reason, Reservation, Start, Sure, Wait
from orchestrator.scheduling.estimates import Bound, stay_of
from orchestrator.scheduling.fairness import Account
from orchestrator.scheduling.memory import Memory
from orchestrator.scheduling.order import Order, Usage
from orchestrator.scheduling.quota import Claim, Claims, Excess, Held, account_of
from orchestrator.scheduling.reservation import Future
from orchestrator.scheduling.room import Room, View
from orchestrator.scheduling.service import passes_in
from orchestrator.scheduling.snapshot import Block, Snapshot
from orchestrator.scheduling.timeline import Opening
from orchestrator.scheduling.unfit import left_out

_WORDS = {"nvlink": "NVLink island"}
MOST_STARTS = 256
"""A plan stops after so many and asks to be called again: what starts should not wait for what is still being decided."""


def plan(snapshot: Snapshot, now: datetime, memory: Memory | None = None) -> Plan:
    """What to do now. The same snapshot and time give the same plan, with or without `memory` (the last plan's)."""
    return Cycle(snapshot, now, memory).run()


@dataclass(frozen=True)
class _Fit:
    """A place for a run, and a better one later where there is one in sight."""

    parts: tuple[Part, ...]
    placement: Placement
    view: View
    weighed: tuple[Choice, Opening] | None


class Cycle:
    """One decision, while it is made. `places`: how many are kept, instead of what the policy says."""

    def __init__(self, snapshot: Snapshot, now: datetime, memory: Memory | None, *, places: int | None = None) -> None:
        if memory is None or not memory.serves(snapshot):
            memory = Memory(snapshot.free.topology, snapshot.policy)
        self.snapshot, self.now, self.memory = snapshot, now, memory
        self.asks = memory.asks(snapshot)
        self.held = Held(snapshot.policy, snapshot.running)
        self.room = Room(snapshot.free, memory)
        self.future = Future(snapshot, now, memory, self.room)
        self.choices: dict[int, Choice] = {}
        """By run: what was weighed for it."""
        usage = Usage(snapshot, now)
        self.order = Order(self.asks, snapshot.policy, usage, self.held, now, self._able)
        self._claims = Claims(self.held)
        self.starts: list[Start] = []
        self.waits: list[Wait] = []
        self.preemptions: list[Preemption] = []
        self.reservations: list[Reservation] = []
        self._places_left = snapshot.policy.reservations if places is None else places
        self._more_places = max(0, self._places_left - snapshot.policy.reservations)
        """Places that are kept beyond what the policy says, to see further: nobody is preempted for those."""
        self._over: dict[tuple[Account, int], Reason] = {}
        self._later: list[float] = []
        self._views: dict[object, tuple[Bound, View]] = {}
        self.capacity = snapshot.free.topology.empty.room[0] if snapshot.free.topology.nodes else 0

    def run(self) -> Plan:
        """The plan."""
        self.run_to(None)
        self.room.remember()
        return Plan(
            tuple(self.starts),
            tuple(self.waits),
            tuple(self.preemptions),
            tuple(self.reservations),
            self._look_again(),
            self.memory,
        )

    def run_to(self, run: int | None) -> Ask | None:
        """Decides on all that are before a run in the queue, and answers its ask; None where it is not there."""
        full: Reason | None = None
        for ask in self.order:
            if ask.id == run:
                return ask
            reason = full or self.consider(ask)
            if reason is not None:
                self.waits.append(Wait(ask.run, reason))
            else:
                self.order.started(ask)
                if len(self.starts) == MOST_STARTS:
                    full = Reason(Kind.AGE, f"{MOST_STARTS} runs before it start now; its turn comes next")
                    self._later.append(0.0)
        return None

    def _look_again(self) -> float | None:
        if not self.waits:
            return None
        overdue = self.now.timestamp() - self.snapshot.policy.overdue
        turns = (ask.queued - overdue for ask in self.asks if ask.queued > overdue)
        reserved = ((r.start - self.now).total_seconds() for r in self.reservations if r.start is not None)
        served = passes_in(self.snapshot.running, self.snapshot.policy, self.now)
        ahead = (min(turns, default=None), served, *(seconds for seconds in reserved if seconds > 0), *self._later)
        soonest = min((seconds for seconds in ahead if seconds is not None), default=None)
        # Not so soon that a clock which counts microseconds has not moved by then.
        return None if soonest is None else max(soonest, 0.01) if soonest else 0.0

    def _able(self, ask: Ask) -> bool:
        """Whether nothing but room keeps the run waiting."""
        if ask.id in self.snapshot.blocked or self.held.excess(ask.account, ask.gpus) is not None:
            return False
        return self.memory.never(ask.shape) is None

    # -- one run -------------------------------------------------------------------------------------------------

    def consider(self, ask: Ask) -> Reason | None:
        """Starts the run, or says why it waits."""
        if self.snapshot.blocked and (block := self.snapshot.blocked.get(ask.id)) is not None:
            return self._blocked(ask, block)
        # Many wait for the same limit, and each would be told the same.
        key = ask.account, ask.gpus
        if (known := self._over.get(key)) is not None:
            return known
        excess = self.held.excess(ask.account, ask.gpus)
        if excess is not None:
            reason = self._over[key] = self._over_quota(ask, excess)
            return reason
        found = self._fit(ask)
        if isinstance(found, Reason):
            return found
        if isinstance(found, View):
            return self._no_place(ask, found)
        if found.weighed is not None and found.weighed[0].waits:
            return self._wait_for_better(ask, *found.weighed)
        self._start(ask, found)
        return None

    def would_start(self, ask: Ask) -> Placement | None:
        """Where the run would start if it were its turn; nothing is decided."""
        if ask.id in self.snapshot.blocked or self.held.excess(ask.account, ask.gpus) is not None:
            return None
        found = self._fit(ask)
        if not isinstance(found, _Fit) or (found.weighed is not None and found.weighed[0].waits):
            return None
        return found.placement

    def _fit(self, ask: Ask) -> _Fit | Reason | View:
        """A place for it, the reason why it takes none, or the view in which there is none."""
        stay, view = self.view(ask)
        claim = self._claims.against(ask.account, ask.gpus, stay)
        if claim is not None:
            return Reason(Kind.QUOTA, f"run {claim.run.id} ({claim.run.name}) is before it for what its quota leaves")
        left = ask.patience - (self.now.timestamp() - ask.queued) if ask.patient is not None else 0.0
        if self._places_left <= 0 and left <= 0 and (known := view.reasons.get(ask.shape)) is not None:
            return known
        if ask.patient is not None and left > 0:
            parts = self.room.find(ask.patient, ask.patient_shape, view)
            if parts is None and self.memory.never(ask.shape) is None:
                self._later.append(left)
                text = self._refusal(ask.patient, ask.patient_shape, view)
                return Reason(Kind.HINT, f"{text}; waits {left:.0f} s more for it", {"patience_s": left})
        else:
            parts = self.room.find(ask.request, ask.shape, view)
        if parts is None:
            return view
        placement = self.memory.placement(parts)
        return _Fit(parts, placement, view, self._weigh(ask, placement))

    def view(self, ask: Ask) -> tuple[Bound, View]:
        """How long it would stay, and what it may take then."""
        key = (ask.run.user, ask.run.name) if ask.limit is None else ask.limit
        found = self._views.get(key)
        if found is None:
            stay = stay_of(ask, self.snapshot)
            found = self._views[key] = (stay, self.room.view(stay))
        return found

    def _start(self, ask: Ask, fit: _Fit) -> None:
        self._over.clear()
        used = self.room.used(fit.parts, fit.view)
        before, weighed = None if used is None else used.run, None if fit.weighed is None else fit.weighed[0]
        self.starts.append(Start(ask.run, fit.placement, before, weighed))
        self.room.start(fit.parts)
        self.future.started(ask, fit.parts, stay_of(ask, self.snapshot))

    def _blocked(self, ask: Ask, block: Block) -> Reason:
        if block.until is not None:
            self._later.append(max(0.01, (block.until - self.now).total_seconds()))
        if block.kind == "lease" and block.until is not None and ask.recovering:
            # What is well of its old place is kept for it: a gang that lost one node does not lose the others too.
            opening = self.future.first(ask, not_before=max(0.0, (block.until - self.now).total_seconds()))
            if opening is not None:
                self._keep(ask, opening)
        return Reason(Kind(block.kind), block.text)

    def _over_quota(self, ask: Ask, excess: Excess) -> Reason:
        if excess.never:
            return Reason(Kind.NEVER, excess.text)
        numbers = {"held": excess.held, "limit": excess.limit, "asked": excess.gpus}
        if self._claims.taken(ask.account, excess.owner):
            return Reason(Kind.QUOTA, excess.text, numbers)
        mine = [
            run
            for run in (*self.snapshot.running, *(start.run for start in self.starts))
            if (account := account_of(run, self.snapshot.policy)) == ask.account
            or (excess.owner == "team" and account[0] == ask.account[0])
        ]
        free = self.future.quota_free(mine, excess.held + excess.gpus - excess.limit)
        self._claims.add(ask.account, Claim(ask.run, ask.gpus, free, self.future.overdue(ask)), excess.owner)
        return Reason(Kind.QUOTA, excess.text, numbers)

    def _no_place(self, ask: Ask, view: View) -> Reason:
        if (never := self.memory.never(ask.shape)) is not None:
            return Reason(Kind.UNFIT if ask.unfit else Kind.NEVER, _without(never, ask))
        reason = self._why_no_place(ask, view)
        if self._places_left <= 0:
            return reason
        opening = self.future.first(ask)
        cleared = None
        if self._places_left > self._more_places:
            cleared, later = self.future.clear(ask, self.order.entitled(ask), opening)
            if later is not None:
                self._later.append(later)
        if cleared is not None:
            self.preemptions.extend(Preemption(v.run, ask.run, v.lost_gpu_s, v.by_quota) for v in cleared.victims)
            wait = max(victim.gone_in for victim in cleared.victims)
            opening = Opening(cleared.parts, Bound(wait, sure=True), tuple(v.run.id for v in cleared.victims))
        if opening is None or not self._may_keep(opening):
            return reason
        self._places_left -= 1
        self._keep(ask, opening)
        told = {preemption.run.id for preemption in self.preemptions} | self.snapshot.ending.keys()
        if stopped := sorted(set(opening.waits_for) & told):
            runs = "run" if len(stopped) == 1 else "runs"
            be = "is" if len(stopped) == 1 else "are"
            text = f"{runs} {', '.join(map(str, stopped))} {be} being stopped to make its place"
            return Reason(Kind.PREEMPTING, text, {"wait_s": opening.bound.seconds or 0.0})
        return reason

    def _may_keep(self, opening: Opening) -> bool:
        """Of places of which nobody can say when they are free, only the first is kept: each more would leave GPUs idle."""
        return opening.bound.seconds is not None or all(kept.start is not None for kept in self.reservations)

    def _keep(self, ask: Ask, opening: Opening) -> None:
        self._views.clear()
        stay = stay_of(ask, self.snapshot)
        self.future.keep(ask, opening, stay)
        self._claims.add(ask.account, Claim(ask.run, ask.gpus, opening.bound, self.future.overdue(ask)))
        end = opening.bound
        start = None if end.seconds is None else self.now + timedelta(seconds=end.seconds)
        sure = Sure.UNKNOWN if start is None else Sure.PROMISED if end.sure else Sure.EXPECTED
        placement = self.memory.placement(opening.parts)
        holders = tuple(run for run in opening.waits_for if run > 0)
        self.reservations.append(Reservation(ask.run, placement, start, sure, holders))

    # -- a tighter place later -----------------------------------------------------------------------------------

    def _weigh(self, ask: Ask, placement: Placement) -> tuple[Choice, Opening] | None:
        if ask.gpus == 1 or placement.busbw_predicted is None:
            return None
        found = choice.weigh(
            ask,
            placement,
            self.future.timeline,
            self.snapshot,
            self.memory,
            waiting=len(self.asks) - len(self.starts) - 1,
            capacity=self.capacity,
            overdue=self.future.overdue(ask),
        )
        if found is not None:
            self.choices[ask.id] = found[0]
        return found

    def _wait_for_better(self, ask: Ask, chosen: Choice, opening: Opening) -> Reason:
        if self._places_left > 0 and self._may_keep(opening):
            self._places_left -= 1
            self._keep(ask, opening)
        elif chosen.wait_s is not None:
            # One that opens at this very moment: 0 would mean that this plan is not done.
            self._later.append(max(0.01, chosen.wait_s))
        tighter, level = (_WORDS.get(name, name) for name in (chosen.tighter, chosen.level))
        here = f"at the place that is free now, over one {level}"
        if chosen.wait_s is None or chosen.done_waiting_s is None:
            text = f"waits for a place within one {tighter}: steps take {chosen.slowdown:.2g} times as long {here}"
            return Reason(Kind.CHOICE, text, {"done_now_s": chosen.done_now_s, "slowdown": chosen.slowdown})
        text = (
            f"would be done in {span(chosen.done_waiting_s)} if it waits {span(chosen.wait_s)} for a place within one "
            f"{tighter}, in {span(chosen.done_now_s)} {here}"
        )
        numbers = {"done_waiting_s": chosen.done_waiting_s, "done_now_s": chosen.done_now_s, "wait_s": chosen.wait_s}
        return Reason(Kind.CHOICE, text, numbers)

    # -- in words ------------------------------------------------------------------------------------------------

    def _why_no_place(self, ask: Ask, view: View) -> Reason:
        reason = view.reasons.get(ask.shape)
        if reason is None:
            reason = view.reasons[ask.shape] = self._find_why(ask, view)
        return reason

    def _find_why(self, ask: Ask, view: View) -> Reason:
        base = self.room.base
        if view is not base and self.room.find(ask.request, ask.shape, base) is not None:
            kept = self.room.kept[max(view.without)]
            holder = next(r for r in self.reservations if r.run.id == kept.run)
            when = "as soon as it can" if kept.start.seconds is None else f"within {span(kept.start.seconds)}"
            text = f"what is free is kept for run {kept.run} ({holder.run.name}), which starts {when}"
            return Reason(Kind.RESERVED, text, {"run": kept.run})
        kind = Kind.UNFIT if ask.unfit and self._fits_without(ask) else Kind.SHAPE
        return Reason(kind, _without(self._refusal(ask.request, ask.shape, base), ask))

    def _fits_without(self, ask: Ask) -> bool:
        """Whether it would fit on the nodes that are left out because of what it requires."""
        wide = replace(ask.request, exclude=frozenset(), prefer=frozenset())
        return self.room.find(wide, self.memory.shape(wide), self.room.base) is not None

    def refusal(self, ask: Ask) -> str:
        """Why there is no place for it in what is free, with numbers."""
        return self._refusal(ask.request, ask.shape, self.room.base)

    def _refusal(self, request: Request, shape: int, view: View) -> str:
        """Why there is no place, with numbers; remembered for as long as nothing changes."""
        text = None if view.touched else self.memory.text((view.begin, view.notes), shape)
        if text is None:
            text = why_not(request, self.memory.topology, view.free, never=False).reason
            if not view.touched:
                self.memory.keep_text((view.begin, view.notes), shape, text)
        return text


def _without(text: str, ask: Ask) -> str:
    """The refusal with the nodes that were not counted, and why."""
    return f"{text}; {left_out(ask.unfit)}" if ask.unfit else text


def span(seconds: float) -> str:
    """A length of time for a sentence: `40 s`, `25 min`, `3.5 h`, `2.1 d`."""
    for size, unit in ((86400.0, "d"), (3600.0, "h")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
