"""A cluster without machines: a Backend whose nodes and ranks the test moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from orchestrator.control.backend import (
    Agent,
    AgentGone,
    ClusterLost,
    HoldRefused,
    NodeFacts,
    PartStatus,
    Report,
    StaleController,
    StartFailed,
    StartPart,
)
from orchestrator.control.rank_progress import RankProgress
from orchestrator.control.shared_folder import FolderLook, Tokens
from orchestrator.control.survey import Surveyed
from orchestrator.health import facts as health
from orchestrator.health.evidence import RankEnd
from orchestrator.health.stacks import RankStack
from orchestrator.health.vitals import Vitals
from orchestrator.placement.values import Device


@dataclass
class FakePart:
    """A gang's part on a fake node, moved by the test."""

    order: StartPart
    ranks: dict[int, int | None]
    ended: bool = False
    ends: dict[int, RankEnd] = field(default_factory=dict)
    stopped_with: float | None = None
    lease_expired: bool = False


class FakeAgent:
    """One node's agent: ranks live until the test ends them."""

    def __init__(self) -> None:
        self.parts: dict[tuple[int, int], FakePart] = {}
        self.gone = False
        self.refuses: str | None = None
        self.obstacles: list[str] = []
        self.mute = False
        """Whether it answers no check."""
        self.obeys_stop = True
        self.slow_start: asyncio.Event | None = None
        """Set by the test when starts may go on."""
        self.epoch = 0
        self.host: health.NodeFacts | None = None
        self.interpreters: dict[str | None, health.Interpreter] = {}
        self.surveyed: list[str | None] = []
        """The interpreters that it was asked for, in order."""
        self.disk: set[str | None] = set()
        """The tokens in the checkpoint folder: the same set on all nodes unless the test says otherwise."""
        self.folder = FolderLook()
        """What it finds there, besides a token."""
        self.looks: list[RankProgress] = []
        """What the ranks show in the next report."""
        self.standing: Callable[[int], Iterable[RankStack]] = lambda turn: ()
        """Where ranks stand when that is asked for the first, the second ... time."""
        self.stacks_taken = 0
        self.clock: Callable[[], float] = time.time
        self._vitals: Vitals | None = None
        self._sequence = 0
        self._news = asyncio.Event()
        self._info_told: dict[str, object] = {}

    def _take_orders_from(self, epoch: int) -> None:
        if self.gone:
            raise AgentGone("the fake agent is gone")
        if epoch < self.epoch:
            raise StaleController(f"epoch {epoch} is behind {self.epoch}")
        self.epoch = epoch

    # === the protocol ===

    async def sync(self, epoch: int, ack: int, lease_s: float, wait_s: float) -> Report:
        self._take_orders_from(epoch)
        heard = self.clock()
        if ack and not self._news.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
        self._take_orders_from(epoch)
        self._news.clear()
        self._sequence += 1
        info: dict[str, object] = {"host": self.host, "interpreters": dict(self.interpreters)}
        new, self._info_told = not ack or info != self._info_told, info
        looks, self.looks = tuple(self.looks), []
        statuses = tuple(map(self._status, self.parts.values()))
        vitals, self._vitals = self._vitals, None
        clock = heard, self.clock()
        return Report(self._sequence, statuses, info=info if new else None, progress=looks, vitals=vitals, clock=clock)

    async def check(self, epoch: int, gpus: tuple[int, ...]) -> tuple[str, ...]:
        self._take_orders_from(epoch)
        if self.mute:
            raise AgentGone("the fake agent says nothing")
        return tuple(self.obstacles)

    async def reserve_port(self, epoch: int, run: int, attempt: int) -> int:
        self._take_orders_from(epoch)
        return 29500

    async def start(self, epoch: int, part: StartPart) -> PartStatus:
        self._take_orders_from(epoch)
        if self.refuses is not None:
            raise StartFailed(self.refuses)
        if self.slow_start is not None:
            await self.slow_start.wait()
            self._take_orders_from(epoch)
        known = self.parts.setdefault((part.run, part.attempt), FakePart(part, {r.rank: None for r in part.ranks}))
        return self._status(known)

    async def stop(self, epoch: int, run: int, attempt: int, grace_s: float) -> None:
        self._take_orders_from(epoch)
        if (part := self.parts.get((run, attempt))) is not None:
            part.stopped_with = grace_s
            if self.obeys_stop:
                self.end(run, attempt, -15)

    async def forget(self, epoch: int, run: int, attempt: int) -> None:
        self._take_orders_from(epoch)
        self.parts.pop((run, attempt), None)

    async def stacks(self, epoch: int, run: int, attempt: int, whole: bool) -> tuple[RankStack, ...]:
        self._take_orders_from(epoch)
        self.stacks_taken += 1
        of_part = self.parts[run, attempt].ranks if (run, attempt) in self.parts else {}
        return tuple(stack for stack in self.standing(self.stacks_taken) if stack.rank in of_part)

    async def survey(self, epoch: int, python: str | None, look: bool) -> Surveyed:
        self._take_orders_from(epoch)
        self.surveyed.append(python)
        return Surveyed(time.time(), self.host, self.interpreters.get(python))

    async def checkpoint_folder(self, epoch: int, folder: str, tokens: Tokens) -> FolderLook:
        self._take_orders_from(epoch)
        if self.folder.error is None:
            self.disk |= {tokens.leave} if tokens.leave else set()
            self.disk -= {tokens.remove}
        return replace(self.folder, seen=tokens.expect in self.disk)

    async def close(self, epoch: int) -> None:
        self._take_orders_from(epoch)

    def _status(self, part: FakePart) -> PartStatus:
        order = part.order
        return PartStatus(
            order.run,
            order.attempt,
            dict(part.ranks),
            part.ended,
            lease_expired=part.lease_expired,
            at=time.monotonic(),
            ends=dict(part.ends),
        )

    # === for tests ===

    def tell(
        self,
        host: health.NodeFacts | None = None,
        *interpreters: health.Interpreter,
        own: health.Interpreter | None = None,
    ) -> None:
        """Says what the node is, and what interpreters bring: `own` is orch's."""
        self.host = host or self.host
        self.interpreters |= {one.python: one for one in interpreters} | ({None: own} if own else {})
        self._news.set()

    def see(self, vitals: Vitals) -> None:
        """It has looked at its node."""
        self._vitals = vitals
        self._news.set()

    def end_rank(self, run: int, attempt: int, rank: int, code: int) -> None:
        """The rank ends; the part is over once it was the last."""
        part = self.parts[run, attempt]
        if part.ranks[rank] is None:
            part.ranks[rank], at = code, time.monotonic()
            part.ends[rank] = RankEnd(code, at, None if part.stopped_with is None else at)
        part.ended = all(code is not None for code in part.ranks.values())
        self._news.set()

    def show(self, *looks: RankProgress) -> None:
        """The ranks show how far they are."""
        self.looks += looks
        self._news.set()

    def end(self, run: int, attempt: int, code: int = 0) -> None:
        for rank in self.parts[run, attempt].ranks:
            self.end_rank(run, attempt, rank, code)


class FakeCluster:
    """A Backend of nodes that the test adds, loses and brings back."""

    def __init__(self, **nodes: int) -> None:
        self.facts: dict[str, NodeFacts] = {}
        self.agents: dict[str, FakeAgent] = {}
        self.holds: set[str] = set()
        self.foreign: set[str] = set()
        self.lost = False
        """Whether its head is away."""
        self.dead: set[str] = set()
        """The ids of nodes of which it is said that they are dead."""
        self.disk: set[str | None] = set()
        """What all nodes see of a checkpoint folder."""
        for name, gpus in nodes.items():
            self.add(name, gpus)

    # === the protocol ===

    async def nodes(self) -> list[NodeFacts]:
        if self.lost:
            raise ClusterLost("the fake head does not answer")
        return list(self.facts.values())

    def is_dead(self, node: NodeFacts) -> bool:
        return node.id in self.dead

    async def agent(self, node: NodeFacts) -> Agent:
        return self.agents[node.name]

    async def hold(self, node: NodeFacts) -> None:
        if node.name in self.foreign:
            raise HoldRefused(f"{node.name} is held by other work")
        self.holds.add(node.name)

    async def release(self, node_name: str) -> None:
        self.holds.discard(node_name)

    # === for tests ===

    def add(self, name: str, gpus: int, device: Device = "cuda") -> None:
        """A node joins, or joins anew: with a new id and an agent that knows nothing."""
        number = len(self.agents) + sum(1 for _ in self.facts)
        self.facts[name] = NodeFacts(name, f"{name}-{number}", "10.0.0.1", device, gpus)
        self.agents[name] = FakeAgent()
        self.agents[name].disk = self.disk

    def lose(self, name: str) -> None:
        """The node leaves the cluster's list, and its agent answers no more."""
        del self.facts[name]
        self.agents[name].gone = True
