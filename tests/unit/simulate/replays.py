"""Small traces said in a line, and a replay of them that is watched."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.placement.tree import Topology
from orchestrator.scheduling.simulate.clusters import plain
from orchestrator.scheduling.simulate.jobs import Job, Trace, trace_of
from orchestrator.scheduling.simulate.replay import Costs, Replay, Replayed
from orchestrator.scheduling.simulate.speed import Speed
from orchestrator.scheduling.simulate.world import Decision, Policy, World


def trace(*jobs: tuple[float, ...], **fields: object) -> Trace:
    """(submit, GPUs, duration[, limit]) of each job; called a, b, c."""
    named = zip("abcdefghijklmnopqrstuvwxyz", jobs, strict=False)
    return trace_of(
        Job(name, int(job[1]), job[0], job[2], limit_s=job[3] if len(job) > 3 else None, **fields)  # type: ignore[arg-type]
        for name, job in named
    )


@dataclass
class Interval:
    """One attempt, as somebody who only watches sees it."""

    job: str
    gpus: int
    begin: float
    end: float
    nodes: tuple[int, ...]


@dataclass
class Watched:
    """A policy with a witness, who keeps an account of his own."""

    policy: Policy
    intervals: list[Interval] = field(default_factory=list)
    queue: list[tuple[float, int]] = field(default_factory=list)
    name: str = "watched"
    _open: dict[int, Interval] = field(default_factory=dict)

    def decide(self, world: World, now: float) -> Decision:
        for life in world.ended:
            self._close(life.number, now)
        decision = self.policy.decide(world, now)
        for life in decision.stops:
            self._close(life.number, now)
        for life, parts in decision.starts:
            nodes = tuple(index for index, _ in parts)
            self._open[life.number] = Interval(life.job.id, life.job.gpus, now, now, nodes)
        return decision

    def _close(self, number: int, now: float) -> None:
        interval = self._open.pop(number)
        interval.end = now
        self.intervals.append(interval)


def replay(
    jobs: Trace,
    policy: Policy,
    nodes: int = 2,
    gpus: int = 4,
    costs: Costs | None = None,
    talk: float = 0.0,
    leaf: int = 2,
) -> Replayed:
    topology = Topology(plain(nodes, gpus, leaf))
    return Replay(jobs, topology, policy, Speed(topology, talk=talk), costs or Costs()).run()


def starts(replayed: Replayed) -> dict[str, float | None]:
    return {life.job.id: life.first_start_s for life in replayed.lives}


def ends(replayed: Replayed) -> dict[str, float | None]:
    return {life.job.id: life.finished_s for life in replayed.lives}
