"""What tests of the controller ask over and over: a story over a fake cluster, why a run waits, what became of a node."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from orchestrator.control.controller import Controller
from orchestrator.policy import Policy
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Run
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, until


def story(
    tell: Callable[[Controller, FakeCluster], Awaitable[None]], home: Path, policy: Policy | None = None, **nodes: int
) -> None:
    """Tells a story to one controller over nodes with so many GPUs each."""

    async def told() -> None:
        cluster = FakeCluster(**nodes)
        async with controlling(home, cluster, policy=policy) as controller:
            await tell(controller, cluster)

    asyncio.run(told())


async def submit(controller: Controller, workers: str = "1", **more: object) -> Run:
    return (await controller.submit(job(workers, **more), {}))[0]


async def an_array(controller: Controller, runs: int, name: str = "sweep", **more: object) -> range:
    first = await submit(controller, name=name, run="train.py {x}", array={"x": f"0..{runs - 1}"}, **more)
    array = await controller.find_array(f"{first.id}[]")
    assert array is not None
    return array.runs


async def reason(controller: Controller, run: Run) -> str:
    return (await controller.find(str(run.id))).reason or ""


async def says(controller: Controller, run: Run, words: str) -> bool:
    return words in await reason(controller, run)


async def waits_because(controller: Controller, run: Run, words: str) -> None:
    async def so() -> bool:
        found = await controller.find(str(run.id))
        return found.state is State.QUEUED and words in (found.reason or "")

    await until(so)


async def has_ended(controller: Controller, run: Run) -> bool:
    """Whether its first attempt has."""
    return (await controller.find(str(run.id))).attempts[0].ended_at is not None


async def trial_on(cluster: FakeCluster, node: str) -> tuple[int, int]:
    """The run and the number of the trial on that node, once it runs."""
    parts = cluster.agents[node].parts
    await until(lambda: any(attempt < 0 for _, attempt in parts))
    return next(key for key in parts if key[1] < 0)


async def node_events(controller: Controller, node: str) -> list[tuple[str, str | None, str | None]]:
    return [(one.what, one.by, one.reason) for one in await controller.care.history([node], 100)]


async def recorded(controller: Controller, events: int) -> bool:
    """Whether so many events of nodes are on record."""
    return len(await controller.care.history([], 100)) == events
