"""What a node's vitals and its kernel's log say keeps new runs off it, puts it last, or is only told."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from measuring import Measured
from rows import fault, representative
from told import node_events, recorded, waits_because

from orchestrator.control.agent import NodeAgent
from orchestrator.control.controller import Controller
from orchestrator.health.vitals import Disk, GpuVitals, Port, Vitals
from orchestrator.scheduling.lifecycle import State
from orchestrator.testing import ManualClock
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until


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
            await waits_because(controller, other, "a: not fit: 1 of 2 GPUs answer")
            assert (await controller.find(str(run.id))).state is State.RUNNING
        async with controlling(tmp_path, cluster) as controller:
            # The next controller knows how many there were.
            cluster.agents["a"].see(replace(whole, gpus=whole.gpus[:1]))
            await until(lambda: controller.care.out("a"))
            await controller.care.undrain(["a"], "ana")
            await reaches(controller, other, State.RUNNING)
            kept = await node_events(controller, "a")
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
            await until(lambda: controller.roster.nodes["a"].vitals is seen)
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
            await until(lambda: controller.care.findings("a"))
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
            await until(lambda: controller.roster.nodes["a"].vitals is seen)
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
            await until(lambda: recorded(controller, 3))
            assert await node_events(controller, "a") == [
                ("degraded", None, text),
                ("proposed", None, f"drain: {text}"),
                ("recovered", None, recovered),
            ]

    asyncio.run(story())


def test_a_clock_that_is_wrong_is_told(tmp_path: Path) -> None:
    async def story() -> None:
        cluster, clock = FakeCluster(a=1), ManualClock()
        cluster.agents["a"].clock = lambda: clock.now.timestamp() - 7200
        async with controlling(tmp_path, cluster, now=clock) as controller:
            cluster.agents["a"].see(Vitals())
            await until(lambda: controller.care.findings("a"))
            (finding,) = controller.care.findings("a")
            assert finding.text == "its clock is 7200.0 s behind the head's"

    asyncio.run(story())
