"""What is told of a GPU: from NVML as far as the driver answers, or from a DCGM exporter's page."""

from __future__ import annotations

import http.server
import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.control.backend import GpuLook
from orchestrator.control.gpu_usage import GpuUse, GpuWatch, read_dcgm, slowed_by
from orchestrator.control.measuring import GpuWindows, gpu_sample
from orchestrator.testing import START

# A dcgm-exporter 3.3 page of a node with two GPUs, shortened.
PAGE = """\
# HELP DCGM_FI_DEV_SM_CLOCK SM clock frequency (in MHz).
# TYPE DCGM_FI_DEV_SM_CLOCK gauge
DCGM_FI_DEV_SM_CLOCK{gpu="0",UUID="GPU-aaaa",device="nvidia0",modelName="NVIDIA H100",Hostname="gpu-01"} 1980
DCGM_FI_DEV_SM_CLOCK{gpu="1",UUID="GPU-bbbb",device="nvidia1",modelName="NVIDIA H100",Hostname="gpu-01"} 345
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-aaaa",device="nvidia0"} 61
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-aaaa",device="nvidia0"} 689.213000
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-aaaa",device="nvidia0"} 99
DCGM_FI_DEV_GPU_UTIL{gpu="1",UUID="GPU-bbbb",device="nvidia1"} NaN
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-aaaa",device="nvidia0"} 70123
DCGM_FI_DEV_CLOCKS_EVENT_REASONS{gpu="0",UUID="GPU-aaaa",device="nvidia0"} 36
DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL{gpu="0",UUID="GPU-aaaa",device="nvidia0"} 0
"""
BUSY = GpuUse(99.0, 70123.0, 689.213, 61.0, 1980.0, ("sw_power_cap", "sw_thermal"))


@pytest.mark.parametrize("names", [["0", "1"], ["GPU-aaaa", "GPU-bbbb"]])
def test_an_exporters_page_is_read_by_index_or_uuid(names: list[str]) -> None:
    found = read_dcgm(PAGE.splitlines(), names)
    assert found == {names[0]: BUSY, names[1]: GpuUse(sm_clock_mhz=345.0)}
    assert read_dcgm(PAGE.splitlines(), ["2"]) == {}


def test_an_exporter_that_is_configured_is_asked() -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        watch = GpuWatch({"ORCH_DCGM": f"http://127.0.0.1:{server.server_port}/metrics"})
        assert watch.look(["0"]) == {"0": BUSY}
        server.shutdown()
        thread.join()
    assert watch.look(["0"]) == {}
    assert GpuWatch({"ORCH_DCGM": "file:///etc/passwd"}).look(["0"]) == {}


class NvmlError(Exception):
    pass


class Nvml:
    """What pynvml answers: GPU 0 all, GPU 1 only its memory, as in a virtual machine; any other nothing."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index > 1:
            raise NvmlError
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=self._all(handle, 99))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=70123 << 20)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> Any:
        return self._all(handle, 689213)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> Any:
        return self._all(handle, 61)

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> Any:
        return self._all(handle, 1980)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> Any:
        return self._all(handle, 36)

    def _all(self, handle: int, value: int) -> int:
        if handle:
            raise NvmlError
        return value


def test_what_the_driver_does_not_tell_is_left_open() -> None:
    watch = GpuWatch({}, Nvml())
    assert watch.look(["0", "1", "2"]) == {"0": BUSY, "1": GpuUse(memory_mib=70123.0)}


def test_idle_and_application_clocks_do_not_slow_a_gpu_down() -> None:
    assert slowed_by(0x1 | 0x2 | 0x10 | 0x100) == ()
    assert slowed_by(0x8 | 0x40 | 0x80) == ("hw_power_brake", "hw_slowdown", "hw_thermal")


def test_a_row_has_means_and_the_worst_of_memory_and_heat() -> None:
    cool = GpuUse(1.0, 10.0, 100.0, 41.0, None, ())
    row = gpu_sample("a", 3, START, [BUSY, cool, GpuUse()])
    assert (row.utilization, row.memory_mib, row.temperature_c, row.sm_clock_mhz) == (50.0, 70123.0, 61.0, 1980.0)
    assert (row.looks, row.throttled, row.throttled_by) == (3, pytest.approx(1 / 3), BUSY.throttled_by)


def test_looks_become_a_row_a_minute_for_each_gpu() -> None:
    windows = GpuWindows()
    for second in range(0, 130, 5):
        for gpu in (0, 1):
            windows.add("a", GpuLook(1, 1, gpu, BUSY), START + timedelta(seconds=second))
    assert [(row.gpu, row.looks) for row in windows.take_rows()] == [(0, 12), (1, 12), (0, 12), (1, 12)]
    windows.close_all()
    assert [row.looks for row in windows.take_rows()] == [2, 2]
