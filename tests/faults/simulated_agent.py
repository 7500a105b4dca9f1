"""An agent in simulated time, whose network is slow, and whose ranks end when their lease does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from orchestrator.control.backend import (
    AgentGone,
    PartStatus,
    Report,
    StaleController,
    StartFailed,
    StartPart,
)
from orchestrator.testing.cluster import FakeAgent, FakePart

if TYPE_CHECKING:
    from crash_world import World


class SimulatedAgent(FakeAgent):
    """An agent behind a network, whose ranks take time to start and to end, and end when their lease does."""

    def __init__(self, node: str, world: World) -> None:
        super().__init__()
        self.node, self._world = node, world
        self._given: dict[int, float] = {}
        self._heard_at: float | None = None

    # -- the network ---------------------------------------------------------------------------------------------

    async def _travel(self) -> None:
        await asyncio.sleep(self._world.chance.uniform(0.0, 0.04))
        if self.gone:
            raise AgentGone(f"{self.node} is not reached")

    async def _over_the_network(self, call: Awaitable[Any]) -> Any:
        try:
            await self._travel()
        except AgentGone:
            call.close()
            raise
        answer = await call
        await self._travel()
        return answer

    async def sync(self, epoch: int, ack: int, lease_s: float, wait_s: float) -> Report:
        return await self._over_the_network(self._sync(epoch, ack, lease_s, wait_s))

    async def _sync(self, epoch: int, ack: int, lease_s: float, wait_s: float) -> Report:
        if epoch > self.epoch:
            self._given, self._heard_at = {}, None
        self._take_orders_from(epoch)
        now = asyncio.get_running_loop().time()
        if ack:
            self._heard_at = self._given.get(ack, self._heard_at)
        if ack and self._heard_at is not None:
            for part in self.parts.values():
                part.lease_end = self._heard_at + lease_s
        if ack and not self._news.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), wait_s)
        report = await super().sync(epoch, ack, lease_s, 0.0)
        self._given[report.sequence] = asyncio.get_running_loop().time()
        assert now <= self._given[report.sequence]
        return report

    async def check(self, epoch: int, gpus: tuple[int, ...]) -> tuple[str, ...]:
        return await self._over_the_network(super().check(epoch, gpus))

    async def reserve_port(self, epoch: int, run: int, attempt: int) -> int:
        return await self._over_the_network(super().reserve_port(epoch, run, attempt))

    async def start(self, epoch: int, part: StartPart) -> PartStatus:
        return await self._over_the_network(self._start(epoch, part))

    async def _start(self, epoch: int, part: StartPart) -> PartStatus:
        self._take_orders_from(epoch)
        if (part.run, part.attempt) not in self.parts:
            await asyncio.sleep(self._world.chance.choice((0.0, 0.1, 3.0)))  # the code is fetched
            if epoch < self.epoch:
                raise StaleController("another controller has come meanwhile")
            now = asyncio.get_running_loop().time()
            heard_at = min(self._given.values(), default=now) if self._heard_at is None else self._heard_at
            lease_end = heard_at + part.lease_s
            if lease_end <= now:
                raise StartFailed("its lease is over")
            if self.gone:
                raise AgentGone("it went down meanwhile")
            self._world.begins(self, part)
            known = FakePart(part, {rank.rank: None for rank in part.ranks})
            known.lease_end = lease_end
            self.parts[part.run, part.attempt] = known
            self._world.spawn(self._watch_lease(known))
            if part.attempt < 0:
                self._world.spawn(self._end_later(part.run, part.attempt, 1.0, 1))
        return self._status(self.parts[part.run, part.attempt])

    async def stop(self, epoch: int, run: int, attempt: int, grace_s: float) -> None:
        await self._over_the_network(self._stop(epoch, run, attempt, grace_s))

    async def _stop(self, epoch: int, run: int, attempt: int, grace_s: float) -> None:
        self._take_orders_from(epoch)
        if (run, attempt) in self.parts:
            # Some end at once and well, some only when they are killed.
            code, takes = self._world.chance.choice(((0, 0.0), (-15, 0.2), (-9, grace_s)))
            self._world.spawn(self._end_later(run, attempt, min(takes, grace_s), code))

    async def forget(self, epoch: int, run: int, attempt: int) -> None:
        await self._over_the_network(self._forget(epoch, run, attempt))

    async def _forget(self, epoch: int, run: int, attempt: int) -> None:
        self._take_orders_from(epoch)
        if (part := self.parts.get((run, attempt))) is not None and not part.ended:
            self._world.wrong(f"I4: {self.node} was told to forget {run}.{attempt}, whose ranks live")
        self.parts.pop((run, attempt), None)

    async def survey(self, epoch: int, python: str | None, look: bool) -> Any:
        return await self._over_the_network(super().survey(epoch, python, look))

    # -- the ranks -----------------------------------------------------------------------------------------------

    async def _watch_lease(self, part: FakePart) -> None:
        loop = asyncio.get_running_loop()
        while not part.ended:
            if (left := part.lease_end - loop.time()) > 0:
                await asyncio.sleep(left)
                continue
            if self.parts.get((part.order.run, part.order.attempt)) is not part:
                return  # its node lost power
            part.lease_expired = True
            self.end(part.order.run, part.order.attempt, -9)

    async def _end_later(self, run: int, attempt: int, seconds: float, code: int) -> None:
        await asyncio.sleep(seconds)
        if (run, attempt) in self.parts:
            self.end(run, attempt, code)

    def living(self) -> list[FakePart]:
        """Parts of attempts whose ranks live."""
        return [part for part in self.parts.values() if not part.ended and part.order.attempt > 0]
