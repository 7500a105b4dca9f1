"""What a machine says of itself: a made-up sysfs below tmp_path, and an NVML written by hand."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from orchestrator.hardware.merge import merge
from orchestrator.hardware.model import Gpu, Node, Shape
from orchestrator.hardware.nvml import GpuState
from orchestrator.hardware.probe import Versions, probe
from orchestrator.hardware.sysfs import pci_word
from orchestrator.testing.hardware import node


class FabricInfo(ctypes.Structure):
    _fields_ = (
        ("clusterUuid", ctypes.c_uint8 * 16),
        ("status", ctypes.c_int),
        ("cliqueId", ctypes.c_uint32),
        ("state", ctypes.c_uint32),
    )


class NVMLError(Exception):
    """As pynvml's."""


class FakeNvml:
    """NVML of a machine whose GPUs are at `buses`; `nvlinks[i]` lists the other end of GPU i's links: an address,
    "switch", None for one that is down. Calls in `unsupported` fail."""

    NVMLError = NVMLError
    c_nvmlGpuFabricInfo_v3_t = FabricInfo  # noqa: N815

    def __init__(self, buses=(), nvlinks=None, unsupported=(), lost=(), clique=None, mig=0, denied=None):
        self.buses, self.nvlinks, self.lost = buses, nvlinks or [[] for _ in buses], lost
        self.unsupported, self.clique, self.mig = set(unsupported), clique, mig
        self.denied = denied or {}
        self.open = False

    def __getattribute__(self, name):
        if name.startswith("nvml") and name in object.__getattribute__(self, "unsupported"):
            raise NVMLError("Not Supported")
        return object.__getattribute__(self, name)

    def nvmlInit(self):
        self.open = True

    def nvmlShutdown(self):
        self.open = False

    def nvmlSystemGetDriverVersion(self):
        return b"580.95.05"

    def nvmlSystemGetCudaDriverVersion_v2(self):
        return 13010

    def nvmlDeviceGetCount(self):
        return len(self.buses)

    def nvmlDeviceGetHandleByIndex(self, index):
        if index in self.lost:
            raise NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetName(self, handle):
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=81559 * 2**20)

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return (9, 0)

    def nvmlDeviceGetPciInfo(self, handle):
        return SimpleNamespace(busId=f"0000{self.buses[handle].upper()}".encode())

    def nvmlDeviceGetMigMode(self, handle):
        return [self.mig, self.mig]

    def nvmlDeviceGetEccMode(self, handle):
        return [1, 1]

    def nvmlDeviceGetTotalEccErrors(self, handle, kind, counter):
        assert (kind, counter) == (1, 0)
        return 3

    def nvmlDeviceGetFieldValues(self, handle, fields):
        assert fields == [230]
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=handle))]

    def nvmlDeviceGetTopologyCommonAncestor(self, a, b):
        return 40

    def nvmlDeviceGetP2PStatus(self, a, b, index):
        return {0: self.denied.get((a, b), 0), 2: 0}[index]

    def nvmlDeviceGetNvLinkState(self, handle, link):
        if link >= len(self.nvlinks[handle]):
            raise NVMLError("Invalid Argument")
        return int(self.nvlinks[handle][link] is not None)

    def nvmlDeviceGetNvLinkErrorCounter(self, handle, link, counter):
        assert self.nvlinks[handle][link] is not None
        assert counter in (0, 1, 3)
        return 2

    def nvmlDeviceGetRemappedRows(self, handle):
        return [1, 2, int(handle == 0), int(handle == 1)]

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle, link):
        return 2 if self.nvlinks[handle][link] == "switch" else 0

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle, link):
        end = self.nvlinks[handle][link]
        return SimpleNamespace(busId="FFFFFFFF:FF:FF.0" if end == "switch" else f"0000{end}")

    def nvmlDeviceGetGpuFabricInfoV(self, handle, reference):
        if self.clique is None:
            raise NVMLError("Not Supported")
        info = reference._obj
        info.clusterUuid[:] = [7] * 16
        info.state, info.cliqueId = self.clique[handle], 1
        return 0


class NoNvml:
    NVMLError = NVMLError

    def nvmlInit(self):
        raise NVMLError("NVML Shared Library Not Found")


A, B = "0000:1a:00.0", "0000:9a:00.0"


@pytest.fixture
def machine(tmp_path):
    """Two GPUs and two NICs.

    pci0000:10 (NUMA 0): port - switch - A, mlx5_0          pci0000:90 (NUMA 1): port - B;  port - mlx5_1
    """
    pci = {
        A: "pci0000:10/0000:10:01.0/0000:11:00.0/0000:12:00.0",
        "0000:1b:00.0": "pci0000:10/0000:10:01.0/0000:11:00.0/0000:12:01.0",
        B: "pci0000:90/0000:90:01.0",
        "0000:9b:00.0": "pci0000:90/0000:90:02.0",
    }
    devices = tmp_path / "sys/bus/pci/devices"
    devices.mkdir(parents=True)
    for bus_id, above in pci.items():
        device = tmp_path / "sys/devices" / above / bus_id
        device.mkdir(parents=True)
        (device / "numa_node").write_text("0\n" if "pci0000:10" in above else "1\n")
        (devices / bus_id).symlink_to(f"../../../devices/{above}/{bus_id}")
    for name, bus_id, state, rate in (
        ("mlx5_0", "0000:1b:00.0", "4: ACTIVE", "400 Gb/sec (4X NDR)"),
        ("mlx5_1", "0000:9b:00.0", "1: DOWN", "40 Gb/sec (4X QDR)"),
    ):
        port = tmp_path / "sys/class/infiniband" / name / "ports/1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "rate").write_text(f"{rate}\n")
        (port / "link_layer").write_text("InfiniBand\n")
        (port.parent.parent / "device").symlink_to(f"../../../devices/{pci[bus_id]}/{bus_id}")
    for path, text in {
        "proc/sys/kernel/hostname": "gpu-07",
        "proc/sys/kernel/osrelease": "6.8.0",
        "proc/sys/kernel/random/boot_id": "b0",
        "proc/meminfo": "MemTotal:       2048 kB\nMemFree: 1 kB\n",
        "sys/devices/system/cpu/online": "0-15,32-47",
        "sys/devices/system/node/online": "0-1",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")
    (tmp_path / "dev/shm").mkdir(parents=True)
    return tmp_path


def test_a_machine_is_probed_whole(machine):
    nvml = FakeNvml([A, B], [["switch"] * 18, ["switch"] * 18])
    found = probe(machine, nvml)
    shape = found.node.shape
    assert found.node.name == "gpu-07"
    assert shape.gpus[0] == Gpu(0, "NVIDIA H100 80GB HBM3", 81559, 90, 0, A)
    assert (shape.links, shape.islands) == (("NV18",), ((0, 1),))
    assert (shape.cpus, shape.memory_mib, shape.numas) == (32, 2, 2)
    assert [(nic.name, nic.near, nic.rate_gbps, nic.state, nic.numa) for nic in shape.nics] == [
        ("mlx5_0", (0,), 400, "ACTIVE", 0),
        ("mlx5_1", (), 40, "DOWN", 1),
    ]
    assert found.gpus[1] == GpuState(1, "GPU-1", False, True, 3, "GPU_RESET", False, True, 18, 108)
    assert found.node.uuids == ("GPU-0", "GPU-1")
    assert found.versions == Versions("580.95.05", "13.1", "6.8.0")
    assert found.boot_id == "b0"
    assert found.shm_mib > 0
    assert found.notes == ()
    assert not nvml.open


def test_links_that_are_down_do_not_count_and_direct_ones_go_to_their_gpu(machine):
    nvml = FakeNvml([A, B], [[B, B, None, B], [A, A]])
    assert probe(machine, nvml).node.shape.links == ("NV2",)


def test_gpus_without_nvlink_are_as_far_as_pcie_says(machine):
    assert probe(machine, FakeNvml([A, B])).node.shape.links == ("NODE",)
    sysfs = FakeNvml([A, B], unsupported=["nvmlDeviceGetTopologyCommonAncestor"])
    assert probe(machine, sysfs).node.shape.links == ("SYS",)


CALLS = sorted(name for name in vars(FakeNvml) if name.startswith("nvml") and name not in ("nvmlInit", "nvmlShutdown"))


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_a_driver_does_not_support_costs_only_its_own_answer(machine, call):
    nvml = FakeNvml([A, B], [["switch"] * 18, ["switch"] * 18], unsupported=[call], clique=[3, 3])
    found = probe(machine, nvml)
    gpus = 0 if call in ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex") else 2
    assert (len(found.node.gpus), len(found.node.nics), found.node.shape.cpus) == (gpus, 2, 32)
    assert not nvml.open


def test_a_gpu_that_fell_off_the_bus_is_noted(machine):
    found = probe(machine, FakeNvml([A, B], lost=[1]))
    assert [gpu.index for gpu in found.node.gpus] == [0]
    assert found.notes == ("GPU 1 does not answer.",)


def test_gpus_that_joined_one_nvlink_fabric_give_the_node_its_clique(machine):
    assert probe(machine, FakeNvml([A, B], clique=[3, 3])).node.clique == "07070707-0707-0707-0707-070707070707.1"


def test_gpus_that_did_not_all_join_give_none(machine):
    found = probe(machine, FakeNvml([A, B], clique=[3, 2]))
    assert found.node.clique is None
    assert "not all in one NVLink fabric" in found.notes[0]


def test_a_machine_without_nvml_is_a_node_without_gpus(machine):
    found = probe(machine, NoNvml(), name="cpu-1")
    assert (found.node.name, found.node.gpus, found.node.shape.cpus) == ("cpu-1", (), 32)
    assert "NVML Shared Library Not Found" in found.notes[0]


def test_a_driver_without_its_library_is_told(machine):
    (machine / "proc/driver/nvidia/gpus/0000:1a:00.0").mkdir(parents=True)
    (machine / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Thu Jan 1\n"
    )
    found = probe(machine, NoNvml())
    assert "driver is loaded and has GPUs" in found.notes[1]
    assert found.versions.driver == "570.86.10"


def test_an_empty_root_is_a_machine_too(tmp_path):
    assert probe(tmp_path, NoNvml()).node.name == "localhost"


def test_this_machine_can_be_probed():
    found = probe()
    assert found.node.shape.cpus >= 1
    assert found.versions.kernel


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [(A, "0000:1b:00.0", "PIX"), (B, "0000:9b:00.0", "PHB"), (A, B, "SYS"), (A, "0000:ff:00.0", None), (A, None, None)],
)
def test_distance_follows_the_pci_path(machine, a, b, word):
    assert pci_word(machine, a, b) == word


def test_devices_below_different_switches_of_one_port_are_pxb(machine):
    above = "sys/devices/pci0000:10/0000:10:01.0/0000:11:00.0/0000:12:02.0/0000:13:00.0/0000:14:00.0/0000:1c:00.0"
    (machine / above).mkdir(parents=True)
    (machine / "sys/bus/pci/devices/0000:1c:00.0").symlink_to(machine / above)
    assert pci_word(machine, A, "0000:1c:00.0") == "PXB"


# declared and found


def test_fewer_gpus_than_declared_are_told():
    declared, found = node("a", gpus=8, leaf="l1"), node("vm", gpus=7, model="NVIDIA H100 80GB HBM3")
    merged, disagreements = merge(declared, found)
    assert [str(one) for one in disagreements] == ["a: declared 8 GPUs, found 7"]
    assert (merged.name, len(merged.gpus), merged.labels) == ("a", 7, {"leaf": "l1"})


def test_a_machine_as_declared_has_no_disagreement():
    assert merge(node("a", gpus=8, nics=8), node("b", gpus=8, nics=8, model="NVIDIA H100 80GB HBM3"))[1] == ()


@pytest.mark.parametrize(
    ("declared", "found", "message"),
    [
        (node("a", 2), node("a", 2, model="NVIDIA A100-SXM4-80GB"), "declared H100, found NVIDIA A100-SXM4-80GB"),
        (node("a", 2), node("a", 2, nvlink=None), "declared NV18 between GPUs 0 and 1, found SYS"),
        (node("a", nics=8), node("a", nics=6), "declared 8 NICs, found 6 active"),
        (
            node("a", nics=2),
            node("a", nics=2, rate_gbps=200),
            "declared NICs of 400 Gb/s, found 2 slower, the slowest 200",
        ),
        (node("a", cpus=64), node("a", cpus=32), "declared 64 CPUs, found 32"),
        (node("a", clique="u.1"), node("a", clique="u.2"), "declared NVLink clique u.1, found u.2"),
    ],
)
def test_what_differs_is_told_with_both_values(declared, found, message):
    (one,) = merge(declared, found)[1]
    assert message in str(one)


def test_what_was_not_declared_cannot_disagree():
    declared = Node("a", Shape(tuple(Gpu(i) for i in range(8))))
    merged, disagreements = merge(declared, node("x", gpus=8, nics=8))
    assert disagreements == ()
    assert len(merged.nics) == 8
