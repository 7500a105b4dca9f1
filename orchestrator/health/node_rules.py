"""What is known to go wrong on one node: a rule each, on what is known of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from packaging.version import Version

from orchestrator.health.compatibility import MINIMUM_DRIVER, minimum_driver, nccl_of_torch, version
from orchestrator.health.facts import NodeFacts, active_adapters, counted, size
from orchestrator.health.finding import Finding, Severity

SHM_SCANT = 1 << 30
"""Bytes. Docker's default is 64 MiB; a rank's channels take about 10 MiB for each peer, data loaders come on top."""
FILES_SCANT = 8192
"""A socket or two for each channel and peer, and torch's data loaders."""
VIRTUAL = re.compile(r"(lo|docker|veth|virbr|br-|cni|cali|flannel|tun|tap|wg|podman)")
"""Interfaces that lead to containers and tunnels of the host itself, not to other hosts."""


def interpreter_answers(facts: NodeFacts) -> Iterator[Finding]:
    """An interpreter that is missing on one node, or cannot load its torch there, fails every run with a rank on it."""
    if facts.python_problem is not None:
        problem = f"{facts.python} {facts.python_problem}: no rank can start"
        yield Finding("error", facts.node, problem, "install the same interpreter and torch at that path on every node")


def driver_runs_cuda(facts: NodeFacts) -> Iterator[Finding]:
    """A CUDA newer than the driver allows does not start: every rank fails at its first CUDA call."""
    needed, has = minimum_driver(facts.cuda), version(facts.driver)
    if needed and has and has < Version(needed):
        older = max((major for major, driver in MINIMUM_DRIVER.items() if has >= Version(driver)), default=None)
        yield Finding(
            "error",
            facts.node,
            f"driver {facts.driver} is older than {needed}, which torch {facts.torch} needs for CUDA {facts.cuda}: "
            "no rank will see a GPU",
            f"install driver {needed} or newer" + (f", or a torch for CUDA {older}" if older else ""),
        )


def torch_uses_gpus(facts: NodeFacts) -> Iterator[Finding]:
    """Without torch, or with a torch that cannot use the GPUs, a run fails there or computes on CPUs unnoticed."""
    if facts.torch is None and facts.python_problem is None:
        yield Finding(
            "error", facts.node, "torch is not there: no rank can start", "install torch for the ranks' python"
        )
    elif facts.torch is not None and facts.gpus and facts.cuda is None:
        problem = f"torch {facts.torch} is a build for CPUs: {counted(facts.gpus)} would stay idle"
        yield Finding("error", facts.node, problem, "install torch's CUDA build")


def gpus_are_seen(facts: NodeFacts) -> Iterator[Finding]:
    """A driver without a GPU is a broken node; a node with neither is only worth a word."""
    if facts.driver and not facts.gpus:
        problem = f"driver {facts.driver} is there but no GPU is: runs on CUDA cannot be placed here"
        yield Finding("warning", facts.node, problem, "look at `nvidia-smi -L` and at `dmesg` for Xid 79")
    elif not facts.gpus:
        problem = (
            "no GPU: ranks compute on CPUs and talk over Gloo, 2 to 3 orders of magnitude slower than NCCL over NVLink"
        )
        yield Finding("note", facts.node, problem, "nothing to mend where that is meant")


def gpus_are_fit(facts: NodeFacts) -> Iterator[Finding]:
    """orch gives no run a GPU that the driver wants reset, nor one that is cut up; somebody must mend or mean it."""
    for text in facts.gpus_unfit:
        yield Finding(
            "warning", facts.node, f"{text}: no run gets this GPU", "drain the node, then do as the driver asks"
        )
    if facts.mig:
        problem = f"{facts.mig} of {len(facts.gpus)} GPUs are cut into MIG instances, which NCCL cannot join: no run gets them"
        yield Finding("warning", facts.node, problem, "nvidia-smi -mig 0, unless it is meant")
    if facts.ecc_errors:
        problem = (
            f"{facts.ecc_errors} memory errors could not be corrected since the driver was loaded: results may be wrong"
        )
        yield Finding("warning", facts.node, problem, "look at `nvidia-smi -q -d ECC,ROW_REMAPPER`; reset the GPU")
    if facts.ecc_off:
        problem = f"ECC is off on {facts.ecc_off} of {len(facts.gpus)} GPUs: a flipped bit goes unnoticed"
        yield Finding("note", facts.node, problem, "nvidia-smi -e 1, then reboot, unless it is meant")


def peers_are_reached(facts: NodeFacts) -> Iterator[Finding]:
    """GPUs that may not reach each other's memory talk through the host's: 12 times slower than NVLink on two H200."""
    if facts.peers_denied:
        pairs = len(facts.gpus) * (len(facts.gpus) - 1) // 2
        problem = (
            f"{len(facts.peers_denied)} of {pairs} pairs of GPUs have no peer access ({', '.join(facts.peers_denied[:4])}"
            f"{', ...' if len(facts.peers_denied) > 4 else ''}): their traffic goes through the host's memory"
        )
        mend = "look at `nvidia-smi topo -p2p r`; CNS: the chipset does not allow it, else turn ACS and the IOMMU off"
        yield Finding("warning", facts.node, problem, mend)


def acs_is_off(facts: NodeFacts) -> Iterator[Finding]:
    """ACS sends what one device sends another up to the root complex and back: P2P is slow, GPUDirect RDMA too."""
    if facts.acs and len(facts.gpus) > 1:
        problem = f"PCIe ACS redirects P2P on {len(facts.acs)} bridges above GPUs ({', '.join(facts.acs[:2])}): slow, or hanging"
        mend = "on bare metal turn ACS off in the firmware, or with `setpci -s BRIDGE ECAP_ACS+0x6.w=0000`; in a VM leave it"
        yield Finding("warning", facts.node, problem, mend)


def nccl_is_torchs(facts: NodeFacts) -> Iterator[Finding]:
    """Another libnccl.so than torch was built with is one that nobody has tested with it."""
    expected = facts.nccl or nccl_of_torch(facts.torch)
    if expected and facts.nccl_loaded and version(expected) != version(facts.nccl_loaded):
        yield Finding(
            "warning",
            facts.node,
            f"NCCL {facts.nccl_loaded} is loaded, torch {facts.torch} was built with {expected}",
            "take the other libnccl.so.2 out of LD_LIBRARY_PATH and LD_PRELOAD",
        )


def shared_memory_suffices(facts: NodeFacts) -> Iterator[Finding]:
    """Ranks of one node that have no P2P, and data loaders, pass their data through /dev/shm."""
    if facts.shm is not None and facts.shm < SHM_SCANT and len(facts.gpus) > 1:
        problem = f"shared memory (/dev/shm) has {size(facts.shm)}: NCCL or a data loader will fail with a bus error"
        mend = "start the container with --shm-size=16g or --ipc=host (Kubernetes: an emptyDir of medium Memory)"
        yield Finding("error" if facts.shm <= 64 << 20 else "warning", facts.node, problem, mend)


def memory_can_be_locked(facts: NodeFacts) -> Iterator[Finding]:
    """RDMA needs its buffers locked; NCCL's IB transport fails, or falls back to sockets, where it may not."""
    if facts.adapters and facts.memlock is not None and facts.memlock < 1 << 30:
        problem = (
            f"only {size(facts.memlock)} of memory may be locked: InfiniBand and RoCE cannot register their buffers"
        )
        yield Finding(
            "error", facts.node, problem, "ulimit -l unlimited (Docker: --ulimit memlock=-1; systemd: LimitMEMLOCK)"
        )


def files_suffice(facts: NodeFacts) -> Iterator[Finding]:
    """Every channel to every peer holds files open; beyond the limit a large run fails when it connects."""
    if facts.nofile is not None and facts.nofile < FILES_SCANT:
        problem = (
            f"a process may have {facts.nofile:.0f} files open: runs of many ranks fail with 'Too many open files'"
        )
        yield Finding("warning", facts.node, problem, "ulimit -n 65536 (systemd: LimitNOFILE)")


Holds = Callable[[str], bool]


def _on(value: str) -> bool:
    return value not in ("", "0")


def _any(value: str) -> bool:
    return True


VARIABLES: tuple[tuple[str, Holds, Severity, str, str], ...] = (
    ("NCCL_P2P_DISABLE", _on, "error", "GPUs of one node talk through the host's memory instead of NVLink", "unset it"),
    ("NCCL_SHM_DISABLE", _on, "error", "ranks of one node without P2P talk over the network", "unset it"),
    ("NCCL_IB_DISABLE", _on, "error", "InfiniBand and RoCE are not used: nodes talk over TCP", "unset it"),
    (
        "NCCL_NET_GDR_LEVEL",
        lambda v: v in ("0", "LOC"),
        "error",
        "adapters never reach the GPUs' memory directly",
        "unset it",
    ),
    (
        "NCCL_NET_GDR_LEVEL",
        lambda v: v in ("5", "SYS"),
        "warning",
        "adapters reach GPUs across sockets, slowly",
        "unset it",
    ),
    ("NCCL_P2P_LEVEL", lambda v: v in ("0", "LOC"), "error", "no GPU reaches another's memory", "unset it"),
    ("NCCL_ALGO", _any, "warning", "NCCL cannot choose the algorithm; collectives that lack this one fail", "unset it"),
    (
        "NCCL_PROTO",
        _any,
        "warning",
        "NCCL cannot choose the protocol, and LL128 corrupts data where it is not supported",
        "unset it",
    ),
    ("NCCL_GRAPH_FILE", _any, "warning", "a fixed graph fits one machine only", "unset it"),
    ("NCCL_NET", lambda v: v == "Socket", "error", "nodes talk over TCP whatever adapters there are", "unset it"),
    (
        "NCCL_IB_GID_INDEX",
        lambda v: v != "-1",
        "warning",
        "hosts' tables of GIDs differ, and a fixed index breaks",
        "unset it",
    ),
    (
        "NCCL_SOCKET_IFNAME",
        lambda v: v.strip("=") == "lo",
        "error",
        "lo reaches no other host",
        "name the hosts' common network",
    ),
)
"""Variable, which values, how bad, what happens, how to mend: what NCCL's manual keeps for debugging."""


def variables_are_for_production(facts: NodeFacts) -> Iterator[Finding]:
    """A switch that somebody set to debug stays set, and every later run is slow without an error."""
    for name, holds, severity, breaks, mend in VARIABLES:
        value = facts.variables.get(name)
        if value is not None and holds(value):
            where = "" if name in facts.environment else " in nccl.conf"
            yield Finding(severity, facts.node, f"{name}={value}{where}: {breaks}", mend)


def adapters_are_named_exactly(facts: NodeFacts) -> Iterator[Finding]:
    """NCCL matches the names of adapters by their beginning: mlx5_1 also takes mlx5_10."""
    value = facts.variables.get("NCCL_IB_HCA", "")
    if value and value[0] not in "=^":
        for name in (part.partition(":")[0] for part in value.split(",")):
            more = [a.name for a in facts.adapters or () if a.name.startswith(name) and a.name != name]
            if more and any(a.name == name for a in facts.adapters or ()):
                yield Finding(
                    "warning",
                    facts.node,
                    f"NCCL_IB_HCA={value} also takes {', '.join(more)}, whose name begins with {name}",
                    f"NCCL_IB_HCA=={value}",
                )


def no_stray_plugin(facts: NodeFacts) -> Iterator[Finding]:
    """NCCL loads any libnccl-net.so that it finds, and takes its network instead of its own."""
    if facts.plugins and "NCCL_NET_PLUGIN" not in facts.variables:
        problem = f"{', '.join(facts.plugins)} will be loaded and may replace NCCL's own network"
        yield Finding(
            "note", facts.node, problem, "NCCL_NET_PLUGIN=none, unless it is meant (AWS, Google Cloud, SHARP)"
        )


def interface_reaches_others(facts: NodeFacts) -> Iterator[Finding]:
    """NCCL takes the first interface that looks usable, which may lead only to containers of its own host."""
    if facts.interface and facts.interface != "lo" and VIRTUAL.match(facts.interface):
        problem = f"NCCL will use {facts.interface}, which other hosts do not reach: runs of several nodes hang at their start"
        yield Finding("error", facts.node, problem, "NCCL_SOCKET_IFNAME== and the interface that the hosts share")


def adapters_work(facts: NodeFacts) -> Iterator[Finding]:
    """An adapter without a link is left out silently, and the node gets less bandwidth than its peers."""
    down = [adapter.name for adapter in facts.adapters or () if not adapter.active]
    if down and len(down) < len(facts.adapters or ()):
        problem = f"{len(down)} of {len(facts.adapters or ())} adapters have no link: {', '.join(down)}"
        yield Finding(
            "warning", facts.node, problem, "look at the cable and the switch's port, or leave them out on every node"
        )


def adapters_reach_gpus(facts: NodeFacts) -> Iterator[Finding]:
    """Without GPUDirect RDMA every byte between nodes goes through the host's memory."""
    if facts.gpus and facts.peer_memory is False and active_adapters(facts) not in (None, "none"):
        problem = f"adapters ({active_adapters(facts)}) cannot reach the GPUs' memory: neither nvidia_peermem nor DMA-BUF is there"
        yield Finding("error", facts.node, problem, "modprobe nvidia_peermem, or the open kernel modules of the driver")


def iommu_is_off(facts: NodeFacts) -> Iterator[Finding]:
    """On bare metal an IOMMU sends P2P over PCIe through the root complex: slow, or hanging."""
    if facts.iommu and len(facts.gpus) > 1:
        problem = "the IOMMU is on: P2P between GPUs over PCIe is slow or hangs (NVLink is not touched)"
        yield Finding(
            "warning", facts.node, problem, "iommu=off or iommu=pt on the kernel's command line; in a VM leave it"
        )


NODE_RULES: tuple[Callable[[NodeFacts], Iterable[Finding]], ...] = (
    interpreter_answers,
    driver_runs_cuda,
    torch_uses_gpus,
    gpus_are_seen,
    gpus_are_fit,
    peers_are_reached,
    acs_is_off,
    nccl_is_torchs,
    shared_memory_suffices,
    memory_can_be_locked,
    files_suffice,
    variables_are_for_production,
    adapters_are_named_exactly,
    no_stray_plugin,
    interface_reaches_others,
    adapters_work,
    adapters_reach_gpus,
    iommu_is_off,
)
