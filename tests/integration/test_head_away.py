"""What becomes of runs while the cluster's head is away, and of a controller that comes back after it."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.control import ray_calls
from orchestrator.control.backend import ClusterLost
from orchestrator.control.ray_calls import RayCalls
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Run
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until


def notes(run: Run) -> list[str | None]:
    return [event.reason for event in run.events if event.event is Event.NOTED]


def test_ranks_go_on_and_nothing_starts_while_the_head_is_away(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("1"), {})
            run = await reaches(controller, run, State.RUNNING)
            cluster.lost = True
            await until(lambda: controller.roster.away)
            (node,) = run.attempts[0].placement.nodes
            end = controller.roster.lease_end(node.node)
            await until(lambda: controller.roster.lease_end(node.node) > end)
            waits, _ = await controller.submit(job("1", name="waits"), {})
            await until(lambda: (reason := controller.queue.waits.reason(waits.id)) and "head" in reason.text)
            assert (await controller.find(str(run.id))).state is State.RUNNING
            cluster.lost = False
            await reaches(controller, waits, State.RUNNING)
            run = await controller.find(str(run.id))
            assert (run.state, len(run.attempts)) == (State.RUNNING, 1)

    asyncio.run(story())


def test_a_gang_whose_nodes_join_only_after_the_controller_goes_on_in_its_attempt(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x1"), {})
            run = await reaches(controller, run, State.RUNNING)
        facts, cluster.facts = cluster.facts, {}
        async with controlling(tmp_path, cluster) as controller:
            for name in ("a", "b"):
                cluster.facts[name] = facts[name]
                await until(lambda name=name: (node := controller.roster.nodes.get(name)) and node.up)
            for name in ("a", "b"):
                cluster.agents[name].end(run.id, 1)
            run = await reaches(controller, run, State.SUCCEEDED)
            assert len(run.attempts) == 1

    asyncio.run(story())


def test_a_gang_whose_node_does_not_come_back_is_tried_again_once_its_lease_is_over(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster, lease_s=0.5) as controller:
            run, _ = await controller.submit(job("1"), {})
            run = await reaches(controller, run, State.RUNNING)
        (lost,) = (part.node for part in run.attempts[0].placement.nodes)
        del cluster.facts[lost]
        async with controlling(tmp_path, cluster, lease_s=0.5) as controller:
            until_then = controller.roster.lease_end(lost)

            async def again() -> bool:
                return len((await controller.find(str(run.id))).attempts) == 2

            await until(again)
            run = await controller.find(str(run.id))
            first, second = run.attempts
            assert first.outcome is Outcome.INFRA_ERROR
            assert first.failure is not None
            assert (first.failure.kind, first.failure.node) == ("node_lost", lost)
            assert second.started_at >= until_then - timedelta(seconds=0.01)
            assert lost not in [part.node for part in second.placement.nodes]

    asyncio.run(story())


@pytest.mark.parametrize(("away_s", "told"), [(42, True), (3, False)])
def test_the_time_without_a_controller_stands_in_a_runs_history_where_it_was_long(
    away_s: int, told: bool, tmp_path: Path
) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("1"), {})
            await reaches(controller, run, State.RUNNING)
        since = datetime.now(UTC) - timedelta(seconds=away_s)
        async with controlling(tmp_path, cluster, last_alive=since) as controller:
            await until(lambda: controller.roster.nodes["a"].up)
            cluster.agents["a"].end(run.id, 1)
            run = await reaches(controller, run, State.SUCCEEDED)
            assert len(run.attempts) == 1
            said = [
                re.search(r"no controller from .* \((\d+) s\); the ranks went on", str(note)) for note in notes(run)
            ]
            assert [one is not None and int(one[1]) >= away_s for one in said] == ([True] if told else [])

    asyncio.run(story())


def test_a_controller_that_has_nothing_to_write_ends_when_another_has_taken_over(tmp_path: Path) -> None:
    async def story() -> None:
        ended = asyncio.Event()
        async with (
            controlling(tmp_path, FakeCluster(), superseded=ended.set),
            controlling(tmp_path, FakeCluster(), superseded=lambda: pytest.fail("the newer one ended")),
        ):
            await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(story())


def test_a_head_that_gives_no_cpu_to_work_gets_no_rank(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster()
        cluster.add("head", 0, "cpu")
        cluster.add("worker", 2, "cpu")
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2", device="cpu"), {})
            run = await reaches(controller, run, State.RUNNING)
            assert [part.node for part in run.attempts[0].placement.nodes] == ["worker"]
            assert list(controller.roster.inventory.topology.index) == ["worker"]

    asyncio.run(story())


class TestRayCalls:
    def test_where_nothing_listens_ray_is_not_asked(self) -> None:
        async def story() -> None:
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
            calls = RayCalls(f"127.0.0.1:{port}")
            with pytest.raises(ClusterLost, match=f"127.0.0.1:{port} does not answer .connection refused"):
                await calls(lambda: pytest.fail("Ray was asked"))

        asyncio.run(story())

    def test_a_call_gives_what_it_gives_and_raises_what_it_raises(self) -> None:
        async def story(calls: RayCalls) -> None:
            assert await calls(divmod, 7, 2) == (3, 1)
            with pytest.raises(ZeroDivisionError):
                await calls(divmod, 7, 0)

        with socket.create_server(("127.0.0.1", 0)) as server:
            asyncio.run(story(RayCalls(f"127.0.0.1:{server.getsockname()[1]}")))

    def test_a_head_that_hangs_takes_few_threads_and_is_asked_again_when_it_answers(self) -> None:
        answers = threading.Event()

        async def story(calls: RayCalls) -> None:
            for _ in range(ray_calls.MOST):
                with pytest.raises(ClusterLost, match="has not answered within"):
                    await calls(answers.wait, timeout_s=0.01)
            before = threading.active_count()
            with pytest.raises(ClusterLost, match="left 8 calls"):
                await calls(answers.wait)
            assert threading.active_count() == before
            answers.set()

            async def again() -> bool:
                try:
                    return await calls(answers.wait)
                except ClusterLost:
                    return False

            await until(again)

        with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
            asyncio.run(story(RayCalls(f"127.0.0.1:{server.getsockname()[1]}")))
