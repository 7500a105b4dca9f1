"""A run that gives way goes back to its place with its age; a cancel stands, and the next controller goes on with it."""

import asyncio
from pathlib import Path

from told import story, submit

from orchestrator.control.controller import Controller
from orchestrator.policy import Policy
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Stop
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, reaches, until


def test_a_run_that_gives_way_goes_back_to_its_place_with_its_age_and_runs_again(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        run = await submit(controller, grace=3.0)
        running = await reaches(controller, run, State.RUNNING)
        agent = cluster.agents["a"]
        agent.obeys_stop = False
        await controller.gangs.stop(running, Stop("preempted", "gives way to run 9 (urgent)", 9))
        part = agent.parts[run.id, 1]
        await until(lambda: part.stopped_with == 3.0)
        stopping = await controller.find(str(run.id))
        assert (stopping.state, stopping.reason) == (State.STOPPING, "gives way to run 9 (urgent)")
        agent.end(run.id, 1, 0)
        again = await reaches(controller, run, State.RUNNING)
        first, second = again.attempts
        assert (first.outcome, first.failure, second.outcome) == (Outcome.PREEMPTED, None, None)
        assert again.queued_at == run.queued_at
        assert [one.event for one in again.events][3:5] == [Event.STOP_ASKED, Event.REQUEUED]

    story(tell, tmp_path, a=1)


def test_the_next_controller_goes_on_with_a_run_that_gives_way(tmp_path: Path) -> None:
    async def told() -> None:
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run = await submit(controller)
            running = await reaches(controller, run, State.RUNNING)
            cluster.agents["a"].obeys_stop = False
            await controller.gangs.stop(running, Stop("preempted", "gives way"))
            await reaches(controller, run, State.STOPPING)
        cluster.agents["a"].end(run.id, 1, 0)
        async with controlling(tmp_path, cluster) as controller:
            again = await reaches(controller, run, State.RUNNING)
            assert [one.outcome for one in again.attempts] == [Outcome.PREEMPTED, None]

    asyncio.run(told())


def test_a_cancel_of_a_run_that_gives_way_stands(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        run = await submit(controller)
        running = await reaches(controller, run, State.RUNNING)
        cluster.agents["a"].obeys_stop = False
        await controller.gangs.stop(running, Stop("preempted", "gives way"))
        await controller.cancel(str(run.id))
        cluster.agents["a"].end(run.id, 1, 0)
        ended = await reaches(controller, run, State.CANCELLED)
        assert ended.attempts[0].outcome is Outcome.CANCELLED

    story(tell, tmp_path, a=1)


def test_a_run_of_higher_priority_takes_the_place_of_one_of_lower_which_comes_back_after_it(tmp_path: Path) -> None:
    async def tell(controller: Controller, cluster: FakeCluster) -> None:
        low = await submit(controller, "2", name="low")
        other = await submit(controller, "2", name="other", priority=20)
        for run in (low, other):
            await reaches(controller, run, State.RUNNING)
        high = await submit(controller, "2", name="high", priority=10)
        await reaches(controller, high, State.RUNNING)
        gave_way = await controller.find(str(low.id))
        (attempt,) = gave_way.attempts
        assert (gave_way.state, attempt.outcome, gave_way.queued_at) == (State.QUEUED, Outcome.PREEMPTED, low.queued_at)
        assert attempt.stop is not None
        assert (attempt.stop.kind, attempt.stop.for_run) == ("preempted", high.id)
        assert (await controller.find(str(other.id))).state is State.RUNNING
        node = next(name for name, agent in cluster.agents.items() if (high.id, 1) in agent.parts)
        cluster.agents[node].end(high.id, 1)
        back = await reaches(controller, low, State.RUNNING)
        assert [one.outcome for one in back.attempts] == [Outcome.PREEMPTED, None]

    story(tell, tmp_path, Policy(min_runtime=0.0), a=2, b=2)
