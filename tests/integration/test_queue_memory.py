"""What the controller keeps of the queue in memory is what is on disk, and a submission is answered after its commit."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from told import an_array, reason, story, submit

from orchestrator.control.controller import Controller
from orchestrator.history.measurements import Measured
from orchestrator.placement.values import NodePlacement, Placement
from orchestrator.progress.values import Progress
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.snapshot import alike
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, reaches, until


def test_what_attempts_used_is_entered_as_they_end_and_read_again_by_the_next_controller(tmp_path: Path) -> None:
    async def told() -> None:
        cluster = FakeCluster(a=4)
        async with controlling(tmp_path, cluster) as controller:
            for team in ("vision", None):
                run = await submit(controller, "2", team=team)
                await reaches(controller, run, State.RUNNING)
                await asyncio.sleep(0.05)
                cluster.agents["a"].end(run.id, 1)
                await reaches(controller, run, State.SUCCEEDED)
            used = controller.queue.snapshot().usage.used
            assert set(used) == {("vision", "ana"), ("-", "ana")}
            assert all(0.1 <= seconds < 5 for seconds in used.values())
            took = controller.queue.snapshot().history["ana", "job"]
        async with controlling(tmp_path, cluster) as controller:
            again = controller.queue.snapshot()
            assert again.usage.used == pytest.approx(used, rel=1e-3)
            assert again.history["ana", "job"] == pytest.approx(took)

    asyncio.run(told())


def test_how_fast_steps_were_by_placement_is_entered_as_attempts_end_and_read_again(tmp_path: Path) -> None:
    async def told() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster) as controller:
            for workers, step in (("1x2", 0.5), ("2x1", 1.5)):
                run = await submit(controller, workers)
                await reaches(controller, run, State.RUNNING)
                progress = Progress(steps=100, step_time_p50=step)
                await controller.runtime.write(
                    controller.runtime.store.measure, [Measured(run.id, 1, progress)], controller.runtime.now()
                )
                for agent in cluster.agents.values():
                    if (run.id, 1) in agent.parts:
                        agent.end(run.id, 1)
                await reaches(controller, run, State.SUCCEEDED)
            speeds = controller.queue.snapshot().speeds
            (by_level,) = speeds.values()
            assert sorted(by_level.values()) == [0.5, 1.5]
            assert alike(run) in speeds
        async with controlling(tmp_path, cluster) as controller:
            assert controller.queue.snapshot().speeds == speeds

    asyncio.run(told())


def test_a_submission_is_answered_after_its_commit_and_not_before(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        with sqlite3.connect(tmp_path / "orch.db", isolation_level=None) as somebody:
            somebody.execute("BEGIN IMMEDIATE")
            tasks = [asyncio.create_task(submit(controller)) for _ in range(20)]
            await asyncio.wait(tasks, timeout=0.2)
            assert not any(task.done() for task in tasks)
            assert controller.runtime.book.runs == {}
            somebody.execute("COMMIT")
            runs = await asyncio.gather(*tasks)
            there = {row[0] for row in somebody.execute("SELECT id FROM runs")}
        assert {run.id for run in runs} == there == set(range(1, 21))

    story(tell, tmp_path, a=1)


def test_a_write_that_the_database_refuses_leaves_those_that_share_its_transaction(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        controller.start_no_more()
        runs = [await submit(controller) for _ in range(3)]
        runtime = controller.runtime
        twice = Placement("cuda", "node", (NodePlacement("a", (0, 0), (0, 1)),))
        answers = await asyncio.gather(
            controller.cancel(str(runs[0].id)),
            runtime.write(runtime.store.place, runs[1].id, twice, runtime.now()),
            controller.cancel(str(runs[2].id)),
            return_exceptions=True,
        )
        assert isinstance(answers[1], IntegrityError)
        states = [(await controller.find(str(run.id))).state for run in runs]
        assert states == [State.CANCELLED, State.QUEUED, State.CANCELLED]

    story(tell, tmp_path, a=1)


def test_what_the_controller_keeps_in_memory_is_what_is_in_the_database(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        runs = await an_array(controller, 6, array_limit=3)
        await submit(controller, after=["sweep"])
        for run in runs[:3]:
            await reaches(controller, await controller.find(str(run)), State.RUNNING)
        cluster.agents["a"].end(runs[0], 1)
        cluster.agents["a"].end(runs[1], 1, 1)
        await controller.change(f"sweep[{5}]", {"priority": "3"})
        await controller.cancel(f"sweep[{4}]")
        await reaches(controller, await controller.find(str(runs[5])), State.RUNNING)

        async def same() -> bool:
            return controller.runtime.book == await controller.runtime.db(controller.runtime.store.book)

        await until(same)
        await controller.retry(str(runs[1]), {})
        await until(same)

    story(tell, tmp_path, a=3)


def test_why_a_run_waited_is_known_when_it_runs_and_when_it_has_ended(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        first = await submit(controller)
        await reaches(controller, first, State.RUNNING)
        second = await submit(controller)
        await until(lambda: reason(controller, second))
        waits = (await controller.why(str(second.id)))["waits"]
        assert (waits["position"], [one["kind"] for one in waits["reasons"]][:1]) == (1, ["shape"])
        cluster.agents["a"].end(first.id, 1)
        await reaches(controller, second, State.RUNNING)
        cluster.agents["a"].end(second.id, 1, 2)
        await reaches(controller, second, State.FAILED)
        said = await controller.why(str(second.id))
        (waited,) = said["waited"]
        assert (waited["attempt"], [one["kind"] for one in waited["reasons"]]) == (1, ["shape"])
        assert said["ended"]["failure"]["kind"] == "exit"
        assert (await controller.why(str(first.id)))["waited"] == []

    story(tell, tmp_path, a=1)
