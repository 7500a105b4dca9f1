"""A rank that is stopped, in a real gang: found, looked into, ended. Real ranks, launcher, agent, controller and database."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from orchestrator.control.agent import NodeAgent
from orchestrator.control.backend import Agent, NodeFacts
from orchestrator.control.controller import Controller
from orchestrator.control.runtime import Settings
from orchestrator.control.snapshot import take
from orchestrator.history.render import show_json
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


async def gets_on(controller: Controller, run: Run, steps: int) -> None:
    async def there() -> bool:
        progress = controller.gangs.measuring.of(run.id, 1)
        looks = {} if progress is None else progress.looks
        return len(looks) == 2 and all(look.steps > steps for look in looks.values())

    await until(there, 60)


def test_a_stopped_rank_is_named_the_stacks_of_all_are_kept_and_nothing_of_the_attempt_comes_back(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        machine = Machine(tmp_path, TRAINS)
        settings = Settings(
            tmp_path, tmp_path / "storage", sync_wait_s=0.5, watch_s=0.1, progress_look_s=0.1, confirm_s=0.3
        )
        try:
            async with started(machine, settings) as controller:
                spec = JobSpec.model_validate(
                    {"run": "train.py", "workers": "1x2", "hang": "3s", "env": {"GLOO_SOCKET_IFNAME": "lo"}}
                )
                run, _ = await controller.submit(NewRun(spec, "ana", Code(machine.code.sha256), "/w"), {})
                await gets_on(controller, run, 20)
                ranks = ranks_of(run)
                os.kill(ranks[1].pid, signal.SIGSTOP)

                async def over() -> bool:
                    (attempt,) = (await controller.find(str(run.id))).attempts
                    return attempt.ended_at is not None

                await until(over, 60)
                found = show_json(await controller.find(str(run.id)))
                failure = found["attempts"][0]["failure"]
                assert found["attempts"][0]["outcome"] == "infra_error"
                assert (failure["kind"], failure["rank"], failure["node"]) == ("hang", 1, "a")
                assert "rank 1 on a is stopped" in failure["message"], failure
                assert "rank 0 stands in all_reduce, called at train.py:11" in failure["message"], failure
                stacks = [line.text for line in controller.logs.stacks(run.id, 1)]
                assert sum(line.startswith("rank ") for line in stacks) == 2
                assert sum("main (train.py:" in line for line in stacks) == 2
                # A late SIGCONT meets nobody.
                assert ranks_of(run) == {}
                assert not any(process.is_running() for process in ranks.values())
        finally:
            await machine.real.close(1000)

    asyncio.run(story())
