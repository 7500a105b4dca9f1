"""What an agent knows of its own node: what it is and how it is, looked at again and again, and what of that is yet to be told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.control.disks import Disks, free_bytes
from orchestrator.control.gpus import held, nvml
from orchestrator.control.rank_ends import EndWatch
from orchestrator.control.rank_env import cpus_by_numa, gpu_name, interface_of
from orchestrator.hardware.environment import on_network
from orchestrator.hardware.links import ports
from orchestrator.hardware.model import Node
from orchestrator.health.facts import Interpreter, NodeFacts
from orchestrator.health.vitals import GpuVitals, Vitals
from orchestrator.placement.ranks import cpu_affinity

LOOK_AGAIN_S = 30.0
"""How often the machine is looked at: a GPU that is lost, or a NIC that goes down, is told within that time."""


class NodeLook:
    """The looks at one machine. What they find is told once to each controller, and again when it has changed."""

    def __init__(
        self,
        name: str,
        address: str,
        probe: Callable[[], dict[str, Any]],
        disks: Mapping[str, Path],
        visible: tuple[str, ...],
        ends: EndWatch,
    ) -> None:
        """`probe` gives the driver's and the kernel's account of the machine; `visible` are CUDA's names of its GPUs."""
        self._name, self._probe, self._visible, self._ends = name, probe, visible, ends
        self._interface = interface_of(address)
        self._cpus_of_numa = cpus_by_numa()
        self._disks = Disks(disks)
        self._looked: float | None = None
        self._machine: dict[str, Any] = {}
        self._node: Node | None = None
        self._found: dict[str, Any] | None = None
        self._found_told = False
        self._vitals: Vitals | None = None
        self._vitals_told = False

    @property
    def host(self) -> NodeFacts | None:
        """What the newest look found for jobs' `requires:`."""
        found: NodeFacts | None = self._machine.get("host")
        return found

    def look_at_once(self) -> None:
        """The next look is due now."""
        self._looked = None

    async def look(self, taken: Callable[[], Collection[int]]) -> bool:
        """Looks at the machine where that is due; whether it was. Runs have the GPUs that are `taken`."""
        if self._looked is not None and time.monotonic() - self._looked < LOOK_AGAIN_S:
            return False
        machine = await asyncio.to_thread(self._probe)
        await asyncio.to_thread(nvml)  # so that the first check before a start need not wait for it
        if (host := machine.get("host")) is not None:
            machine["host"] = replace(on_network(host, self._interface), node=self._name)
        seen, self._node = machine.pop("vitals", Vitals()), machine.get("node")
        self._machine, self._looked, now_taken = machine, time.monotonic(), taken()
        self._ends.know_gpus([] if self._node is None else [(gpu.index, gpu.bus_id) for gpu in self._node.gpus])
        await asyncio.to_thread(self._ends.read_log)
        seen = replace(seen, xids=self._ends.xid_lines())
        self._vitals = await asyncio.to_thread(self._more_vitals, seen, self._node, now_taken)
        self._vitals_told = False
        return True

    def _more_vitals(self, seen: Vitals, node: Node | None, taken: Collection[int]) -> Vitals:
        """What the driver's account lacks: memory that no run has, links to other nodes, room on disks."""

        def with_holders(gpu: GpuVitals) -> GpuVitals:
            found = None if gpu.index in taken else held(gpu_name(self._visible, gpu.index))
            return gpu if found is None else replace(gpu, held_mib=found[0], holders=found[1])

        return replace(
            seen,
            gpus=tuple(map(with_holders, seen.gpus)),
            ports=ports(() if node is None else node.nics, self._interface),
            disks=self._disks.look(),
            shm_free=free_bytes("/dev/shm"),  # noqa: S108 - the mount itself
        )

    # -- what is told of it ----------------------------------------------------------------------------------------

    def sum_up(self, interpreters: Mapping[str | None, Interpreter]) -> None:
        """What there is to tell now, with what the node's interpreters said of themselves."""
        more = {"interface": self._interface, "pins_cpus": self._pins(), "interpreters": interpreters}
        found = self._machine | more
        if found != self._found:
            self._found, self._found_told = found, False

    def tell_again(self) -> None:
        """Another controller asks, which has heard nothing of it."""
        self._found_told = self._vitals_told = False

    def take(self) -> tuple[dict[str, Any] | None, Vitals | None]:
        """What it is and how it is, each where that has not been told yet."""
        found = None if self._found_told else self._found
        vitals = None if self._vitals_told else self._vitals
        self._found_told = self._vitals_told = True
        return found, vitals

    # -- which CPUs are near which GPU -----------------------------------------------------------------------------

    def cpus_near(self, gpus: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """For ranks on these GPUs the CPUs of each; nothing where ranks are not kept on CPUs."""
        if self._node is None or not self._pins():
            return ()
        return cpu_affinity(self._node.shape, list(gpus), self._cpus_of_numa)

    def _pins(self) -> bool:
        """Whether ranks are kept on the CPUs of their GPU's NUMA node: where there are several, and the driver tells whose."""
        return (
            len(self._cpus_of_numa) > 1 and self._node is not None and any(g.numa is not None for g in self._node.gpus)
        )
