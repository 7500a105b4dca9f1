"""The scheduler that the controller runs, as one of the policies of a replay: the only module that knows both."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from orchestrator.checks import NAME
from orchestrator.placement.tree import Topology
from orchestrator.placement.values import Placement
from orchestrator.policy import Policy
from orchestrator.scheduling.fairness import Ledger, Use
from orchestrator.scheduling.lifecycle import Outcome, State
from orchestrator.scheduling.memory import Memory
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.run import Attempt, Run
from orchestrator.scheduling.simulate.jobs import Job
from orchestrator.scheduling.simulate.speed import request
from orchestrator.scheduling.simulate.world import Decision, Life, Parts, World
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.spec import JobSpec

EPOCH = datetime(2026, 1, 5, tzinfo=UTC)
"""What the scheduler is told at second 0 of a trace."""

SOONEST_S = 1.0
"""A moment that the scheduler wants to look at again is put off so far: times of day are exact to a microsecond only, and one that
lies nearer would not come."""

REMEMBERED = 20
"""Durations of a name that the controller keeps."""


@dataclass
class Orch:
    """Asks `plan` with the snapshot that the controller would give it, and obeys as the controller would."""

    policy: Policy = field(default_factory=Policy)
    name: str = "orch"
    checkpoint_s: float = 0.0
    """How often runs save, as `Costs` says it: what the scheduler is told of their checkpoints."""
    _waiting: dict[int, Run] = field(default_factory=dict)
    _running: dict[int, Run] = field(default_factory=dict)
    _lives: dict[int, Life] = field(default_factory=dict)
    _history: dict[tuple[str, str], deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=REMEMBERED))
    )
    _usage: Ledger = field(default_factory=Ledger)
    _memory: Memory | None = None

    def decide(self, world: World, now: float) -> Decision:
        at = moment(now)
        for life in world.arrived:
            self._lives[life.number] = life
            self._waiting[life.number + 1] = run_of(life)
        for life in world.ended:
            self._end(life, at)
        snapshot = Snapshot(
            waiting=tuple(self._waiting.values()),
            free=world.free,
            running=tuple(self._running.values()),
            checkpoints=_Checkpoints(self._lives, self._running, self.checkpoint_s, now),
            history=self._history,
            usage=self._usage,
            policy=self.policy,
        )
        decided = plan(snapshot, at, self._memory)
        self._memory = decided.memory
        stops = [self._stop(preemption.run, at) for preemption in decided.preemptions]
        starts = [self._start(start.run, start.placement, world.topology, at) for start in decided.starts]
        # What a preemption frees is given out by the next plan, as is what a plan left that had enough to do.
        again = 0.0 if stops else decided.look_again_s
        if again:
            again = max(again, SOONEST_S)
        return Decision(stops, starts, None if again is None else now + again)

    def _start(self, run: Run, placement: Placement, topology: Topology, at: datetime) -> tuple[Life, Parts]:
        del self._waiting[run.id]
        attempt = Attempt(len(run.attempts) + 1, placement, at, at)
        self._running[run.id] = replace(run, state=State.RUNNING, started_at=at, attempts=(*run.attempts, attempt))
        return self._lives[run.id - 1], parts_of(topology, placement)

    def _stop(self, run: Run, at: datetime) -> Life:
        del self._running[run.id]
        ended = replace(run.attempts[-1], ended_at=at, outcome=Outcome.PREEMPTED)
        self._waiting[run.id] = replace(run, state=State.QUEUED, attempts=(*run.attempts[:-1], ended))
        self._charge(run, at)
        return self._lives[run.id - 1]

    def _end(self, life: Life, at: datetime) -> None:
        run = self._running.pop(life.number + 1)
        del self._lives[life.number]
        self._history[run.user, run.name].append((at - run.attempts[-1].started_at).total_seconds())
        self._charge(run, at)

    def _charge(self, run: Run, at: datetime) -> None:
        account = (self.policy.team_of(run.spec.team), run.user)
        use = Use(account, run.spec.workers.total, run.attempts[-1].started_at, at)
        self._usage = self._usage.charged([use], self.policy.half_life, at)


class _Checkpoints(Mapping[int, datetime]):
    """When each running run last saved; worked out for those that are asked for."""

    def __init__(self, lives: Mapping[int, Life], running: Mapping[int, Run], every_s: float, now: float) -> None:
        self._lives, self._running, self._every_s, self._now = lives, running, every_s, now

    def __getitem__(self, run: int) -> datetime:
        if run not in self._running:
            raise KeyError(run)
        worked = self._now - self._lives[run - 1].works_from_s
        unsaved = worked % self._every_s if self._every_s and worked > 0 else max(0.0, -worked)
        return moment(self._now - unsaved)

    def __iter__(self) -> Iterator[int]:
        return iter(self._running)

    def __len__(self) -> int:
        return len(self._running)


def moment(seconds: float) -> datetime:
    """What the scheduler's clock says at a second of the trace."""
    return EPOCH + timedelta(seconds=seconds)


def run_of(life: Life) -> Run:
    """The run that a user would have submitted for the job."""
    at = moment(life.job.submit_s)
    return Run(life.number + 1, spec_of(life.job), life.job.user, None, "/", State.QUEUED, None, at, at)


def spec_of(job: Job) -> JobSpec:
    """What would stand in its job file. What a trace's names have that orch's do not allow becomes a dash."""
    return JobSpec(
        run="train.py",
        name=job.name if NAME.fullmatch(job.name) else _plain(job.name),
        workers=request(job).workers,
        device="cuda",
        priority=max(-1000, min(1000, job.priority)),
        team=None if job.team is None else _plain(job.team),
        time_limit=None if job.limit_s is None else max(1.0, job.limit_s),
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63] or "job"


def parts_of(topology: Topology, placement: Placement) -> Parts:
    """A placement in the replay's words."""
    nodes, index = topology.nodes, topology.index
    return tuple(sorted((index[p.node], nodes[index[p.node]].kind.mask_of(p.gpus)) for p in placement.nodes))
