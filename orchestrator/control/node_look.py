"""What an agent adds to the driver's account of its node: memory that no run has, links to other nodes, room on disks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from orchestrator.control.disks import Disks, free_bytes
from orchestrator.control.gpus import held
from orchestrator.control.rank_env import gpu_name
from orchestrator.hardware.links import ports
from orchestrator.hardware.model import Node
from orchestrator.health.vitals import GpuVitals, Vitals


def look_around(
    seen: Vitals,
    node: Node | None,
    interface: str | None,
    disks: Disks,
    visible: tuple[str, ...],
    taken: Collection[int],
) -> Vitals:
    """The whole look. `interface` is what ranks meet over, `visible` CUDA's names of the GPUs; runs have those that are `taken`."""

    def with_holders(gpu: GpuVitals) -> GpuVitals:
        found = None if gpu.index in taken else held(gpu_name(visible, gpu.index))
        return gpu if found is None else replace(gpu, held_mib=found[0], holders=found[1])

    return replace(
        seen,
        gpus=tuple(map(with_holders, seen.gpus)),
        ports=ports(() if node is None else node.nics, interface),
        disks=disks.look(),
        shm_free=free_bytes("/dev/shm"),  # noqa: S108 - the mount itself
    )
