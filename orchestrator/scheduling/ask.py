"""What a waiting run asks of placement and of the queue, worked out once for as long as it waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.placement.tree import Topology
from orchestrator.placement.values import Device, Request
from orchestrator.scheduling.fairness import Account
from orchestrator.scheduling.lifecycle import Outcome
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.service import ran
from orchestrator.spec import JobSpec

START_S = 60.0
"""From placement to all ranks started, at most; a start that takes longer makes its end uncertain."""
STOP_S = 5.0
"""From SIGKILL to the GPUs being free."""


def device_of(spec: JobSpec, topology: Topology) -> Device:
    """What `device: auto` means on this cluster: cuda where any node has it, and where the job asks for what only GPUs have."""
    if spec.device != "auto":
        return spec.device
    if spec.gpu or spec.backend == "nccl":
        return "cuda"
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
        only=frozenset(spec.only),
        prefer=frozenset(prefer),
    )


@dataclass(slots=True, eq=False)
class Ask:
    """A waiting run, as the scheduler looks at it; derived from the run and the cluster alone."""

    run: Run
    id: int
    unfit: Mapping[str, str]
    account: Account
    gpus: int
    priority: float
    """Its standing (service.py): the priority, or half a step below it."""
    queued: float
    """A timestamp: it has waited since then, all its waits together; what it ran in between has moved that on."""
    age: tuple[float, int]
    """What is compared by age: less is older."""
    request: Request
    """With its patience at an end."""
    patient: Request | None
    """While it still waits for its level, where it does."""
    patience: float
    limit: float | None
    """Seconds that it holds its GPUs at most once it is placed, by its time limit."""
    recovering: bool
    """Whether its last attempt was lost through no fault of its own, and it came back by itself: then it goes first."""
    shape: int = -1
    """The number of what it asks: equal for runs that fit the same places."""
    patient_shape: int = -1


def ask_of(run: Run, account: Account, topology: Topology, unfit: Mapping[str, str]) -> Ask:
    spec, last = run.spec, run.attempt
    had = {part.node for part in last.placement.nodes} if last is not None else frozenset[str]()
    request = request_of(spec, topology, prefer=had, exclude=unfit)
    patience = spec.near.patience if spec.near is not None else None
    queued = run.queued_at.timestamp()
    return Ask(
        run,
        run.id,
        unfit,
        account,
        spec.workers.total,
        spec.priority,
        queued + ran(run),
        (queued, run.id),
        request,
        replace(request, relax=False) if patience else None,
        patience or 0.0,
        None if spec.time_limit is None else START_S + spec.time_limit + spec.grace + STOP_S,
        # A retry that somebody asked for has entered the queue anew, after its last attempt.
        last is not None
        and last.outcome in (Outcome.INFRA_ERROR, Outcome.DRAINED)
        and run.queued_at <= last.started_at,
    )
