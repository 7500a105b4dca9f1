"""What one change would start a waiting run now; every change is tried with the scheduler itself before it is told.

A change that leaves the run where it is in the queue is tried on the decision as it stands when the run's turn comes. One that may
move it, or that frees GPUs which others before it may take, is tried by deciding anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from orchestrator.placement.bandwidth import short_model
from orchestrator.placement.explain import hint_levels
from orchestrator.placement.search import find
from orchestrator.placement.tree import CLUSTER, Free
from orchestrator.placement.values import Placement
from orchestrator.placement.wishes import matches
from orchestrator.scheduling.ask import START_S, STOP_S, Ask, device_of
from orchestrator.scheduling.decision import Kind
from orchestrator.scheduling.fairness import Use
from orchestrator.scheduling.plan import Cycle
from orchestrator.scheduling.quota import account_of
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.timeline import Counting, give
from orchestrator.spec_values import Near, Workers
from orchestrator.units import format_bandwidth, format_duration, parse_duration

MOST_ENDS = 2
"""So many runs are named whose end would start it."""
MOST_TRIED = 8
"""So often everything is decided anew for one answer, at most."""
MOST_LOOKED_AT = 12
FIRST = 6
"""So many of the runs before it are asked whether they would take what is freed."""
HIGHEST = 1000


@dataclass(frozen=True)
class Suggestion:
    """One change that starts the run in the next cycle."""

    text: str
    """`with workers: 1x8 it starts now, within one node (370 GB/s)`"""
    placement: Placement
    """Where it would start."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Keys of its job file with new values, as a job file would give them: `{"workers": "1x8"}`."""
    ends: int | None = None
    """The running run whose end (or cancel) would start it; then nothing is changed."""


def suggest(cycle: Cycle, ask: Ask) -> tuple[Suggestion, ...]:
    """The suggestions for a run whose turn it is in `cycle`, which is left as it was."""
    return tuple(_Trials(cycle, ask).all())


def changed(run: Run, changes: Mapping[str, Any]) -> Run:
    """The run with some keys of its job file changed."""
    updates: dict[str, Any] = {}
    for key, value in changes.items():
        match key:
            case "workers":
                updates[key] = Workers.model_validate(value)
            case "near":
                updates[key] = None if value is None else Near.model_validate(value)
            case "gpu":
                updates[key] = (value,) if isinstance(value, str) else tuple(value)
            case "time_limit":
                updates[key] = parse_duration(value)
            case _:
                updates[key] = value
    return replace(run, spec=run.spec.model_copy(update=updates))


def without(snapshot: Snapshot, run_id: int, now: datetime) -> Snapshot:
    """The snapshot after a running run has ended."""
    (over,) = (run for run in snapshot.running if run.id == run_id)
    free, attempt = snapshot.free.copy(), over.attempt
    assert attempt is not None
    for part in attempt.placement.nodes:
        free.give(part.node, part.gpus)
    account = account_of(over, snapshot.policy)
    use = Use(account, over.spec.workers.total, attempt.started_at, now)
    return replace(
        snapshot,
        free=free,
        running=tuple(run for run in snapshot.running if run.id != run_id),
        usage=snapshot.usage.charged([use], snapshot.policy.half_life, now),
    )


class _Trials:
    def __init__(self, cycle: Cycle, ask: Ask) -> None:
        self._cycle, self._ask, self._spec = cycle, ask, ask.run.spec
        self._tries_left = max(1 if len(cycle.waits) > 4000 else 2, MOST_TRIED - len(cycle.asks) // 1000)
        """How often everything may be decided anew, which takes longer the more there wait."""

    def all(self) -> Iterator[Suggestion]:
        if self._ask.id in self._cycle.snapshot.blocked:
            return
        for kind in (self._fewer_workers, self._looser, self._other_gpus, self._shorter, self._other_priority):
            found = next((one for one in kind() if one is not None), None)
            if found is not None:
                yield found
        yield from self._ends()

    # -- trying --------------------------------------------------------------------------------------------------

    def _with(self, **changes: Any) -> Placement | None:
        """Where it would start with these changes, tried where it stands in the queue."""
        cycle = self._cycle
        return cycle.would_start(cycle.memory.ask(changed(self._ask.run, changes), self._ask.unfit))

    def _moved(self, **changes: Any) -> Placement | None:
        """Where it would start with these changes, decided anew: they may give it another turn."""
        snapshot, run = self._cycle.snapshot, changed(self._ask.run, changes)
        waiting = tuple(run if one.id == run.id else one for one in snapshot.waiting)
        return self._anew(replace(snapshot, waiting=waiting))

    def _anew(self, snapshot: Snapshot) -> Placement | None:
        """Where it would start if everything were decided anew."""
        if self._tries_left == 0:
            return None
        self._tries_left -= 1
        cycle = Cycle(snapshot, self._cycle.now, self._cycle.memory)
        ask = cycle.run_to(self._ask.id)
        return None if ask is None else cycle.would_start(ask)

    def _suggestion(self, what: str, found: Placement, **changes: Any) -> Suggestion | None:
        """The suggestion, where it holds: a run that becomes small enough for its guaranteed part comes earlier."""
        placement: Placement | None = found
        if "workers" in changes and self._cycle.snapshot.policy.guarantees:
            smaller = self._cycle.memory.ask(changed(self._ask.run, changes), self._ask.unfit)
            if self._cycle.order.entitled(smaller) != self._cycle.order.entitled(self._ask):
                placement = self._moved(**changes)
        if placement is None:
            return None
        return Suggestion(f"with {what} it starts now, {where(placement)}", placement, changes)

    # -- changes of the job --------------------------------------------------------------------------------------

    def _fewer_workers(self) -> Iterator[Suggestion | None]:
        workers = self._spec.workers
        nodes, each = workers.nodes, workers.per_node
        forms: list[tuple[int, str]] = [(workers.total, "{}")]
        if nodes is not None and each is not None:
            forms = [(nodes, f"{{}}x{each}"), (each, f"{nodes}x{{}}")]
        for most, form in forms:
            number, placement = self._most(most - 1, form)
            if placement is not None:
                text = form.format(number)
                yield self._suggestion(f"workers: {text}", placement, workers=int(text) if text.isdigit() else text)

    def _most(self, most: int, form: str) -> tuple[int, Placement | None]:
        """The largest number that fits, found by halving: what fits with more fits with less."""
        low, high = 1, most
        best: tuple[int, Placement | None] = (0, None)
        while low <= high:
            middle = (low + high) // 2
            placement = self._with(workers=form.format(middle))
            if placement is None:
                high = middle - 1
            else:
                best, low = (middle, placement), middle + 1
        return best

    def _looser(self) -> Iterator[Suggestion | None]:
        near = self._spec.near
        if near is None:
            forms = ["any"]
        else:
            levels = hint_levels(self._cycle.memory.topology)
            wider = levels[levels.index(near.level) + 1 :] if near.level in levels else ()
            forms = [f"{level}!" for level in wider if level != CLUSTER] if near.required else []
            forms.append(near.level)
        for form in forms:
            if form != str(near) and (placement := self._with(near=form)) is not None:
                yield self._suggestion(f"near: {form}", placement, near=form)

    def _other_gpus(self) -> Iterator[Suggestion | None]:
        kinds = [kind for kind in self._cycle.memory.topology.kinds if kind.device == "cuda"]
        names = list(dict.fromkeys(short_model(kind.shape) for kind in kinds if kind.models != (None,)))
        wanted = self._spec.gpu
        new = [name for name in names if wanted and not any(matches(w, m) for w in wanted for m in _named(name, kinds))]
        others: list[str | tuple[str, ...]] = [*new]
        if len(wanted) == 1:
            others += [(*wanted, name) for name in new]
        elif not wanted and len(names) > 1:
            others.append(tuple(names))
        for other in others:
            if (placement := self._with(gpu=other)) is not None:
                said = other if isinstance(other, str) else f"[{', '.join(other)}]"
                yield self._suggestion(f"gpu: {said}", placement, gpu=other)

    def _shorter(self) -> Iterator[Suggestion | None]:
        """A time limit with which it is gone before a kept place is needed."""
        starts = {kept.start.seconds for kept in self._cycle.room.kept if kept.start.seconds is not None}
        for seconds in sorted(starts, reverse=True):
            limit = int((seconds - START_S - STOP_S - self._spec.grace) // 60) * 60.0
            if limit >= 60 and (self._spec.time_limit is None or limit < self._spec.time_limit):
                placement = self._with(time_limit=format_duration(limit))
                if placement is not None:
                    text = format_duration(limit)
                    yield self._suggestion(f"time_limit: {text}", placement, time_limit=text)

    def _other_priority(self) -> Iterator[Suggestion | None]:
        ahead = [wait.run.spec.priority for wait in self._cycle.waits]
        above = max(ahead, default=self._spec.priority) + 1
        base = self._cycle.room.base.free
        if (
            ahead
            and self._spec.priority < above <= HIGHEST
            and find(self._ask.request, base.topology, base) is not None
        ):
            placement = self._moved(priority=above)
            if placement is not None:
                yield self._suggestion(f"priority: {above}", placement, priority=above)

    # -- ends of others ------------------------------------------------------------------------------------------

    def _ends(self) -> Iterator[Suggestion]:
        found = 0
        for run in self._whose_end_may_do():
            placement = self._anew(without(self._cycle.snapshot, run.id, self._cycle.now))
            if placement is not None:
                found += 1
                unit = "GPUs" if device_of(run.spec, self._cycle.memory.topology) == "cuda" else "CPU slots"
                what = f"run {run.id} ({run.name} of {run.user}, {run.spec.workers} {unit})"
                yield Suggestion(f"when {what} ends, it starts, {where(placement)}", placement, ends=run.id)
            if found == MOST_ENDS or self._tries_left == 0:
                return

    def _whose_end_may_do(self) -> Iterator[Run]:
        """Running runs, the smallest first, that hold enough of what the run lacks."""
        cycle, ask = self._cycle, self._ask
        if cycle.memory.never(ask.shape) is not None:
            return
        view, kept = cycle.view(ask)[1].free, cycle.room.all_kept()
        counting = Counting(ask.request, cycle.memory.topology, view)
        over_limit = cycle.held.excess(ask.account, ask.gpus) is not None
        looked_at = 0
        for run in sorted(cycle.snapshot.running, key=lambda run: (run.spec.workers.total, run.id)):
            if run.id in cycle.snapshot.ending or looked_at == MOST_LOOKED_AT:
                continue
            if over_limit and account_of(run, cycle.snapshot.policy)[0] != ask.account[0]:
                continue
            parts = cycle.memory.parts(run)
            if not over_limit and not counting.would_do(parts):
                continue
            looked_at += 1
            after = view.copy()
            give(after, parts, kept)
            if find(ask.request, cycle.memory.topology, after) is not None and not self._taken_before(after):
                yield run

    def _taken_before(self, free: Free) -> bool:
        """Whether one of the first runs before it would take what is free then: a glance, to try what is worth it."""
        memory = self._cycle.memory
        held_up = (wait.run for wait in self._cycle.waits if wait.reason.kind in (Kind.SHAPE, Kind.RESERVED))
        asks = [memory.ask(run, {}) for run in itertools.islice(held_up, FIRST)]
        shapes = {ask.shape: ask.request for ask in asks}
        return any(find(request, free.topology, free) is not None for request in shapes.values())


def _named(name: str, kinds: Iterable[Any]) -> list[str | None]:
    """The models that a short name stands for."""
    return [model for kind in kinds if short_model(kind.shape) == name for model in kind.models]


def where(placement: Placement) -> str:
    """A place in words: `within one leaf (231 GB/s)`."""
    level = "NVLink domain" if placement.level == "nvlink" else placement.level
    inside = f"on {placement.nodes[0].node}" if len(placement.nodes) == 1 else f"within one {level}"
    if placement.level == CLUSTER:
        inside = f"on {len(placement.nodes)} nodes of the cluster"
    return inside if placement.busbw_predicted is None else f"{inside} ({format_bandwidth(placement.busbw_predicted)})"
