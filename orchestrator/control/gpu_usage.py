"""What a node's GPUs are doing: utilisation, memory, power, heat and what slows them down, from NVML or a DCGM exporter.

NVML is asked where there is a driver; a DCGM exporter where ORCH_DCGM names one (`http://host:9400/metrics`), or where
there is no NVML and one answers on its usual port of this machine. Every call may block: a driver that hangs does.
"""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.control.gpus import handle_of, nvml

USUAL_DCGM = "http://127.0.0.1:9400/metrics"
TIMEOUT_S = 2.0

SLOWED_BY = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
}
"""NVML's clocks event reasons (nvml.h) that mean a GPU is slower than it could be; DCGM uses the same bits."""


@dataclass(frozen=True)
class GpuUse:
    """One look at one GPU. None is what was not told."""

    utilization: float | None = None
    """Percent of the time since the last look in which a kernel ran."""
    memory_mib: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    throttled_by: tuple[str, ...] = ()


def slowed_by(bits: int) -> tuple[str, ...]:
    """The names of the reasons in NVML's mask."""
    return tuple(sorted(name for bit, name in SLOWED_BY.items() if bits & bit))


class GpuWatch:
    """Looks at GPUs by CUDA's names of them, which are indices or UUIDs."""

    def __init__(self, environ: Mapping[str, str], library: Any | None = None) -> None:
        """`library` is pynvml or what stands for it; by default this machine's, if it has a GPU."""
        self._library = library if library is not None else nvml()
        self._dcgm = environ.get("ORCH_DCGM") or (USUAL_DCGM if self._library is None else None)

    def look(self, names: Sequence[str]) -> dict[str, GpuUse]:
        """By name; without those that could not be asked."""
        if self._dcgm is not None:
            return _from_dcgm(self._dcgm, names)
        return {name: use for name in names if (use := _from_nvml(self._library, name)) is not None}


def _from_nvml(library: Any, name: str) -> GpuUse | None:
    found: dict[str, Any] = {}

    def ask(field: str, call: str, *arguments: Any, read: Any = float) -> None:
        # A driver does not know every question, and an old pynvml does not have it.
        with suppress(library.NVMLError, AttributeError):
            found[field] = read(getattr(library, call)(handle, *arguments))

    with suppress(library.NVMLError):
        handle = handle_of(library, name)
        ask("utilization", "nvmlDeviceGetUtilizationRates", read=lambda rates: float(rates.gpu))
        ask("memory_mib", "nvmlDeviceGetMemoryInfo", read=lambda memory: memory.used / 2**20)
        ask("power_w", "nvmlDeviceGetPowerUsage", read=lambda milliwatts: milliwatts / 1000)
        ask("temperature_c", "nvmlDeviceGetTemperature", library.NVML_TEMPERATURE_GPU)
        ask("sm_clock_mhz", "nvmlDeviceGetClockInfo", library.NVML_CLOCK_SM)
        ask("throttled_by", "nvmlDeviceGetCurrentClocksThrottleReasons", read=slowed_by)
    return GpuUse(**found) if found else None


_LINE = re.compile(r"(DCGM_FI_DEV_[A-Z_]+)\{([^}]*)\}\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_OF_DCGM = {
    "DCGM_FI_DEV_GPU_UTIL": "utilization",
    "DCGM_FI_DEV_FB_USED": "memory_mib",
    "DCGM_FI_DEV_POWER_USAGE": "power_w",
    "DCGM_FI_DEV_GPU_TEMP": "temperature_c",
    "DCGM_FI_DEV_SM_CLOCK": "sm_clock_mhz",
    # The same field, before and after DCGM 4.
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": "throttled_by",
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": "throttled_by",
}


def _from_dcgm(url: str, names: Sequence[str]) -> dict[str, GpuUse]:
    if not url.startswith(("http://", "https://")):
        return {}
    with suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310
        return read_dcgm(answer.read(4 << 20).decode("utf-8", "replace").splitlines(), names)
    return {}


def read_dcgm(lines: Iterable[str], names: Sequence[str]) -> dict[str, GpuUse]:
    """What an exporter's page says of these GPUs; of a GPU's MIG instances the first."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        parts = _LINE.match(line)
        field = _OF_DCGM.get(parts[1]) if parts else None
        if parts is None or field is None:
            continue
        labels = dict(_LABEL.findall(parts[2]))
        name = next((one for one in names if one in (labels.get("gpu"), labels.get("UUID"))), None)
        with suppress(ValueError):
            value = float(parts[3])
            if name is not None and value == value:
                told = slowed_by(int(value)) if field == "throttled_by" else value
                found.setdefault(name, {}).setdefault(field, told)
    return {name: GpuUse(**fields) for name, fields in found.items()}
