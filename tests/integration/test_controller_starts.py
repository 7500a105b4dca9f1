"""Before a gang starts: nodes that are not fit, links that were never tried, a checkpoint folder that is not one."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from told import says, trial_on

from orchestrator.control.shared_folder import FolderLook, Tokens
from orchestrator.scheduling.lifecycle import Event, State
from orchestrator.testing.cluster import FakeAgent, FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until


def test_a_node_that_is_not_fit_is_swapped_before_the_start_and_no_attempt_is_charged(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        cluster.agents["a"].obstacles = ["70000 MiB of GPU 0 are held by process 7"]
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2"), {})
            run = await reaches(controller, run, State.RUNNING)
            (attempt,) = run.attempts
            assert [part.node for part in attempt.placement.nodes] == ["b"]
            events = [(event.event, event.state) for event in run.events]
            assert events[:3] == [
                (Event.SUBMITTED, State.QUEUED),
                (Event.NOTED, State.QUEUED),
                (Event.PLACED, State.STARTING),
            ]
            assert run.events[1].reason == "placed again without a: 70000 MiB of GPU 0 are held by process 7"
            assert run.queued_at == run.submitted_at
            assert cluster.agents["a"].parts == {}

    asyncio.run(story())


def test_a_run_whose_only_node_is_not_fit_waits_and_says_why_and_holds_nobody_back(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        cluster.agents["a"].obstacles = ["no memory"]
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("1"), {})
            await until(lambda: says(controller, run, "no memory on a"))
            cluster.agents["a"].obstacles = []
            other, _ = await controller.submit(job("1"), {})
            await reaches(controller, other, State.RUNNING)
            assert (await controller.find(str(run.id))).attempts == ()

    asyncio.run(story())


def test_an_agent_that_does_not_answer_is_left_to_the_start(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        cluster.agents["b"].refuses = "no interpreter"
        async with controlling(tmp_path, cluster) as controller:
            cluster.agents["b"].mute = True
            run, _ = await controller.submit(job("2x1", retry={"infra": 0}), {})
            run = await reaches(controller, run, State.FAILED)
            assert run.reason == "b: no interpreter"

    asyncio.run(story())


def test_while_links_are_tried_the_gpus_are_nobody_elses_and_the_run_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster, preflight="on") as controller:
            run, _ = await controller.submit(job("2x2"), {})
            trial = await trial_on(cluster, "b")
            other, _ = await controller.submit(job("1"), {})
            await until(lambda: controller.queue.waits.reason(other.id) is not None)
            await until(lambda: says(controller, run, "1 pair of its nodes was never measured"))
            assert await controller.busy() == {"a": {0: run.id, 1: run.id}, "b": {0: run.id, 1: run.id}}
            assert (await controller.find(str(run.id))).attempts == ()
            assert cluster.holds == {"a", "b"}
            order = cluster.agents["b"].parts[trial].order
            assert (order.node_rank, order.world_size, [rank.rank for rank in order.ranks]) == (1, 4, [2, 3])
            for agent in cluster.agents.values():
                agent.end(*trial, 1)
            # Wherever they are, they end before they meet: the run is to say so itself.
            run = await reaches(controller, run, State.RUNNING)
            assert [attempt.number for attempt in run.attempts] == [1]

    asyncio.run(story())


def test_a_run_that_is_cancelled_while_its_links_are_tried_gives_its_gpus_back(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster, preflight="on") as controller:
            run, _ = await controller.submit(job("2x1"), {})
            await trial_on(cluster, "a")
            await controller.cancel(str(run.id))
            await until(lambda: not cluster.agents["a"].parts and not cluster.agents["b"].parts)
            await until(lambda: not controller.trials.waits() and not cluster.holds)
            assert (await controller.find(str(run.id))).attempts == ()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("workers", "more"), [("2", {}), ("2x1", {"backend": "gloo"}), ("2x1", {"tags": {"orch": "bench"}})]
)
def test_gangs_of_one_node_of_gloo_and_of_orch_bench_are_not_tried(
    tmp_path: Path, workers: str, more: dict[str, Any]
) -> None:
    async def story() -> None:
        async with controlling(tmp_path, FakeCluster(a=2, b=2), preflight="on") as controller:
            run, _ = await controller.submit(job(workers, **more), {})
            run = await reaches(controller, run, State.RUNNING)
            assert [event.event for event in run.events] == [Event.SUBMITTED, Event.PLACED, Event.STARTED]

    asyncio.run(story())


def test_a_checkpoint_folder_that_is_not_one_on_all_nodes_is_told_once_and_holds_nothing_up(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        cluster.agents["b"].disk = set()
        async with controlling(tmp_path, cluster, preflight="off") as controller:
            run, _ = await controller.submit(job("2x1", checkpoint="ckpt"), {})
            await reaches(controller, run, State.RUNNING)

            async def told() -> list[str]:
                found = await controller.find(str(run.id))
                return [event.reason for event in found.events if event.event is Event.NOTED]

            await until(told)
            (text,) = await told()
            assert text.startswith("checkpoint: b does not see what a writes in")
            assert f"storage/checkpoints/{run.id}/ckpt" in text
            assert cluster.disk == set(), "the token is taken away again"

    asyncio.run(story())


def test_a_run_of_which_all_nodes_see_the_folder_hears_nothing_of_it(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        looked: list[Tokens] = []

        class Watched(FakeAgent):
            async def checkpoint_folder(self, epoch: int, folder: str, tokens: Tokens) -> FolderLook:
                looked.append(tokens)
                return await super().checkpoint_folder(epoch, folder, tokens)

        cluster.agents = {name: Watched() for name in cluster.agents}
        for agent in cluster.agents.values():
            agent.disk = cluster.disk
        async with controlling(tmp_path, cluster, preflight="off") as controller:
            run, _ = await controller.submit(job("2x1", checkpoint="ckpt"), {})

            async def cleared() -> bool:
                return any(tokens.remove for tokens in looked)

            await until(cleared)
            await reaches(controller, run, State.RUNNING)
            found = await controller.find(str(run.id))
            assert [event.reason for event in found.events if event.event is Event.NOTED] == []

    asyncio.run(story())
