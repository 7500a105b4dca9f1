"""Which waiting runs start now: a snapshot in, a Plan out; nothing is done here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.placement.search import place
from orchestrator.placement.tree import Free, Topology
from orchestrator.placement.values import Device, Placement, Rejection, Request
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.unfit import left_out
from orchestrator.spec import JobSpec


@dataclass(frozen=True)
class Snapshot:
    """What the decision is made from."""

    waiting: tuple[Run, ...]
    """Longest-waiting of the highest priority first."""
    free: Free
    """What nobody holds; not changed."""
    blocked: Mapping[int, str] = field(default_factory=dict)
    """Runs that may not start yet, and why: an earlier attempt's lease has not run out."""
    unfit: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """By run: the nodes that it must not get, and why: what its `requires:` asks for is not there, or not known yet."""


@dataclass(frozen=True)
class Plan:
    """Who starts where, and why the others wait."""

    starts: tuple[tuple[Run, Placement], ...] = ()
    waits: tuple[tuple[Run, str], ...] = ()
    look_again_s: float | None = None
    """When the first patience for a tight place runs out, in seconds from now; None where nobody waits for one."""


def device_of(spec: JobSpec, topology: Topology) -> Device:
    """What `device: auto` means on this cluster: cuda where any node has it."""
    if spec.device != "auto":
        return spec.device
    return "cuda" if any(kind.device == "cuda" for kind in topology.kinds) else "cpu"


def request_of(
    spec: JobSpec, topology: Topology, *, patient: bool = False, prefer: Iterable[str] = (), unfit: Iterable[str] = ()
) -> Request:
    """What placement is asked for. `patient`: the run still waits for the level that it wishes for."""
    near = spec.near
    return Request(
        spec.workers,
        device_of(spec, topology),
        near=None if near is None else near.level,
        required=near is not None and near.required,
        relax=not patient,
        gpu=spec.gpu,
        exclude=frozenset(unfit),
        only=frozenset(spec.only),
        prefer=frozenset(prefer),
    )


def patience_left(run: Run, now: datetime) -> float:
    """Seconds that the run still waits for its level; 0 where it takes what there is."""
    near = run.spec.near
    if near is None or near.patience is None:
        return 0.0
    return max(0.0, near.patience - (now - run.queued_at).total_seconds())


def plan(snapshot: Snapshot, now: datetime) -> Plan:
    """In order of priority and age; a run that does not fit holds back the ones behind it.

    Strictly in order: the run at the head can always say when it starts, and no stream of small runs keeps a gang waiting.
    A run that only waits for a tighter place than there is holds nobody back: it could start, and chose to wait.
    """
    free = snapshot.free.copy()
    starts: list[tuple[Run, Placement]] = []
    waits: list[tuple[Run, str]] = []
    ahead: Run | None = None
    patience = []
    for run in snapshot.waiting:
        if run.id in snapshot.blocked:
            waits.append((run, snapshot.blocked[run.id]))
            continue
        if ahead is not None:
            waits.append((run, f"behind run {ahead.id} ({ahead.name}), which waits for its place"))
            continue
        left = patience_left(run, now)
        had = {part.node for part in run.attempt.placement.nodes} if run.attempt else ()
        unfit = snapshot.unfit.get(run.id, {})
        request = request_of(run.spec, free.topology, patient=left > 0, prefer=had, unfit=unfit)
        answer = place(request, free.topology, free)
        if isinstance(answer, Rejection):
            out = f"; {left_out(unfit)}" if unfit else ""
            waits.append((run, answer.reason + out + (f"; waits {left:.0f} s more for it" if left else "")))
            patience.append(left)
            # A run that no longer fits the cluster at all, or what is fit of it, does not hold the others back.
            never = answer.never or (
                bool(unfit) and isinstance(place(request, free.topology, free.topology.empty), Rejection)
            )
            ahead = None if never or left else run
            continue
        starts.append((run, answer))
        for part in answer.nodes:
            free.take(part.node, part.gpus)
    return Plan(tuple(starts), tuple(waits), min((left for left in patience if left), default=None))
