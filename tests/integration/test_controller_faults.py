"""A rank, a node or a start that fails ends its gang once, by name, and gives back what it held."""

import asyncio
from pathlib import Path

from told import has_ended, says

from orchestrator.control.runtime import Settings
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, started, until


def test_a_failing_rank_stops_the_others_and_is_named(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x1", grace=7.0), {})
            await reaches(controller, run, State.RUNNING)
            order = cluster.agents["a"].parts[run.id, 1]
            cluster.agents["b"].end(run.id, 1, 3)
            run = await reaches(controller, run, State.FAILED)
            assert order.stopped_with == 7.0
            attempt = run.attempts[0]
            assert attempt.outcome is Outcome.USER_ERROR
            assert attempt.failure is not None
            assert (attempt.failure.rank, attempt.failure.node) == (1, "b")
            assert run.reason == "rank 1 on b ended with exit code 3"

    asyncio.run(story())


def test_a_lost_node_fails_the_run_with_its_name_and_keeps_its_gpus_until_the_lease_is_over(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster, lease_s=1.0) as controller:
            run, _ = await controller.submit(job("2x1", retry={"infra": 0}), {})
            await reaches(controller, run, State.RUNNING)
            cluster.lose("b")
            run = await reaches(controller, run, State.FAILED)
            assert run.attempts[0].failure is not None
            assert (run.attempts[0].failure.kind, run.attempts[0].failure.node) == ("node_lost", "b")
            assert await controller.busy() == {"b": {0: run.id}}
            cluster.add("b", 1)
            again = await controller.retry(str(run.id), {})
            await until(lambda: says(controller, again, "lease"))
            await reaches(controller, again, State.RUNNING)

    asyncio.run(story())


def test_a_node_that_the_cluster_says_is_dead_is_not_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        settings = Settings(
            tmp_path, tmp_path / "storage", preflight="off", sync_wait_s=0.05, watch_s=0.02, lost_after_s=600
        )
        async with started(cluster, settings) as controller:
            run, _ = await controller.submit(job("2x1"), {})
            await reaches(controller, run, State.RUNNING)
            dead = cluster.facts["b"].id
            cluster.lose("b")
            cluster.dead.add(dead)
            await until(lambda: has_ended(controller, run))

    asyncio.run(story())


def test_a_node_that_is_listed_but_answers_no_more_is_given_up_when_its_lease_has_run_out(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1, c=1)
        async with controlling(tmp_path, cluster, lease_s=3.0) as controller:
            run, _ = await controller.submit(job("2x1"), {})
            run = await reaches(controller, run, State.RUNNING)
            assert run.attempt is not None
            silent = run.attempt.placement.nodes[1].node
            # It is asked again and again, which must not move the bound of its lease.
            cluster.agents[silent].gone = True
            await until(lambda: has_ended(controller, run))
            failure = (await controller.find(str(run.id))).attempts[0].failure
            assert failure is not None
            assert (failure.kind, failure.node) == ("node_lost", silent)
            assert "has not answered" in failure.message
            cluster.agents[silent].gone = False
            run = await reaches(controller, run, State.RUNNING)
            again, _ = await controller.submit(job("1"), {})
            await reaches(controller, again, State.RUNNING)

    asyncio.run(story())


def test_a_part_that_cannot_start_ends_the_gang_and_names_the_node(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        cluster.agents["b"].refuses = "no interpreter at /venv/bin/python"
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x1", retry={"infra": 0}), {})
            run = await reaches(controller, run, State.FAILED)
            assert run.reason == "b: no interpreter at /venv/bin/python"
            assert run.attempts[0].outcome is Outcome.INFRA_ERROR
            assert await controller.busy() == {}

    asyncio.run(story())


def test_a_node_that_other_work_holds_sends_the_run_back_to_wait(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        cluster.foreign.add("a")
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})

            async def went_back() -> bool:
                return any(e.event is Event.REQUEUED for e in (await controller.find(str(run.id))).events)

            await until(went_back)
            cluster.foreign.clear()
            await reaches(controller, run, State.RUNNING)

    asyncio.run(story())


def test_a_node_that_was_still_starting_when_its_gang_was_told_to_stop_is_told_once_it_has_started(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        slow = cluster.agents["b"].slow_start = asyncio.Event()
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x1"), {})
            a, b = cluster.agents["a"].parts, cluster.agents["b"].parts
            await until(lambda: (run.id, 1) in a)
            await controller.cancel(str(run.id))
            await until(lambda: a[run.id, 1].stopped_with is not None)
            slow.set()
            await reaches(controller, run, State.CANCELLED)
            await until(lambda: not b)

    asyncio.run(story())
