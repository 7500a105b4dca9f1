"""A node's agent with a real launcher and real ranks, and the test in the controller's place."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.control.agent import NodeAgent
from orchestrator.control.backend import PartStatus, RankStart, Report, StaleController, StartFailed, StartPart
from orchestrator.control.launcher_client import LauncherClient, LauncherGoneError
from orchestrator.control.shared_folder import Tokens
from orchestrator.control.snapshot import take
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
async def an_agent(folder: Path, fetch: Callable[[str], AsyncIterator[bytes]] = no_code) -> AsyncIterator[NodeAgent]:
    agent = NodeAgent("orch-test", "a", "127.0.0.1", folder / "n", fetch, lambda: {}, dict(os.environ))
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


def test_what_a_controller_that_was_replaced_had_begun_to_start_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "script.py").write_text("open('ran', 'w')")
    code = take(tmp_path / "work")
    asked, goes_on = asyncio.Event(), asyncio.Event()

    async def fetch(sha256: str) -> AsyncIterator[bytes]:
        asked.set()
        await goes_on.wait()
        yield code.archive

    async def story() -> None:
        async with asyncio.timeout(60), an_agent(tmp_path, fetch) as agent:
            order = replace(part(tmp_path, ""), argv=("script.py",), code=code.sha256)
            start = asyncio.create_task(agent.start(1, order))
            await asked.wait()
            # The next controller hears that there is no such part here, and may start the run elsewhere.
            assert (await agent.sync(2, 0, 60, 0)).parts == ()
            goes_on.set()
            with pytest.raises(StaleController, match="epoch 1 was replaced"):
                await start
            assert (await agent.sync(2, 0, 60, 0)).parts == ()
            # What it orders itself is started.
            assert (await agent.start(2, replace(order, attempt=2))).ranks.keys() == {0}

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


def test_what_a_cut_has_held_up_starts_nothing_though_other_calls_came_with_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), an_agent(tmp_path) as agent:
            first = await agent.sync(1, 0, 60, 0)
            await agent.sync(1, first.sequence, 0.5, 0)
            await asyncio.sleep(0.6)  # longer than the lease: by now the controller may have begun the next attempt
            # Both kinds of call were under way, and their answers are heard by nobody.
            await agent.sync(1, 0, 0.5, 0)
            await agent.sync(1, first.sequence, 0.5, 0)
            with pytest.raises(StartFailed, match="its lease was over before it could start"):
                await agent.start(1, replace(part(tmp_path, SLEEPS), lease_s=0.5))

    asyncio.run(story())


def test_once_the_controller_is_heard_again_after_a_long_cut_a_part_has_its_whole_lease(tmp_path: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), an_agent(tmp_path) as agent:
            first = await agent.sync(1, 0, 60, 0)
            await agent.sync(1, first.sequence, 0.5, 0)  # its answer gets lost
            await asyncio.sleep(0.6)
            again = await agent.sync(1, 0, 0.5, 0)
            await agent.sync(1, again.sequence, 0.5, 0)
            await agent.start(1, replace(part(tmp_path, SLEEPS), lease_s=0.5))

    asyncio.run(story())


async def over(agent: NodeAgent, epoch: int) -> PartStatus:
    """The part once it has ended, as a controller hears that from an agent."""
    heard = 0
    while True:
        try:
            report = await agent.sync(epoch, heard, 60, 5)
        except LauncherGoneError:  # it may still be ending
            continue
        heard = report.sequence
        if report.parts and report.parts[0].ended:
            return report.parts[0]


def test_ranks_that_end_before_the_agent_has_taken_in_that_they_started_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), an_agent(tmp_path) as agent:
            await agent.sync(1, 0, 30.0, 0.0)
            done, call = tmp_path / "done", agent._launcher.call

            async def on_a_busy_machine(op: str, **fields: object) -> dict:
                if op == "start":
                    # Once that is sent: meanwhile the launcher starts the ranks, and sees them end.
                    asyncio.get_running_loop().call_soon(_stand_still_until, done)
                return await call(op, **fields)

            monkeypatch.setattr(agent._launcher, "call", on_a_busy_machine)
            await agent.start(
                1, part(tmp_path, "import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); sys.exit(3)", done)
            )
            ended = await over(agent, 1)
            assert (ended.ranks, ended.launcher_lost) == ({0: 3}, False)

    asyncio.run(story())


def _stand_still_until(there: Path) -> None:
    deadline = time.monotonic() + 20
    while not there.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # its end, and the sweep, are not to be seen from here: nobody is told yet


def test_an_agent_that_follows_tells_of_a_lease_that_ran_out_while_there_was_none(tmp_path: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), an_agent(tmp_path) as agent:
            await agent.start(1, replace(part(tmp_path, SPEAKS_WHEN_ASKED, tmp_path / "gate"), lease_s=0.5))
            other = LauncherClient(tmp_path / "n" / "launcher", {})
            async with other:
                async for event in other.events():
                    if event.get("event") == "ended":
                        break
            async with an_agent(tmp_path) as following:
                status = await over(following, 2)
        assert (status.ranks, status.lease_expired) == ({0: -9}, True)

    asyncio.run(story())


def test_ranks_that_ended_with_their_launcher_have_not_succeeded_for_an_agent_that_never_knew_them(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), an_agent(tmp_path) as agent:
            await agent.start(1, part(tmp_path, SPEAKS_WHEN_ASKED, tmp_path / "gate"))
            launcher = LauncherClient(tmp_path / "n" / "launcher", {})
            async with launcher:
                os.kill((await launcher.call("hello"))["pid"], signal.SIGKILL)
                async for _ in launcher.events():
                    pass  # until it is gone
            async with an_agent(tmp_path) as following:
                status = await over(following, 2)
        assert (status.ranks, status.launcher_lost) == ({0: -9}, True)

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


PRINTS_ITS_SECRET = """
import os, pathlib, sys, time
key, gate = os.environ["API_KEY"], pathlib.Path(sys.argv[1])
print("whole", key, flush=True)
print("half", key[:9], end="", flush=True)
while not gate.exists():
    time.sleep(0.01)
print(key[9:], "and", key, flush=True)
print("the last word is", key, end="")
"""


def test_a_secret_that_a_script_prints_is_masked_by_the_agent_and_by_the_one_after_it(tmp_path: Path) -> None:
    async def story() -> None:
        gate, secret = tmp_path / "gate", "canary-0123456789"
        order = replace(part(tmp_path, PRINTS_ITS_SECRET, gate), secrets={"API_KEY": secret})
        assert secret not in repr(order)
        async with asyncio.timeout(60), an_agent(tmp_path) as agent:
            await agent.start(1, order)
            before: list[Report] = []
            await hears(agent, 1, before, "half ")
            await agent.sync(1, before[-1].sequence, 60, 0)
            async with an_agent(tmp_path) as next_agent:
                gate.touch()
                after: list[Report] = []
                await hears(next_agent, 2, after, "the last word is ****")
                stars = "*" * len(secret)
                assert (
                    text(before) + text(after) == f"whole {stars}\nhalf {stars} and {stars}\nthe last word is {stars}"
                )
        written = [
            path for path in (tmp_path / "n").rglob("*") if path.is_file() and secret.encode() in path.read_bytes()
        ]
        assert written == []

    asyncio.run(story())


RAISES_ITS_SECRET = """
import os
raise ValueError("denied: " + os.environ["API_KEY"])
"""


def test_a_secret_in_an_exception_is_masked_where_it_is_told_as_the_cause(tmp_path: Path) -> None:
    async def story() -> None:
        secret = 'canary-"0123456789"\\é'
        async with asyncio.timeout(60), an_agent(tmp_path) as agent:
            await agent.start(1, replace(part(tmp_path, RAISES_ITS_SECRET), secrets={"API_KEY": secret}))
            status = await over(agent, 1)
        assert "denied: ****" in repr(status.ends)
        assert "canary" not in repr(status)
        files = [path for path in (tmp_path / "n").rglob("*") if path.is_file()]
        assert [path for path in files if b"canary" in path.read_bytes()] == []

    asyncio.run(story())


LISTENS = """
import os, socket, sys
os.setuid(65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listens", flush=True)
listener.accept()[0].recv(1)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
def test_a_launcher_of_another_user_is_told_nothing() -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o777)
    command = [sys.executable, "-c", LISTENS, str(folder / "launcher.sock")]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stranger:
            assert stranger.stdout is not None
            assert stranger.stdout.readline() == "listens\n"
            with pytest.raises(LauncherGoneError, match=r"another user \(uid 65534\)"):
                asyncio.run(LauncherClient(folder, dict(os.environ)).connect())
            assert stranger.wait(10) == 0, "it has heard nothing but the end"
    finally:
        shutil.rmtree(folder)
