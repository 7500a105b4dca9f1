"""A cluster in simulated time whose nodes have leases, networks and bad days, users who want things of it, and what must hold.

What is checked has the numbers of the invariants: I1 what was acknowledged is there; I2, I3, I4 one set of ranks per run at a
time, whole, and nothing of an attempt that has ended; I8 events replay to states; I9 no GPU is given twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

from simulated_agent import SimulatedAgent
from sqlalchemy import text

from orchestrator.control.backend import (
    AgentGone,
    HoldRefused,
    StaleController,
    StartFailed,
    StartPart,
)
from orchestrator.control.controller import Controller
from orchestrator.control.refused import Refused
from orchestrator.control.runtime import Settings
from orchestrator.history.errors import DatabaseUnreachable, StoreError
from orchestrator.history.filters import RunFilter
from orchestrator.history.store import Store
from orchestrator.policy import Policy
from orchestrator.scheduling.lifecycle import Event, IllegalTransition, State
from orchestrator.scheduling.run import Run
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import job
from orchestrator.testing.crashes import Crash, Fuse, FusedBackend, fused_store
from orchestrator.testing.simulated import SimulatedClock

LEASE_S = 10.0
SLOT_S = 15.0
"""How long after an attempt's end something of it may be left on a node that can be reached."""
NODES = {"a": 2, "b": 2, "c": 4}
SIZES = ("1", "1", "2", "2x1", "2x2", "1x4")
REFUSALS = (Refused, StoreError, IllegalTransition)


class World:
    """One story: a workload by seed, controllers that die, and what was seen to be wrong."""

    def __init__(self, seed: object, url: str, home: Path) -> None:
        self.chance = Random(f"{seed}")
        self.url = url
        self.loop = asyncio.get_running_loop()
        self.clock = SimulatedClock(self.loop)
        self.settings = Settings(
            home,
            home / "storage",
            LEASE_S,
            watch_s=0.5,
            lost_after_s=2.0,
            policy=Policy(min_runtime=0.0),
            preflight="on" if self.chance.random() < 0.25 else "quick",
        )
        self.cluster = FakeCluster()
        self._joined = 0
        for node in NODES:
            self.power_on(node)
        self.cut: set[str] = set()
        """Nodes that are cut off; their ranks live."""
        self.off: set[str] = set()
        self.reader = Store.open(url)
        self.fuse = Fuse()
        self.controller: Controller | None = None
        self.acknowledged: dict[str, int] = {}
        """By key, the id that the client was told."""
        self.sent: dict[str, int] = {}
        """By key, how many runs were asked for by it."""
        self.refused = 0
        self.answers_lost = 0.0
        """The share of commits whose answer is lost: the connection broke at that moment."""
        self.cancelled: set[int] = set()
        self.crashes: list[str] = []
        self.found: list[str] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    def wrong(self, what: str) -> None:
        self.found.append(f"{asyncio.get_running_loop().time():.2f} s: {what}")

    @staticmethod
    async def passes(seconds: float) -> None:
        await asyncio.sleep(seconds)

    def spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- nodes ---------------------------------------------------------------------------------------------------

    def agents(self) -> list[SimulatedAgent]:
        return [agent for agent in self.cluster.agents.values() if isinstance(agent, SimulatedAgent)]

    def _list(self, node: str) -> None:
        self._joined += 1
        facts = next(iter(FakeCluster(**{node: NODES[node]}).facts.values()))
        self.cluster.facts[node] = replace(facts, id=f"{node}-{self._joined}")

    def power_on(self, node: str) -> None:
        self.cluster.agents[node] = SimulatedAgent(node, self)
        self._list(node)

    def power_off(self, node: str) -> None:
        """Everything on it is gone at once; the cluster notices later."""
        agent = self.cluster.agents[node]
        agent.gone = True
        agent.parts.clear()
        self.off.add(node)
        self.spawn(self._drop_later(node, self.cluster.facts[node].id))

    def cut_off(self, node: str) -> None:
        self.cluster.agents[node].gone = True
        self.cut.add(node)
        self.spawn(self._drop_later(node, self.cluster.facts[node].id))

    async def _drop_later(self, node: str, was: str) -> None:
        await asyncio.sleep(self.chance.uniform(1.0, 9.0))
        facts = self.cluster.facts.get(node)
        if facts is not None and facts.id == was and (node in self.cut or node in self.off):
            del self.cluster.facts[node]

    def bring_back(self, node: str) -> None:
        if node in self.off:
            self.off.discard(node)
            self.power_on(node)
        else:
            self.cut.discard(node)
            self.cluster.agents[node].gone = False
            if node not in self.cluster.facts:
                self._list(node)

    def begins(self, agent: SimulatedAgent, part: StartPart) -> None:
        """Ranks are about to be started: whatever the controller believes, nobody else may have this run or these GPUs."""
        gpus = {rank.gpu for rank in part.ranks}
        for other in self.agents():
            for order in (known.order for known in other.parts.values() if not known.ended):
                if order.run == part.run and order.attempt != part.attempt and min(order.attempt, part.attempt) > 0:
                    self.wrong(
                        f"I2: attempt {part.attempt} of run {part.run} starts on {agent.node}, and attempt "
                        f"{order.attempt} lives on {other.node}"
                    )
                if other is agent and gpus & {rank.gpu for rank in order.ranks}:
                    self.wrong(
                        f"I9: {part.run}.{part.attempt} and {order.run}.{order.attempt} share a GPU of {agent.node}"
                    )
        if part.attempt > 0:
            run = self.reader.get(part.run)
            if run is None or run.attempt is None or run.attempt.number != part.attempt:
                self.wrong(f"I4: {agent.node} starts {part.run}.{part.attempt}, which has ended or never began")

    # -- controllers ---------------------------------------------------------------------------------------------

    async def control(self, fuse: Fuse) -> None:
        """A controller begins; it may die of that."""
        self.fuse = fuse
        fuse.loses = lambda: self.chance.random() < self.answers_lost
        with suppress(Crash):
            store = fused_store(self.url, fuse)
            self.controller = Controller(
                store,
                FusedBackend(self.cluster, fuse),
                self.settings,
                now=self.clock,
                monotonic=asyncio.get_running_loop().time,
                superseded=lambda: self.wrong("a controller was fenced out, though there is no other"),
            )
            lost, self.answers_lost = self.answers_lost, 0.0
            await self._unless_dead(self.controller.start())
            self.answers_lost = lost

    async def _unless_dead(self, work: Any) -> Any:
        """What it gives; Crash as soon as the controller is dead, whoever it was waiting for."""
        loop = asyncio.get_running_loop()
        task, blown = loop.create_task(work), loop.create_task(self.fuse.blown.wait())
        await asyncio.wait((task, blown), return_when=asyncio.FIRST_COMPLETED)
        blown.cancel()
        if not task.done() or self.fuse.dead:
            task.cancel()
            with suppress(Crash, asyncio.CancelledError, *REFUSALS):
                await task
            raise Crash(self.fuse.at)
        return task.result()

    async def bury(self) -> None:
        """What is left of a dead controller; what it had sent may still arrive."""
        assert self.fuse.dead
        self.crashes.append(str(self.fuse.at))
        if self.controller is not None:
            await self.controller.close()
            self.controller._store.close()
            self.controller = None
        for call in self.fuse.on_the_way:
            if self.chance.random() < 0.6:
                self.spawn(self._arrives_late(call))

    async def _arrives_late(self, call: Callable[[], Awaitable[object]]) -> None:
        await asyncio.sleep(self.chance.choice((0.0, 0.3, 3.0, 8.0)))
        with suppress(AgentGone, StaleController, StartFailed, HoldRefused):
            await call()

    async def ask(self, call: Callable[[Controller], Awaitable[Any]]) -> Any:
        """What a client gets that tries again until there is a controller; None where it is refused."""
        while True:
            try:
                if self.controller is None or self.fuse.dead:
                    raise Crash
                return await self._unless_dead(call(self.controller))
            except Crash:
                await self.again()
            except DatabaseUnreachable:
                await asyncio.sleep(0.1)  # as a client does that has a key
            except REFUSALS:
                return None

    async def again(self, fuse: Fuse | None = None) -> None:
        """The next controller, after a while in which the ranks go on."""
        await self.bury()
        for _ in range(self.chance.randint(0, 2)):
            await asyncio.sleep(self.chance.choice((0.0, 0.5, 6.0)))
            self.something_happens()
        await self.control(fuse or Fuse())

    # -- what happens --------------------------------------------------------------------------------------------

    def something_happens(self) -> None:
        """To ranks and nodes, without any controller."""
        self.chance.choice((self.some_run_ends, self.some_run_ends, self.some_rank_fails, self.some_node_changes))()

    def some_run_ends(self) -> None:
        keys = sorted({(part.order.run, part.order.attempt) for agent in self.agents() for part in agent.living()})
        if keys:
            key = self.chance.choice(keys)
            for agent in self.agents():
                if key in agent.parts:
                    agent.end(*key)

    def some_rank_fails(self) -> None:
        parts = [(agent, part) for agent in self.agents() for part in agent.living()]
        if parts:
            agent, part = self.chance.choice(parts)
            agent.end_rank(part.order.run, part.order.attempt, self.chance.choice(sorted(part.ranks)), 1)

    def some_node_changes(self) -> None:
        if (away := sorted(self.cut | self.off)) and self.chance.random() < 0.6:
            self.bring_back(self.chance.choice(away))
        elif there := sorted(NODES.keys() - self.cut - self.off):
            self.chance.choice((self.cut_off, self.power_off))(self.chance.choice(there))

    async def submit(self, workers: str, **more: Any) -> None:
        key = f"key-{len(self.sent) + self.refused}"
        self.sent[key] = len(more.get("array", {}).get("i", ())) or 1
        new = job(workers, key=key, grace="2s", **more)
        answer = await self.ask(lambda controller: controller.submit(new, {}))
        if answer is None:
            del self.sent[key]  # the cluster has too few nodes at the moment
            self.refused += 1
            return
        run, _ = answer
        if self.acknowledged.setdefault(key, run.id) != run.id:
            self.wrong(f"I1: {key} was run {self.acknowledged[key]}, and is run {run.id}")

    async def cancel_some(self) -> None:
        if self.acknowledged:
            run = self.chance.choice(sorted(self.acknowledged.values()))
            answer = await self.ask(lambda controller: controller.cancel(str(run)))
            if answer is not None and not answer[1]:
                self.cancelled.add(run)

    async def retry_some(self) -> None:
        ended = [run.id for run in self.runs() if run.state in (State.FAILED, State.CANCELLED)]
        if ended:
            run = self.chance.choice(ended)
            self.cancelled.discard(run)
            await self.ask(lambda controller: controller.retry(str(run), {}))

    async def set_some(self) -> None:
        live = [run.id for run in self.runs() if not run.ended]
        if live:
            run = str(self.chance.choice(live))
            what = self.chance.choice(({"priority": "3"}, {"time_limit": "20s"}))
            await self.ask(lambda controller: controller.change(run, what))

    def runs(self) -> list[Run]:
        return self.reader.runs(RunFilter(sort="id", limit=10_000))

    # -- what must hold ------------------------------------------------------------------------------------------

    async def check_now(self) -> None:
        """With a controller that lives, a while after the last trouble: I3 and I4."""
        runs = {run.id: run for run in self.runs()}
        for agent in self.agents():
            if agent.gone:
                continue
            for (run, number), part in agent.parts.items():
                attempt = runs[run].attempt
                if number > 0 and not part.ended and (attempt is None or attempt.number != number):
                    self.wrong(f"I4: {run}.{number} lives on {agent.node}, and has ended for the database")
                elif number > 0 and not part.ended and self._stops_too_long(run):
                    self.wrong(f"I4: {run}.{number} was to be stopped long ago, and lives on {agent.node}")

    def _stops_too_long(self, run_id: int) -> bool:
        run = self.reader.get(run_id)
        assert run is not None
        told = run.state is State.STOPPING and run.events[-1].at
        return bool(told) and self.clock() - told > timedelta(seconds=SLOT_S)

    async def settle(self) -> None:
        """Everybody comes back, every rank ends well: then everything ends."""
        self.answers_lost = 0.0
        for node in sorted(self.cut | self.off):
            self.bring_back(node)
        await self.ask(lambda controller: controller.live())
        await asyncio.sleep(SLOT_S + LEASE_S)
        await self.check_now()
        for _ in range(300):
            if not self.reader.waiting() and not self.reader.live():
                break
            for agent in self.agents():
                for part in agent.living():
                    agent.end(part.order.run, part.order.attempt)
            await asyncio.sleep(1.0)
        await asyncio.sleep(LEASE_S + SLOT_S)
        await self.check_end()

    async def check_end(self) -> None:
        runs = {run.id: run for run in self.runs()}
        for run in runs.values():
            if not run.ended:
                said = await self.ask(lambda controller, run=run: controller.find(str(run.id)))  # type: ignore[misc]
                self.wrong(f"run {run.id} is {run.state} for ever: {said.reason}")
            if not self.reader.verify(run.id):
                self.wrong(f"I8: the events of run {run.id} do not lead to {run.state}")
            self._check_run(self.reader.get(run.id))
        for key, run_id in self.acknowledged.items():
            if run_id not in runs:
                self.wrong(f"I1: run {run_id} ({key}) was acknowledged, and is not there")
        if len(runs) != (asked := sum(self.sent.values())):
            self.wrong(f"I1: {asked} runs were asked for, and there are {len(runs)}")
        for run_id in self.cancelled:
            if runs[run_id].state is not State.CANCELLED:
                self.wrong(f"run {run_id} was to be cancelled, and is {runs[run_id].state}")
        for agent in self.agents():
            for run_id, attempt in agent.parts:
                self.wrong(f"I4: {agent.node} still knows {run_id}.{attempt}")
        if self.cluster.holds:
            self.wrong(f"I11: held though nothing runs: {', '.join(sorted(self.cluster.holds))}")
        self._check_rows()

    def _check_run(self, run: Run | None) -> None:
        assert run is not None
        numbers = [attempt.number for attempt in run.attempts]
        if numbers != list(range(1, len(numbers) + 1)):
            self.wrong(f"run {run.id} has the attempts {numbers}")
        events = [event.event for event in run.events]
        if (run.state is State.SUCCEEDED) != (events[-1] is Event.SUCCEEDED):
            self.wrong(f"I8: run {run.id} is {run.state} after {events[-1]}")
        for attempt in run.attempts:
            if attempt.outcome is None or attempt.ended_at is None or attempt.ended_at < attempt.started_at:
                self.wrong(f"attempt {run.id}.{attempt.number} has no end, or one before its beginning")
            was_up = attempt.ranks_started_at is not None
            if was_up and attempt.failure is not None and attempt.failure.kind == "controller":
                self.wrong(f"{run.id}.{attempt.number} was running, and was ended because a controller died")

    def _check_rows(self) -> None:
        with self.reader._database.read() as connection:
            if self.url.startswith("sqlite"):
                found = connection.execute(text("PRAGMA integrity_check")).scalar_one()
                if found != "ok":
                    self.wrong(f"I8: {found}")
            rows = connection.execute(
                text("SELECT node, gpu, since, released_at, run_id FROM allocations ORDER BY node, gpu, since, run_id")
            )
            last: dict[tuple[str, int], tuple[Any, Any]] = {}
            for node, gpu, since, released, run in rows:
                before = last.get((node, gpu))
                if before is not None and (before[0] is None or before[0] > since):
                    self.wrong(f"I9: GPU {gpu} of {node} was given to run {run} while run {before[1]} had it")
                if released is None:
                    self.wrong(f"GPU {gpu} of {node} is run {run}'s for ever")
                last[node, gpu] = released, run

    async def close(self) -> None:
        if self.controller is not None:
            await self.controller.close()
            self.controller._store.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.reader.close()
        logging.getLogger("orch").debug("crashed %s", self.crashes)
