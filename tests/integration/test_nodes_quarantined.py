"""A node that breaks attempt after attempt is avoided for a while; errors of users and of the whole cluster put nobody out."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from measuring import Measured
from rows import fault, representative
from told import node_events, recorded, waits_because

from orchestrator.control.controller import Controller
from orchestrator.policy import Policy
from orchestrator.scheduling.lifecycle import State
from orchestrator.testing import ManualClock
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until


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
            await waits_because(controller, others[2], words)
            # What it went out for counts no more; one failure does.
            for other in others:
                await controller.cancel(str(other.id))
            clock.advance(3600)
            run, _ = await controller.submit(job("1", only=["a"], retry={"infra": 0}), {})
            await reaches(controller, run, State.RUNNING)
            cluster.agents["a"].parts[run.id, 1].lease_expired = True
            cluster.agents["a"].end(run.id, 1, -9)
            await until(lambda: controller.care.shunned().get("a"))
            found = controller.care.marks.of("a").quarantine
            assert found is not None
            assert (found.times, found.until) == (2, clock.now + timedelta(hours=2))
            await until(lambda: recorded(controller, 3))
            assert [what for what, _, _ in await node_events(controller, "a")] == [
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
            await until(lambda: controller.care.shunned().get("a"))
            clock.advance(3600)
            await until(lambda: not controller.care.shunned().get("a"))
            (finding,) = controller.care.findings("a")
            assert finding.text.startswith("on probation since 2026-01-05 10:00 UTC, after it broke 2 of 2 attempts")
            for _ in range(10):
                await _works(controller, cluster, "a")
            await until(lambda: recorded(controller, 3))
            assert controller.care.findings("a") == ()
            assert [what for what, _, _ in await node_events(controller, "a")] == [
                "quarantined",
                "probation",
                "cleared",
            ]

    asyncio.run(story())


def test_a_gang_that_needs_a_node_in_quarantine_gets_it(tmp_path: Path) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1, b=1, c=1)
        async with controlling(tmp_path, cluster) as controller:
            for _ in range(2):
                await _breaks(controller, cluster, "a")
            await until(lambda: "a" in controller.care.shunned())
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
            kept = [what for node in "ab" for what, _, _ in await node_events(controller, node)]
            assert kept == ["quarantined"] * len(out) + ["proposed"] * (2 - len(out))

    asyncio.run(story())
