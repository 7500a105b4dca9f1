"""One live attempt as the controller sees it: what its parts on the nodes report, and what follows from that. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from orchestrator.control.backend import PartStatus
from orchestrator.health.evidence import Evidence, Loss, RankEnd, Seen, Xid
from orchestrator.health.failure import Failure
from orchestrator.health.failures import judge
from orchestrator.health.nccl_log import NcclLog
from orchestrator.placement.values import Placement
from orchestrator.scheduling.lifecycle import Event, Outcome
from orchestrator.scheduling.run import Stop
from orchestrator.spec import JobSpec

_OF_STOP = {
    "preempted": (Event.REQUEUED, Outcome.PREEMPTED),
    "drained": (Event.REQUEUED, Outcome.DRAINED),
    "time_limit": (Event.FAILED, Outcome.USER_ERROR),
    "hang": (Event.FAILED, Outcome.INFRA_ERROR),
}
HUNG_GRACE_S = 10.0
"""A rank that hangs saves nothing, however long it is given."""


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
    clock: float = float("inf")
    """How far the controller's clock is ahead of the node's: what the quickest report showed."""
    heard: float = float("-inf")
    """When its ranks were last known to be there, by the controller's clock."""
    ends: dict[int, RankEnd] = field(default_factory=dict)
    """By the node's clock."""
    xids: tuple[Xid, ...] = ()


@dataclass
class Gang:
    """An attempt that holds a place."""

    run: int
    attempt: int
    spec: JobSpec
    placement: Placement
    parts: dict[str, PartView] = field(default_factory=dict)
    failure: Failure | None = None
    """Something broke: as far as that can be said while other nodes may tell of an end before it. `settle` has the last word."""
    losses: list[Loss] = field(default_factory=list)
    seen_broken: bool = False
    """`failure` comes from what the parts reported, rather than from a decision of the controller's."""
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
    unwatched: str | None = None
    """What is to be told of the time without a controller, once all its ranks are seen to have lived through it."""

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
    def grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL."""
        hung = self.stop is not None and self.stop.kind == "hang"
        return min(self.spec.grace, HUNG_GRACE_S) if hung else self.spec.grace

    @property
    def cancelled(self) -> bool:
        return self.stop is not None and self.stop.kind == "cancelled"

    @property
    def must_stop(self) -> bool:
        return (self.stop is not None or self.failure is not None) and not self.stop_sent

    @property
    def unknown(self) -> list[str]:
        """The nodes from which an end of the part has not been heard, nor that they are lost."""
        return [name for name, part in self.parts.items() if part.state not in (PartState.ENDED, PartState.LOST)]

    @property
    def fenced_nodes(self) -> list[str]:
        return [name for name, part in self.parts.items() if part.fenced]

    def observe(self, node: str, status: PartStatus, now: float = 0.0) -> None:
        """Takes in what the node's agent says, heard at `now`; saying it again changes nothing."""
        part = self.parts[node]
        if part.state is PartState.LOST:
            # It was given up, and is heard of after all: what it says now is certain.
            part.fenced = part.fenced and not status.ended
            return
        if status.nccl is not None:
            self.nccl[node] = status.nccl
        part.started = len(status.ranks)
        part.exits = {rank: code for rank, code in status.ranks.items() if code is not None}
        part.clock = min(part.clock, now - status.at)
        part.xids = status.xids
        for rank, code in part.exits.items():
            # Ends that nobody saw have no better time than that of the report.
            part.ends.setdefault(rank, status.ends.get(rank) or RankEnd(code, status.at))
        if part.state is PartState.STARTING and status.ranks:
            part.state = PartState.UP
        broken = self._broken_part(node, status)
        if broken is not None:
            self._note(broken)
        else:
            part.heard = part.clock + status.at
        if self.stop is not None:
            self.told = self.told or broken is not None
        elif self.failure is None and (broken or any(part.exits.values())):
            self._break()
        if status.ended:
            part.state = PartState.ENDED

    def lose(self, node: str, failure: Failure, *, fenced: bool) -> None:
        """The part is given up; `fenced` where its ranks may live until their lease ends."""
        part = self.parts[node]
        if part.state in (PartState.ENDED, PartState.LOST):
            return
        part.state, part.fenced = PartState.LOST, fenced
        self._note(Loss(failure.kind, node, failure.message, part.heard))
        if self.stop is None:
            if self.failure is None:
                self._break()
        else:
            self.told = True

    def _broken_part(self, node: str, status: PartStatus) -> Loss | None:
        """What ended the part as a whole, where the report says so."""
        heard = self.parts[node].heard
        if status.lease_expired:
            text = f"{node} was cut off from the controller until its lease ran out; its ranks were ended there"
            return Loss("lease_expired", node, text, heard)
        ranks = {rank for one in self.placement.nodes if one.node == node for rank in one.ranks}
        if status.launcher_lost or (status.ended and ranks - self.parts[node].exits.keys()):
            return Loss("launcher_lost", node, f"the launcher of {node} ended, and its ranks with it", heard)
        return None

    def _note(self, loss: Loss) -> None:
        if not any(known.kind == loss.kind and known.node == loss.node for known in self.losses):
            self.losses.append(loss)

    def _break(self) -> None:
        self.failure, self.seen_broken = judge(self.evidence({}, whole=True)), True

    def evidence(self, lines: Mapping[int, tuple[str, ...]], *, whole: bool | None = None) -> Evidence:
        """What was seen of its end, by the controller's clock; `lines`: by rank, the end of its log."""
        return Evidence(
            tuple(
                Seen(rank, place.node, gpu, self._end(place.node, rank), tuple(lines.get(rank, ())))
                for place in self.placement.nodes
                for rank, gpu in zip(place.ranks, place.gpus, strict=True)
            ),
            tuple(self.losses),
            tuple((node, _shifted(xid, part.clock)) for node, part in self.parts.items() for xid in part.xids),
            self.over if whole is None else whole,
        )

    def _end(self, node: str, rank: int) -> RankEnd | None:
        part = self.parts[node]
        end = part.ends.get(rank)
        return None if end is None else end.shifted(part.clock)

    @property
    def ended_badly(self) -> Iterable[int]:
        """Ranks whose log may say why."""
        return (rank for rank, code in self.exit_codes.items() if code != 0)

    def settle(self, lines: Mapping[int, tuple[str, ...]]) -> None:
        """All is over: what broke is judged by everything that was seen, the ends of the ranks' logs included."""
        if self.seen_broken:
            self.failure = judge(self.evidence(lines, whole=True)) or self.failure

    def verdict(self) -> tuple[Event, Outcome]:
        """What the end of the attempt is to the run; where it broke, scheduling/retry.py says whether another follows."""
        if self.cancelled:
            return Event.STOPPED, Outcome.CANCELLED
        if self.stop is not None and self.failure is None and self.told:
            return _OF_STOP[self.stop.kind]
        if self.failure is None:
            return Event.SUCCEEDED, Outcome.SUCCEEDED
        return Event.FAILED, Outcome.INFRA_ERROR if self.failure.cause == "infra" else Outcome.USER_ERROR


def _shifted(xid: Xid, by: float) -> Xid:
    return replace(xid, at=xid.at + by)
