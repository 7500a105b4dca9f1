"""One live attempt as the controller sees it: what its parts on the nodes report, and what follows from that. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.control.backend import PartStatus
from orchestrator.health.nccl_log import NcclLog
from orchestrator.placement.values import Placement
from orchestrator.scheduling.lifecycle import Event, Outcome
from orchestrator.scheduling.run import Failure, Stop
from orchestrator.spec import JobSpec

INFRA = frozenset(
    {
        "node_lost",
        "lease_expired",
        "ranks_gone",
        "start_failed",
        "hold_refused",
        "controller",
        "code_missing",
        "degraded",
    }
)
_OF_STOP = {
    "preempted": (Event.REQUEUED, Outcome.PREEMPTED),
    "drained": (Event.REQUEUED, Outcome.DRAINED),
    "time_limit": (Event.FAILED, Outcome.USER_ERROR),
}


class PartState(StrEnum):
    STARTING = "starting"
    UP = "up"
    ENDED = "ended"
    LOST = "lost"  # nobody can say; its GPUs stay taken until the lease has run out


@dataclass
class PartView:
    """A gang's part on one node."""

    state: PartState = PartState.STARTING
    exits: dict[int, int] = field(default_factory=dict)
    started: int = 0
    fenced: bool = False


@dataclass
class Gang:
    """An attempt that holds a place."""

    run: int
    attempt: int
    spec: JobSpec
    placement: Placement
    parts: dict[str, PartView] = field(default_factory=dict)
    failure: Failure | None = None
    stop: Stop | None = None
    """Why it was told to end, where somebody or something asked for it; on record before any rank is told."""
    told: bool = False
    """A rank may have heard of `stop`: how the ranks end from now on says nothing of the run."""
    stop_sent: bool = False
    up: bool = False
    """Every rank has been seen started."""
    nccl: dict[str, NcclLog] = field(default_factory=dict)
    """By node: what NCCL told there of its links."""
    judged: bool = False
    """The transport's verdict has been given, or none is to be."""
    degraded_by_job: bool = False

    def __post_init__(self) -> None:
        self.parts = self.parts or {part.node: PartView() for part in self.placement.nodes}

    @property
    def world_size(self) -> int:
        return self.placement.world_size

    @property
    def started(self) -> int:
        return sum(part.started for part in self.parts.values())

    @property
    def exit_codes(self) -> dict[int, int]:
        return {rank: code for part in self.parts.values() for rank, code in sorted(part.exits.items())}

    @property
    def over(self) -> bool:
        return all(part.state in (PartState.ENDED, PartState.LOST) for part in self.parts.values())

    @property
    def can_be_judged(self) -> bool:
        """Every node has told of its links, or never will."""
        gone = (PartState.ENDED, PartState.LOST)
        return not self.judged and all(node in self.nccl or part.state in gone for node, part in self.parts.items())

    @property
    def cancelled(self) -> bool:
        return self.stop is not None and self.stop.kind == "cancelled"

    @property
    def must_stop(self) -> bool:
        return (self.stop is not None or self.failure is not None) and not self.stop_sent

    @property
    def fenced_nodes(self) -> list[str]:
        return [name for name, part in self.parts.items() if part.fenced]

    def observe(self, node: str, status: PartStatus) -> None:
        """Takes in what the node's agent says; saying it again changes nothing."""
        part = self.parts[node]
        if part.state is PartState.LOST:
            # It was given up, and is heard of after all: what it says now is certain.
            part.fenced = part.fenced and not status.ended
            return
        if status.nccl is not None:
            self.nccl[node] = status.nccl
        part.started = len(status.ranks)
        part.exits = {rank: code for rank, code in status.ranks.items() if code is not None}
        if part.state is PartState.STARTING and status.ranks:
            part.state = PartState.UP
        if self.stop is not None:
            self.told = self.told or status.lease_expired
        elif self.failure is None:
            self.failure = self._failure_of(node, status)
        if status.ended:
            part.state = PartState.ENDED

    def lose(self, node: str, failure: Failure, *, fenced: bool) -> None:
        """The part is given up; `fenced` where its ranks may live until their lease ends."""
        part = self.parts[node]
        if part.state in (PartState.ENDED, PartState.LOST):
            return
        part.state, part.fenced = PartState.LOST, fenced
        if self.stop is None:
            self.failure = self.failure or failure
        else:
            self.told = True

    def _failure_of(self, node: str, status: PartStatus) -> Failure | None:
        if status.lease_expired:
            text = f"{node} was cut off from the controller until its lease ran out; its ranks were ended there"
            return Failure("lease_expired", text, node=node)
        rank = status.first_failed
        if rank is None:
            return None
        code = status.ranks[rank]
        assert code is not None
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.Signals._value2member_map_ else f"signal {-code}"
            return Failure("signal", f"rank {rank} on {node} was ended by {name}", rank, node)
        return Failure("exit", f"rank {rank} on {node} ended with exit code {code}", rank, node)

    def verdict(self) -> tuple[Event, Outcome]:
        """What the end of the attempt is to the run; where it broke, scheduling/retry.py says whether another follows."""
        if self.cancelled:
            return Event.STOPPED, Outcome.CANCELLED
        if self.stop is not None and self.failure is None and self.told:
            return _OF_STOP[self.stop.kind]
        if self.failure is None:
            return Event.SUCCEEDED, Outcome.SUCCEEDED
        infra = self.failure.kind in INFRA and not (self.failure.kind == "degraded" and self.degraded_by_job)
        return Event.FAILED, Outcome.INFRA_ERROR if infra else Outcome.USER_ERROR
