"""Why a run waits, when it should start, and what would start it now; and what a new run would do to the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from orchestrator.placement.search import find
from orchestrator.placement.values import Placement
from orchestrator.scheduling.ask import Ask
from orchestrator.scheduling.decision import Choice, Kind, Plan, Reason, Sure
from orchestrator.scheduling.estimates import typical_duration
from orchestrator.scheduling.memory import Memory
from orchestrator.scheduling.plan import Cycle
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.suggestions import Suggestion, suggest
from orchestrator.scheduling.unfit import left_out

MOST_AHEAD = 10
"""So many of the runs before it are named."""
MOST_PLACES = 12
"""For so many runs before it, places are worked out to say when it starts; with more before it, work is counted."""

RANK = tuple(Kind)
"""From what can never be helped to what only needs time: the order of Kind."""


@dataclass(frozen=True)
class Explanation:
    """All that keeps a waiting run waiting."""

    run: Run
    starts: Placement | None
    """Where it starts in the next cycle; then there are no reasons."""
    reasons: tuple[Reason, ...]
    """The one that holds it back most first."""
    ahead: tuple[Run, ...]
    """The first of the waiting runs before it, in the order of the queue."""
    ahead_count: int
    start: datetime | None
    """When it should start: at the latest where `sure` is promised or expected, at the earliest where it is rough."""
    sure: Sure
    choice: Choice | None
    """A tighter place later against a looser one now, with both numbers, where that was weighed."""
    suggestions: tuple[Suggestion, ...]


@dataclass(frozen=True)
class Delay:
    """A waiting run that a new one would delay."""

    run: Run
    before: datetime | None
    """When it would start without the new one; None: nobody can say."""
    after: datetime | None
    seconds: float | None
    """By how much; None where one of the two times is not known."""


@dataclass(frozen=True)
class Preview:
    """What would become of a run if it were submitted now."""

    explanation: Explanation
    delays: tuple[Delay, ...]
    """Whom it would delay, the longest delay first; of the runs whose start can be said, and those that would start now."""
    preempted: tuple[Run, ...]
    """The runs that would be told to give way to it."""


def why(run_id: int, snapshot: Snapshot, now: datetime, memory: Memory | None = None) -> Explanation:
    """Why the run of `snapshot.waiting` waits. KeyError where it does not wait."""
    cycle = Cycle(snapshot, now, memory)
    ask = cycle.run_to(run_id)
    if ask is None:
        raise KeyError(run_id)
    before = tuple(wait.run for wait in cycle.waits)
    suggestions = () if cycle.would_start(ask) is not None else suggest(cycle, ask)
    extra = tuple(_more(cycle, ask))
    reason = cycle.consider(ask)
    chosen = cycle.choices.get(ask.id)
    if reason is None:
        placement = cycle.starts[-1].placement
        return Explanation(ask.run, placement, (), before[:MOST_AHEAD], len(before), now, Sure.PROMISED, chosen, ())
    reasons = {one.kind: one for one in (*extra, reason)}
    ranked = sorted(reasons.values(), key=lambda one: (one is not reason, RANK.index(one.kind)))
    start, sure = _start(cycle, ask, reason)
    return Explanation(ask.run, None, tuple(ranked), before[:MOST_AHEAD], len(before), start, sure, chosen, suggestions)


def preview(run: Run, snapshot: Snapshot, now: datetime, memory: Memory | None = None) -> Preview:
    """What would become of `run` (with an id that no other has, and queued_at now) if it were submitted."""
    added = replace(snapshot, waiting=(*snapshot.waiting, run))
    plain, changed = Cycle(snapshot, now, memory, places=MOST_PLACES), Cycle(added, now, memory, places=MOST_PLACES)
    before, after = plain.run(), changed.run()
    told = tuple(one.run for one in after.preemptions if one.beneficiary.id == run.id)
    return Preview(why(run.id, added, now, memory), tuple(_delays(before, after, run, now)), told)


def _delays(before: Plan, after: Plan, new: Run, now: datetime) -> list[Delay]:
    was = {start.run.id: now for start in before.starts}
    was |= {kept.run.id: kept.start for kept in before.reservations if kept.start is not None}
    will = {start.run.id: now for start in after.starts}
    will |= {kept.run.id: kept.start for kept in after.reservations if kept.start is not None}
    found = []
    for wait in after.waits:
        run = wait.run
        earlier, later = was.get(run.id), will.get(run.id)
        if run.id == new.id or earlier is None or later == earlier:
            continue
        seconds = None if later is None else (later - earlier).total_seconds()
        if seconds is None or seconds > 0:
            found.append(Delay(run, earlier, later, seconds))
    return sorted(found, key=lambda delay: (delay.seconds is not None, -(delay.seconds or 0.0), delay.run.id))


# -- when --------------------------------------------------------------------------------------------------------------


def _start(cycle: Cycle, ask: Ask, reason: Reason) -> tuple[datetime | None, Sure]:
    """When the run starts, and how sure that is."""
    for kept in cycle.reservations:
        if kept.run.id == ask.id:
            return kept.start, kept.sure
    if reason.kind in (Kind.NEVER, Kind.DEPENDENCY, Kind.ARRAY, Kind.HELD):
        return None, Sure.UNKNOWN
    if len(cycle.waits) <= MOST_PLACES:
        again = Cycle(cycle.snapshot, cycle.now, cycle.memory, places=MOST_PLACES + 1)
        again.run_to(ask.id)
        again.consider(ask)
        for kept in again.reservations:
            if kept.run.id == ask.id:
                return kept.start, kept.sure
    return _rough(cycle)


def _rough(cycle: Cycle) -> tuple[datetime, Sure]:
    """The work that is ahead, as if the cluster could do it without gaps."""
    snapshot, now = cycle.snapshot, cycle.now
    work = sum(wait.run.spec.workers.total * typical_duration(wait.run, snapshot) for wait in cycle.waits)
    for run in snapshot.running:
        if run.attempt is not None:
            done = (now - run.attempt.started_at).total_seconds()
            work += run.spec.workers.total * max(0.0, typical_duration(run, snapshot) - done)
    return now + timedelta(seconds=work / max(1, cycle.capacity)), Sure.ROUGH


# -- what else ---------------------------------------------------------------------------------------------------------


def _more(cycle: Cycle, ask: Ask) -> Iterator[Reason]:
    """What else keeps the run waiting, besides the reason that the scheduler came upon first."""
    topology, base = cycle.memory.topology, cycle.room.base.free
    excess = cycle.held.excess(ask.account, ask.gpus)
    if excess is not None:
        yield Reason(Kind.QUOTA, excess.text, {"held": excess.held, "limit": excess.limit, "asked": excess.gpus})
    near = ask.run.spec.near
    fits = find(ask.request, topology, base) is not None
    if not fits:
        yield Reason(Kind.SHAPE, cycle.refusal(ask))
        if near is not None and near.required:
            wide = replace(ask.request, near=None, required=False)
            if find(wide, topology, base) is not None:
                yield Reason(
                    Kind.HINT, f"there is a place now, but not within one {near.level}, as near: {near} demands"
                )
        if base.notes:
            well = base.copy()
            out = [topology.nodes[index].name for index in sorted(base.notes)]
            for name in out:
                well.set_usable(name, None)
            if find(ask.request, topology, well) is not None:
                notes = "; ".join(f"{topology.nodes[i].name}: {base.notes[i]}" for i in sorted(base.notes)[:3])
                more = f" and {len(out) - 3} more" if len(out) > 3 else ""
                yield Reason(
                    Kind.HEALTH, f"it would fit if all nodes could be used ({notes}{more})", {"nodes": len(out)}
                )
        if ask.unfit and find(replace(ask.request, exclude=frozenset()), topology, base) is not None:
            text = f"{len(ask.unfit)} nodes lack what it requires: {left_out(ask.unfit)}"
            yield Reason(Kind.UNFIT, text, {"nodes": len(ask.unfit)})
    elif cycle.room.kept and find(ask.request, topology, cycle.view(ask)[1].free) is None:
        held = ", ".join(f"run {kept.run.id} ({kept.run.name})" for kept in cycle.reservations[:3])
        yield Reason(Kind.RESERVED, f"places are kept for {held}", {"runs": len(cycle.reservations)})
    yield from _ahead(cycle, ask)


def _ahead(cycle: Cycle, ask: Ask) -> Iterator[Reason]:
    """Who is before it, by the rule that puts them there."""
    counts: Counter[Kind] = Counter()
    gpus: Counter[Kind] = Counter()
    for wait in cycle.waits:
        run = wait.run
        if run.spec.priority > ask.priority:
            kind = Kind.PRIORITY
        elif (run.queued_at.timestamp(), run.id) > ask.age:
            kind = Kind.SHARE
        else:
            kind = Kind.AGE
        counts[kind] += 1
        gpus[kind] += run.spec.workers.total
    says = {
        Kind.PRIORITY: "have higher priority",
        Kind.SHARE: f"are of users or teams who have had less than {ask.run.user}, or less than they are guaranteed",
        Kind.AGE: "have waited longer",
    }
    for kind, number in counts.items():
        text = f"{number} waiting run{'s' if number > 1 else ''} before it, of {gpus[kind]} GPUs, {says[kind]}"
        if number == 1:
            text = text.replace(" have ", " has ").replace(" are of ", " is of ", 1)
        yield Reason(kind, text, {"runs": number, "gpus": gpus[kind]})
