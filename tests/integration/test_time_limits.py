"""A run that reaches its time limit is stopped with its grace and has failed; the limit can be moved, within what was promised."""

import asyncio
from pathlib import Path

import pytest
from told import story, submit

from orchestrator.control.controller import Controller
from orchestrator.control.refused import Refused
from orchestrator.scheduling.lifecycle import Outcome, State
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, reaches, until


def test_a_run_that_reaches_its_time_limit_gets_its_grace_and_has_failed_however_its_ranks_end(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        run = await submit(controller, time_limit=0.2, grace=7.0)
        await reaches(controller, run, State.RUNNING)
        part = cluster.agents["a"].parts[run.id, 1]
        cluster.agents["a"].obeys_stop = False
        await until(lambda: part.stopped_with == 7.0)
        assert (await controller.find(str(run.id))).state is State.STOPPING
        cluster.agents["a"].end(run.id, 1, 0)
        ended = await reaches(controller, run, State.FAILED)
        attempt = ended.attempts[0]
        assert attempt.failure is not None
        assert (attempt.outcome, attempt.failure.kind) == (Outcome.USER_ERROR, "time_limit")
        assert ended.reason == "reached its time limit of 0.2s"
        assert await controller.busy() == {}

    story(tell, tmp_path, a=1)


def test_the_time_that_ranks_take_to_start_does_not_count(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        cluster.agents["b"].slow_start = asyncio.Event()
        run = await submit(controller, "2x1", time_limit=0.05)
        await until(lambda: (run.id, 1) in cluster.agents["a"].parts)
        await asyncio.sleep(0.2)
        assert cluster.agents["a"].parts[run.id, 1].stopped_with is None
        cluster.agents["b"].slow_start.set()
        await reaches(controller, run, State.FAILED)

    story(tell, tmp_path, a=1, b=1)


def test_the_next_controller_goes_on_with_a_time_limit_and_with_what_it_ends(tmp_path: Path) -> None:
    async def told() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster) as controller:
            for agent in cluster.agents.values():
                agent.obeys_stop = False
            stopping = await submit(controller, time_limit=0.1)
            later = await submit(controller, time_limit=1.0)
            await reaches(controller, stopping, State.STOPPING)
            await until(lambda: any((later.id, 1) in agent.parts for agent in cluster.agents.values()))
        for agent in cluster.agents.values():
            agent.obeys_stop = True
        async with controlling(tmp_path, cluster) as controller:
            for run in (stopping, later):
                ended = await reaches(controller, run, State.FAILED)
                assert ended.attempts[0].failure is not None
                assert ended.attempts[0].failure.kind == "time_limit"

    asyncio.run(told())


def test_a_running_runs_time_limit_can_be_moved_but_not_to_before_now(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        run = await submit(controller, time_limit=3600.0)
        began = (await reaches(controller, run, State.RUNNING)).started_at
        assert began is not None

        def ran() -> float:
            return (controller.runtime.now() - began).total_seconds()

        await until(lambda: ran() > 0.01)
        with pytest.raises(Refused, match="has run for"):
            await controller.change(str(run.id), {"time_limit": "0.01s"})
        await controller.change(str(run.id), {"time_limit": f"{ran() + 0.5:.1f}s"})
        ended = await reaches(controller, run, State.FAILED)
        assert (ended.reason or "").startswith("reached its time limit of ")

    story(tell, tmp_path, a=1)


def test_a_time_limit_that_another_run_was_promised_a_place_by_is_not_made_longer(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        run = await submit(controller, time_limit=3600.0)
        await reaches(controller, run, State.RUNNING)
        waits = await submit(controller)

        async def promised() -> bool:
            return any(one.run.id == waits.id and one.start is not None for one in controller.queue.last.reservations)

        await until(promised)
        with pytest.raises(Refused, match=rf"run {waits.id} \(job\) is promised a place"):
            await controller.change(str(run.id), {"time_limit": "2h"})
        await controller.change(str(run.id), {"time_limit": "30m"})

    story(tell, tmp_path, a=1)
