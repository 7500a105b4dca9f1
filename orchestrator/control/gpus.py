"""The node's GPUs as its driver shows them now: which there are, and whether their memory is free."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

LEFT_MIB = 200
"""Memory that a GPU may show in use with no process on it, besides what the driver reserves; a CUDA context takes more than
twice as much."""
RESERVED_MIB = 2048
"""What a driver that does not tell its own reserve apart may hold: 1 % of the memory, 600 MiB and more on an H200."""
HELD_MIB = 1024
"""Memory that other processes may hold of a GPU before it is not fit for a run: a monitor, MPS, or a bare CUDA context."""
LEAST_SHM_MIB = 32


@cache
def nvml() -> Any | None:
    """NVIDIA's management library, initialised; None on a machine without it or without a GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml if pynvml.nvmlDeviceGetCount() else None
    except Exception:  # every way in which a driver can be missing or broken means the same here
        return None


def visible_gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """CUDA's names of the GPUs that this node's Ray was given, in its order: what orch's indices stand for."""
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return tuple(part.strip() for part in listed.split(",") if part.strip())
    library = nvml()
    return tuple(str(i) for i in range(library.nvmlDeviceGetCount())) if library else ()


def handle_of(library: Any, name: str) -> Any:
    return library.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else library.nvmlDeviceGetHandleByUUID(name)


def obstacles(
    names: Mapping[int, str],
    library: Any | None = None,
    shm: Path = Path("/dev/shm"),  # noqa: S108 - the mount itself
) -> tuple[str, ...]:
    """Why ranks should not be started now on these GPUs (orch's index: CUDA's name), in sentences; what the driver cannot be
    asked is no obstacle. `library` is pynvml, or something that answers like it; by default this machine's."""
    library = library or nvml()
    found = [text for index, name in names.items() if library and (text := _held(library, index, name))]
    with suppress(OSError):
        free = os.statvfs(shm).f_bavail * os.statvfs(shm).f_frsize >> 20
        if len(names) > 1 and free < LEAST_SHM_MIB:
            found.append(f"{shm} has {free} MiB left, and NCCL needs some for each pair of ranks")
    return tuple(found)


def _held(library: Any, index: int, name: str) -> str | None:
    used, pids = held(name, library) or (0, ())
    if used <= HELD_MIB:
        return None
    who = f" by process {', '.join(map(str, pids[:4]))}" if pids else ""
    return f"{used} MiB of GPU {index} are held{who} from outside the run"


def held(name: str, library: Any | None = None) -> tuple[int, tuple[int, ...]] | None:
    """MiB of a GPU that are in use, and who holds them where that can be seen; None where the driver cannot be asked.

    `library` is pynvml, or something that answers like it; by default this machine's.
    """
    library = library or nvml()
    if library is None:
        return None
    try:
        handle = handle_of(library, name)
        used = _in_use(library, handle) >> 20
        if used <= HELD_MIB:
            return used, ()
        return used, tuple(sorted({one.pid for one in library.nvmlDeviceGetComputeRunningProcesses(handle)}))
    except library.NVMLError:
        return None


def memory_is_free(names: Sequence[str], library: Any | None = None) -> bool:
    """True once no process holds memory on any of these GPUs. A GPU that the driver cannot be asked about counts as free.

    `library` is pynvml, or something that answers like it; by default this machine's.
    """
    library = library or nvml()
    if library is None:
        return True
    for name in names:
        try:
            handle = handle_of(library, name)
            if library.nvmlDeviceGetComputeRunningProcesses(handle) or _in_use(library, handle) > (LEFT_MIB << 20):
                return False
        except library.NVMLError:
            continue
    return True


def _in_use(library: Any, handle: Any) -> int:
    """Bytes in use beyond what the driver reserves. Raises NVMLError."""
    try:
        return int(library.nvmlDeviceGetMemoryInfo(handle, version=library.nvmlMemory_v2).used)
    except library.NVMLError:
        # The first version of the answer counts the driver's reserve, which grows with the GPU's memory, as used.
        return max(0, int(library.nvmlDeviceGetMemoryInfo(handle).used) - (RESERVED_MIB << 20))
