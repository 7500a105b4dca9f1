"""The node's GPUs as its driver shows them now: which there are, and whether their memory is free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

OURS_LEFT_MIB = 600
"""Memory that a GPU may show in use with no process on it: the driver's own."""


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


def memory_is_free(names: Sequence[str]) -> bool:
    """True once no process holds memory on any of these GPUs. A GPU that the driver cannot be asked about counts as free."""
    library = nvml()
    if library is None:
        return True
    for name in names:
        try:
            handle = handle_of(library, name)
            if library.nvmlDeviceGetComputeRunningProcesses(handle):
                return False
            if library.nvmlDeviceGetMemoryInfo(handle).used > (OURS_LEFT_MIB << 20):
                return False
        except library.NVMLError:
            continue
    return True
