"""What a waiting run asks of placement, now."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from orchestrator.placement.tree import Topology
from orchestrator.placement.values import Device, Request
from orchestrator.scheduling.run import Run
from orchestrator.spec import JobSpec


def device_of(spec: JobSpec, topology: Topology) -> Device:
    """What `device: auto` means on this cluster: cuda where any node has it."""
    if spec.device != "auto":
        return spec.device
    return "cuda" if any(kind.device == "cuda" for kind in topology.kinds) else "cpu"


def request_of(
    spec: JobSpec,
    topology: Topology,
    *,
    patient: bool = False,
    prefer: Iterable[str] = (),
    exclude: Iterable[str] = (),
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
        exclude=frozenset(exclude),
        prefer=frozenset(prefer),
    )


def patience_left(run: Run, now: datetime) -> float:
    """Seconds that the run still waits for its level; 0 where it takes what there is."""
    near = run.spec.near
    if near is None or near.patience is None:
        return 0.0
    return max(0.0, near.patience - (now - run.queued_at).total_seconds())
