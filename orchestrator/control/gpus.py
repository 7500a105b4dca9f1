"""The node's GPUs as its driver shows them now: which there are, and whether their memory is free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

LEFT_MIB = 200
"""Memory that a GPU may show in use with no process on it, besides what the driver reserves; a CUDA context takes more than
twice as much."""
RESERVED_MIB = 2048
"""What a driver that does not tell its own reserve apart may hold: 1 % of the memory, 600 MiB and more on an H200."""


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


def _handle(library: Any, name: str) -> Any:
    return library.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else library.nvmlDeviceGetHandleByUUID(name)


def memory_is_free(names: Sequence[str], library: Any | None = None) -> bool:
    """True once no process holds memory on any of these GPUs. A GPU that the driver cannot be asked about counts as free.

    `library` is pynvml, or something that answers like it; by default this machine's.
    """
    library = library or nvml()
    if library is None:
        return True
    for name in names:
        try:
            handle = _handle(library, name)
            if library.nvmlDeviceGetComputeRunningProcesses(handle) or _left(library, handle):
                return False
        except library.NVMLError:
            continue
    return True


def _left(library: Any, handle: Any) -> bool:
    """Whether more memory is in use than a GPU without processes shows. Raises NVMLError."""
    try:
        used: int = library.nvmlDeviceGetMemoryInfo(handle, version=library.nvmlMemory_v2).used
    except library.NVMLError:
        # The first version of the answer counts the driver's reserve, which grows with the GPU's memory, as used.
        return bool(library.nvmlDeviceGetMemoryInfo(handle).used > (RESERVED_MIB << 20))
    return used > (LEFT_MIB << 20)
