"""What the controller makes of gangs that stand still, of slow ranks and of idle GPUs; a real database, a fake cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from told import story

from orchestrator.control.backend import GpuLook, Report
from orchestrator.control.controller import Controller
from orchestrator.control.follow import Positions, kept_lines
from orchestrator.control.gpu_usage import GpuUse
from orchestrator.control.rank_progress import RankProgress
from orchestrator.health.stacks import Frame, RankStack
from orchestrator.history.render import why_json
from orchestrator.progress.file import bucket_of
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Run
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import job, reaches, until

S = 10**9
REDUCING = (Frame("all_reduce", "torch/distributed/distributed_c10d.py", 3252), Frame("main", "train.py", 11))
READING = (Frame("read", "data.py", 7), Frame("main", "train.py", 9))


def look(run: Run, rank: int, at: float, stepped: float | None = None) -> RankProgress:
    """A rank of ten steps a second that is looked at; its last step, if it had any, was at second `stepped`."""
    if stepped is None:
        return RankProgress(run.id, 1, rank, round(at * S), began_at=1, printed_at=1)
    times = {bucket_of(S // 10): round(stepped * 10)}
    steps = round(stepped * 10) + 1
    return RankProgress(
        run.id, 1, rank, round(at * S), 1, steps, round(stepped * S), 1, step_times=times, printed_at=1
    )  # fmt: skip


def standing(**frames: tuple[Frame, ...]) -> Callable[[int], Iterable[RankStack]]:
    """All of `r0`, `r1` ... stand there, whenever they are asked."""
    return lambda turn: [RankStack(int(r[1:]), 77, "S", of, text=f"the text of {r}") for r, of in frames.items()]


async def watched(controller: Controller, cluster: FakeCluster, **spec: Any) -> Run:
    """A run of a rank each on a and b, which are seen to step until second 100."""
    run, _ = await controller.submit(job("2x1", retry={"infra": 0}, **spec), {})
    run = await reaches(controller, run, State.RUNNING)
    show(cluster, run, 100, 100)
    gang = controller.gangs.measuring.of(run.id, 1)
    assert gang is not None
    await until(lambda: len(gang.looks) == 2)
    return run


def show(cluster: FakeCluster, run: Run, at: float, stepped: float | None) -> None:
    for rank, node in enumerate("ab"):
        cluster.agents[node].show(look(run, rank, at, stepped))


async def ends_after(controller: Controller, cluster: FakeCluster, run: Run, at: float) -> str:
    """The failure of the run, whose ranks are looked at from then on, second by second, and show nothing."""
    for second in range(60):
        show(cluster, run, at + second, 100)
        await asyncio.sleep(0.1)
        found = await controller.find(str(run.id))
        if found.ended:
            assert found.attempts[0].failure is not None
            return found.attempts[0].failure.message
    raise AssertionError("it was not ended")


async def notes(controller: Controller, run: Run) -> list[str]:
    found = await controller.find(str(run.id))
    return [str(event.reason) for event in found.events if event.event is Event.NOTED]


def asked(cluster: FakeCluster) -> int:
    return min(agent.stacks_taken for agent in cluster.agents.values())


def test_a_hung_gang_is_ended_with_the_rank_that_the_others_wait_for_and_the_stacks_kept(tmp_path: Path) -> None:
    async def told(controller: Controller, cluster: FakeCluster) -> None:
        run = await watched(controller, cluster, grace=60.0)
        order = cluster.agents["a"].parts[run.id, 1]
        cluster.agents["a"].standing, cluster.agents["b"].standing = standing(r0=REDUCING), standing(r1=READING)
        await ends_after(controller, cluster, run, 162)
        (attempt,) = (await controller.find(str(run.id))).attempts
        assert attempt.outcome is Outcome.INFRA_ERROR
        assert attempt.failure is not None
        assert (attempt.failure.kind, attempt.failure.rank, attempt.failure.node) == ("hang", 1, "b")
        assert attempt.failure.message.startswith("hung: no step for 6")
        assert "s (limit 60 s); rank 1 on b is not in the collective" in attempt.failure.message
        assert order.stopped_with == 10.0
        kept = [(line.rank, line.text) for line in controller.logs.stacks(run.id, 1)]
        assert [row for row in kept if "text" in row[1]] == [(0, "the text of r0"), (1, "the text of r1")]
        assert kept[0][1] == "rank 0 on a (GPU 0), 1,001 steps done: all_reduce, called at train.py:11"

    story(told, tmp_path, a=1, b=1)


def test_while_any_rank_gets_on_nobody_is_even_looked_at(tmp_path: Path) -> None:
    async def told(controller: Controller, cluster: FakeCluster) -> None:
        run = await watched(controller, cluster)
        for second in range(110, 800, 50):
            cluster.agents["a"].show(look(run, 0, second, 100))
            cluster.agents["b"].show(look(run, 1, second, second - 55))
        await until(lambda: not cluster.agents["b"].looks)
        await asyncio.sleep(0.2)
        assert asked(cluster) == 0
        assert (await controller.find(str(run.id))).state is State.RUNNING

    story(told, tmp_path, a=1, b=1)


def test_a_node_that_cannot_be_asked_leaves_it_open_whether_its_gang_hangs(tmp_path: Path) -> None:
    async def told(controller: Controller, cluster: FakeCluster) -> None:
        run = await watched(controller, cluster)
        cluster.agents["a"].standing = standing(r0=REDUCING)
        # b's agent knows of no rank: it was restarted just now, say.
        second = 300
        while cluster.agents["a"].stacks_taken < 6:
            second += 1
            show(cluster, run, second, 100)
            await asyncio.sleep(0.05)
        assert (await controller.find(str(run.id))).state is State.RUNNING
        cluster.agents["b"].standing = standing(r1=REDUCING)
        failure = await ends_after(controller, cluster, run, second)
        assert "no rank stands out" in failure

    story(told, tmp_path, a=1, b=1)


def test_nodes_that_cannot_say_where_their_ranks_stand_do_not_keep_a_hung_gang_for_ever(tmp_path: Path) -> None:
    async def told(controller: Controller, cluster: FakeCluster) -> None:
        run = await watched(controller, cluster)
        failure = await ends_after(controller, cluster, run, 1010)
        assert failure.startswith("hung: no step for 91")
        assert "stand" not in failure.replace("no rank stands out", "")

    story(told, tmp_path, a=1, b=1)


def test_a_rank_whose_stack_moves_is_left_alone_until_the_longer_limit(tmp_path: Path) -> None:
    def moving(turn: int) -> list[RankStack]:
        return [RankStack(1, 77, "R", (Frame("score", "eval.py", turn),))]

    async def told(controller: Controller, cluster: FakeCluster) -> None:
        run = await watched(controller, cluster)
        cluster.agents["a"].standing, cluster.agents["b"].standing = standing(r0=REDUCING), moving
        for second in range(170, 190):
            show(cluster, run, second, 100)
            await asyncio.sleep(0.05)
        assert asked(cluster) == 2  # and not again before another minute is over
        assert (await controller.find(str(run.id))).state is State.RUNNING
        await ends_after(controller, cluster, run, 1100)

    story(told, tmp_path, a=1, b=1)


@pytest.mark.parametrize("hang", ["off", "1h"])
def test_a_job_that_says_so_is_not_ended(tmp_path: Path, hang: str) -> None:
    async def told(controller: Controller, cluster: FakeCluster) -> None:
        run = await watched(controller, cluster, hang=hang)
        show(cluster, run, 1000, 100)
        await until(lambda: not cluster.agents["b"].looks)
        await asyncio.sleep(0.2)
        assert asked(cluster) == 0

    story(told, tmp_path, a=1, b=1)


def test_a_script_that_shows_nothing_is_told_of_once_and_not_ended(tmp_path: Path) -> None:
    serves = (Frame("accept", "/usr/lib/python3.11/socket.py", 294), Frame("main", "serve.py", 4))

    async def told(controller: Controller, cluster: FakeCluster) -> None:
        run, _ = await controller.submit(job("2x1"), {})
        run = await reaches(controller, run, State.RUNNING)
        cluster.agents["a"].standing, cluster.agents["b"].standing = standing(r0=serves), standing(r1=serves)
        for second in (*range(901, 920), 2000, 2010):
            show(cluster, run, second, None)
            await asyncio.sleep(0.05)
        await until(lambda: notes(controller, run))
        (note,) = await notes(controller, run)
        assert note.startswith("nothing has been seen of it for 15 min")
        found = await controller.find(str(run.id))
        assert found.state is State.RUNNING
        assert [one["text"] for one in why_json(found)["noted"]] == [note]
        assert controller.gangs.watch.notes(found) == [note]

    story(told, tmp_path, a=1, b=1)


def test_idle_gpus_are_told_of_and_that_they_are_used_again(tmp_path: Path) -> None:
    async def told(controller: Controller, cluster: FakeCluster) -> None:
        run = await watched(controller, cluster)

        def looks(count: int, utilization: float) -> None:
            told = GpuLook(run.id, 1, 0, GpuUse(utilization=utilization))
            controller.gangs.watch.take_in("b", Report(1, (), gpus=(told,) * count))

        await until(lambda: (run.id, 1) in controller.gangs.watch._watched)
        looks(120, 0.0)
        await until(lambda: notes(controller, run))
        looks(1, 80.0)
        await until(lambda: not controller.gangs.watch.notes(run))

        async def both() -> bool:
            return len(await notes(controller, run)) == 2

        await until(both)
        assert await notes(controller, run) == [
            "GPUs held and idle for 10 min: 1 of 2 (b: 0)",
            "its GPUs are used again",
        ]

    story(told, tmp_path, a=1, b=1)


def test_of_a_live_run_stacks_are_taken_when_somebody_asks_and_of_an_attempt_before_they_stay(tmp_path: Path) -> None:
    async def told(controller: Controller, cluster: FakeCluster) -> None:
        run = await watched(controller, cluster)
        cluster.agents["a"].standing, cluster.agents["b"].standing = standing(r0=REDUCING), standing(r1=READING)

        async def asks(attempt: int | None) -> list[str]:
            await controller.take_stacks(await controller.find(str(run.id)), attempt)
            lines = kept_lines(controller.logs.stacks, run, rank=1, attempt=attempt, positions=Positions())
            return [line["line"] async for line in lines if line is not None]

        assert await asks(None) == ["rank 1 on b (GPU 0), 1,001 steps done: data.py:7, in read", "the text of r1"]
        taken = asked(cluster)
        cluster.agents["b"].standing = standing()
        assert len(await asks(1)) == 2  # b cannot say: what is kept stays
        assert asked(cluster) == taken + 1
        assert await asks(2) == []
        assert asked(cluster) == taken + 1

    story(told, tmp_path, a=1, b=1)
