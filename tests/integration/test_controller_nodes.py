"""Nodes that are drained, quarantined or not well: the controller over a real database and a fake cluster."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from measuring import Measured
from rows import fault, representative

from orchestrator.control.agent import NodeAgent
from orchestrator.control.api import Api
from orchestrator.control.code_store import CodeStore
from orchestrator.control.controller import Controller
from orchestrator.control.refused import Refused
from orchestrator.health.vitals import Disk, GpuVitals, Port, Vitals
from orchestrator.policy import Policy
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Run
from orchestrator.testing import ManualClock
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until


async def _is(condition: Callable[[], Any]) -> bool:
    return bool(condition())


async def _waits_because(controller: Controller, run: Run, words: str) -> None:
    async def says() -> bool:
        found = await controller.find(str(run.id))
        return found.state is State.QUEUED and words in (found.reason or "")

    await until(says)


async def _events(controller: Controller, node: str) -> list[tuple[str, str | None, str | None]]:
    return [(one.what, one.by, one.reason) for one in await controller.care.history([node], 100)]


# === drain ===


def test_runs_on_a_drained_node_give_way_and_go_on_elsewhere_at_no_cost(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("2", grace="7s"), {})
            await reaches(controller, run, State.RUNNING)
            cluster.add("b", 2)
            await until(lambda: _is(lambda: "b" in controller.roster.nodes and controller.roster.nodes["b"].up))
            part = cluster.agents["a"].parts[run.id, 1]
            (drained,) = await controller.care.drain(["a"], "ana", "new cables", False)
            assert (drained.already, drained.runs) == (False, (run.id,))
            await until(lambda: _is(lambda: (run.id, 2) in cluster.agents["b"].parts))
            assert part.stopped_with == 7
            run = await reaches(controller, run, State.RUNNING)
            first, second = run.attempts
            assert (first.outcome, first.failure) == (Outcome.DRAINED, None)
            assert first.stop is not None
            assert first.stop.reason == "node a is drained by ana: new cables"
            assert [part.node for part in second.placement.nodes] == ["b"]
            assert run.queued_at == run.submitted_at
            await until(lambda: _is(lambda: cluster.holds == {"b"}))

    asyncio.run(story())


def test_with_when_idle_runs_end_by_themselves_and_nothing_new_comes(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("1"), {})
            await reaches(controller, run, State.RUNNING)
            await controller.care.drain(["a"], "ana", None, True)
            other, _ = await controller.submit(job("1"), {})
            await _waits_because(controller, other, "a: drained by ana")
            assert cluster.agents["a"].parts[run.id, 1].stopped_with is None
            cluster.agents["a"].end(run.id, 1)
            await reaches(controller, run, State.SUCCEEDED)
            await _waits_because(controller, other, "a: drained by ana")
            # Who cannot wait any longer drains it again.
            assert [one.already for one in await controller.care.drain(["a"], "bo", "now", False)] == [False]
            assert [one.already for one in await controller.care.undrain(["a"], "ana")] == [False]
            await reaches(controller, other, State.RUNNING)
            assert await _events(controller, "a") == [
                ("drained", "ana", "its runs may end by themselves"),
                ("drained", "bo", "now"),
                ("undrained", "ana", "was drained by bo: now"),
            ]

    asyncio.run(story())


def test_draining_is_all_or_nothing_and_again_changes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1, c=1)
        async with controlling(tmp_path, cluster) as controller:
            with pytest.raises(Refused, match="no such node: x") as refusal:
                await controller.care.drain(["a", "x"], "ana", None, False)
            assert refusal.value.code == 3
            assert controller.care.out("a") is None
            first = await controller.care.drain(["a", "b", "a"], "ana", "moved", False)
            again = await controller.care.drain(["a", "b"], "bo", None, False)
            assert [[one.already for one in found] for found in (first, again)] == [[False, False], [True, True]]
            assert controller.care.out("a") == "drained by ana: moved"
            assert [one.already for one in await controller.care.undrain(["c"], "ana")] == [True]
            with pytest.raises(Refused, match="no such node: x"):
                await controller.care.undrain(["a", "x"], "ana")
            assert len(await controller.care.history([], 100)) == 2

    asyncio.run(story())


def test_a_node_that_left_cannot_be_drained_and_one_that_comes_back_is_still_drained(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster) as controller:
            await controller.care.drain(["a"], "ana", None, False)
            cluster.lose("a")
            await until(lambda: _is(lambda: controller.roster.nodes["a"].task is None))
            with pytest.raises(Refused, match="a left the cluster"):
                await controller.care.drain(["a"], "ana", "again", False)
            cluster.add("a", 1)
            await until(lambda: _is(lambda: controller.roster.nodes["a"].up))
            run, _ = await controller.submit(job("1", only=["a"]), {})
            await _waits_because(controller, run, "a: drained by ana")
            await controller.care.undrain(["a"], "ana")
            await reaches(controller, run, State.RUNNING)

    asyncio.run(story())


def test_why_names_the_drained_node_that_a_run_would_need(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster) as controller:
            await controller.care.drain(["b"], "ana", "new cables", False)
            run, _ = await controller.submit(job("2x2"), {})
            await _waits_because(controller, run, "b: drained by ana: new cables")
            reasons = (await controller.why(str(run.id)))["waits"]["reasons"]
            told = [one["text"] for one in reasons if one["kind"] == "health"]
            assert told == ["it would fit if all nodes could be used (b: drained by ana: new cables)"]

    asyncio.run(story())


def test_a_run_that_is_being_started_when_its_node_is_drained_is_queued_again(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        gate = cluster.agents["a"].slow_start = asyncio.Event()
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("1"), {})
            await reaches(controller, run, State.STARTING)
            await controller.care.drain(["a"], "ana", None, False)
            gate.set()
            await _waits_because(controller, run, "a: drained by ana")
            (attempt,) = (await controller.find(str(run.id))).attempts
            assert attempt.outcome is Outcome.DRAINED

    asyncio.run(story())


def test_a_run_that_is_being_cancelled_when_its_node_is_drained_is_cancelled(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        cluster.agents["a"].obeys_stop = False
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("1"), {})
            await reaches(controller, run, State.RUNNING)
            await controller.cancel(str(run.id))
            await controller.care.drain(["a"], "ana", None, False)
            cluster.agents["a"].end(run.id, 1, -9)
            run = await reaches(controller, run, State.CANCELLED)
            assert Event.STOP_ASKED not in [one.event for one in run.events]

    asyncio.run(story())


def test_a_place_whose_links_were_tried_is_given_up_where_a_node_was_drained_meanwhile(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster, preflight="on") as controller:
            run, _ = await controller.submit(job("2x2"), {})
            parts = cluster.agents["b"].parts
            await until(lambda: _is(lambda: any(attempt < 0 for _, attempt in parts)))
            await controller.care.drain(["b"], "ana", None, False)
            for agent in cluster.agents.values():
                for key in list(agent.parts):
                    agent.end(*key, 1)
            await _waits_because(controller, run, "b: drained by ana")
            assert (await controller.find(str(run.id))).attempts == ()

    asyncio.run(story())


def test_a_drain_outlives_the_controller_and_is_carried_out_by_the_next(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job("1", only=["a"]), {})
            await reaches(controller, run, State.RUNNING)
            # Killed after the mark was recorded, before the run was told.
            controller.gangs.stop = _nothing  # type: ignore[method-assign]
            await controller.care.drain(["a"], "ana", "moved", False)
        async with controlling(tmp_path, cluster) as controller:
            await _waits_because(controller, run, "a: drained by ana: moved")
            (attempt,) = (await controller.find(str(run.id))).attempts
            assert attempt.outcome is Outcome.DRAINED
            await controller.care.undrain(["a"], None)
            await reaches(controller, run, State.RUNNING)

    asyncio.run(story())


async def _nothing(*_: Any) -> None:
    """Never gets to it."""


# === failing often ===


async def _breaks(controller: Controller, cluster: FakeCluster, node: str) -> None:
    """One more attempt is broken by the node."""
    cluster.agents[node].refuses = "a fault of the machine"
    run, _ = await controller.submit(job("1", only=[node], retry={"infra": 0}), {})
    await reaches(controller, run, State.FAILED)
    cluster.agents[node].refuses = None


async def _works(controller: Controller, cluster: FakeCluster, node: str) -> None:
    run, _ = await controller.submit(job("1", only=[node]), {})
    await reaches(controller, run, State.RUNNING)
    cluster.agents[node].end(run.id, 1)
    await reaches(controller, run, State.SUCCEEDED)


@representative
@fault(41)
def test_a_host_that_fails_every_second_attempt_is_avoided_after_five_at_most(
    tmp_path: Path, measured: Measured
) -> None:
    async def story() -> None:
        cluster, clock = FakeCluster(a=1, b=1, c=1), ManualClock()
        async with controlling(tmp_path, cluster, now=clock) as controller:
            attempts = 0
            measured.injected()
            while controller.care.shunned().get("a") is None:
                attempts += 1
                assert attempts <= 5
                await (_works if attempts % 2 else _breaks)(controller, cluster, "a")
                await controller.care.quarantines.judge()
            assert attempts == 4
            measured.detected()
            measured.note("out at its 4th attempt; machines are fakes")
            words = "quarantined until 2026-01-05 10:00 UTC: it broke 2 of 4 attempts"
            assert str(controller.care.shunned().get("a")).startswith(words)
            others = [(await controller.submit(job("1"), {}))[0] for _ in range(3)]
            for other in others[:2]:
                await reaches(controller, other, State.RUNNING)
            measured.recovered()
            await _waits_because(controller, others[2], words)
            # What it went out for counts no more; one failure does.
            for other in others:
                await controller.cancel(str(other.id))
            clock.advance(3600)
            run, _ = await controller.submit(job("1", only=["a"], retry={"infra": 0}), {})
            await reaches(controller, run, State.RUNNING)
            cluster.agents["a"].parts[run.id, 1].lease_expired = True
            cluster.agents["a"].end(run.id, 1, -9)
            await until(lambda: _is(lambda: controller.care.shunned().get("a")))
            found = controller.care.marks.of("a").quarantine
            assert found is not None
            assert (found.times, found.until) == (2, clock.now + timedelta(hours=2))
            await until(lambda: _recorded(controller, 3))
            assert [what for what, _, _ in await _events(controller, "a")] == [
                "quarantined",
                "probation",
                "quarantined",
            ]
        async with controlling(tmp_path, cluster, now=clock) as controller:
            assert controller.care.marks.of("a").quarantine == found
            await controller.care.undrain(["a"], "ana")
            assert controller.care.shunned().get("a") is None
            clock.advance(1)
            await controller.care.quarantines.judge()
            assert controller.care.shunned().get("a") is None

    asyncio.run(story())


def test_a_probation_without_failure_clears_a_node(tmp_path: Path) -> None:
    async def story() -> None:
        cluster, clock = FakeCluster(a=1, b=1), ManualClock()
        async with controlling(tmp_path, cluster, now=clock) as controller:
            for _ in range(2):
                await _breaks(controller, cluster, "a")
            await until(lambda: _is(lambda: controller.care.shunned().get("a")))
            clock.advance(3600)
            await until(lambda: _is(lambda: not controller.care.shunned().get("a")))
            (finding,) = controller.care.findings("a")
            assert finding.text.startswith("on probation since 2026-01-05 10:00 UTC, after it broke 2 of 2 attempts")
            for _ in range(10):
                await _works(controller, cluster, "a")
            await until(lambda: _recorded(controller, 3))
            assert controller.care.findings("a") == ()
            assert [what for what, _, _ in await _events(controller, "a")] == ["quarantined", "probation", "cleared"]

    asyncio.run(story())


def test_a_gang_that_needs_a_node_in_quarantine_gets_it(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1, c=1)
        async with controlling(tmp_path, cluster) as controller:
            for _ in range(2):
                await _breaks(controller, cluster, "a")
            await until(lambda: _is(lambda: "a" in controller.care.shunned()))
            small, _ = await controller.submit(job("1"), {})
            small = await reaches(controller, small, State.RUNNING)
            assert small.attempt is not None
            assert small.attempt.placement.nodes[0].node != "a"
            whole, _ = await controller.submit(job("3x1"), {})
            cluster.agents[small.attempt.placement.nodes[0].node].end(small.id, 1)
            await reaches(controller, whole, State.RUNNING)

    asyncio.run(story())


def test_errors_of_users_and_a_fault_that_all_nodes_have_put_nobody_out(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1, c=1)
        async with controlling(tmp_path, cluster) as controller:
            for _ in range(4):
                run, _ = await controller.submit(job("1", only=["a"]), {})
                await reaches(controller, run, State.RUNNING)
                cluster.agents["a"].end(run.id, 1, 1)
                await reaches(controller, run, State.FAILED)
            for node in "abc":
                await _works(controller, cluster, node)
                await _breaks(controller, cluster, node)
            for node in "abc":
                await _breaks(controller, cluster, node)
            await controller.care.quarantines.judge()
            assert controller.care.shunned() == {}
            assert controller.care.quarantines.scores["a"].attempts == 7

    asyncio.run(story())


@pytest.mark.parametrize(("share", "out"), [(0.1, ["a"]), (0.5, ["a", "b"]), (0.0, [])])
def test_no_more_than_a_share_of_the_nodes_is_quarantined_and_of_the_others_it_is_told(
    tmp_path: Path, share: float, out: list[str]
) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1, c=1, d=1)
        async with controlling(tmp_path, cluster, policy=Policy(quarantine=share)) as controller:
            for node in "cd":
                for _ in range(4):
                    await _works(controller, cluster, node)
            for node in "ab":
                for _ in range(3):
                    if node not in controller.care.shunned():
                        await _breaks(controller, cluster, node)
            await controller.care.quarantines.judge()
            assert sorted(controller.care.shunned()) == out
            told = [one.text for node in "ab" for one in controller.care.findings(node) if "as may be" in one.text]
            assert len(told) == 2 - len(out)
            kept = [what for node in "ab" for what, _, _ in await _events(controller, node)]
            assert kept == ["quarantined"] * len(out) + ["proposed"] * (2 - len(out))

    asyncio.run(story())


# === health ===


def test_a_node_that_lost_a_gpu_gets_nothing_new_while_what_is_there_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        whole = Vitals(gpus=(GpuVitals(0), GpuVitals(1)))
        async with controlling(tmp_path, cluster) as controller:
            cluster.agents["a"].see(whole)
            run, _ = await controller.submit(job("1"), {})
            await reaches(controller, run, State.RUNNING)
            cluster.agents["a"].see(replace(whole, gpus=whole.gpus[:1]))
            other, _ = await controller.submit(job("1", only=["a"]), {})
            await _waits_because(controller, other, "a: not fit: 1 of 2 GPUs answer")
            assert (await controller.find(str(run.id))).state is State.RUNNING
        async with controlling(tmp_path, cluster) as controller:
            # The next controller knows how many there were.
            cluster.agents["a"].see(replace(whole, gpus=whole.gpus[:1]))
            await until(lambda: _is(lambda: controller.care.out("a")))
            await controller.care.undrain(["a"], "ana")
            await reaches(controller, other, State.RUNNING)
            kept = await _events(controller, "a")
            assert kept[0] == kept[1] == ("fatal", None, "1 of 2 GPUs answer")
            assert kept[2:] == [
                ("undrained", "ana", "was 1 of 2 GPUs answer"),
                ("recovered", None, "1 of 2 GPUs answer"),
            ]

    asyncio.run(story())


APPLICATION = "6,1031,77000000,-;NVRM: Xid (PCI:0000:1a:00): 31, pid=4711, name=python, Ch 00000008, MMU Fault"
UNKNOWN = "6,1032,78000000,-;NVRM: Xid (PCI:0000:1a:00): 999, something new"
OFF_THE_BUS = (
    "6,1033,79000000,-;NVRM: Xid (PCI:0000:1a:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
)


@representative
@fault(40)
def test_a_gpus_fault_in_the_kernels_log_keeps_new_runs_off_and_a_programs_does_not(
    tmp_path: Path, measured: Measured
) -> None:
    kernel = tmp_path / "kmsg"
    kernel.write_text("")

    async def no_code(sha256: str) -> AsyncIterator[bytes]:
        raise AssertionError("nothing is fetched")
        yield b""

    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        environ = {**os.environ, "ORCH_KERNEL_LOG": str(kernel)}
        agent = NodeAgent("orch-test", "a", "127.0.0.1", tmp_path / "n", no_code, lambda: {}, environ)
        report = await agent.sync(1, 0, 60, 0)

        async def looks(controller: Controller) -> str:
            """What becomes of the node after the agent's next look."""
            nonlocal report
            await agent.survey(1, None, True)
            report = await agent.sync(1, report.sequence, 60, 5)
            assert report.vitals is not None
            seen = report.vitals
            cluster.agents["a"].see(seen)
            await until(lambda: _is(lambda: controller.roster.nodes["a"].vitals is seen))
            return controller.care.severity("a").word

        try:
            async with controlling(tmp_path, cluster) as controller:
                assert await looks(controller) == "ok"
                kernel.write_text(f"{APPLICATION}\n{UNKNOWN}\n")
                assert await looks(controller) == "ok"
                measured.injected()
                with kernel.open("a") as file:
                    file.write(f"{OFF_THE_BUS}\n")
                assert await looks(controller) == "fatal"
                measured.detected()
                measured.note("of the look, which an agent takes every 30 s; kernel lines are fed")
                assert str(controller.care.out("a")).startswith(
                    "not fit: Xid 79: the GPU has fallen off the bus (NVRM:"
                )
                run, _ = await controller.submit(job("1"), {})
                await reaches(controller, run, State.RUNNING)
                assert (run.id, 1) in cluster.agents["b"].parts
                measured.recovered()
                # Mended without a boot: what the kernel said before is old.
                await controller.care.undrain(["a"], "ana")
                assert await looks(controller) == "ok"
                with kernel.open("a") as file:
                    file.write(f"{OFF_THE_BUS}\n")
                assert await looks(controller) == "fatal"
        finally:
            await agent.close(1000)

    asyncio.run(story())


def test_a_degraded_node_is_taken_last(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1)
        async with controlling(tmp_path, cluster) as controller:
            cluster.agents["a"].see(Vitals(disks=(Disk("tmp", "/tmp", 10, 100 << 30),)))
            await until(lambda: _is(lambda: controller.care.findings("a")))
            for node in "ba":
                run, _ = await controller.submit(job("1"), {})
                await reaches(controller, run, State.RUNNING)
                assert (run.id, 1) in cluster.agents[node].parts

    asyncio.run(story())


def test_a_link_that_flaps_is_counted_and_draining_is_proposed_once(tmp_path: Path) -> None:
    async def story() -> None:
        cluster, clock = FakeCluster(a=1), ManualClock()

        async def at(downs: int) -> str:
            seen = Vitals(ports=(Port("eth0", True, downs=downs, rdma=False),))
            cluster.agents["a"].see(seen)
            await until(lambda: _is(lambda: controller.roster.nodes["a"].vitals is seen))
            return controller.care.severity("a").word

        async with controlling(tmp_path, cluster, now=clock) as controller:
            cluster.agents["a"].clock = lambda: clock.now.timestamp()
            assert [await at(downs) for downs in (7, 8, 10, 11)] == ["ok", "warning", "degraded", "degraded"]
            (finding,) = controller.care.findings("a")
            assert (finding.numbers["flaps"], finding.text) == (4, "the link of eth0 went down 4 times within an hour")
            clock.advance(3601)
            assert await at(11) == "ok"
            text = "the link of eth0 went down 3 times within an hour"
            recovered = "the link of eth0 went down 4 times within an hour"
            await until(lambda: _recorded(controller, 3))
            assert await _events(controller, "a") == [
                ("degraded", None, text),
                ("proposed", None, f"drain: {text}"),
                ("recovered", None, recovered),
            ]

    asyncio.run(story())


async def _recorded(controller: Controller, events: int) -> bool:
    return len(await controller.care.history([], 100)) == events


def test_a_clock_that_is_wrong_is_told(tmp_path: Path) -> None:
    async def story() -> None:
        cluster, clock = FakeCluster(a=1), ManualClock()
        cluster.agents["a"].clock = lambda: clock.now.timestamp() - 7200
        async with controlling(tmp_path, cluster, now=clock) as controller:
            cluster.agents["a"].see(Vitals())
            await until(lambda: _is(lambda: controller.care.findings("a")))
            (finding,) = controller.care.findings("a")
            assert finding.text == "its clock is 7200.0 s behind the head's"

    asyncio.run(story())


# === the API ===


def test_the_api_of_nodes_refuses_what_cannot_be_meant_and_says_what_it_did(tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer token"}

    async def nothing() -> None:
        """The cluster stays up."""

    async def story() -> None:
        cluster = FakeCluster(a=2, b=2)
        async with controlling(tmp_path, cluster) as controller:
            app = Api(controller, CodeStore(tmp_path / "code", 1 << 20), lambda: "token", dict, nothing).app()
            async with TestClient(TestServer(app, host="127.0.0.1"), headers=headers) as client:

                async def asked(method: str, path: str, body: object = None) -> tuple[int, Any]:
                    async with client.request(method, f"/api/v1/{path}", json=body) as answer:
                        return answer.status, await answer.json()

                for body in ({}, {"nodes": []}, {"nodes": ["a"], "by": "x"}, {"nodes": ["a"], "reason": "a\nb"}, []):
                    assert (await asked("POST", "nodes/drain", body))[0] == 400, body
                status, answer = await asked("POST", "nodes/drain?by=ana", {"nodes": ["a", "x"]})
                assert (status, answer) == (404, {"error": "no such node: x", "code": 3})
                assert await controller.care.history([], 9) == []

                status, (row,) = await asked("POST", "nodes/drain?by=ana", {"nodes": ["a"], "reason": " new cables "})
                assert (status, row["node"], row["already"], row["runs"]) == (200, "a", False, [])
                drained = {"by": "ana", "reason": "new cables", "when_idle": False}
                assert {key: row["drained"][key] for key in drained} == drained
                status, rows = await asked("GET", "nodes")
                assert [(one["node"], one["note"], one["health"]) for one in rows] == [
                    ("a", "drained by ana: new cables", None),
                    ("b", None, None),
                ]
                cluster.agents["b"].see(Vitals(shm_free=1 << 20))
                await until(lambda: _is(lambda: controller.care.findings("b")))
                status, (row,) = await asked("GET", "nodes?node=b")
                assert (row["health"], row["findings"][0]["what"]) == ("degraded", "shm")
                assert (await asked("GET", "nodes?node=x"))[0] == 404
                status, doctor = await asked("GET", "doctor?node=b")
                assert [(one["severity"], one["nodes"]) for one in doctor["findings"]] == [("warning", ["b"])]

                status, (event,) = await asked("GET", "node_events?node=a")
                assert (event["what"], event["by"], event["reason"]) == ("drained", "ana", "new cables")
                for wrong in ("limit=0", "limit=x", "limit=10001", "limit=99999999999"):
                    assert (await asked("GET", f"node_events?{wrong}"))[0] == 400
                async with client.get("/metrics") as answer:
                    metrics = await answer.text()
                assert 'orch_node_out{node="a",why="drained"} 1.0' in metrics
                assert 'orch_node_health{node="b"} 2.0' in metrics
                assert (await asked("POST", "nodes/undrain?by=bo", {"nodes": ["a"]}))[1][0]["drained"] is None

    asyncio.run(story())
