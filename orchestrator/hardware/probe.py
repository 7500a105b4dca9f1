"""What this machine is: its GPUs by NVML, its NICs and PCI paths by sysfs, its versions.

Nothing here needs root. A machine without GPUs, or without NVIDIA's library, is a valid answer. Drivers differ in
what they answer, so each call stands for itself: what one does not support is unknown, and nothing else is lost by
it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.hardware.formats.hostlist import expand
from orchestrator.hardware.model import NEAR_WORDS, Gpu, Nic, Node, Shape

RECOVERY_ACTIONS = (
    "NONE",
    "GPU_RESET",
    "NODE_REBOOT",
    "DRAIN_P2P",
    "DRAIN_AND_RESET",
    "RECOVER_IMEX_DOMAIN",
    "BUS_RESET",
    "SYSTEM_REBOOT",
)
"""What NVML's recovery action stands for, by its number."""

_ANCESTOR_WORDS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_REMOTE_GPU = 0
_FABRIC_COMPLETED = 3
_RECOVERY_FIELD = 230
# NVML's numbers by hand: pynvml's NVML_P2P_CAPS_INDEX_READ is a tuple by mistake, and old wheels lack others.
_P2P_READ, _P2P_NVLINK, _P2P_OK = 0, 2, 0
_P2P_WORDS = ("OK", "CNS", "GNS", "TNS", "DR", "NS")
"""What nvidia-smi calls NVML's answers; `U` where it knows none."""
_UNCORRECTED, _VOLATILE = 1, 0
_REPLAYS, _RECOVERIES, _WRONG_DATA = 0, 1, 3
"""Of NVML's counters of a link's errors. A wrong checksum of a flit is repaired by a replay, and would be counted twice."""


@dataclass(frozen=True)
class GpuState:
    """What may change about one GPU while the machine stays what it is; None where the driver does not say."""

    index: int
    uuid: str | None = None
    mig: bool | None = None
    """Whether it is cut into MIG instances, which orch does not place on."""
    ecc: bool | None = None
    uncorrected_errors: int | None = None
    """ECC errors since the driver was loaded that could not be corrected."""
    recovery_action: str | None = None
    """The driver's own verdict, one of RECOVERY_ACTIONS: NONE is fit for work."""
    remap_pending: bool | None = None
    """A bad row of memory is remapped with the next reset."""
    remap_failed: bool | None = None
    """A bad row could not be remapped: no spare one is left."""
    nvlinks: int | None = None
    """That are active."""
    nvlink_errors: int | None = None
    """Replays, recoveries and wrong checksums of data on all of them, since the driver was loaded."""


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


class _Nvml:
    """NVML, one call at a time: what it does not support, or what fails, is None."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._error: type[Exception] = module.NVMLError

    def get(self, name: str, *arguments: Any) -> Any:
        try:
            value = getattr(self._module, f"nvml{name}")(*arguments)
        # An older wheel lacks the function, an older library the symbol.
        except (self._error, AttributeError, OSError):
            return None
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def make(self, *names: str) -> Any:
        """A new structure of the first type that the wheel has; None where it has none."""
        kind = next((getattr(self._module, name) for name in names if hasattr(self._module, name)), None)
        return None if kind is None else kind()


@contextmanager
def _nvml(module: Any, notes: list[str]) -> Iterator[_Nvml | None]:
    """NVML, initialised; None where there is none."""
    if module is None:
        module = importlib.import_module("pynvml")
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        notes.append(f"NVML is not available ({error}).")
        yield None
        return
    try:
        yield _Nvml(module)
    finally:
        with suppress(module.NVMLError):
            module.nvmlShutdown()


def probe(root: str | Path = "/", nvml: Any = None, name: str | None = None) -> Probe:
    """What the machine below `root` is. `nvml` is the pynvml module, or something that answers like it.

    The node is called `name`, by default as the kernel calls the host. Never raises for what a machine lacks.
    """
    files = Path(root)
    notes: list[str] = []
    gpus: tuple[Gpu, ...] = ()
    links: tuple[str | None, ...] = ()
    peers: tuple[str | None, ...] = ()
    states: tuple[GpuState, ...] = ()
    clique: str | None = None
    with _nvml(nvml, notes) as library:
        found = _versions(files, library)
        if library is not None:
            handles = _handles(library, notes)
            gpus = tuple(_gpu(library, index, handle, files) for index, handle in handles)
            states = tuple(_state(library, index, handle) for index, handle in handles)
            links = _links(library, [handle for _, handle in handles], gpus, files)
            peers = _peers(library, [handle for _, handle in handles])
            clique = _clique(library, [handle for _, handle in handles], notes)
        elif any((files / "proc/driver/nvidia/gpus").glob("*")):
            notes.append("The NVIDIA driver is loaded and has GPUs, but its library cannot be used.")
    shape = Shape(gpus, links, _nics(files, gpus), _cpus(files), _memory_mib(files), _count(files, "node"), peers)
    uuids = [state.uuid for state in states if state.uuid is not None]
    host = name or _text(files / "proc/sys/kernel/hostname") or "localhost"
    node = Node(host, shape, clique=clique, uuids=tuple(uuids) if len(uuids) == len(gpus) else ())
    boot_id = _text(files / "proc/sys/kernel/random/boot_id")
    return Probe(node, states, found, _shm_mib(files), boot_id, tuple(notes))


def versions(root: str | Path = "/", nvml: Any = None) -> Versions:
    """The driver's, CUDA's and the kernel's version below `root`."""
    with _nvml(nvml, []) as library:
        return _versions(Path(root), library)


def _versions(files: Path, library: _Nvml | None) -> Versions:
    driver = library.get("SystemGetDriverVersion") if library else None
    if driver is None:
        match = re.search(r"Kernel Module\D*([0-9]+(?:\.[0-9]+)+)", _text(files / "proc/driver/nvidia/version") or "")
        driver = match[1] if match else None
    cuda = None
    if library is not None:
        number = library.get("SystemGetCudaDriverVersion_v2") or library.get("SystemGetCudaDriverVersion")
        cuda = f"{number // 1000}.{number % 1000 // 10}" if number else None
    return Versions(driver, cuda, _text(files / "proc/sys/kernel/osrelease"))


def _handles(library: _Nvml, notes: list[str]) -> list[tuple[int, Any]]:
    """Index and handle of each GPU that answers; one that has fallen off the bus does not."""
    handles = []
    for index in range(library.get("DeviceGetCount") or 0):
        handle = library.get("DeviceGetHandleByIndex", index)
        if handle is None:
            notes.append(f"GPU {index} does not answer.")
        else:
            handles.append((index, handle))
    return handles


def _gpu(library: _Nvml, index: int, handle: Any, files: Path) -> Gpu:
    memory = library.get("DeviceGetMemoryInfo", handle)
    capability = library.get("DeviceGetCudaComputeCapability", handle)
    bus_id = _bus_id(library.get("DeviceGetPciInfo", handle))
    return Gpu(
        index,
        library.get("DeviceGetName", handle),
        memory.total // 2**20 if memory is not None else None,
        capability[0] * 10 + capability[1] if capability else None,
        _numa(files, bus_id),
        bus_id,
    )


def _state(library: _Nvml, index: int, handle: Any) -> GpuState:
    mig = library.get("DeviceGetMigMode", handle)
    ecc = library.get("DeviceGetEccMode", handle)
    fields = library.get("DeviceGetFieldValues", handle, [_RECOVERY_FIELD])
    action = fields[0].value.uiVal if fields is not None and fields[0].nvmlReturn == 0 else None
    rows = library.get("DeviceGetRemappedRows", handle)
    nvlinks, errors = _nvlink_health(library, handle)
    return GpuState(
        index,
        library.get("DeviceGetUUID", handle),
        bool(mig[0]) if mig is not None else None,
        bool(ecc[0]) if ecc is not None else None,
        library.get("DeviceGetTotalEccErrors", handle, _UNCORRECTED, _VOLATILE),
        (RECOVERY_ACTIONS[action] if action < len(RECOVERY_ACTIONS) else f"UNKNOWN_{action}")
        if action is not None
        else None,
        bool(rows[2]) if rows is not None else None,
        bool(rows[3]) if rows is not None else None,
        nvlinks,
        errors,
    )


def _nvlink_health(library: _Nvml, handle: Any) -> tuple[int | None, int | None]:
    """How many links are active, and how many errors all of them had; None where the GPU has no link, or tells none."""
    states: list[int] = []
    counts: list[int] = []
    while (active := library.get("DeviceGetNvLinkState", handle, len(states))) is not None:
        told = (
            library.get("DeviceGetNvLinkErrorCounter", handle, len(states), counter)
            for counter in (_REPLAYS, _RECOVERIES, _WRONG_DATA)
            if active
        )
        counts += [count for count in told if count is not None]
        states.append(active)
    return (sum(map(bool, states)) if states else None), (sum(counts) if counts else None)


def _links(library: _Nvml, handles: Sequence[Any], gpus: Sequence[Gpu], files: Path) -> tuple[str | None, ...]:
    """The upper triangle of links: NVLink where both ends have it, else the distance over PCIe."""
    ends = [_nvlink_ends(library, handle, gpus) for handle in handles]
    links: list[str | None] = []
    for a in range(len(gpus)):
        for b in range(a + 1, len(gpus)):
            direct = min(ends[a].get(b, 0), ends[b].get(a, 0))
            switched = min(ends[a].get(None, 0), ends[b].get(None, 0))
            if not direct and switched:
                # Where the driver denies peers over NVLink, the switch between them does not join them.
                status = library.get("DeviceGetP2PStatus", handles[a], handles[b], _P2P_NVLINK)
                switched = switched if status in (_P2P_OK, None) else 0
            if direct or switched:
                links.append(f"NV{direct or switched}")
                continue
            word = _ANCESTOR_WORDS.get(library.get("DeviceGetTopologyCommonAncestor", handles[a], handles[b]))
            links.append(word or pci_word(files, gpus[a].bus_id, gpus[b].bus_id))
    return tuple(links)


def _peers(library: _Nvml, handles: Sequence[Any]) -> tuple[str | None, ...]:
    """The upper triangle of what `nvidia-smi topo -p2p r` says; empty where the driver says nothing."""
    found = [
        library.get("DeviceGetP2PStatus", one, other, _P2P_READ)
        for position, one in enumerate(handles)
        for other in handles[position + 1 :]
    ]
    words = [None if n is None else _P2P_WORDS[n] if 0 <= n < len(_P2P_WORDS) else "U" for n in found]
    return tuple(words) if any(words) else ()


def _nvlink_ends(library: _Nvml, handle: Any, gpus: Sequence[Gpu]) -> dict[int | None, int]:
    """How many active NVLinks go to which GPU (by position), or to a switch (None)."""
    position = {gpu.bus_id: place for place, gpu in enumerate(gpus)}
    ends: dict[int | None, int] = {}
    link = 0
    # The wheel's NVML_NVLINK_MAX_LINKS grows from release to release: the driver says itself where the links end.
    while (active := library.get("DeviceGetNvLinkState", handle, link)) is not None:
        if active:
            kind = library.get("DeviceGetNvLinkRemoteDeviceType", handle, link)
            peer = position.get(_bus_id(library.get("DeviceGetNvLinkRemotePciInfo", handle, link)))
            if peer is not None:
                ends[peer] = ends.get(peer, 0) + 1
            elif kind != _REMOTE_GPU:
                # A virtual machine may hide what is at the other end; it is a switch where peers can be reached.
                ends[None] = ends.get(None, 0) + 1
        link += 1
    return ends


def _clique(library: _Nvml, handles: Sequence[Any], notes: list[str]) -> str | None:
    """`ClusterUUID.CliqueId` of the NVLink fabric over several nodes that all GPUs have joined, if they have."""
    found = set()
    for handle in handles:
        info = library.make("c_nvmlGpuFabricInfo_v3_t", "c_nvmlGpuFabricInfo_v2_t")
        if info is None or library.get("DeviceGetGpuFabricInfoV", handle, ctypes.byref(info)) is None:
            return None
        cluster = bytes(info.clusterUuid)
        joined = info.state == _FABRIC_COMPLETED and info.status == 0 and any(cluster)
        found.add(f"{uuid.UUID(bytes=cluster)}.{info.cliqueId}" if joined else None)
    if len(found) > 1:
        notes.append("The GPUs are not all in one NVLink fabric: " + ", ".join(sorted(map(str, found))) + ".")
        return None
    return found.pop() if found else None


def _nics(files: Path, gpus: Sequence[Gpu]) -> tuple[Nic, ...]:
    """A NIC for each port of each RDMA device."""
    nics = []
    for device in sorted((files / "sys/class/infiniband").glob("*"), key=lambda path: _natural(path.name)):
        bus_id = (device / "device").resolve().name if (device / "device").exists() else None
        near = tuple(gpu.index for gpu in gpus if pci_word(files, gpu.bus_id, bus_id) in NEAR_WORDS)
        for port in sorted((device / "ports").glob("*"), key=lambda path: _natural(path.name)):
            rate = re.match(r"([0-9.]+) Gb/sec", _text(port / "rate") or "")
            state = _text(port / "state")
            nics.append(
                Nic(
                    device.name,
                    int(port.name) if port.name.isdigit() else 1,
                    near,
                    float(rate[1]) if rate else None,
                    _text(port / "link_layer"),
                    state.partition(":")[2].strip() or state if state else None,
                    _numa(files, bus_id),
                    None,
                    bus_id,
                )
            )
    return tuple(nics)


def pci_word(files: Path, a: str | None, b: str | None) -> str | None:
    """The distance between two PCI devices in nvidia-smi's words, from their paths in sysfs; None where one has
    none."""
    first, second = pci_path(files, a), pci_path(files, b)
    if not first or not second:
        return None
    common = sum(1 for _ in _while_equal(first, second))
    if not common:
        return "NODE" if _numa(files, a) is not None and _numa(files, a) == _numa(files, b) else "SYS"
    if common == 1:
        return "PHB"
    # What is left of each path: the ports of switches below the last common one, and the device itself.
    return "PIX" if max(len(first), len(second)) - common <= 2 else "PXB"


def _while_equal(first: Sequence[str], second: Sequence[str]) -> Iterator[str]:
    for a, b in zip(first, second, strict=False):
        if a != b:
            return
        yield a


def pci_path(files: Path, bus_id: str | None) -> list[str]:
    """From the root complex down to the device: `pci0000:10`, `0000:10:01.0`, ..."""
    link = files / "sys/bus/pci/devices" / (bus_id or "")
    if bus_id is None or not link.exists():
        return []
    parts = link.resolve().parts
    roots = [position for position, part in enumerate(parts) if re.fullmatch(r"pci[0-9a-f]{4,}:[0-9a-f]{2}", part)]
    return list(parts[roots[-1] :]) if roots else []


def _numa(files: Path, bus_id: str | None) -> int | None:
    text = _text(files / "sys/bus/pci/devices" / bus_id / "numa_node") if bus_id else None
    return int(text) if text and text.isdigit() else None


def _bus_id(info: Any) -> str | None:
    """sysfs's form of NVML's address: 0000:1a:00.0 for 00000000:1A:00.0."""
    if info is None:
        return None
    text = info.busId.decode() if isinstance(info.busId, bytes) else str(info.busId)
    domain, colon, rest = text.lower().partition(":")
    return f"{domain[-4:] if domain[:-4].strip('0') == '' else domain}{colon}{rest}"


def _cpus(files: Path) -> int | None:
    return _count(files, "cpu") or os.cpu_count()


def _count(files: Path, kind: str) -> int | None:
    """How many CPUs or NUMA nodes are online."""
    text = _text(files / "sys/devices/system" / kind / "online")
    try:
        return len(expand(f"[{text}]")) if text else None
    except ValueError:
        return None


def _memory_mib(files: Path) -> int | None:
    match = re.search(r"MemTotal:\s+([0-9]+) kB", _text(files / "proc/meminfo") or "")
    return int(match[1]) // 1024 if match else None


def _shm_mib(files: Path) -> int | None:
    try:
        found = os.statvfs(files / "dev/shm")
    except OSError:
        return None
    return found.f_blocks * found.f_frsize // 2**20


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def _natural(name: str) -> list[tuple[int, int | str]]:
    pieces = re.split(r"([0-9]+)", name)
    return [(0, int(piece)) if piece.isdigit() else (1, piece) for piece in pieces]
