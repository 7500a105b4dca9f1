"""What the kernel says of a machine without being root: PCI paths, NUMA nodes, RDMA ports, CPUs, memory.

Read from /proc, /sys and /dev below a root; what is not there is None, or empty.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from orchestrator.hardware.formats.hostlist import expand
from orchestrator.hardware.model import NEAR_WORDS, Gpu, Nic
from orchestrator.hardware.names import natural


def pci_word(files: Path, a: str | None, b: str | None) -> str | None:
    """The distance between two PCI devices in nvidia-smi's words, from their paths in sysfs; None where one has
    none."""
    first, second = pci_path(files, a), pci_path(files, b)
    if not first or not second:
        return None
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    if not common:
        return "NODE" if numa_of(files, a) is not None and numa_of(files, a) == numa_of(files, b) else "SYS"
    if common == 1:
        return "PHB"
    # What is left of each path: the ports of switches below the last common one, and the device itself.
    return "PIX" if max(len(first), len(second)) - common <= 2 else "PXB"


def pci_path(files: Path, bus_id: str | None) -> list[str]:
    """From the root complex down to the device: `pci0000:10`, `0000:10:01.0`, ..."""
    link = files / "sys/bus/pci/devices" / (bus_id or "")
    if bus_id is None or not link.exists():
        return []
    parts = link.resolve().parts
    roots = [position for position, part in enumerate(parts) if re.fullmatch(r"pci[0-9a-f]{4,}:[0-9a-f]{2}", part)]
    return list(parts[roots[-1] :]) if roots else []


def numa_of(files: Path, bus_id: str | None) -> int | None:
    text = text_of(files / "sys/bus/pci/devices" / bus_id / "numa_node") if bus_id else None
    return int(text) if text and text.isdigit() else None


def nics(files: Path, gpus: Sequence[Gpu]) -> tuple[Nic, ...]:
    """A NIC for each port of each RDMA device."""
    nics = []
    for device in sorted((files / "sys/class/infiniband").glob("*"), key=lambda path: natural(path.name)):
        bus_id = (device / "device").resolve().name if (device / "device").exists() else None
        near = tuple(gpu.index for gpu in gpus if pci_word(files, gpu.bus_id, bus_id) in NEAR_WORDS)
        for port in sorted((device / "ports").glob("*"), key=lambda path: natural(path.name)):
            rate = re.match(r"([0-9.]+) Gb/sec", text_of(port / "rate") or "")
            state = text_of(port / "state")
            nics.append(
                Nic(
                    device.name,
                    int(port.name) if port.name.isdigit() else 1,
                    near,
                    float(rate[1]) if rate else None,
                    text_of(port / "link_layer"),
                    state.partition(":")[2].strip() or state if state else None,
                    numa_of(files, bus_id),
                    None,
                    bus_id,
                )
            )
    return tuple(nics)


def cpus(files: Path) -> int | None:
    return count_online(files, "cpu") or os.cpu_count()


def count_online(files: Path, kind: str) -> int | None:
    """How many CPUs or NUMA nodes are online."""
    text = text_of(files / "sys/devices/system" / kind / "online")
    try:
        return len(expand(f"[{text}]")) if text else None
    except ValueError:
        return None


def memory_mib(files: Path) -> int | None:
    match = re.search(r"MemTotal:\s+([0-9]+) kB", text_of(files / "proc/meminfo") or "")
    return int(match[1]) // 1024 if match else None


def shm_mib(files: Path) -> int | None:
    try:
        found = os.statvfs(files / "dev/shm")
    except OSError:
        return None
    return found.f_blocks * found.f_frsize // 2**20


def text_of(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None
