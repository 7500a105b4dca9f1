"""The next controller takes up what the one before it left, wherever that died."""

import asyncio
from pathlib import Path

import pytest
from told import trial_on, waits_because

from orchestrator.control.backend import Agent, AgentGone, NodeFacts, RankStart, StartPart
from orchestrator.control.refused import Refused
from orchestrator.scheduling.lifecycle import State
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until


def test_the_next_controller_takes_up_running_ranks_without_touching_them(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await reaches(controller, run, State.RUNNING)
        async with controlling(tmp_path, cluster) as controller:
            part = cluster.agents["a"].parts[run.id, 1]
            await until(lambda: cluster.agents["a"].epoch == 2)
            assert part.stopped_with is None
            cluster.agents["a"].end(run.id, 1)
            run = await reaches(controller, run, State.SUCCEEDED)
            assert len(run.attempts) == 1

    asyncio.run(story())


def test_ranks_that_ended_while_no_controller_ran_are_accounted_for(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await reaches(controller, run, State.RUNNING)
        cluster.agents["a"].end(run.id, 1, 4)
        async with controlling(tmp_path, cluster) as controller:
            run = await reaches(controller, run, State.FAILED)
            assert run.attempts[0].exit_codes == {0: 4}

    asyncio.run(story())


def test_an_agent_with_no_trace_of_a_running_part_ends_the_attempt(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(retry={"infra": 0}), {})
            await reaches(controller, run, State.RUNNING)
        cluster.agents["a"].parts.clear()
        async with controlling(tmp_path, cluster) as controller:
            run = await reaches(controller, run, State.FAILED)
            assert run.attempts[0].failure is not None
            assert run.attempts[0].failure.kind == "ranks_gone"

    asyncio.run(story())


def test_the_older_of_two_controllers_is_told_to_end(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        ended: list[bool] = []
        async with controlling(tmp_path, cluster) as old:
            old.runtime.superseded = lambda: ended.append(True)
            async with controlling(tmp_path, cluster):
                await until(lambda: bool(ended))

    asyncio.run(story())


def test_a_waiting_run_whose_secrets_went_with_the_controller_fails_and_says_what_to_do(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            first, _ = await controller.submit(job(), {})
            await reaches(controller, first, State.RUNNING)
            run, _ = await controller.submit(job(secrets=("KEY",)), {"KEY": "x"})
        async with controlling(tmp_path, cluster) as controller:
            run = await reaches(controller, run, State.FAILED)
            assert f"orch retry {run.id}" in (run.reason or "")

    asyncio.run(story())


def test_a_controller_that_follows_ends_the_trial_and_tries_anew(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster, preflight="on") as controller:
            await controller.submit(job("2x1"), {})
            first = await trial_on(cluster, "a")
        async with controlling(tmp_path, cluster, preflight="on"):
            parts = cluster.agents["a"].parts
            await until(lambda: first not in parts and len(parts) == 1)
            assert next(iter(parts))[1] < 0

    asyncio.run(story())


def test_nothing_is_placed_on_a_node_where_a_trial_of_the_controller_before_still_lives(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        for agent in cluster.agents.values():
            agent.obeys_stop = False
        async with controlling(tmp_path, cluster, preflight="on") as controller:
            run, _ = await controller.submit(job("2x1"), {})
            first = await trial_on(cluster, "a")
            await trial_on(cluster, "b")
        async with controlling(tmp_path, cluster, preflight="on") as controller:
            await waits_because(controller, run, "what a controller before this one tried on it is being ended")
            for agent in cluster.agents.values():
                assert list(agent.parts) == [first]
                agent.end(*first, -9)
            await until(lambda: {number for _, number in cluster.agents["a"].parts} not in (set(), {first[1]}))

    asyncio.run(story())


def test_a_gang_that_was_whole_when_the_controller_died_goes_on_though_its_start_was_not_recorded(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        slow = cluster.agents["a"].slow_start = asyncio.Event()
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await reaches(controller, run, State.STARTING)
            await until(lambda: bool(cluster.holds))
            controller.start_no_more()
        slow.set()
        # The order had been carried out when the next one came.
        order = StartPart(
            run.id, 1, ("train.py",), None, None, {}, {}, "cuda", (RankStart(0, 0, 0),), 1, 0, "10.0.0.1", 0, 30.0, 1
        )
        await cluster.agents["a"].start(1, order)
        async with controlling(tmp_path, cluster) as controller:
            run = await reaches(controller, run, State.RUNNING)
            assert [one.number for one in run.attempts] == [1]

    asyncio.run(story())


def test_a_node_that_nothing_runs_on_is_given_back_by_the_next_controller_and_when_it_is_lost(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        cluster.holds = {"a", "b"}  # by a controller that died between the end of a run and giving its node back
        async with controlling(tmp_path, cluster) as controller:
            await until(lambda: not cluster.holds)
            run, _ = await controller.submit(job("2x1"), {})
            await reaches(controller, run, State.RUNNING)
            cluster.lose("b")
            await until(lambda: "b" not in cluster.holds)

    asyncio.run(story())


def test_the_lease_of_a_node_that_this_controller_never_reached_counts_from_its_own_beginning(tmp_path: Path) -> None:
    class Unreached(FakeCluster):
        async def agent(self, node: NodeFacts) -> Agent:
            raise AgentGone("it does not answer")

    async def story() -> None:
        cluster = Unreached(a=1)
        async with controlling(tmp_path, cluster, lease_s=30.0) as controller:
            await until(lambda: "a" in controller.roster.nodes)
            left = (controller.roster.lease_end("a") - controller.runtime.now()).total_seconds()
            assert left > 20  # the controller before it may have renewed the lease until now

    asyncio.run(story())


def test_a_submission_that_was_acknowledged_is_so_again_though_it_could_not_be_made_now(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2", key="k"), {})
        cluster.lose("a")
        cluster.add("b", 1)
        async with controlling(tmp_path, cluster) as controller:
            again, created = await controller.submit(job("2", key="k"), {})
            assert (again.id, created) == (run.id, False)
            with pytest.raises(Refused, match="can never fit"):
                await controller.submit(job("2", key="other"), {})

    asyncio.run(story())
