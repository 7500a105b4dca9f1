"""Real gangs over Gloo, one rank of which breaks: what the agent sees of it, and what the controller makes of that."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from measuring import Measured
from rows import fault, representative

from orchestrator.control.agent import NodeAgent
from orchestrator.control.backend import RankStart, StartPart
from orchestrator.control.gang import Gang
from orchestrator.control.logs import LogFolder
from orchestrator.hardware.model import Gpu, Node, Shape
from orchestrator.health.failure import Failure
from orchestrator.placement.values import NodePlacement, Placement
from orchestrator.testing import a_spec

pytestmark = pytest.mark.torch

RANKS = 3
LIMIT = 400 << 20
TRAINS = """
import datetime, os, signal, sys
import torch
import torch.distributed as dist

def breaks(how, cgroup):
    if how == "raises":
        raise ValueError("the batch has 0 samples")
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "asks to be started again":
        sys.exit(75)
    if how == "runs out of memory":
        with open(cgroup + "/cgroup.procs", "w") as procs:
            procs.write(str(os.getpid()))
        kept = []
        while True:
            kept.append(bytearray(4 << 20))

dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
gradient = torch.ones(8)
for step in range(10**9):
    dist.all_reduce(gradient)
    if step == 10 and dist.get_rank() == 1:
        breaks(*sys.argv[1:])
"""
HOWS = ("raises", "is killed", "asks to be started again", "runs out of memory")


async def no_code(sha256: str) -> AsyncIterator[bytes]:
    raise AssertionError("nothing is fetched where a part has no snapshot")
    yield b""


async def failure_of(agent: NodeAgent, number: int, folder: Path, script: Path, *arguments: str, stop: bool) -> Failure:
    """What a controller records of the gang; `stop`: it ends the other ranks as soon as it knows of the first end."""
    order = StartPart(
        number, 1, (str(script), *arguments), None, None, {}, {}, "cpu", tuple(RankStart(r, r, r) for r in range(RANKS)), RANKS,
        0, "127.0.0.1", 0, 60, 1 << 20,
    )  # fmt: skip
    place = NodePlacement("a", tuple(range(RANKS)), tuple(range(RANKS)))
    gang = Gang(number, 1, a_spec(RANKS), Placement("cpu", "node", (place,)))
    logs, ack = LogFolder(folder), 0
    gang.observe("a", await agent.start(1, order), time.monotonic())
    while not gang.over:
        report = await agent.sync(1, ack, 60, 5)
        heard, ack = time.monotonic(), report.sequence
        for chunk in report.logs:
            logs.write(chunk)
        for status in report.parts:
            if status.run == number:
                gang.observe("a", status, heard)
        if gang.must_stop and stop:
            gang.stop_sent = True
            await agent.stop(1, number, 1, 5.0)
    gang.settle({rank: logs.last_lines(number, 1, rank) for rank in gang.ended_badly})
    assert gang.failure is not None
    await agent.forget(1, number, 1)
    return gang.failure


@dataclass(frozen=True)
class Memory:
    """A memory cgroup that a rank may move to."""

    folder: Path | None
    why_not: str = ""


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    top = Path("/sys/fs/cgroup/memory")
    folder = (top if top.is_dir() else Path("/sys/fs/cgroup")) / f"orch-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if top.is_dir() else "memory.max"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(LIMIT))
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        yield Memory(None, f"no memory cgroup can be made here, which needs root: {error.strerror}")
        return
    yield Memory(folder)
    for _ in range(100):
        with suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)


@pytest.fixture(scope="module")
def causes(tmp_path_factory: pytest.TempPathFactory, memory: Memory) -> dict[str, Failure]:
    """By how rank 1 broke: once with the others left to end by themselves, once ended by us (`..., stopped`)."""
    folder = tmp_path_factory.mktemp("causes")
    script = folder / "train.py"
    script.write_text(TRAINS)

    async def story() -> dict[str, Failure]:
        agent = NodeAgent("orch-test", "a", "127.0.0.1", folder / "n", no_code, lambda: {}, dict(os.environ))
        found: dict[str, Failure] = {}
        try:
            async with asyncio.timeout(240):
                await agent.sync(1, 0, 60, 0)
                for number, how in enumerate(HOWS, 1):
                    if how != "runs out of memory" or memory.folder is not None:
                        stop = how == "is killed"
                        found[how] = await failure_of(
                            agent, number, folder / "logs", script, how, str(memory.folder), stop=stop
                        )
        finally:
            await agent.close(1000)
        return found

    return asyncio.run(story())


@pytest.mark.parametrize(
    ("how", "kind", "cause"),
    [
        ("raises", "python", "user"),
        ("is killed", "signal", "infra"),
        ("asks to be started again", "requeue_asked", "infra"),
    ],
)
def test_the_rank_that_broke_is_named_and_not_those_that_lost_it(causes, how, kind, cause) -> None:
    found = causes[how]
    assert (found.kind, found.cause, found.rank, found.node) == (kind, cause, 1, "a"), found.message
    assert found.ranks == (1,)


def test_the_excerpt_is_the_traceback_of_the_rank_that_raised(causes) -> None:
    found = causes["raises"]
    assert found.message.startswith("rank 1 on a ended by ValueError: the batch has 0 samples")
    assert found.detail.startswith("Traceback (most recent call last):")
    assert found.detail.endswith("ValueError: the batch has 0 samples")
    assert "Connection" not in found.detail


def test_a_kill_for_want_of_memory_is_told_with_peak_and_limit_and_is_no_mere_signal(causes, memory) -> None:
    if memory.folder is None:
        pytest.skip(memory.why_not)
    found = causes["runs out of memory"]
    assert (found.kind, found.cause, found.rank) == ("oom", "user", 1), found.message
    assert re.match(r"rank 1 on a was killed: out of memory, 0\.4 of 0\.4 GiB", found.message)


HANGS = """
import os, pathlib, signal, sys, time
print("up", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
if os.environ["RANK"] == "1":
    os.abort()
time.sleep(60)
"""
XID = "3,{0},200,-;NVRM: Xid (PCI:0000:{1}:00): {2}, pid=4711, name=python, {3}\n"


@representative
@fault(40)
@pytest.mark.parametrize(
    ("line", "kind", "cause", "suspects"),
    [
        (XID.format(1, "bb", 79, "GPU has fallen off the bus."), "gpu", "infra", ("a",)),
        (XID.format(1, "bb", 31, "MMU Fault: ENGINE GRAPHICS"), "cuda", "user", ()),
        (XID.format(1, "aa", 79, "GPU has fallen off the bus."), "signal", "user", ()),
        (XID.format(1, "bb", 9999, "something new"), "signal", "user", ()),
    ],
    ids=["the hardware's", "the program's own", "another rank's GPU", "an unknown one"],
)
def test_what_a_gpu_tells_the_kernel_is_held_against_the_rank_that_has_it(
    tmp_path: Path, measured: Measured, line: str, kind: str, cause: str, suspects: tuple[str, ...]
) -> None:
    kernel, gate, script = tmp_path / "kmsg", tmp_path / "gate", tmp_path / "train.py"
    kernel.touch()
    script.write_text(HANGS)
    gpus = (Gpu(0, bus_id="0000:aa:00.0"), Gpu(1, bus_id="0000:bb:00.0"))
    order = StartPart(
        1, 1, (str(script), str(gate)), None, None, {}, {}, "cuda", (RankStart(0, 0, 0), RankStart(1, 1, 1)), 2, 0, "127.0.0.1",
        0, 60, 1 << 20,
    )  # fmt: skip
    gang = Gang(1, 1, a_spec(2), Placement("cuda", "node", (NodePlacement("a", (0, 1), (0, 1)),)))

    async def story() -> None:
        environ = dict(os.environ) | {"ORCH_KERNEL_LOG": str(kernel)}
        node = Node("a", Shape(gpus=gpus))
        agent = NodeAgent("orch-test", "a", "127.0.0.1", tmp_path / "n", no_code, lambda: {"node": node}, environ)
        logs, ack = LogFolder(tmp_path / "logs"), 0
        try:
            async with asyncio.timeout(60):
                await agent.sync(1, 0, 60, 0)
                gang.observe("a", await agent.start(1, order), time.monotonic())
                while not gang.over:
                    report = await agent.sync(1, ack, 60, 5)
                    heard, ack = time.monotonic(), report.sequence
                    for chunk in report.logs:
                        logs.write(chunk)
                    if not gate.exists() and all(logs.last_lines(1, 1, rank) for rank in (0, 1)):
                        kernel.write_text(line)
                        measured.injected()
                        gate.touch()
                    for status in report.parts:
                        gang.observe("a", status, heard)
                    if gang.must_stop:
                        measured.detected()
                        gang.stop_sent = True
                        await agent.stop(1, 1, 1, 5.0)
        finally:
            await agent.close(1000)

    asyncio.run(story())
    gang.settle({})
    found = gang.failure
    assert found is not None
    assert (found.kind, found.cause, found.rank, found.suspects) == (kind, cause, 1, suspects)
    assert "Xid" not in found.message or found.detail == line.partition(";")[2].strip()
