"""The transport verdict from what ranks write to what users see: real ranks, launchers, agents, controller and database.

Only the GPUs and NCCL are pretended: tests/fixtures/fake_nccl.py writes NCCL's lines where its environment says.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from orchestrator.control.agent import NodeAgent
from orchestrator.control.backend import Agent, NodeFacts
from orchestrator.control.controller import Controller
from orchestrator.control.follow import Positions, follow
from orchestrator.control.runtime import Settings
from orchestrator.control.snapshot import Snapshot, take
from orchestrator.health.nccl_log import read
from orchestrator.history.render import show_json
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Code, NewRun, Run
from orchestrator.spec import JobSpec
from orchestrator.spec_values import Workers
from orchestrator.testing.controlling import started, until
from orchestrator.testing.hardware import cluster, node

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


@cache
def code() -> Snapshot:
    with TemporaryDirectory() as folder:
        shutil.copy(FIXTURES / "fake_nccl.py", folder)
        return take(Path(folder), 1 << 20)


async def fetch(sha256: str) -> AsyncIterator[bytes]:
    yield code().archive


class Machines:
    """A cluster of this machine alone: each node is an agent of its own, with GPUs that are declared and not there."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.agents: dict[str, NodeAgent] = {}
        self.folder, self.names = folder, names
        for name in names:
            self.restart(name)

    def restart(self, name: str) -> None:
        info: dict[str, Any] = {}
        self.agents[name] = NodeAgent(
            "orch-test", name, "127.0.0.1", self.folder / name, fetch, lambda: dict(info), dict(os.environ)
        )

    def is_dead(self, node: NodeFacts) -> bool:
        return False

    async def nodes(self) -> list[NodeFacts]:
        return [NodeFacts(name, f"id-{name}", "127.0.0.1", "cuda", 2) for name in self.names]

    async def agent(self, node: NodeFacts) -> Agent:
        return self.agents[node.name]

    async def hold(self, node: NodeFacts) -> None: ...
    async def release(self, node_name: str) -> None: ...


@asynccontextmanager
async def controlling(folder: Path, machines: Machines) -> AsyncIterator[Controller]:
    settings = Settings(folder, folder / "storage", sync_wait_s=0.5, watch_s=0.1)
    declared = cluster(*(node(name, gpus=2) for name in machines.names))
    async with started(machines, settings, declared=declared) as controller:
        yield controller


@asynccontextmanager
async def a_cluster(folder: Path, *names: str) -> AsyncIterator[tuple[Controller, Machines]]:
    machines = Machines(folder, *names)
    try:
        async with controlling(folder, machines) as controller:
            yield controller, machines
    finally:
        for agent in machines.agents.values():
            await agent.close(1000)


def job(link: str, gate: Path, workers: str = "1x2", **more: object) -> NewRun:
    nodes, each = map(int, workers.split("x"))
    size = Workers(total=nodes * each, nodes=nodes)
    spec = JobSpec(name="job", run=f"fake_nccl.py {link} {gate}", workers=size, grace=0.5, **more)  # type: ignore[arg-type]
    return NewRun(spec, "ana", Code(code().sha256), "/w")


async def shown(controller: Controller, run: Run) -> dict[str, Any]:
    return show_json(await controller.find(str(run.id)))


async def transport(controller: Controller, run: Run) -> dict[str, Any]:
    """The verdict, as soon as there is one."""

    async def known() -> Any:
        attempts = (await shown(controller, run))["attempts"]
        return attempts and attempts[-1]["transport"]

    found: dict[str, Any] = await until(known, 30)
    return found


async def ends(controller: Controller, run: Run) -> Run:
    async def ended() -> Run | None:
        found = await controller.find(str(run.id))
        return found if found.ended else None

    found: Run = await until(ended, 30)
    return found


def notes(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in run["events"] if event["event"] == "noted"]


def test_links_as_promised_are_as_planned_while_the_run_runs_and_later_communicators_change_nothing(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        gate = tmp_path / "gate"
        async with a_cluster(tmp_path, "a") as (controller, _):
            run, _ = await controller.submit(job("CUMEM+sub", gate), {})
            found = await transport(controller, run)
            assert (found["verdict"], found["links"]) == ("as planned", {"P2P": 2})
            assert (found["nccl"], found["algorithms"], found["nodes"]) == ("2.28.9", ["rings"], 1)
            now = await shown(controller, run)
            assert now["state"] in ("starting", "running")
            assert notes(now) == []
            gate.touch()
            assert (await ends(controller, run)).state is State.SUCCEEDED
            assert await transport(controller, run) == found

    asyncio.run(story())


def test_a_fall_to_shared_memory_is_told_at_once_with_its_cause_and_the_run_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        gate = tmp_path / "gate"
        async with a_cluster(tmp_path, "a") as (controller, _):
            run, _ = await controller.submit(job("SHM", gate, env={"NCCL_P2P_DISABLE": "1"}), {})
            told = []
            async for item in follow(controller, run.id, Positions()):
                if item is not None and "notice" in item:
                    told.append(item["notice"])
                    assert not gate.exists()
                    gate.touch()
                if item is not None and "end" in item:
                    break
            (text,) = told
            assert text.startswith("transport worse than planned, because NCCL_P2P_DISABLE is set")
            assert "2 of 2 links promised NVLink go over shared memory" in text
            ended = await shown(controller, run)
            assert ended["state"] == "succeeded"
            (note,) = notes(ended)
            assert (note["reason"], note["attempt"], ended["reason"]) == (text, 1, None)
            (shortfall,) = ended["attempts"][0]["transport"]["shortfalls"]
            assert (shortfall["promised"], shortfall["seen"], shortfall["ranks"]) == ("P2P/NVLink", "SHM", [0, 1])
            assert shortfall["causes"][0]["shown"]
            store = controller.runtime.store
            assert await controller.runtime.db(store.verify, run.id)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("env", "outcome"),
    [({"NCCL_SHM_DISABLE": "1", "NCCL_P2P_DISABLE": "1"}, Outcome.USER_ERROR), ({}, Outcome.INFRA_ERROR)],
    ids=["by the job's own doing", "by the machine's"],
)
def test_on_degraded_fail_ends_the_attempt_and_names_links_and_cause(
    tmp_path: Path, env: dict[str, str], outcome: Outcome
) -> None:
    async def story() -> None:
        async with a_cluster(tmp_path, "a") as (controller, _):
            run, _ = await controller.submit(job("SOCKET", tmp_path / "never", env=env, on_degraded="fail"), {})
            ended = await ends(controller, run)
            assert ended.state is State.FAILED
            (attempt,) = ended.attempts
            assert attempt.failure is not None
            assert (attempt.failure.kind, attempt.outcome) == ("degraded", outcome)
            assert "2 of 2 links promised NVLink go over TCP sockets" in attempt.failure.message
            assert ("NCCL_SHM_DISABLE is set" in attempt.failure.message) == bool(env)
            assert attempt.transport is not None
            assert [event.event for event in ended.events][-2:] == [Event.NOTED, Event.FAILED]

    asyncio.run(story())


def test_the_parts_of_two_nodes_are_put_together(tmp_path: Path) -> None:
    async def story() -> None:
        gate = tmp_path / "gate"
        async with a_cluster(tmp_path, "a", "b") as (controller, _):
            run, _ = await controller.submit(job("CUMEM", gate, "2x2"), {})
            found = await transport(controller, run)
            # Between nodes TCP was all that was promised.
            assert (found["verdict"], found["links"]) == ("as planned", {"P2P": 4, "NET/Socket": 4})
            gate.touch()
            assert (await ends(controller, run)).state is State.SUCCEEDED

    asyncio.run(story())


def test_what_nccl_said_is_kept_and_what_it_warned_of_is_in_the_ranks_log(tmp_path: Path) -> None:
    async def story() -> None:
        gate = tmp_path / "gate"
        async with a_cluster(tmp_path, "a") as (controller, _):
            run, _ = await controller.submit(job("CUMEM", gate), {})
            await transport(controller, run)
            gate.touch()
            await ends(controller, run)
            lines = [line.text for line in controller.logs.nccl(run.id, 1)]
            assert read(lines).links == {"P2P": 2}
            for rank in (0, 1):
                printed = [line.text for line in controller.logs.lines(run.id, 1, rank, whole=True)]
                assert printed.count("[orch] NCCL warns: nothing is wrong but this") == 1
                assert printed[0] == "connected"
                assert controller.logs.last_lines(run.id, 1, rank)[-1].startswith("ended after step")

    asyncio.run(story())


def test_a_job_that_asks_nccl_itself_is_judged_by_what_its_ranks_print(tmp_path: Path) -> None:
    async def story() -> None:
        gate = tmp_path / "gate"
        async with a_cluster(tmp_path, "a") as (controller, _):
            run, _ = await controller.submit(job("SHM", gate, env={"NCCL_DEBUG": "INFO"}), {})
            assert (await transport(controller, run))["verdict"] == "worse than planned"
            gate.touch()
            await ends(controller, run)
            printed = [line.text for line in controller.logs.lines(run.id, 1, 0, whole=True)]
            assert any("via SHM" in line for line in printed)
            assert list(controller.logs.nccl(run.id, 1)) == []

    asyncio.run(story())


@pytest.mark.parametrize(
    ("more", "verdict", "why"),
    [
        ({"env": {"NCCL_DEBUG": "WARN"}}, "unknown", "the job sets NCCL_DEBUG=WARN"),
        ({"backend": "gloo"}, "not measured", "Gloo"),
        ({"workers": "1x1"}, "not measured", "one rank"),
    ],
)
def test_where_no_log_can_tell_that_is_said_from_the_start(
    tmp_path: Path, more: dict[str, Any], verdict: str, why: str
) -> None:
    async def story() -> None:
        gate = tmp_path / "gate"
        gate.touch()
        async with a_cluster(tmp_path, "a") as (controller, _):
            run, _ = await controller.submit(job("SHM", gate, **more), {})
            assert (await ends(controller, run)).state is State.SUCCEEDED
            found = await transport(controller, run)
            assert found["verdict"] == verdict
            assert why in found["reason"]

    asyncio.run(story())


def test_the_next_controller_and_the_next_agent_go_on_to_the_same_verdict_once(tmp_path: Path) -> None:
    async def story() -> None:
        gate = tmp_path / "gate"
        machines = Machines(tmp_path, "a")
        try:
            async with controlling(tmp_path, machines) as controller:
                run, _ = await controller.submit(job("SHM", gate), {})
                found = await transport(controller, run)
            machines.restart("a")
            async with controlling(tmp_path, machines) as controller:

                async def heard() -> bool:
                    return controller.roster.nodes["a"].up and bool(machines.agents["a"]._parts)

                await until(heard, 30)
                gate.touch()
                ended = await ends(controller, run)
                assert ended.state is State.SUCCEEDED
                assert await transport(controller, run) == found
                assert len(notes(show_json(ended))) == 1
        finally:
            for agent in machines.agents.values():
                await agent.close(1000)

    asyncio.run(story())
