"""Runs give way to a drain at no cost, nothing new comes, and the mark outlives node and controller."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from told import node_events, trial_on, waits_because

from orchestrator.control.refused import Refused
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until


def test_runs_on_a_drained_node_give_way_and_go_on_elsewhere_at_no_cost(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2", grace="7s"), {})
            await reaches(controller, run, State.RUNNING)
            cluster.add("b", 2)
            await until(lambda: "b" in controller.roster.nodes and controller.roster.nodes["b"].up)
            part = cluster.agents["a"].parts[run.id, 1]
            (drained,) = await controller.care.drain(["a"], "ana", "new cables", False)
            assert (drained.already, drained.runs) == (False, (run.id,))
            await until(lambda: (run.id, 2) in cluster.agents["b"].parts)
            assert part.stopped_with == 7
            run = await reaches(controller, run, State.RUNNING)
            first, second = run.attempts
            assert (first.outcome, first.failure) == (Outcome.DRAINED, None)
            assert first.stop is not None
            assert first.stop.reason == "node a is drained by ana: new cables"
            assert [part.node for part in second.placement.nodes] == ["b"]
            assert run.queued_at == run.submitted_at
            await until(lambda: cluster.holds == {"b"})

    asyncio.run(story())


def test_with_when_idle_runs_end_by_themselves_and_nothing_new_comes(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("1"), {})
            await reaches(controller, run, State.RUNNING)
            await controller.care.drain(["a"], "ana", None, True)
            other, _ = await controller.submit(job("1"), {})
            await waits_because(controller, other, "a: drained by ana")
            assert cluster.agents["a"].parts[run.id, 1].stopped_with is None
            cluster.agents["a"].end(run.id, 1)
            await reaches(controller, run, State.SUCCEEDED)
            await waits_because(controller, other, "a: drained by ana")
            # Who cannot wait any longer drains it again.
            assert [one.already for one in await controller.care.drain(["a"], "bo", "now", False)] == [False]
            assert [one.already for one in await controller.care.undrain(["a"], "ana")] == [False]
            await reaches(controller, other, State.RUNNING)
            assert await node_events(controller, "a") == [
                ("drained", "ana", "its runs may end by themselves"),
                ("drained", "bo", "now"),
                ("undrained", "ana", "was drained by bo: now"),
            ]

    asyncio.run(story())


def test_draining_is_all_or_nothing_and_again_changes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1, c=1)
        async with controlling(tmp_path, cluster) as controller:
            with pytest.raises(Refused, match="no such node: x") as refusal:
                await controller.care.drain(["a", "x"], "ana", None, False)
            assert refusal.value.code == 3
            assert controller.care.out("a") is None
            first = await controller.care.drain(["a", "b", "a"], "ana", "moved", False)
            again = await controller.care.drain(["a", "b"], "bo", None, False)
            assert [[one.already for one in found] for found in (first, again)] == [[False, False], [True, True]]
            assert controller.care.out("a") == "drained by ana: moved"
            assert [one.already for one in await controller.care.undrain(["c"], "ana")] == [True]
            with pytest.raises(Refused, match="no such node: x"):
                await controller.care.undrain(["a", "x"], "ana")
            assert len(await controller.care.history([], 100)) == 2

    asyncio.run(story())


def test_a_node_that_left_cannot_be_drained_and_one_that_comes_back_is_still_drained(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster) as controller:
            await controller.care.drain(["a"], "ana", None, False)
            cluster.lose("a")
            await until(lambda: controller.roster.nodes["a"].task is None)
            with pytest.raises(Refused, match="a left the cluster"):
                await controller.care.drain(["a"], "ana", "again", False)
            cluster.add("a", 1)
            await until(lambda: controller.roster.nodes["a"].up)
            run, _ = await controller.submit(job("1", only=["a"]), {})
            await waits_because(controller, run, "a: drained by ana")
            await controller.care.undrain(["a"], "ana")
            await reaches(controller, run, State.RUNNING)

    asyncio.run(story())


def test_why_names_the_drained_node_that_a_run_would_need(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster) as controller:
            await controller.care.drain(["b"], "ana", "new cables", False)
            run, _ = await controller.submit(job("2x2"), {})
            await waits_because(controller, run, "b: drained by ana: new cables")
            reasons = (await controller.why(str(run.id)))["waits"]["reasons"]
            told = [one["text"] for one in reasons if one["kind"] == "health"]
            assert told == ["it would fit if all nodes could be used (b: drained by ana: new cables)"]

    asyncio.run(story())


def test_a_run_that_is_being_started_when_its_node_is_drained_is_queued_again(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        gate = cluster.agents["a"].slow_start = asyncio.Event()
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("1"), {})
            await reaches(controller, run, State.STARTING)
            await controller.care.drain(["a"], "ana", None, False)
            gate.set()
            await waits_because(controller, run, "a: drained by ana")
            (attempt,) = (await controller.find(str(run.id))).attempts
            assert attempt.outcome is Outcome.DRAINED

    asyncio.run(story())


def test_a_run_that_is_being_cancelled_when_its_node_is_drained_is_cancelled(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        cluster.agents["a"].obeys_stop = False
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("1"), {})
            await reaches(controller, run, State.RUNNING)
            await controller.cancel(str(run.id))
            await controller.care.drain(["a"], "ana", None, False)
            cluster.agents["a"].end(run.id, 1, -9)
            run = await reaches(controller, run, State.CANCELLED)
            assert Event.STOP_ASKED not in [one.event for one in run.events]

    asyncio.run(story())


def test_a_place_whose_links_were_tried_is_given_up_where_a_node_was_drained_meanwhile(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster, preflight="on") as controller:
            run, _ = await controller.submit(job("2x2"), {})
            await trial_on(cluster, "b")
            await controller.care.drain(["b"], "ana", None, False)
            for agent in cluster.agents.values():
                for key in list(agent.parts):
                    agent.end(*key, 1)
            await waits_because(controller, run, "b: drained by ana")
            assert (await controller.find(str(run.id))).attempts == ()

    asyncio.run(story())


def test_a_drain_outlives_the_controller_and_is_carried_out_by_the_next(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("1", only=["a"]), {})
            await reaches(controller, run, State.RUNNING)
            # Killed after the mark was recorded, before the run was told.
            controller.gangs.stop = _nothing  # type: ignore[method-assign]
            await controller.care.drain(["a"], "ana", "moved", False)
        async with controlling(tmp_path, cluster) as controller:
            await waits_because(controller, run, "a: drained by ana: moved")
            (attempt,) = (await controller.find(str(run.id))).attempts
            assert attempt.outcome is Outcome.DRAINED
            await controller.care.undrain(["a"], None)
            await reaches(controller, run, State.RUNNING)

    asyncio.run(story())


async def _nothing(*_: Any) -> None:
    """Never gets to it."""
