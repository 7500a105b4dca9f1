"""A run from its submission to its end while nothing breaks: its order, its ranks, its secrets, its cancel, its followers."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from told import reason

from orchestrator.control import follow as following
from orchestrator.control.controller import Controller
from orchestrator.control.rank_progress import RankProgress
from orchestrator.control.refused import Refused
from orchestrator.history.filters import RunFilter
from orchestrator.placement.values import NodePlacement, Placement
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Run
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until


def test_a_run_goes_from_submission_to_success(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x2"), {})
            run = await reaches(controller, run, State.RUNNING)
            assert cluster.holds == {"a", "b"}
            cluster.agents["a"].end(run.id, 1)
            cluster.agents["b"].end(run.id, 1)
            run = await reaches(controller, run, State.SUCCEEDED)
            assert [e.event for e in run.events] == [Event.SUBMITTED, Event.PLACED, Event.STARTED, Event.SUCCEEDED]
            assert run.attempts[0].exit_codes == {0: 0, 1: 0, 2: 0, 3: 0}
            assert await controller.busy() == {}
            await until(lambda: not cluster.holds)
            await until(lambda: not cluster.agents["a"].parts)

    asyncio.run(story())


def test_what_ranks_show_is_recorded_with_the_end_and_a_broken_look_ends_nothing(tmp_path: Path) -> None:
    second = 10**9

    def look(run: int, rank: int, at: int, steps: int) -> RankProgress:
        return RankProgress(
            run,
            1,
            rank,
            at * second,
            1,
            steps,
            at * second,
            second,
            steps * 8,
            step_times={262: steps - 1} if steps else {},
        )

    async def counted(controller: Controller, run: Run) -> bool:
        (attempt,) = (await controller.find(str(run.id))).attempts
        return bool(attempt.used) and all(node.until == attempt.ended_at for node in attempt.used)

    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x2"), {})
            await reaches(controller, run, State.RUNNING)
            gang = controller.gangs.measuring.of(run.id, 1)
            assert gang is not None
            for steps in (1, 101):
                cluster.agents["a"].show(*(look(run.id, rank, 1 + steps // 10, steps) for rank in (0, 1)))
                cluster.agents["b"].show(*(look(run.id, rank, 1 + steps // 10, steps) for rank in (2, 3)))
                await until(lambda steps=steps: [x.steps for x in gang.looks.values()] == [steps] * 4)
            # Of a run that nobody knows.
            cluster.agents["b"].show(look(77, 0, 1, 1))
            for agent in cluster.agents.values():
                agent.end(run.id, 1)
            run = await reaches(controller, run, State.SUCCEEDED)
            (attempt,) = run.attempts
            assert attempt.progress is not None
            assert (attempt.progress.steps, attempt.progress.samples) == (101, 4 * 808)
            await until(lambda: counted(controller, run))
            (attempt,) = (await controller.find(str(run.id))).attempts
            assert {node.node: node.gpus for node in attempt.used} == {"a": 2, "b": 2}
            assert controller.gangs.measuring.of(run.id, 1) is None
            other, _ = await controller.submit(job("1"), {})
            await reaches(controller, other, State.RUNNING)
            agent = next(agent for agent in cluster.agents.values() if (other.id, 1) in agent.parts)
            broken = replace(look(other.id, 0, 9, 9), step_times={"no": "bucket"})  # type: ignore[dict-item]
            agent.show(look(other.id, 0, 1, 1), broken)
            await until(lambda: not agent.looks)
            agent.end(other.id, 1)
            await reaches(controller, other, State.SUCCEEDED)

    asyncio.run(story())


@pytest.mark.parametrize("stream", ["logs", "follow"])
def test_a_follower_of_a_quiet_run_hears_that_it_is_still_connected(
    tmp_path: Path, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agents report all the time, and nothing of that is for the follower."""
    monkeypatch.setattr(following, "HEARTBEAT_S", 0.4)

    async def story() -> None:
        async with controlling(tmp_path, FakeCluster(a=1)) as controller:
            run, _ = await controller.submit(job("1"), {})
            run = await reaches(controller, run, State.RUNNING)
            positions = following.Positions()
            if stream == "logs":
                asked = {"rank": None, "attempt": None, "since_s": None, "positions": positions, "keep_on": True}
                heard = following.log_lines(controller, run, **asked)
            else:
                heard = following.follow(controller, run.id, positions)
            async with asyncio.timeout(5):
                async for one in heard:
                    if one is None:
                        break
            await heard.aclose()

    asyncio.run(story())


def test_ranks_get_coordinates_that_agree_over_the_gang(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2x2", checkpoint="ckpt"), {})
            await reaches(controller, run, State.RUNNING)
            a, b = (cluster.agents[n].parts[run.id, 1].order for n in "ab")
            assert [(r.rank, r.local_rank, r.gpu) for r in a.ranks + b.ranks] == [
                (0, 0, 0),
                (1, 1, 1),
                (2, 0, 0),
                (3, 1, 1),
            ]
            assert (a.world_size, a.node_rank, b.node_rank) == (4, 0, 1)
            assert (a.master_addr, a.master_port) == (b.master_addr, b.master_port)
            assert a.env["ORCH_CHECKPOINT_DIR"] == f"{tmp_path}/storage/checkpoints/{run.id}/ckpt"

    asyncio.run(story())


def test_runs_wait_in_order_and_say_why(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        async with controlling(tmp_path, cluster) as controller:
            first, _ = await controller.submit(job("2"), {})
            await reaches(controller, first, State.RUNNING)
            second, _ = await controller.submit(job("2"), {})
            third, _ = await controller.submit(job("1"), {})
            urgent, _ = await controller.submit(job("1", priority=5), {})

            async def in_order() -> bool:
                return [run.id for run in await controller.waiting()] == [urgent.id, second.id, third.id]

            await until(in_order)
            for run in (urgent, second, third):
                await until(lambda run=run: reason(controller, run))
            assert await reason(controller, urgent) == "the cluster has room for 0 of 1 workers"
            cluster.agents["a"].end(first.id, 1)
            await reaches(controller, urgent, State.RUNNING)
            assert (await controller.find(str(second.id))).state is State.QUEUED

    asyncio.run(story())


def test_a_run_that_never_fits_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    async def story() -> None:
        async with controlling(tmp_path, FakeCluster(a=2)) as controller:
            with pytest.raises(Refused, match="has room for 2 of 3 workers") as refusal:
                await controller.submit(job("3"), {})
            assert refusal.value.code == 5
            assert await controller.runs(RunFilter()) == []

    asyncio.run(story())


def test_a_waiting_run_is_cancelled_at_once_and_a_running_one_is_stopped_with_its_grace(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            running, _ = await controller.submit(job(grace=3.0), {})
            waiting, _ = await controller.submit(job(), {})
            await reaches(controller, running, State.RUNNING)
            cluster.agents["a"].obeys_stop = False
            assert (await controller.cancel(str(waiting.id)))[0].state is State.CANCELLED
            assert (await controller.cancel(str(running.id)))[0].state is State.STOPPING
            part = cluster.agents["a"].parts[running.id, 1]
            await until(lambda: part.stopped_with == 3.0)
            assert (await controller.cancel(str(running.id)))[0].state is State.STOPPING
            cluster.agents["a"].end(running.id, 1, -9)
            run = await reaches(controller, running, State.CANCELLED)
            assert run.attempts[0].outcome is Outcome.CANCELLED
            again, had_ended = await controller.cancel(str(running.id))
            assert (again.state, again.events, had_ended) == (run.state, run.events, True)

    asyncio.run(story())


def test_secrets_reach_the_ranks_and_no_row_of_the_database(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(secrets=("WANDB_API_KEY",)), {"WANDB_API_KEY": "canary-7f3a"})
            await reaches(controller, run, State.RUNNING)
            assert cluster.agents["a"].parts[run.id, 1].order.secrets == {"WANDB_API_KEY": "canary-7f3a"}
        for file in tmp_path.rglob("orch.db*"):
            assert b"canary-7f3a" not in file.read_bytes()

    asyncio.run(story())


def test_a_cancel_between_an_attempts_record_and_its_beginning_stands(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            controller.start_no_more()  # so that the test does what the scheduler would
            run, _ = await controller.submit(job(), {})
            placement = Placement("cuda", "node", (NodePlacement("a", (0,), (0,)),))
            placed = await controller.runtime.db(
                controller.runtime.store.place, run.id, placement, controller.runtime.now()
            )
            assert (await controller.cancel(str(run.id)))[0].state is State.STOPPING
            controller.gangs.begin(placed)
            await reaches(controller, run, State.CANCELLED)
            assert cluster.agents["a"].parts == {}
            assert await controller.busy() == {}

    asyncio.run(story())


def test_whoever_follows_a_run_hears_of_its_end_as_soon_as_it_is_on_record(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await reaches(controller, run, State.RUNNING)
            cluster.agents["a"].end(run.id, 1)
            while True:
                news = controller.runtime.watch(run.id)
                if (await controller.find(str(run.id))).state is State.SUCCEEDED:
                    break
                await asyncio.wait_for(news.wait(), 3)

    asyncio.run(story())
