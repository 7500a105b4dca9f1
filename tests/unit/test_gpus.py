"""Whether a GPU's memory is free, and what keeps ranks from it, as NVML tells it: the driver's own reserve is nobody's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.control.gpus import memory_is_free, obstacles

MIB = 1 << 20


class FakeNvmlError(Exception):
    pass


@dataclass
class FakeNvml:
    """One GPU; `reserved` is the driver's own, which the second version of the memory's answer keeps apart."""

    used: int
    reserved: int = 0
    processes: int = 0
    tells_apart: bool = True
    answers: bool = True
    NVMLError = FakeNvmlError
    nvmlMemory_v2 = 2  # noqa: N815 - as pynvml has it

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if not self.answers:
            raise FakeNvmlError
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in range(self.processes)]

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> Any:
        if version is None:
            return SimpleNamespace(used=(self.used + self.reserved) * MIB)
        if not self.tells_apart:
            raise FakeNvmlError
        return SimpleNamespace(used=self.used * MIB)


@pytest.mark.parametrize(
    ("gpu", "free"),
    [
        pytest.param(FakeNvml(used=0, reserved=627), True, id="an H200 without processes: the driver reserves 627 MiB"),
        pytest.param(FakeNvml(used=0, reserved=627, tells_apart=False), True, id="as an older driver tells it"),
        pytest.param(
            FakeNvml(used=619, reserved=627), False, id="a CUDA context is left, of a process that is not listed"
        ),
        pytest.param(FakeNvml(used=9000, tells_apart=False), False, id="memory is left, as an older driver tells it"),
        pytest.param(FakeNvml(used=0, processes=1), False, id="a process is on it"),
        pytest.param(FakeNvml(used=9000, answers=False), True, id="a GPU that does not answer holds nobody up"),
    ],
)
def test_memory_is_free_when_no_process_holds_any(gpu: FakeNvml, free: bool) -> None:
    assert memory_is_free(["0"], gpu) is free


def test_memory_that_is_held_is_told_with_its_size_and_holders() -> None:
    assert obstacles({3: "3"}, FakeNvml(used=70_000, reserved=627, processes=2)) == (
        "70000 MiB of GPU 3 are held by process 0, 1 from outside the run",
    )


@pytest.mark.parametrize(
    "gpu",
    [
        pytest.param(FakeNvml(used=0, reserved=627), id="the driver's reserve"),
        pytest.param(FakeNvml(used=0, reserved=627, tells_apart=False), id="as an older driver tells it"),
        pytest.param(FakeNvml(used=600, processes=1), id="a monitor's CUDA context"),
        pytest.param(FakeNvml(used=9000, answers=False), id="a GPU that does not answer"),
    ],
)
def test_a_little_memory_is_no_obstacle(gpu: FakeNvml) -> None:
    assert obstacles({0: "0"}, gpu) == ()


def test_a_machine_without_room_for_shared_memory_is_unfit_for_several_ranks(tmp_path: Path) -> None:
    idle = FakeNvml(used=0)
    assert obstacles({0: "0", 1: "1"}, idle, tmp_path / "none") == ()
    full = Path("/proc")  # a file system with no room at all
    assert obstacles({0: "0", 1: "1"}, idle, full) == (
        "/proc has 0 MiB left, and NCCL needs some for each pair of ranks",
    )
    assert obstacles({0: "0"}, idle, full) == ()
