"""What an agent sees of its node: disks that may hang, links with the kernel's count of their losses, clocks."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.clock_watch import ClockWatch
from orchestrator.control.disks import Disks
from orchestrator.control.inventory import vitals_of
from orchestrator.hardware.links import ports
from orchestrator.hardware.model import Nic, Node
from orchestrator.hardware.nvml import GpuState
from orchestrator.hardware.probe import Probe
from orchestrator.health.vitals import Disk, GpuVitals, Port

# === disks ===


def test_each_disk_is_told_once_and_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (disk,) = Disks({"attempts": tmp_path, "tmp": tmp_path / "deeper", "storage": tmp_path / "none"}).look()
    assert (disk.what, disk.path) == ("attempts", str(tmp_path))
    assert 0 < disk.free <= disk.total


def test_a_disk_that_hangs_is_told_for_how_long_and_holds_up_nothing() -> None:
    gate, now = threading.Event(), [100.0]

    def room(path: Path) -> tuple[int, int, int]:
        if path.name == "mnt":
            gate.wait(30)
        return hash(path), 5, 10

    def monotonic() -> float:
        now[0] += 0.25  # Each look at the clock: so nobody waits for long.
        return now[0]

    disks = Disks({"attempts": Path("/a"), "storage": Path("/mnt")}, room, monotonic)
    first = disks.look()
    assert first[0] == Disk("attempts", "/a", 5, 10)
    assert (first[1].what, first[1].silent_s > 0) == ("storage", True)
    now[0] += 40
    assert disks.look()[1].silent_s > 40
    gate.set()
    disks.join()
    assert disks.look()[1] == Disk("storage", "/mnt", 5, 10)


# === links ===


def file(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text + "\n")


def test_losses_of_a_link_are_the_kernels_own_count(tmp_path: Path) -> None:
    file(tmp_path, "sys/class/infiniband/mlx5_0/ports/1/counters/link_downed", "4")
    file(tmp_path, "sys/class/infiniband/mlx5_1/device/net/eth7/carrier_down_count", "2")
    file(tmp_path, "sys/class/net/eth0/carrier_down_count", "3")
    file(tmp_path, "sys/class/net/eth0/carrier", "1")
    file(tmp_path, "sys/class/net/eth0/speed", "25000")
    nics = (
        Nic("mlx5_0", rate_gbps=400.0, state="ACTIVE"),
        Nic("mlx5_1", rate_gbps=100.0, state="DOWN"),
        Nic("mlx5_2"),
    )
    assert ports(nics, "eth0", tmp_path) == (
        Port("mlx5_0:1", True, 400.0, 4),
        Port("mlx5_1:1", False, 100.0, 2),
        Port("mlx5_2:1", True, None, None),
        Port("eth0", True, 25.0, 3, rdma=False),
    )


def test_an_interface_may_know_no_speed_or_have_no_link(tmp_path: Path) -> None:
    file(tmp_path, "sys/class/net/veth0/speed", "-1")
    file(tmp_path, "sys/class/net/veth0/carrier", "0")
    assert ports((), "veth0", tmp_path) == (Port("veth0", False, None, None, rdma=False),)
    assert ports((), "lo", tmp_path) == ports((), None, tmp_path) == ()


# === GPUs ===


def test_vitals_are_of_the_gpus_that_orch_has_by_its_own_index() -> None:
    state = GpuState(6, "GPU-6", uncorrected_errors=1, recovery_action="NONE", remap_pending=True, nvlinks=18)
    seen = vitals_of(Probe(Node("a"), (state,), boot_id="b"))
    assert seen.gpus == (GpuVitals(0, 1, True, None, "NONE", 18, None),)
    assert seen.boot_id == "b"


# === clocks ===


@given(st.floats(-1e6, 1e6), st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5), st.floats(0, 60)), min_size=1))
def test_what_is_told_of_a_clock_is_certain(ahead: float, ways: list[tuple[float, float, float]]) -> None:
    watch, now = ClockWatch(), 1e9
    for there, back, pause in ways:
        heard, told = now + there + ahead, now + there + pause + back
        watch.take(now, heard, now + there + pause + ahead, told)
        now = told
    said = watch.ahead
    assert said is not None
    assert abs(said) <= abs(ahead) + 1e-3
    quickest = min(there + back for there, back, _ in ways[-8:])
    assert abs(said - ahead) <= quickest + 1e-3


def test_a_clock_that_was_never_asked_is_not_known() -> None:
    watch = ClockWatch()
    assert watch.ahead is None
    # The head's clock was set back while it waited for the answer.
    watch.take(100.0, 50.0, 60.0, 90.0)
    assert watch.ahead is None


@pytest.mark.parametrize(("ahead", "told"), [(0.4, 0.0), (-0.4, 0.0), (3.0, 2.5), (-3.0, -2.5)])
def test_half_of_the_way_is_uncertain(ahead: float, told: float) -> None:
    watch = ClockWatch()
    watch.take(100.0, 100.5 + ahead, 102.0 + ahead, 102.5)
    assert watch.ahead == pytest.approx(told)
