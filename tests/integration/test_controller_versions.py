"""What the controller makes of the versions that agents tell: who may run where, what is recorded, what doctor says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.controller import Controller
from orchestrator.control.refused import Refused
from orchestrator.control.runtime import Settings
from orchestrator.health.facts import Interpreter, NodeFacts
from orchestrator.scheduling.lifecycle import State
from orchestrator.testing import a_new_run
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import started

TORCH = Interpreter("/opt/orch/python", "3.12.3", "2.11.0+cu130", "13.0", "9.19.0", "2.28.9", "2.28.9")
VENV = "/venv/bin/python"


def host(name: str, driver: str = "580.1") -> NodeFacts:
    return NodeFacts(name, driver=driver, gpus=("NVIDIA H100",) * 2, hostname=name, boot_id=name)


def a_cluster(**drivers: str) -> FakeCluster:
    """Nodes of two GPUs with these drivers, and TORCH as orch's own."""
    cluster = FakeCluster(**dict.fromkeys(drivers, 2))
    for name, driver in drivers.items():
        cluster.agents[name].tell(host(name, driver), own=TORCH)
    return cluster


@asynccontextmanager
async def controlling(home: Path, cluster: FakeCluster) -> AsyncIterator[Controller]:
    settings = Settings(
        home, home / "storage", 30.0, sync_wait_s=0.05, watch_s=0.02, lost_after_s=0.05, survey_wait_s=0.2
    )
    async with started(cluster, settings) as controller:
        # Until the agents were heard, nothing is known of them.
        await until(lambda: _now(all(node.up for node in controller.roster.nodes.values())))
        yield controller


async def _now(value: object) -> object:
    return value


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    while not (value := await condition()):
        await asyncio.sleep(0.005)
    return value


def within(story: Coroutine[Any, Any, None], seconds: float = 30) -> None:
    async def limited() -> None:
        async with asyncio.timeout(seconds):
            await story

    asyncio.run(limited())


def test_a_node_that_fails_is_left_out_and_one_that_passes_is_taken(tmp_path: Path) -> None:
    async def story() -> None:
        async with controlling(tmp_path, a_cluster(a="550.54", b="580.1")) as controller:
            run, _ = await controller.submit(a_new_run(workers=1, requires={"driver": ">=570", "torch": ">=2.8"}), {})
            found = await until(lambda: _in_state(controller, run.id, State.RUNNING))
            assert [part.node for part in found.attempts[0].placement.nodes] == ["b"]
            # The one that passes is full: the next run waits, and says why not on the other.
            waits, _ = await controller.submit(a_new_run(workers=2, requires={"driver": ">=570"}), {})
            reason = await until(lambda: _reason(controller, waits.id))
            assert reason.endswith("; driver 550.54 is older than 570 on a")

    within(story())


async def _in_state(controller: Controller, run: int, state: State) -> Any:
    found = await controller.find(str(run))
    return found if found.state is state else None


async def _reason(controller: Controller, run: int) -> str | None:
    return (await controller.find(str(run))).reason


def test_what_no_node_could_ever_hold_is_refused_with_the_numbers_and_never_recorded(tmp_path: Path) -> None:
    async def story() -> None:
        async with controlling(tmp_path, a_cluster(a="550.54", b="550.54", c="580.1")) as controller:
            new = a_new_run(workers="2x2", requires={"driver": ">=570"})
            for ask in (controller.submit(new, {}), controller.dry_run(new.spec, "ana")):
                with pytest.raises(Refused, match=r"1 of 3 nodes.*driver 550\.54 is older than 570 on a, b") as caught:
                    await ask
                assert caught.value.code == 5
            assert await controller.waiting() == []

    within(story())


def test_a_run_waits_for_what_is_not_known_yet_and_holds_nobody_back(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = a_cluster(a="580.1")
        async with controlling(tmp_path, cluster) as controller:
            new = a_new_run(workers=1, python=VENV, requires={"torch": ">=2.8"})
            run, _ = await controller.submit(new, {})
            reason = await until(lambda: _reason(controller, run.id))
            assert reason.endswith(f"; the versions of {VENV} are not known yet on a")
            other, _ = await controller.submit(a_new_run(workers=1), {})
            await until(lambda: _in_state(controller, other.id, State.RUNNING))
            assert cluster.agents["a"].surveyed.count(VENV) == 1
            cluster.agents["a"].tell(None, Interpreter(VENV, torch="2.9.1"))
            await until(lambda: _in_state(controller, run.id, State.RUNNING))

    within(story())


def test_a_node_without_the_interpreter_is_left_out(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = a_cluster(a="580.1", b="580.1")
        cluster.agents["a"].tell(None, Interpreter(VENV, problem="is not there"))
        cluster.agents["b"].tell(None, Interpreter(VENV, torch="2.9.1"))
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(a_new_run(workers=1, python=VENV, requires={"torch": "2.9"}), {})
            found = await until(lambda: _in_state(controller, run.id, State.RUNNING))
            assert [part.node for part in found.attempts[0].placement.nodes] == ["b"]

    within(story())


def test_an_attempt_records_what_it_was_started_with_also_where_that_is_told_later(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(a_new_run(workers="2x2"), {})
            await until(lambda: _in_state(controller, run.id, State.RUNNING))
            for name in ("a", "b"):
                cluster.agents[name].end(run.id, 1)
            ended = await until(lambda: _in_state(controller, run.id, State.SUCCEEDED))
            assert ended.attempts[0].environment is None
            for name in ("a", "b"):
                cluster.agents[name].tell(host(name), own=TORCH)
            environment = await until(lambda: _environment(controller, run.id))
            assert {node: has["driver"] for node, has in environment.items()} == {"a": "580.1", "b": "580.1"}
            assert environment["a"]["nccl"] == "2.28.9"
            # What was recorded stays, whatever the nodes become.
            cluster.agents["a"].tell(host("a", "590.1"))
            again = controller.runtime.store
            await controller.runtime.db(again.record_environment, run.id, 1, {"a": {"driver": "590.1"}})
            assert (await _environment(controller, run.id))["a"]["driver"] == "580.1"

    within(story())


async def _environment(controller: Controller, run: int) -> Any:
    return (await controller.find(str(run))).attempts[0].environment


def test_an_agent_that_was_replaced_is_asked_again(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = a_cluster(a="580.1")
        async with controlling(tmp_path, cluster) as controller:
            await controller.surveys.doctor(None, VENV, 0.1)
            cluster.lose("a")
            await until(lambda: _now(not controller.roster.nodes["a"].up))
            cluster.add("a", 2)
            cluster.agents["a"].tell(host("a"), Interpreter(VENV, torch="2.9.1"), own=TORCH)
            await until(lambda: _now(controller.roster.nodes["a"].up))
            found = await controller.surveys.doctor("a", VENV)
            assert [facts["torch"] for facts in found["nodes"]] == ["2.9.1"]

    within(story())


def test_doctor_compares_the_nodes_and_says_who_has_not_answered(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = a_cluster(a="580.1", b="550.54", c="580.1")
        cluster.agents["c"].interpreters.clear()
        async with controlling(tmp_path, cluster) as controller:
            found = await controller.surveys.doctor(None, None, 0.2)
            assert (found["pending"], found["drift"]) == (["c"], ["driver"])
            worst = found["findings"][0]
            assert (worst["severity"], worst["nodes"]) == ("error", ["b"])
            assert found["nodes"][0]["clock_ahead"] == 0.0
            cluster.agents["b"].gone = True
            await until(lambda: _now(not controller.roster.nodes["b"].up))
            found = await controller.surveys.doctor("b", None, 0.2)
            assert found["absent"] == {"b": "its agent does not answer: the fake agent is gone"}
            with pytest.raises(KeyError):
                await controller.surveys.doctor("nope", None)

    within(story())
