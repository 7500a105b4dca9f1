"""A rank that is stopped, in a real gang: found, looked into, ended. Real ranks, launcher, agent, controller and database."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from rows import fault

from orchestrator.control.agent import NodeAgent
from orchestrator.control.backend import Agent, NodeFacts
from orchestrator.control.controller import Controller
from orchestrator.control.runtime import Settings
from orchestrator.control.snapshot import take
from orchestrator.history.render import show_json
from orchestrator.scheduling.lifecycle import Event, State
from orchestrator.scheduling.run import Code, NewRun, Run
from orchestrator.spec import JobSpec
from orchestrator.testing.controlling import started, until

pytestmark = pytest.mark.torch

TRAINS = """
import time, torch, torch.distributed as dist

def main():
    dist.init_process_group("gloo")
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    while True:
        model(torch.ones(8, 4)).sum().backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
        time.sleep(0.01)

main()
"""


SLOW = """
import os, time, torch, torch.distributed as dist

class Model(torch.nn.Linear):
    def forward(self, batch):
        time.sleep(0.004 + 0.012 * int(os.environ["RANK"]))
        return super().forward(batch)

dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(Model(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
while True:
    model(torch.ones(8, 4)).sum().backward()
    optimizer.step()
"""


ANSWERS = """
import os, pathlib, threading, torch, torch.distributed as dist

rank = int(os.environ["RANK"])
folder = next(p / "recorder" for p in pathlib.Path(os.readlink("/proc/self/fd/1")).parents if (p / "recorder").is_dir())
os.mkfifo(folder / f"ask-{rank}.pipe")

def answer():
    # As torch's NCCL backend does: it says that it will dump before it does.
    while True:
        with open(folder / f"ask-{rank}.pipe", "rb") as pipe:
            pipe.read(2)
        print("ProcessGroupNCCL preparing to dump debug info", flush=True)

threading.Thread(target=answer, daemon=True).start()
dist.init_process_group("gloo")
optimizer = torch.optim.SGD(torch.nn.Linear(4, 1).parameters(), lr=0.01)
for _ in range(100):
    optimizer.step()
if rank == 0:
    dist.barrier()
else:
    threading.Event().wait()
"""


class Machine:
    """A cluster of one node with two CPU slots, whose agent, launcher and ranks are real."""

    def __init__(self, folder: Path, script: str) -> None:
        (folder / "code").mkdir()
        (folder / "code" / "train.py").write_text(script)
        self.code = take(folder / "code", 1 << 20)
        self.real = NodeAgent("orch-hangs", "a", "127.0.0.1", folder / "n", self.fetch, dict, dict(os.environ))

    async def fetch(self, sha256: str) -> AsyncIterator[bytes]:
        yield self.code.archive

    async def nodes(self) -> list[NodeFacts]:
        return [NodeFacts("a", "id-a", "127.0.0.1", "cpu", 2)]

    async def agent(self, node: NodeFacts) -> Agent:
        return self.real

    async def hold(self, node: NodeFacts) -> None: ...
    async def release(self, node_name: str) -> None: ...


def ranks_of(run: Run) -> dict[int, psutil.Process]:
    """The living processes of the run, by rank."""
    found = {}
    for process in psutil.process_iter():
        try:
            env = process.environ()
        except psutil.Error:
            continue
        if env.get("ORCH_MARK", "").startswith(f"orch-hangs.{run.id}."):
            found[int(env["RANK"])] = process
    return found


async def gets_on(controller: Controller, run: Run, attempt: int, steps: int) -> None:
    """Waits until both ranks of the attempt have done more steps than that."""

    async def there() -> bool:
        progress = controller.gangs.measuring.of(run.id, attempt)
        looks = {} if progress is None else progress.looks
        return len(looks) == 2 and all(look.steps > steps for look in looks.values())

    await until(there, 60)


async def ended(controller: Controller, run: Run) -> bool:
    return (await controller.find(str(run.id))).ended


@asynccontextmanager
async def on_a_machine(folder: Path, script: str, **more: Any) -> AsyncIterator[tuple[Controller, Callable[..., Any]]]:
    """A controller over that machine, and what submits the script as two ranks; keywords are keys of the job file."""
    machine = Machine(folder, script)
    settings = Settings(folder, folder / "storage", sync_wait_s=0.5, watch_s=0.1, progress_look_s=0.1, confirm_s=0.3)

    async def submit(**keys: Any) -> Run:
        told = {"run": "train.py", "workers": "1x2", "env": {"GLOO_SOCKET_IFNAME": "lo"}} | keys
        new = NewRun(JobSpec.model_validate(told), "ana", Code(machine.code.sha256), "/w")
        return (await controller.submit(new, {}))[0]

    try:
        async with started(machine, settings, **more) as controller:
            yield controller, submit
    finally:
        await machine.real.close(1000)


@fault(3)
def test_a_stopped_rank_is_named_the_stacks_of_all_are_kept_and_nothing_of_the_attempt_comes_back(
    tmp_path: Path, measured: Any
) -> None:
    async def story() -> None:
        async with on_a_machine(tmp_path, TRAINS) as (controller, submit):
            run = await submit(hang="6s")
            await gets_on(controller, run, 1, steps=20)
            first = ranks_of(run)
            os.kill(first[1].pid, signal.SIGSTOP)
            measured.injected()

            async def told_to_end() -> bool:
                (attempt, *_) = (await controller.find(str(run.id))).attempts
                return attempt.stop is not None

            await until(told_to_end, 60)
            measured.detected()
            await gets_on(controller, run, 2, steps=5)
            measured.recovered()
            failed, again = show_json(await controller.find(str(run.id)))["attempts"]
            failure = failed["failure"]
            assert failed["outcome"] == "infra_error"
            assert (failure["kind"], failure["rank"], failure["node"]) == ("hang", 1, "a")
            assert "rank 1 on a is stopped" in failure["message"], failure
            assert "rank 0 stands in all_reduce, called at train.py:11" in failure["message"], failure
            stacks = [line.text for line in controller.logs.stacks(run.id, 1)]
            assert sum(line.startswith("rank ") for line in stacks) == 2
            assert sum("main (train.py:" in line for line in stacks) == 2
            # A late SIGCONT meets nobody: not even a process of that number that was one of the attempt's.
            assert not any(process.is_running() for process in first.values())
            assert again["ended_at"] is None
            await controller.cancel(str(run.id))
            await until(lambda: ended(controller, run), 60)

    asyncio.run(story())


def test_what_a_rank_prints_when_it_is_asked_for_its_dump_is_no_sign_that_it_gets_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with on_a_machine(tmp_path, ANSWERS) as (controller, submit):
            run = await submit(hang={"after": "4s", "first": "10m"})

            async def told_to_end() -> bool:
                return any(attempt.stop for attempt in (await controller.find(str(run.id))).attempts)

            await until(told_to_end, 60)
            assert any("preparing to dump" in line.text for line in controller.logs.lines(run.id, 1, 0, whole=True))
            await controller.cancel(str(run.id))
            await until(lambda: ended(controller, run), 60)

    asyncio.run(story())


@fault(4)
def test_a_slow_rank_is_named_with_its_node_and_how_slow_it_is_and_goes_on(tmp_path: Path, measured: Any) -> None:
    async def story() -> None:
        # Windows of 10 s, on a clock that goes ten times as fast.
        fast = {"monotonic": lambda: time.monotonic() * 10}
        async with on_a_machine(tmp_path, SLOW, **fast) as (controller, submit):
            run = await submit()
            await gets_on(controller, run, 1, steps=1)
            measured.injected()

            async def noted() -> list[str]:
                found = await controller.find(str(run.id))
                return [str(event.reason) for event in found.events if event.event is Event.NOTED]

            await until(noted, 90)
            measured.detected()
            measured.note("a forward pass that takes longer stands for the CPU quota; windows of 1 s instead of 10 s")
            (note,) = await noted()
            assert re.fullmatch(r"rank 1 on a: [0-9.]+x slower than the others \(.* ms of own work a step, .*\)", note)
            assert (await controller.find(str(run.id))).state is State.RUNNING
            await controller.cancel(str(run.id))
            await until(lambda: ended(controller, run), 60)

    asyncio.run(story())
