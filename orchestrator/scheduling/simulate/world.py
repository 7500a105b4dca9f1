"""What a policy sees at one moment of a replay: what is free, what runs, what waits, and what has just happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from orchestrator.placement.gang import Part
from orchestrator.placement.tree import Free, Topology
from orchestrator.scheduling.simulate.jobs import Job

Parts = tuple[Part, ...]
"""A placement as the search speaks of it: nodes by number in the tree, GPUs as bits."""


@dataclass(slots=True, eq=False)
class Life:
    """One job's way through a replay. Only the replay changes it; policies read."""

    job: Job
    number: int
    """Its place in the trace: what breaks ties."""
    ideal_s: float
    """How long it takes at the best placement of the empty cluster."""
    done: float = 0.0
    """The share of its work that is done and saved."""
    parts: Parts | None = None
    """Where it runs; None while it waits."""
    last_parts: Parts | None = None
    """Where it ran before it was last stopped or ended."""
    began_s: float = 0.0
    """When it last started or, while it waits, when it was last stopped (or submitted)."""
    works_from_s: float = 0.0
    """When this attempt's start is over and its work goes on."""
    whole_s: float = 0.0
    """How long the whole of its work takes at this placement."""
    ends_s: float = 0.0
    """When this attempt will have done the rest. The replay's secret: no policy may look."""
    first_start_s: float | None = None
    finished_s: float | None = None
    starts: int = 0
    ran_s: float = 0.0
    """Seconds in which it held GPUs, over all ended attempts."""
    lost_gpu_s: float = 0.0
    """GPU-seconds of preempted attempts that count for nothing: work after the last checkpoint, and starts."""

    def attained(self, now: float) -> float:
        """GPU-seconds that it has had so far."""
        return self.job.gpus * (self.ran_s + (now - self.began_s if self.parts is not None else 0.0))


@dataclass
class World:
    """The cluster at a moment. `waiting` and `running` are by number, `waiting` in the order of submission."""

    topology: Topology
    free: Free
    masks: list[int]
    """By node: the bits of its free GPUs; `free` says the same with counts by domain."""
    waiting: dict[int, Life] = field(default_factory=dict)
    running: dict[int, Life] = field(default_factory=dict)
    arrived: list[Life] = field(default_factory=list)
    """Since the policy was last asked."""
    ended: list[Life] = field(default_factory=list)

    @cached_property
    def largest(self) -> int:
        """How many GPUs the largest node has."""
        return max((node.kind.size for node in self.topology.nodes), default=0)

    @property
    def free_gpus(self) -> int:
        return self.free.room[0]

    @property
    def gpus(self) -> int:
        return self.free.total[0]


@dataclass(frozen=True)
class Decision:
    """What a policy wants: first these are stopped, then those started."""

    stops: Sequence[Life] = ()
    starts: Sequence[tuple[Life, Parts]] = ()
    look_again_s: float | None = None
    """A moment at which it wants to be asked even if nothing happens; None: only when something does."""


class Policy(Protocol):
    """Decides who runs where. It keeps what it likes between calls, and changes nothing of the world."""

    name: str

    def decide(self, world: World, now: float) -> Decision: ...
