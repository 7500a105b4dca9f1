"""What a node has besides its GPUs: made-up /proc, /sys and /etc below tmp_path."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from orchestrator.hardware.environment import nccl_interface, node_facts, on_network
from orchestrator.hardware.model import Gpu, Nic, Node, Shape
from orchestrator.hardware.nvml import GpuState
from orchestrator.hardware.probe import Probe, Versions
from orchestrator.health.facts import Adapter

BRIDGE, A, B = "0000:10:01.0", "0000:1a:00.0", "0000:1b:00.0"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05"
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05"


def acs_config(control: int) -> bytes:
    """A bridge's configuration space: AER at 0x100, then ACS."""
    data = bytearray(4096)
    data[0x100:0x104] = struct.pack("<I", 0x0001 | 1 << 16 | 0x140 << 20)
    data[0x140:0x148] = struct.pack("<IHH", 0x000D | 1 << 16, 0x5F, control)
    return bytes(data)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Two GPUs below one bridge; the bridge's ACS is hidden, as from everybody but root."""
    devices = tmp_path / "sys/bus/pci/devices"
    devices.mkdir(parents=True)
    for bus in (BRIDGE, A, B):
        real = tmp_path / "sys/devices/pci0000:10" / (BRIDGE if bus == BRIDGE else f"{BRIDGE}/{bus}")
        real.mkdir(parents=True, exist_ok=True)
        (devices / bus).symlink_to(real)
    write(tmp_path, {"proc/sys/kernel/hostname": "gpu-07", f"sys/bus/pci/devices/{BRIDGE}/config": "x" * 64})
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def found(**more: object) -> Probe:
    gpus = (Gpu(0, "NVIDIA H100", bus_id=A), Gpu(1, "NVIDIA H100", bus_id=B))
    nics = (Nic("mlx5_0", rate_gbps=400, state="ACTIVE"), Nic("mlx5_0", port=2, state="DOWN"))
    states = (
        GpuState(0, mig=False, ecc=True, uncorrected_errors=1),
        GpuState(1, mig=True, ecc=False, recovery_action="GPU_RESET"),
    )
    node = Node("gpu-07", Shape(gpus, ("NV18",), nics, peer_access=more.pop("peers", ("OK",))))  # type: ignore[arg-type]
    return Probe(node, states, Versions("580.95.05", "13.0", str(more.pop("kernel", "6.8.0"))), 1024, "b0")


def look(root: Path, environ: dict[str, str] | None = None, **more: object):
    return node_facts(found(**more), environ or {}, root=root, limit=lambda _: -1)


def test_the_drivers_and_the_kernels_part_is_told(machine: Path) -> None:
    write(machine, {"sys/class/infiniband/mlx5_0/fw_ver": "28.39.1002\n"})
    facts = look(machine)
    assert (facts.node, facts.driver, facts.cuda_driver, facts.kernel) == ("gpu-07", "580.95.05", "13.0", "6.8.0")
    assert (facts.gpus, facts.mig, facts.ecc_off, facts.ecc_errors) == (("NVIDIA H100",) * 2, 1, 1, 1)
    assert facts.gpus_unfit == ("GPU 1: the driver asks for GPU_RESET",)
    assert (facts.shm, facts.memlock, facts.hostname, facts.boot_id) == (1 << 30, float("inf"), "gpu-07", "b0")
    assert facts.adapters == (
        Adapter("mlx5_0", 400, "28.39.1002", True),
        Adapter("mlx5_0:2", None, "28.39.1002", False),
    )


def test_pairs_without_peer_access_are_named_and_unknown_is_not_none(machine: Path) -> None:
    assert look(machine, peers=("CNS",)).peers_denied == ("0-1 CNS",)
    assert look(machine).peers_denied == ()
    assert look(machine, peers=()).peers_denied is None


@pytest.mark.parametrize(
    ("files", "kernel", "reaches"),
    [
        ({}, "6.8.0", None),
        ({"proc/driver/nvidia/version": PROPRIETARY}, "6.8.0", False),
        ({"proc/driver/nvidia/version": PROPRIETARY, "sys/module/nvidia_peermem/version": "1"}, "6.8.0", True),
        ({"proc/driver/nvidia/version": OPEN}, "6.8.0", True),
        ({"proc/driver/nvidia/version": OPEN}, "5.4.0-150", False),
    ],
)
def test_adapters_reach_gpus_by_the_module_or_by_dma_buf(
    machine: Path, files: dict[str, str], kernel: str, reaches: bool | None
) -> None:
    write(machine, files)
    assert look(machine, kernel=kernel).peer_memory is reaches


@pytest.mark.parametrize(("kind", "on"), [("DMA", True), ("DMA-FQ", True), ("identity", False)])
def test_an_iommu_that_passes_through_counts_as_off(machine: Path, kind: str, on: bool) -> None:
    assert look(machine).iommu is None
    group = machine / "sys/kernel/iommu_groups/7"
    write(group, {"type": kind})
    for bus in (A, B):
        (machine / "sys/bus/pci/devices" / bus / "iommu_group").symlink_to(group)
    assert look(machine).iommu is on


@pytest.mark.parametrize(("control", "bridges"), [(0x1D, (BRIDGE,)), (0x04, (BRIDGE,)), (0x11, ()), (0, ())])
def test_acs_is_read_where_it_is_shown(machine: Path, control: int, bridges: tuple[str, ...]) -> None:
    assert look(machine).acs is None
    (machine / f"sys/bus/pci/devices/{BRIDGE}/config").write_bytes(acs_config(control))
    assert look(machine).acs == bridges


def test_a_config_space_whose_list_runs_in_a_circle_has_an_end(machine: Path) -> None:
    data = bytearray(4096)
    data[0x100:0x104] = struct.pack("<I", 0x0001 | 0x100 << 20)
    (machine / f"sys/bus/pci/devices/{BRIDGE}/config").write_bytes(bytes(data))
    assert look(machine).acs == ()


def test_nccls_variables_and_files_are_found(machine: Path) -> None:
    write(machine, {"etc/nccl.conf": "# left behind\nNCCL_P2P_DISABLE=1\nNCCL_ALGO = Ring\n"})
    write(machine, {"home/ana/.nccl.conf": "NCCL_ALGO=Tree\nnothing\n"})
    facts = look(machine, {"HOME": "/home/ana", "NCCL_DEBUG": "INFO", "PATH": "/bin"})
    assert facts.environment == {"NCCL_DEBUG": "INFO"}
    assert facts.conf == {"NCCL_P2P_DISABLE": "1", "NCCL_ALGO": "Tree"}
    write(machine, {"opt/own.conf": "NCCL_ALGO=NVLS"})
    assert look(machine, {"HOME": "/home/ana", "NCCL_CONF_FILE": "/opt/own.conf"}).conf["NCCL_ALGO"] == "NVLS"


def test_stray_plugins_are_found_once_each(machine: Path) -> None:
    libraries = ("opt/ofi/lib/libnccl-net.so", "usr/lib/libnccl-net-spc.so", "usr/lib/libnccl.so")
    write(machine, dict.fromkeys(libraries, "") | {"etc/ld.so.conf.d/ofi.conf": "/opt/ofi/lib\n"})
    (machine / "lib").symlink_to("usr/lib")
    facts = look(machine, {"LD_LIBRARY_PATH": "/opt/ofi/lib:relative"})
    assert facts.plugins == ("/opt/ofi/lib/libnccl-net.so", "/usr/lib/libnccl-net-spc.so")


CONTAINERS: list[tuple[dict[str, str], dict[str, str], str]] = [
    ({}, {}, "none"),
    ({".dockerenv": ""}, {}, "docker"),
    ({".dockerenv": ""}, {"NVIDIA_PYTORCH_VERSION": "25.08"}, "docker (NVIDIA PyTorch 25.08)"),
    ({"run/.containerenv": 'engine="podman-5"\nimage="nvcr.io/x:1"\n'}, {}, "podman (nvcr.io/x:1)"),
    ({"run/.containerenv": ""}, {}, "podman"),
    ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
    ({}, {"APPTAINER_CONTAINER": "/sif/torch.sif"}, "apptainer (/sif/torch.sif)"),
]


@pytest.mark.parametrize(("files", "environ", "kind"), CONTAINERS)
def test_containers_are_told_apart(machine: Path, files: dict[str, str], environ: dict[str, str], kind: str) -> None:
    write(machine, files)
    assert look(machine, environ).container == kind


def test_the_interface_is_the_one_that_nccl_would_choose() -> None:
    names = ["lo", "docker0", "eth0", "ib0"]
    assert nccl_interface(names, {}) == "ib0"
    assert nccl_interface(names[:3], {}) == "eth0"
    assert nccl_interface(["lo", "docker0"], {}) == "docker0"
    assert nccl_interface(["lo"], {}) == "lo"
    assert nccl_interface([], {}) is None
    assert nccl_interface(["eth10", "eth1"], {"NCCL_SOCKET_IFNAME": "eth1"}) == "eth10"
    assert nccl_interface(["eth10", "eth1"], {"NCCL_SOCKET_IFNAME": "=eth1"}) == "eth1"
    assert nccl_interface(names, {"NCCL_SOCKET_IFNAME": "^lo,docker"}) == "eth0"
    assert nccl_interface(names, {"NCCL_SOCKET_IFNAME": "bond"}) is None


def test_the_mtu_is_that_of_the_interface(machine: Path) -> None:
    write(machine, {"sys/class/net/eth0/mtu": "9000\n"})
    assert on_network(look(machine), "eth0", root=machine).mtu == 9000
    assert on_network(look(machine), "eth7", root=machine).mtu is None
    assert on_network(look(machine), None, root=machine).interface is None


def test_an_empty_machine_is_a_valid_answer(tmp_path: Path) -> None:
    facts = node_facts(Probe(Node("x")), {}, root=tmp_path, limit=lambda _: 1024)
    assert (facts.gpus, facts.acs, facts.mig, facts.nofile, facts.adapters) == ((), None, None, 1024, ())
