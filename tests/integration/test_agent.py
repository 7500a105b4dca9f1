"""A node's agent with a real launcher and real ranks, and the test in the controller's place."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.control.agent import NodeAgent
from orchestrator.control.backend import RankStart, Report, StaleController, StartPart
from orchestrator.control.shared_folder import Tokens

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


def test_two_agents_tell_whether_a_checkpoint_folder_is_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), an_agent(tmp_path / "a") as first, an_agent(tmp_path / "b") as second:
            for folder, one in ((tmp_path / "shared", True), (tmp_path / "homes", False)):
                # Each host has a home of its own, under the same name.
                of_first, of_second = (folder, folder) if one else (folder / "a", folder / "b")
                await first.checkpoint_folder(1, str(of_first), Tokens(leave=".orch-1-1"))
                found = await second.checkpoint_folder(1, str(of_second), Tokens(expect=".orch-1-1", wait_s=0.3))
                assert (found.seen, found.error) == (one, None)
                await first.checkpoint_folder(1, str(of_first), Tokens(remove=".orch-1-1"))
                assert list(of_first.iterdir()) == []

    asyncio.run(story())
