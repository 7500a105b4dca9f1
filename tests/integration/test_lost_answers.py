"""Answers that come late, twice or never, between controller and agent: what is still there is not taken for gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rows import fault, representative
from test_agent import SLEEPS, an_agent, part

from orchestrator.control.backend import AgentGone, Report
from orchestrator.scheduling.lifecycle import Outcome, State
from orchestrator.testing.cluster import FakeAgent, FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until

pytestmark = [fault(38), representative]


def test_a_report_that_was_lost_is_told_again_with_what_was_started_since(tmp_path: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), an_agent(tmp_path) as agent:
            first = await agent.sync(1, 0, 60, 0)
            await agent.sync(1, first.sequence, 60, 0)  # its answer is lost
            await agent.start(1, part(tmp_path, SLEEPS))
            again = await agent.sync(1, 0, 60, 0)
            assert [(one.run, one.attempt, one.ranks) for one in again.parts] == [(1, 1, {0: None})]

    asyncio.run(story())


def test_what_a_lost_report_held_of_a_log_comes_once_and_the_end_not_before_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), an_agent(tmp_path) as agent:
            await agent.start(1, part(tmp_path, "print('said')"))
            lost = await agent.sync(1, 0, 60, 0)
            while not lost.logs:
                lost = await agent.sync(1, lost.sequence, 60, 5)
            again = await agent.sync(1, 0, 60, 0)
            assert again.logs == lost.logs
            heard = again
            while not heard.parts[0].ended:
                heard = await agent.sync(1, heard.sequence, 60, 5)
                assert heard.logs == ()

    asyncio.run(story())


class SlowToTell(FakeAgent):
    """One that is not heard for a moment when the test says so, and whose next answer then takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.loses = False
        self.composed, self.arrives = asyncio.Event(), asyncio.Event()
        self.told = 0

    async def sync(self, epoch: int, ack: int, lease_s: float, wait_s: float) -> Report:
        report = await super().sync(epoch, ack, lease_s, wait_s)
        self.told += 1
        if self.loses and ack:
            raise AgentGone("an answer is lost")
        if self.loses:
            self.loses = False
            self.composed.set()
            await self.arrives.wait()
        return report


def test_a_report_from_before_a_start_does_not_end_what_was_started(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        agent = cluster.agents["a"] = SlowToTell()
        async with controlling(tmp_path, cluster) as controller:
            await until(lambda: _up(controller.roster.nodes["a"].up))
            agent.slow_start = asyncio.Event()
            run, _ = await controller.submit(job("2"), {})
            await reaches(controller, run, State.STARTING)
            agent.loses = True
            await agent.composed.wait()
            agent.slow_start.set()
            await reaches(controller, run, State.RUNNING)
            told = agent.told
            agent.arrives.set()
            await until(lambda: _up(agent.told > told + 1))
            assert len((await controller.find(str(run.id))).attempts) == 1
            # One that was asked after the start is believed.
            held = agent.parts.pop((run.id, 1))
            agent.loses = True
            await until(lambda: _up((run.id, 2) in agent.parts))
            found = await reaches(controller, run, State.RUNNING)
            assert held.stopped_with is None
            assert [one.outcome for one in found.attempts] == [Outcome.INFRA_ERROR, None]
            assert found.attempts[0].failure is not None
            assert found.attempts[0].failure.kind == "ranks_gone"

    asyncio.run(story())


async def _up(value: bool) -> bool:
    return value
