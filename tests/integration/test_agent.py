"""A node's agent with a real launcher and real ranks, and the test in the controller's place."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.control.agent import NodeAgent
from orchestrator.control.backend import RankStart, Report, StaleController, StartPart
from orchestrator.control.launcher_client import LauncherClient
from orchestrator.health.vitals import GpuVitals, Vitals

SPEAKS_WHEN_ASKED = """
import pathlib, sys, time
print("ready", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
print("the last word", flush=True)
"""


async def no_code(sha256: str) -> AsyncIterator[bytes]:
    raise AssertionError("nothing is fetched where a part has no snapshot")
    yield b""


@asynccontextmanager
async def an_agent(folder: Path) -> AsyncIterator[NodeAgent]:
    agent = NodeAgent("orch-test", "a", "127.0.0.1", folder / "n", no_code, lambda: {}, dict(os.environ))
    try:
        yield agent
    finally:
        await agent.close(1000)


def part(folder: Path, script: str, *arguments: object) -> StartPart:
    path = folder / "script.py"
    path.write_text(script)
    return StartPart(
        1, 1, (str(path), *map(str, arguments)), None, None, {}, {}, "cpu", (RankStart(0, 0, 0),), 1, 0, "127.0.0.1", 0, 60, 1 << 20
    )  # fmt: skip


def text(reports: list[Report]) -> str:
    return b"".join(chunk.data for report in reports for chunk in report.logs).decode()


async def hears(agent: NodeAgent, epoch: int, heard: list[Report], what: str) -> None:
    """Asks, as a controller does, until the log that it has heard holds `what`."""
    while what not in text(heard):
        report = await agent.sync(epoch, heard[-1].sequence if heard else 0, 60, 5)
        heard.append(report)


@pytest.mark.parametrize("next_epoch", [2, 1], ids=["another controller", "the same one, which has given up waiting"])
def test_a_call_that_nobody_waits_for_any_more_takes_no_line_of_a_log(tmp_path: Path, next_epoch: int) -> None:
    async def story() -> None:
        gate = tmp_path / "gate"
        async with asyncio.timeout(60), an_agent(tmp_path) as agent:
            await agent.start(1, part(tmp_path, SPEAKS_WHEN_ASKED, gate))
            before: list[Report] = []
            await hears(agent, 1, before, "ready")
            await agent.sync(1, before[-1].sequence, 60, 0)
            # Ray goes on with a call when the actor that made it has died.
            orphan = asyncio.create_task(agent.sync(1, before[-1].sequence + 1, 60, 30))
            await asyncio.sleep(0)
            after = [await agent.sync(next_epoch, 0, 60, 0)]
            gate.touch()
            await hears(agent, next_epoch, after, "the last word")
            with pytest.raises(StaleController):
                await orphan

    asyncio.run(story())


def test_an_agent_tells_how_its_node_is_after_each_look_and_by_which_clock(tmp_path: Path) -> None:
    async def story() -> None:
        folder = tmp_path / "n"
        folder.mkdir()
        seen = Vitals(gpus=(GpuVitals(0, nvlinks=18),), boot_id="b")
        agent = NodeAgent(
            "orch-test",
            "a",
            "127.0.0.1",
            folder,
            no_code,
            lambda: {"vitals": seen},
            dict(os.environ),
            {"tmp": tmp_path},
        )
        try:
            asked = time.time()
            first = await agent.sync(1, 0, 60, 0)
            heard, answered = first.clock or (0.0, 0.0)
            assert asked <= heard <= answered <= time.time()
            assert first.vitals is not None
            assert (first.vitals.gpus, first.vitals.boot_id) == (seen.gpus, "b")
            assert [disk.what for disk in first.vitals.disks] == ["tmp"]
            second = await agent.sync(1, first.sequence, 60, 0)
            assert (second.vitals, second.clock is None) == (None, False)
            # A controller that knows nothing yet is told at once.
            assert (await agent.sync(2, 0, 60, 0)).vitals == first.vitals
            await agent.survey(2, None, True)
            assert (await agent.sync(2, 1, 60, 5)).vitals is not None
        finally:
            await agent.close(1000)

    asyncio.run(story())


SLEEPS = "import time; time.sleep(600)"


def test_a_call_that_acknowledges_nothing_renews_no_lease(tmp_path: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), an_agent(tmp_path) as agent:
            await agent.sync(1, 0, 60, 0)
            await agent.start(1, replace(part(tmp_path, SLEEPS), lease_s=1.0))
            epoch = 2
            while not (await agent.sync(epoch, 0, 60, 0)).parts[0].lease_expired:
                epoch += 1
                await asyncio.sleep(0.05)

    asyncio.run(story())


def test_a_part_starts_with_what_is_left_of_the_lease_since_the_agent_was_heard_last(tmp_path: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), an_agent(tmp_path) as agent:
            await agent.sync(1, 0, 60, 0)
            await asyncio.sleep(0.5)  # as long as it takes to fetch its code
            await agent.start(1, part(tmp_path, SLEEPS))
            launcher = LauncherClient(tmp_path / "n" / "launcher", dict(os.environ))
            await launcher.connect()
            assert (await launcher.call("hello"))["attempts"]["1.1"]["lease_s"] <= 59.5

    asyncio.run(story())
