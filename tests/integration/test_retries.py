"""What follows an attempt that broke: another elsewhere, a pause, or the end, whichever controller is there to decide."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from orchestrator.control.controller import Controller
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Run
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until


def attempts(
    controller: Controller, run: Run, count: int, state: State = State.RUNNING
) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        found = await controller.find(str(run.id))
        return len(found.attempts) == count and found.state is state

    return there


def nodes(run: Run, attempt: int) -> list[str]:
    return [part.node for part in run.attempts[attempt - 1].placement.nodes]


def test_a_gang_that_lost_a_node_starts_whole_on_others_once_nothing_of_it_can_live(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1, c=1)
        async with controlling(tmp_path, cluster, lease_s=0.5) as controller:
            run, _ = await controller.submit(job("2x1"), {})
            run = await reaches(controller, run, State.RUNNING)
            lost = nodes(run, 1)[1]
            cluster.lose(lost)
            await until(attempts(controller, run, 2))
            run = await controller.find(str(run.id))
            first, second = run.attempts
            assert first.outcome is Outcome.INFRA_ERROR
            assert set(nodes(run, 2)) == {"a", "b", "c"} - {lost}
            assert first.ended_at is not None
            (event,) = [one for one in run.events if one.event is Event.REQUEUED]
            assert event.reason == (
                f"node {lost} left the cluster while the run was on it; "
                "tried again at once, retry 1 of 10 for faults of the cluster in 24 h"
            )
            runtime = controller.runtime
            renewed = timedelta(seconds=runtime.monotonic() - controller.roster.nodes[lost].sync_sent)
            assert second.started_at >= runtime.now() - renewed + timedelta(seconds=0.49)
            # The part that was well goes on in the same place.
            assert nodes(run, 1)[0] in nodes(run, 2)

    asyncio.run(story())


def test_a_node_that_cannot_start_it_is_avoided_while_others_will_do(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        for agent in cluster.agents.values():
            agent.refuses = "its disk is full"
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await until(attempts(controller, run, 2, State.QUEUED))
            run = await controller.find(str(run.id))
            assert {*nodes(run, 1), *nodes(run, 2)} == {"a", "b"}
            why = await controller.why(str(run.id))
            assert why["waits"]["reasons"][0]["kind"] == "backoff"

    asyncio.run(story())


def test_where_there_is_no_other_node_it_gets_the_same_again(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        cluster.agents["a"].refuses = "its disk is full"
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await until(attempts(controller, run, 2, State.QUEUED))
            assert nodes(await controller.find(str(run.id)), 2) == ["a"]

    asyncio.run(story())


def test_the_pause_holds_through_a_restart_of_the_controller_and_a_cancel_ends_it(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        cluster.agents["a"].refuses = "its disk is full"
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await until(attempts(controller, run, 2, State.QUEUED))
        async with controlling(tmp_path, cluster) as controller:
            other, _ = await controller.submit(job(name="other", retry={"infra": 0}), {})
            await reaches(controller, other, State.FAILED)  # decided about both
            assert await attempts(controller, run, 2, State.QUEUED)()
            await controller.cancel(str(run.id))
            await reaches(controller, run, State.CANCELLED)

    asyncio.run(story())


def test_an_error_of_the_script_is_repeated_as_often_as_the_job_says(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(retry={"user": 1}), {})
            for attempt in (1, 2):
                await until(attempts(controller, run, attempt))
                cluster.agents["a"].end(run.id, attempt, 1)
            run = await reaches(controller, run, State.FAILED)
            assert len(run.attempts) == 2
            assert run.reason is not None
            assert run.reason.endswith("; all 1 retries for errors of the script are used")

    asyncio.run(story())


def test_a_run_that_ends_while_no_controller_is_there_is_tried_again_by_the_next(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await reaches(controller, run, State.RUNNING)
        cluster.agents["a"].parts.clear()
        async with controlling(tmp_path, cluster) as controller:
            await until(attempts(controller, run, 2))
            run = await controller.find(str(run.id))
            assert run.attempts[0].failure is not None
            assert run.attempts[0].failure.kind == "ranks_gone"

    asyncio.run(story())
