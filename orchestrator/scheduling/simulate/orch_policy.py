"""The scheduler that the controller runs, as one of the policies of a replay: the only module that knows both."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from orchestrator.placement.tree import Topology
from orchestrator.placement.values import Placement
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.plan import Snapshot, plan
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.simulate.jobs import Job
from orchestrator.scheduling.simulate.speed import request
from orchestrator.scheduling.simulate.world import Decision, Life, Parts, World
from orchestrator.spec import JobSpec

EPOCH = datetime(2026, 1, 5, tzinfo=UTC)
"""What the scheduler is told at second 0 of a trace."""


class Orch:
    """Asks `plan` with the snapshot that the controller would give it."""

    name = "orch"

    def __init__(self) -> None:
        self._runs: dict[int, Run] = {}

    def decide(self, world: World, now: float) -> Decision:
        for life in world.arrived:
            self._runs[life.number] = run_of(life)
        for life in world.ended:
            self._runs.pop(life.number, None)
        waiting = tuple(self._runs[number] for number in world.waiting)
        plan_ = plan(Snapshot(waiting, world.free), EPOCH + timedelta(seconds=now))
        starts = [(world.waiting[run.id - 1], parts_of(world.topology, placement)) for run, placement in plan_.starts]
        again = None if plan_.look_again_s is None else now + plan_.look_again_s
        return Decision((), starts, again)


def run_of(life: Life) -> Run:
    """The run that a user would have submitted for the job."""
    at = EPOCH + timedelta(seconds=life.job.submit_s)
    return Run(life.number + 1, spec_of(life.job), life.job.user, None, "/", State.QUEUED, None, at, at)


def spec_of(job: Job) -> JobSpec:
    return JobSpec(
        run="train.py",
        name=job.name,
        workers=request(job).workers,
        device="cuda",
        priority=job.priority,
        team=job.team,
    )


def parts_of(topology: Topology, placement: Placement) -> Parts:
    index: Mapping[str, int] = topology.index
    return tuple(
        sorted((index[part.node], topology.nodes[index[part.node]].kind.mask_of(part.gpus)) for part in placement.nodes)
    )
