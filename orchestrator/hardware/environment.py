"""What ranks will find on this node besides its GPUs: limits, network, the kernel's settings, NCCL's files, a container.

Read from /proc, /sys and /etc below a root. Nothing here needs root or raises; what root alone may see (ACS) is unknown
to others. The sources of each are in NVIDIA's "Troubleshooting" of NCCL and "env.rst" of its manual.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from orchestrator.hardware.nvml import GpuState
from orchestrator.hardware.probe import Probe
from orchestrator.hardware.sysfs import pci_path, text_of
from orchestrator.health.facts import Adapter, NodeFacts

_REDIRECTS = 0b1100
"""Of the ACS control register: P2P Request Redirect and P2P Completion Redirect."""
_ACS_CAPABILITY = 0x000D
_DMA_BUF_KERNEL = (5, 12)
_LIBRARY_FOLDERS = ("usr/lib", "usr/lib64", "lib", "lib64", "usr/local/lib", "usr/local/cuda/lib64")


def node_facts(
    found: Probe,
    environ: Mapping[str, str],
    *,
    root: str | Path = "/",
    limit: Callable[[int], int] = lambda kind: resource.getrlimit(kind)[0],
) -> NodeFacts:
    """The node that `found` is a look at, without what an interpreter brings and without its network interface.

    `environ` is the environment that ranks inherit; `limit` gives a soft limit, -1 for none.
    """
    files = Path(root)
    shape = found.node.shape
    conf: dict[str, str] = {}
    for path in (files / "etc/nccl.conf", _own_conf(files, environ)):
        conf |= _read_conf(path)
    return NodeFacts(
        found.node.name,
        driver=found.versions.driver,
        cuda_driver=found.versions.cuda_driver,
        kernel=found.versions.kernel,
        gpus=tuple(gpu.model or "unknown" for gpu in shape.gpus),
        gpus_unfit=tuple(_unfit(found.gpus)),
        mig=_count(state.mig for state in found.gpus),
        ecc_off=_count(None if state.ecc is None else not state.ecc for state in found.gpus),
        ecc_errors=_count(state.uncorrected_errors for state in found.gpus),
        peers_denied=_denied(found),
        acs=_acs(files, [gpu.bus_id for gpu in shape.gpus]),
        container=_container(files, environ),
        hostname=text_of(files / "proc/sys/kernel/hostname"),
        boot_id=found.boot_id,
        shm=None if found.shm_mib is None else found.shm_mib << 20,
        memlock=_unlimited(limit(resource.RLIMIT_MEMLOCK)),
        nofile=_unlimited(limit(resource.RLIMIT_NOFILE)),
        adapters=_adapters(files, found),
        peer_memory=_peer_memory(files, found),
        iommu=_iommu(files, [gpu.bus_id for gpu in shape.gpus]),
        environment={name: value for name, value in sorted(environ.items()) if name.startswith("NCCL_")},
        conf=conf,
        plugins=tuple(_plugins(files, environ)),
    )


def on_network(facts: NodeFacts, interface: str | None, *, root: str | Path = "/") -> NodeFacts:
    """The node with the interface that NCCL will use, and its MTU."""
    mtu = text_of(Path(root) / "sys/class/net" / interface / "mtu") if interface else None
    return replace(facts, interface=interface, mtu=int(mtu) if mtu and mtu.isdigit() else None)


def nccl_interface(names: Iterable[str], environ: Mapping[str, str]) -> str | None:
    """The interface that NCCL would choose by itself among those that are up, in their order.

    As its `ncclFindInterfaces` does: what NCCL_SOCKET_IFNAME says, else one of InfiniBand, else any but docker's and lo.
    """
    names = list(names)
    asked = environ.get("NCCL_SOCKET_IFNAME", "")
    if asked:
        without, exact = asked.startswith("^"), asked.lstrip("^").startswith("=")
        wanted = asked.lstrip("^=").split(",")
        hits = [n for n in names if any(n == w if exact else n.startswith(w) for w in wanted)]
        return next((n for n in names if (n in hits) is not without), None)
    rows: tuple[Callable[[str], bool], ...] = (
        lambda name: name.startswith("ib"),
        lambda name: not name.startswith(("docker", "lo")),
        lambda name: name.startswith("docker"),
        lambda name: name.startswith("lo"),
    )
    return next((name for row in rows for name in names if row(name)), None)


def _unfit(states: Iterable[GpuState]) -> Iterator[str]:
    for state in states:
        if state.recovery_action not in (None, "NONE"):
            yield f"GPU {state.index}: the driver asks for {state.recovery_action}"


def _count(values: Iterable[int | None]) -> int | None:
    """The sum of what is known; None where nothing is."""
    known = [int(value) for value in values if value is not None]
    return sum(known) if known else None


def _unlimited(value: int) -> float:
    return float("inf") if value < 0 or value >= 1 << 62 else float(value)


def _denied(found: Probe) -> tuple[str, ...] | None:
    if not found.node.shape.peer_access:
        return None
    return tuple(f"{a}-{b} {word}" for a, b, word in found.node.shape.peer_pairs() if word != "OK")


def _adapters(files: Path, found: Probe) -> tuple[Adapter, ...]:
    return tuple(
        Adapter(
            nic.name if nic.port == 1 else f"{nic.name}:{nic.port}",
            nic.rate_gbps,
            text_of(files / "sys/class/infiniband" / nic.name / "fw_ver"),
            nic.state in (None, "ACTIVE"),
        )
        for nic in found.node.nics
    )


def _peer_memory(files: Path, found: Probe) -> bool | None:
    """The module that pins GPU memory for adapters, or DMA-BUF: the driver's open modules on a kernel that has it."""
    if any((files / "sys/module" / name).exists() for name in ("nvidia_peermem", "nv_peer_mem")):
        return True
    if (told := text_of(files / "proc/driver/nvidia/version")) is None:
        return None
    kernel = re.match(r"(\d+)\.(\d+)", found.versions.kernel or "")
    return "Open Kernel Module" in told and kernel is not None and (int(kernel[1]), int(kernel[2])) >= _DMA_BUF_KERNEL


def _iommu(files: Path, buses: Iterable[str | None]) -> bool | None:
    """Whether the IOMMU translates what devices send each other; one that passes through (`identity`) does not."""
    groups = files / "sys/kernel/iommu_groups"
    if not groups.is_dir():
        return None
    of_gpus = [files / "sys/bus/pci/devices" / bus / "iommu_group/type" for bus in buses if bus]
    types = [text_of(path) for path in of_gpus or groups.glob("*/type")]
    return any(kind is not None and kind != "identity" for kind in types)


def _acs(files: Path, buses: Iterable[str | None]) -> tuple[str, ...] | None:
    """The bridges above the GPUs that send P2P up to the root. Others than root see 64 bytes of a device, which do not tell."""
    bridges = dict.fromkeys(bridge for bus in buses for bridge in pci_path(files, bus)[1:-1])
    told = {bridge: _acs_control(files / "sys/bus/pci/devices" / bridge / "config") for bridge in bridges}
    if all(control is None for control in told.values()):
        return None
    return tuple(sorted(bridge for bridge, control in told.items() if control is not None and control & _REDIRECTS))


def _acs_control(config: Path) -> int | None:
    """The ACS control register (PCI Express Base Specification, 7.7.11); 0 where there is none, None where it is hidden."""
    try:
        data = config.read_bytes()
    except OSError:
        return None
    if len(data) <= 0x100:
        return None
    at, seen = 0x100, set[int]()
    while 0x100 <= at <= len(data) - 8 and at not in seen:
        seen.add(at)
        header = int.from_bytes(data[at : at + 4], "little")
        if header & 0xFFFF == _ACS_CAPABILITY:
            return int.from_bytes(data[at + 6 : at + 8], "little")
        at = header >> 20
    return 0


def _container(files: Path, environ: Mapping[str, str]) -> str:
    """What kind of container, and its image where the kind tells it; `none` where nothing shows one."""
    groups = text_of(files / "proc/1/cgroup") or ""
    podman = text_of(files / "run/.containerenv")
    image = environ.get("APPTAINER_CONTAINER") or environ.get("SINGULARITY_CONTAINER")
    if image:
        kind = "apptainer"
    elif "KUBERNETES_SERVICE_HOST" in environ or "kubepods" in groups:
        kind = "kubernetes"
    elif podman is not None or (files / "run/.containerenv").exists():
        kind = "podman"
        named = re.search(r'^image="?([^"\n]+)', podman or "", re.MULTILINE)
        image = named[1] if named else None
    elif (files / ".dockerenv").exists() or "docker" in groups:
        kind = "docker"
    elif "lxc" in groups:
        kind = "lxc"
    else:
        return "none"
    if image is None and (release := environ.get("NVIDIA_PYTORCH_VERSION")):
        image = f"NVIDIA PyTorch {release}"
    return f"{kind} ({image})" if image else kind


def _own_conf(files: Path, environ: Mapping[str, str]) -> Path:
    if given := environ.get("NCCL_CONF_FILE"):
        return files / given.removeprefix("/")
    return files / environ.get("HOME", "/nonexistent").removeprefix("/") / ".nccl.conf"


def _read_conf(path: Path) -> dict[str, str]:
    """NCCL's own form: NAME=VALUE lines, where # begins a comment."""
    lines = (line.strip() for line in (text_of(path) or "").splitlines())
    pairs = (line.partition("=") for line in lines if not line.startswith("#"))
    return {name.strip(): value.strip() for name, equals, value in pairs if equals and name.strip()}


def _plugins(files: Path, environ: Mapping[str, str]) -> Iterator[str]:
    """libnccl-net*.so in LD_LIBRARY_PATH and where ld.so looks."""
    folders = [part for part in environ.get("LD_LIBRARY_PATH", "").split(":") if part.startswith("/")]
    for file in sorted((files / "etc/ld.so.conf.d").glob("*.conf")):
        folders += [line.strip() for line in (text_of(file) or "").splitlines() if line.strip().startswith("/")]
    folders += [f"/{name}" for name in _LIBRARY_FOLDERS]
    seen = set()
    for folder in folders:
        for path in sorted((files / folder.removeprefix("/")).glob("libnccl-net*.so")):
            if (real := path.resolve()) not in seen:
                seen.add(real)
                yield f"{folder.rstrip('/')}/{path.name}"
