"""What this machine is: its GPUs as NVML has them, the rest as the kernel has it, and its versions.

Nothing here needs root. A machine without GPUs, or without NVIDIA's library, is a valid answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.hardware.model import Node, Shape
from orchestrator.hardware.nvml import Devices, GpuState, Nvml, devices, opened
from orchestrator.hardware.sysfs import count_online, cpus, memory_mib, nics, shm_mib, text_of


@dataclass(frozen=True)
class Versions:
    """What the driver and the kernel are; what torch brings is the interpreter's to say."""

    driver: str | None = None
    cuda_driver: str | None = None
    """The newest CUDA that the driver can run: `13.0`."""
    kernel: str | None = None


@dataclass(frozen=True)
class Probe:
    """One look at a machine."""

    node: Node
    gpus: tuple[GpuState, ...] = ()
    versions: Versions = Versions()
    shm_mib: int | None = None
    """The size of /dev/shm, through which NCCL and data loaders share memory."""
    boot_id: str | None = None
    notes: tuple[str, ...] = ()
    """What could not be looked at, in sentences."""


def probe(root: str | Path = "/", nvml: Any = None, name: str | None = None) -> Probe:
    """What the machine below `root` is. `nvml` is the pynvml module, or something that answers like it.

    The node is called `name`, by default as the kernel calls the host. Never raises for what a machine lacks.
    """
    files = Path(root)
    notes: list[str] = []
    found = Devices()
    with opened(nvml, notes) as library:
        brings = _versions(files, library)
        if library is not None:
            found = devices(library, files, notes)
        elif any((files / "proc/driver/nvidia/gpus").glob("*")):
            notes.append("The NVIDIA driver is loaded and has GPUs, but its library cannot be used.")
    shape = Shape(
        found.gpus,
        found.links,
        nics(files, found.gpus),
        cpus(files),
        memory_mib(files),
        count_online(files, "node"),
        found.peers,
    )
    uuids = tuple(state.uuid for state in found.states if state.uuid is not None)
    host = name or text_of(files / "proc/sys/kernel/hostname") or "localhost"
    node = Node(host, shape, clique=found.clique, uuids=uuids if len(uuids) == len(found.gpus) else ())
    boot_id = text_of(files / "proc/sys/kernel/random/boot_id")
    return Probe(node, found.states, brings, shm_mib(files), boot_id, tuple(notes))


def _versions(files: Path, library: Nvml | None) -> Versions:
    driver = library.get("SystemGetDriverVersion") if library else None
    if driver is None:
        match = re.search(r"Kernel Module\D*([0-9]+(?:\.[0-9]+)+)", text_of(files / "proc/driver/nvidia/version") or "")
        driver = match[1] if match else None
    cuda = None
    if library is not None:
        number = library.get("SystemGetCudaDriverVersion_v2") or library.get("SystemGetCudaDriverVersion")
        cuda = f"{number // 1000}.{number % 1000 // 10}" if number else None
    return Versions(driver, cuda, text_of(files / "proc/sys/kernel/osrelease"))
