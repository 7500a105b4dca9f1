"""What NVML says of a machine's GPUs: what they are, how they are joined, and how they are now.

Drivers differ in what they answer, so each call stands for itself: what one does not support is unknown, and nothing
else is lost by it.
"""

from __future__ import annotations

import ctypes
import importlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from orchestrator.hardware.model import Gpu
from orchestrator.hardware.sysfs import numa_of, pci_word

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


class Nvml:
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
def opened(module: Any, notes: list[str]) -> Iterator[Nvml | None]:
    """NVML, initialised, by `module` (None: pynvml); None where the machine has none, and a note says why."""
    if module is None:
        module = importlib.import_module("pynvml")
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        notes.append(f"NVML is not available ({error}).")
        yield None
        return
    try:
        yield Nvml(module)
    finally:
        with suppress(module.NVMLError):
            module.nvmlShutdown()


@dataclass(frozen=True)
class Devices:
    """A machine's GPUs: what stays the same of each, how it is now, and what joins them."""

    gpus: tuple[Gpu, ...] = ()
    states: tuple[GpuState, ...] = ()
    links: tuple[str | None, ...] = ()
    """In the form of Shape.links."""
    peers: tuple[str | None, ...] = ()
    """In the form of Shape.peer_access."""
    clique: str | None = None


def devices(library: Nvml, files: Path, notes: list[str]) -> Devices:
    """What the GPUs are; `files` is the root below which the kernel tells of their places on the bus."""
    found = _handles(library, notes)
    handles = [handle for _, handle in found]
    gpus = tuple(_gpu(library, index, handle, files) for index, handle in found)
    return Devices(
        gpus,
        tuple(_state(library, index, handle) for index, handle in found),
        _links(library, handles, gpus, files),
        _peers(library, handles),
        _clique(library, handles, notes),
    )


def _handles(library: Nvml, notes: list[str]) -> list[tuple[int, Any]]:
    """Index and handle of each GPU that answers; one that has fallen off the bus does not."""
    handles = []
    for index in range(library.get("DeviceGetCount") or 0):
        handle = library.get("DeviceGetHandleByIndex", index)
        if handle is None:
            notes.append(f"GPU {index} does not answer.")
        else:
            handles.append((index, handle))
    return handles


def _gpu(library: Nvml, index: int, handle: Any, files: Path) -> Gpu:
    memory = library.get("DeviceGetMemoryInfo", handle)
    capability = library.get("DeviceGetCudaComputeCapability", handle)
    bus_id = _bus_id(library.get("DeviceGetPciInfo", handle))
    return Gpu(
        index,
        library.get("DeviceGetName", handle),
        memory.total // 2**20 if memory is not None else None,
        capability[0] * 10 + capability[1] if capability else None,
        numa_of(files, bus_id),
        bus_id,
    )


def _state(library: Nvml, index: int, handle: Any) -> GpuState:
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


def _nvlink_health(library: Nvml, handle: Any) -> tuple[int | None, int | None]:
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


def _links(library: Nvml, handles: Sequence[Any], gpus: Sequence[Gpu], files: Path) -> tuple[str | None, ...]:
    """The upper triangle of links: NVLink where both ends have it, else the distance over PCIe."""
    ends = [_nvlink_ends(library, handle, gpus) for handle in handles]
    links: list[str | None] = []
    for a, b in combinations(range(len(gpus)), 2):
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


def _peers(library: Nvml, handles: Sequence[Any]) -> tuple[str | None, ...]:
    """The upper triangle of what `nvidia-smi topo -p2p r` says; empty where the driver says nothing."""
    found = [library.get("DeviceGetP2PStatus", one, other, _P2P_READ) for one, other in combinations(handles, 2)]
    words = [None if n is None else _P2P_WORDS[n] if 0 <= n < len(_P2P_WORDS) else "U" for n in found]
    return tuple(words) if any(words) else ()


def _nvlink_ends(library: Nvml, handle: Any, gpus: Sequence[Gpu]) -> dict[int | None, int]:
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


def _clique(library: Nvml, handles: Sequence[Any], notes: list[str]) -> str | None:
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


def _bus_id(info: Any) -> str | None:
    """sysfs's form of NVML's address: 0000:1a:00.0 for 00000000:1A:00.0."""
    if info is None:
        return None
    text = info.busId.decode() if isinstance(info.busId, bytes) else str(info.busId)
    domain, colon, rest = text.lower().partition(":")
    return f"{domain[-4:] if domain[:-4].strip('0') == '' else domain}{colon}{rest}"
