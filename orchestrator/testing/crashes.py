"""A controller that dies at a chosen point: doubles of store, backend and agents that end it there, and let it do nothing more.

A `Fuse` counts the points that its controller crosses. At the chosen one it raises `Crash`, and from then on at every one: what
the dead controller still tries, in `finally` blocks and tasks that go on, changes nothing, as with a process that was killed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import Connection

from orchestrator.control.backend import Agent, Backend, NodeFacts, PartStatus, Report, StartPart
from orchestrator.control.shared_folder import FolderLook, Tokens
from orchestrator.control.survey import Surveyed
from orchestrator.health.stacks import RankStack
from orchestrator.history.database import Database, open_database
from orchestrator.history.errors import DatabaseUnreachable
from orchestrator.history.store import Store

T = TypeVar("T")


class Crash(BaseException):
    """The controller is dead. No Exception: nothing in it may handle this."""


class Fuse:
    """Blows at the `nth` crossing of a point that `blows_at` accepts, from the moment when it is armed."""

    def __init__(
        self, nth: int = 0, blows_at: Callable[[str], bool] = lambda point: True, *, armed: bool = True
    ) -> None:
        """With `nth` 0 it never blows by itself."""
        self.nth, self.blows_at, self.armed = nth, blows_at, armed
        self.crossed: Counter[str] = Counter()
        self.blown = asyncio.Event()
        self.at: str | None = None
        """Where it blew."""
        self.loses: Callable[[], bool] = lambda: False
        """Whether the answer to a commit is lost, which its writer takes for a failure."""
        self.on_the_way: list[Callable[[], Awaitable[object]]] = []
        """Calls that had been sent when it blew, and may still reach their agents."""

    @property
    def dead(self) -> bool:
        return self.blown.is_set()

    def cross(self, point: str) -> None:
        """Raises Crash where the controller dies here, or has died."""
        if not self.dead:
            self.crossed[point] += 1
            if self.armed and self.nth and self.blows_at(point):
                self.nth -= 1
                if not self.nth:
                    self.blow(point)
        if self.dead:
            raise Crash(self.at)

    def blow(self, point: str = "from outside") -> None:
        self.at = point
        self.blown.set()


class FusedDatabase(Database):
    """A database whose commits are points: `before commit` leaves nothing behind, after `after commit` nobody hears of it."""

    fuse: Fuse

    @classmethod
    def over(cls, database: Database, fuse: Fuse) -> FusedDatabase:
        made = cls(**{one.name: getattr(database, one.name) for one in fields(database)})
        object.__setattr__(made, "fuse", fuse)
        return made

    @contextmanager
    def write(self) -> Iterator[Connection]:
        self._alive()
        with super().write() as connection:
            yield connection
            self.fuse.cross("before commit")
        self.fuse.cross("after commit")
        if self.fuse.loses():
            raise DatabaseUnreachable("The database was committed to, and its answer is lost.")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        self._alive()
        with super().read() as connection:
            yield connection

    def _alive(self) -> None:
        if self.fuse.dead:
            raise Crash(self.fuse.at)


def fused_store(url: str, fuse: Fuse) -> Store:
    """The store of a controller that the fuse ends."""
    return Store(FusedDatabase.over(open_database(url), fuse), readonly=False)


class FusedAgent:
    """The controller's side of an agent: each call is two points, before it was sent and after it was answered."""

    def __init__(self, agent: Agent, fuse: Fuse) -> None:
        self._agent, self._fuse = agent, fuse

    async def _call(self, name: str, *arguments: Any) -> Any:
        call, was_dead = getattr(self._agent, name), self._fuse.dead
        try:
            self._fuse.cross(f"before {name}")
        except Crash:
            if not was_dead:  # it may have been sent at that very moment
                self._fuse.on_the_way.append(lambda: call(*arguments))
            raise
        # The agent goes on with a call whose caller has died.
        under_way = asyncio.get_running_loop().create_task(call(*arguments))
        under_way.add_done_callback(_look_at)
        answer = await asyncio.shield(under_way)
        self._fuse.cross(f"after {name}")
        return answer

    async def sync(self, epoch: int, ack: int, lease_s: float, wait_s: float) -> Report:
        report: Report = await self._call("sync", epoch, ack, lease_s, wait_s)
        return report

    async def check(self, epoch: int, gpus: tuple[int, ...]) -> tuple[str, ...]:
        found: tuple[str, ...] = await self._call("check", epoch, gpus)
        return found

    async def reserve_port(self, epoch: int, run: int, attempt: int) -> int:
        port: int = await self._call("reserve_port", epoch, run, attempt)
        return port

    async def start(self, epoch: int, part: StartPart) -> PartStatus:
        # The second part of a gang whose first is up: half of it is spawned.
        if part.node_rank:
            self._fuse.cross("half the gang")
        status: PartStatus = await self._call("start", epoch, part)
        return status

    async def stop(self, epoch: int, run: int, attempt: int, grace_s: float) -> None:
        await self._call("stop", epoch, run, attempt, grace_s)

    async def forget(self, epoch: int, run: int, attempt: int) -> None:
        await self._call("forget", epoch, run, attempt)

    async def stacks(self, epoch: int, run: int, attempt: int, whole: bool) -> tuple[RankStack, ...]:
        found: tuple[RankStack, ...] = await self._call("stacks", epoch, run, attempt, whole)
        return found

    async def survey(self, epoch: int, python: str | None, look: bool) -> Surveyed:
        surveyed: Surveyed = await self._call("survey", epoch, python, look)
        return surveyed

    async def checkpoint_folder(self, epoch: int, folder: str, tokens: Tokens) -> FolderLook:
        found: FolderLook = await self._call("checkpoint_folder", epoch, folder, tokens)
        return found

    async def close(self, epoch: int) -> None:
        await self._call("close", epoch)


class FusedBackend:
    """The cluster as a controller sees it that the fuse ends."""

    def __init__(self, backend: Backend, fuse: Fuse) -> None:
        self._backend, self._fuse = backend, fuse

    async def nodes(self) -> list[NodeFacts]:
        self._fuse.cross("nodes")
        return await self._backend.nodes()

    def is_dead(self, node: NodeFacts) -> bool:
        return self._backend.is_dead(node)

    async def agent(self, node: NodeFacts) -> Agent:
        self._fuse.cross("agent")
        return FusedAgent(await self._backend.agent(node), self._fuse)

    async def hold(self, node: NodeFacts) -> None:
        self._fuse.cross("before hold")
        await self._backend.hold(node)
        self._fuse.cross("after hold")

    async def release(self, node_name: str) -> None:
        self._fuse.cross("before release")
        await self._backend.release(node_name)
        self._fuse.cross("after release")


# A method that is missing would be found by a story in a hundred; this finds it when types are checked.
_AGENT: Callable[[Agent, Fuse], Agent] = FusedAgent
_BACKEND: Callable[[Backend, Fuse], Backend] = FusedBackend


def _look_at(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
