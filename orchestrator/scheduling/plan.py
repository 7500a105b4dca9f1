"""Which waiting runs start now: a snapshot in, a Plan out; nothing is done here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.placement import fewest
from orchestrator.placement.values import Device, NodeView, Placement, Rejection, Request
from orchestrator.scheduling.run import Run
from orchestrator.spec import JobSpec


@dataclass(frozen=True)
class Snapshot:
    """What the decision is made from."""

    waiting: tuple[Run, ...]
    """Longest-waiting of the highest priority first."""
    nodes: tuple[NodeView, ...]
    blocked: Mapping[int, str]
    """Runs that may not start yet, and why: an earlier attempt's lease has not run out."""


@dataclass(frozen=True)
class Plan:
    """Who starts where, and why the others wait."""

    starts: tuple[tuple[Run, Placement], ...] = ()
    waits: tuple[tuple[Run, str], ...] = ()


def device_of(spec: JobSpec, nodes: Iterable[NodeView]) -> Device:
    """What `device: auto` means on this cluster: cuda where any node has it."""
    if spec.device != "auto":
        return spec.device
    return "cuda" if any(node.device == "cuda" for node in nodes) else "cpu"


def plan(snapshot: Snapshot) -> Plan:
    """In order of priority and age; a run that does not fit holds back the ones behind it.

    Strictly in order: the run at the head can always say when it starts, and no stream of small runs keeps a gang waiting.
    """
    free = {node.name: node for node in snapshot.nodes}
    starts: list[tuple[Run, Placement]] = []
    waits: list[tuple[Run, str]] = []
    ahead: Run | None = None
    for run in snapshot.waiting:
        if run.id in snapshot.blocked:
            waits.append((run, snapshot.blocked[run.id]))
            continue
        if ahead is not None:
            waits.append((run, f"behind run {ahead.id} ({ahead.name}), which waits for its place"))
            continue
        answer = try_place(run.spec, tuple(free.values()))
        if isinstance(answer, Rejection):
            waits.append((run, answer.reason))
            # A run that no longer fits the cluster at all does not hold the others back.
            ahead = None if answer.never else run
            continue
        starts.append((run, answer))
        _take(free, answer)
    return Plan(tuple(starts), tuple(waits))


def try_place(spec: JobSpec, nodes: Sequence[NodeView]) -> Placement | Rejection:
    """Where this job would go on these nodes, or why it would not."""
    return fewest.place(Request(spec.workers, device_of(spec, nodes)), nodes)


def _take(free: dict[str, NodeView], placement: Placement) -> None:
    for part in placement.nodes:
        node = free[part.node]
        free[part.node] = replace(node, free=tuple(i for i in node.free if i not in part.gpus))
