"""Why NCCL took a worse transport than the hardware offers: the likely causes, those with evidence first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.health.facts import NodeFacts
from orchestrator.health.nccl_log import NcclLog


@dataclass(frozen=True)
class Cause:
    """One explanation, and what to do about it."""

    text: str
    mend: str
    shown: bool
    """True where the log, the environment or the nodes' facts show it; else it is only possible."""


@dataclass(frozen=True)
class Scene:
    """What is known of a run when its transport is judged."""

    seen: NcclLog
    env: Mapping[str, str]
    """NCCL_* as the ranks had them; what the log says was set is added to it."""
    nodes: tuple[NodeFacts, ...]
    """The nodes that the links in question join, as far as they are known."""

    def on(self, name: str) -> bool:
        return self.value(name) not in (None, "", "0")

    def value(self, name: str) -> str | None:
        if name in self.env:
            return self.env[name]
        if name in self.seen.env:
            return self.seen.env[name]
        return next((facts.variables[name] for facts in self.nodes if name in facts.variables), None)


Row = tuple[Callable[[Scene], bool], Callable[[Scene], bool], str, str]
"""When it is shown to be so; when it is possible; what; how to mend it."""


def _always(scene: Scene) -> bool:
    return True


def _never(scene: Scene) -> bool:
    return False


def _one_host_many_nodes(scene: Scene) -> bool:
    return scene.seen.one_host_counted_apart


def _named_adapter_is_absent(scene: Scene) -> bool:
    asked = scene.value("NCCL_IB_HCA") or ""
    if not asked or asked.startswith("^"):
        return False
    exact = asked.startswith("=")
    names = [part.partition(":")[0] for part in asked.lstrip("=").split(",")]
    return any(
        facts.adapters is not None
        and not any(a.name == name if exact else a.name.startswith(name) for a in facts.adapters for name in names)
        for facts in scene.nodes
    )


def _differs(scene: Scene, name: str) -> bool:
    return any(variable == name and len(values) > 1 for variable, values in scene.seen.environment)


def _off(scene: Scene, name: str) -> bool:
    return scene.value(name) in ("0", "LOC")


NO_P2P: tuple[Row, ...] = (
    (
        lambda s: s.on("NCCL_P2P_DISABLE"),
        _never,
        "NCCL_P2P_DISABLE is set, which keeps the GPUs from reaching each other's memory",
        "take NCCL_P2P_DISABLE out of the job's env, the nodes' environment and nccl.conf",
    ),
    (
        lambda s: _off(s, "NCCL_P2P_LEVEL"),
        lambda s: s.value("NCCL_P2P_LEVEL") is not None,
        "NCCL_P2P_LEVEL keeps P2P to GPUs that are closer than these",
        "unset NCCL_P2P_LEVEL",
    ),
    (
        lambda s: "p2p refused" in s.seen.notes or any(facts.peers_denied for facts in s.nodes),
        _always,
        "the GPUs have no peer access: NVLink is down, or the driver or hypervisor refuses it",
        "look at `nvidia-smi topo -p2p r` and `nvidia-smi nvlink -s`; on bare metal turn PCIe ACS and the IOMMU off",
    ),
    (
        lambda s: any(facts.iommu for facts in s.nodes),
        _never,
        "the IOMMU is on, and P2P over PCIe is refused",
        "boot with iommu=off or iommu=pt",
    ),
    (
        _never,
        lambda s: s.seen.nodes <= 1,
        "each rank sees only its own GPU (CUDA_VISIBLE_DEVICES, or a container each), and CUDA cannot open the peer's memory",
        "let every rank of a node see all of its GPUs, and start containers with --ipc=host",
    ),
)

FAR: Row = (
    _never,
    _always,
    "the GPUs are under different PCIe root ports, where NCCL prefers shared memory: nothing is wrong then",
    "see `nvidia-smi topo -m`; place ranks on GPUs that NVLink or one PCIe switch joins",
)
"""Possible only where NVLink was not promised."""

NO_NVLINK_BETWEEN_NODES: tuple[Row, ...] = (
    (lambda s: s.value("NCCL_MNNVL_ENABLE") == "0", _never, "NCCL_MNNVL_ENABLE=0 is set", "unset NCCL_MNNVL_ENABLE"),
    (
        _never,
        _always,
        "the nodes are in no common NVLink domain, or its IMEX service is down on one of them",
        "look at `nvidia-smi -q | grep -A4 Fabric` and `nvidia-imex-ctl -N`; NCCL_MNNVL_ENABLE=1 fails instead of falling back",
    ),
)

APART: tuple[Row, ...] = (
    (
        lambda s: _differs(s, "NCCL_HOSTID"),
        _never,
        "NCCL_HOSTID differs between ranks of one host, which NCCL takes for several hosts",
        "give all ranks of a host the same NCCL_HOSTID, or none",
    ),
    (
        lambda s: s.on("NCCL_SHM_DISABLE"),
        _never,
        "NCCL_SHM_DISABLE is set: GPUs without P2P are left with the network",
        "unset NCCL_SHM_DISABLE",
    ),
    (
        lambda s: _one_host_many_nodes(s) and not (s.on("NCCL_SHM_DISABLE") and s.on("NCCL_P2P_DISABLE")),
        _never,
        "NCCL takes one host for several: NCCL_HOSTID differs between its ranks, or neither P2P nor shared memory works",
        "give all ranks of a host the same NCCL_HOSTID (or none); start containers with --ipc=host",
    ),
    (
        lambda s: "shm failed" in s.seen.notes or any((f.shm or 1 << 40) <= 64 << 20 for f in s.nodes),
        _always,
        "shared memory is too small or not shared between the ranks' containers",
        "start containers with --ipc=host, or --shm-size=16g",
    ),
    (
        lambda s: len(s.seen.hosts) > 1 and len(s.nodes) == 1,
        _always,
        "the ranks run in containers of different host names, which NCCL takes for different hosts",
        "start containers with --uts=host and --ipc=host, or set the same NCCL_HOSTID in them",
    ),
)

NO_RDMA: tuple[Row, ...] = (
    (lambda s: s.on("NCCL_IB_DISABLE"), _never, "NCCL_IB_DISABLE is set", "unset NCCL_IB_DISABLE"),
    (
        lambda s: s.value("NCCL_NET") == "Socket",
        _never,
        "NCCL_NET=Socket asks for TCP",
        "unset NCCL_NET, or set it to IB",
    ),
    (
        _named_adapter_is_absent,
        lambda s: s.value("NCCL_IB_HCA") is not None,
        "NCCL_IB_HCA names no adapter that is there",
        "compare NCCL_IB_HCA with `ibstat -l` on every node",
    ),
    (
        lambda s: bool(s.seen.no_adapter),
        lambda s: not s.seen.adapters,
        "NCCL found no InfiniBand or RoCE device: /dev/infiniband is not in the container, or its libraries are missing",
        "start containers with --device=/dev/infiniband and --ulimit memlock=-1, with libibverbs installed",
    ),
    (
        lambda s: any(facts.adapters is not None and not any(a.active for a in facts.adapters) for facts in s.nodes),
        _never,
        "a node has no adapter with a link",
        "look at `ibstat` there: the port must be Active",
    ),
    (
        lambda s: any(facts.memlock is not None and facts.memlock < 1 << 30 for facts in s.nodes),
        _never,
        "too little memory may be locked for RDMA",
        "ulimit -l unlimited",
    ),
    (
        _never,
        lambda s: not s.seen.no_adapter,
        "the network's plugin (libnccl-net) was not loaded or failed",
        "look for NET/Plugin in the log; set NCCL_NET to fail instead of falling back",
    ),
)

NO_GDR: tuple[Row, ...] = (
    (
        lambda s: _off(s, "NCCL_NET_GDR_LEVEL"),
        _never,
        "NCCL_NET_GDR_LEVEL turns GPUDirect RDMA off",
        "unset NCCL_NET_GDR_LEVEL",
    ),
    (
        lambda s: any(facts.peer_memory is False for facts in s.nodes) or "module" in dict(s.seen.gdr_refused),
        lambda s: "adapter" in dict(s.seen.gdr_refused) or not s.seen.gdr_refused,
        "the kernel does not let adapters reach the GPUs' memory: neither nvidia_peermem nor DMA-BUF is there",
        "modprobe nvidia_peermem, or the open kernel modules of the driver",
    ),
    (
        lambda s: "distance" in dict(s.seen.gdr_refused),
        _never,
        "the adapter that is used is too far from the GPU (beyond a PCIe switch): the one beside it is missing or left out",
        "compare NCCL_IB_HCA with `nvidia-smi topo -m`; in a VM give NCCL the cloud's NCCL_TOPO_FILE",
    ),
    (
        _never,
        lambda s: any(name.startswith("NET/") and name != "NET/IB" for name in s.seen.transports),
        "the network's plugin was built or started without GPUDirect RDMA",
        "look at the plugin's own lines in the log (NET/OFI, NET/Plugin)",
    ),
)


def likely(rows: tuple[Row, ...], scene: Scene) -> tuple[Cause, ...]:
    """The causes that hold or may hold, in that order. Where one is shown, what is merely possible is left out."""
    shown = tuple(Cause(what, mend, True) for sure, _, what, mend in rows if sure(scene))
    return shown or tuple(Cause(what, mend, False) for sure, may, what, mend in rows if may(scene))
