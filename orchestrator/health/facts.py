"""What is known of one node's software, adapters and limits: what the version matrix compares and a verdict looks at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Adapter:
    """An InfiniBand or RoCE adapter (one port)."""

    name: str
    rate: float | None = None
    """Gb/s."""
    firmware: str | None = None
    active: bool = True


@dataclass(frozen=True)
class Interpreter:
    """What one interpreter brings on one node, as it says itself."""

    python: str
    """Its path."""
    version: str | None = None
    torch: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    nccl: str | None = None
    nccl_loaded: str | None = None
    nccl_path: str | None = None
    plugins: tuple[str, ...] = ()
    """Paths of libnccl-net*.so beside the NCCL that is loaded."""
    problem: str | None = None
    """Why ranks cannot be started with it, in words that follow its path: `is not there`."""


@dataclass(frozen=True)
class NodeFacts:
    """One node as its probe saw it. None is what could not be found out, never what is absent."""

    node: str
    python: str | None = None
    """Path of the interpreter that torch's part is about."""
    python_version: str | None = None
    python_problem: str | None = None
    driver: str | None = None
    cuda_driver: str | None = None
    """The newest CUDA that the driver supports."""
    torch: str | None = None
    cuda: str | None = None
    """What torch was built with; None in a torch for CPUs."""
    cudnn: str | None = None
    nccl: str | None = None
    """What torch was built with."""
    nccl_loaded: str | None = None
    """The library that is loaded."""
    nccl_path: str | None = None
    """Where that library is."""
    gpus: tuple[str, ...] = ()
    """Their models."""
    gpus_unfit: tuple[str, ...] = ()
    """What the driver has against some of them: `GPU 3: the driver asks for GPU_RESET`."""
    mig: int | None = None
    """How many GPUs are cut into MIG instances."""
    ecc_off: int | None = None
    """How many GPUs that have ECC have it switched off."""
    ecc_errors: int | None = None
    """Errors that ECC could not correct since the driver was loaded, over all GPUs."""
    peers_denied: tuple[str, ...] | None = None
    """Pairs of GPUs that may not reach each other's memory, and the driver's word for why: `0-1 CNS`."""
    acs: tuple[str, ...] | None = None
    """PCI bridges above the GPUs whose Access Control Services send P2P up to the root; shown to root alone."""
    container: str | None = None
    """What kind of container this is, with its image where that can be told: `docker`, `podman (nvcr.io/x:1)`; `none`."""
    kernel: str | None = None
    hostname: str | None = None
    boot_id: str | None = None
    shm: int | None = None
    """Bytes of /dev/shm."""
    memlock: float | None = None
    """Bytes that a process may lock; infinity where there is no limit."""
    nofile: float | None = None
    """Files that a process may have open."""
    adapters: tuple[Adapter, ...] | None = None
    peer_memory: bool | None = None
    """Whether the kernel lets adapters reach the GPUs' memory (nvidia_peermem or DMA-BUF)."""
    iommu: bool | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    """NCCL_* found in the environment that ranks would inherit."""
    conf: Mapping[str, str] = field(default_factory=dict)
    """Variables that /etc/nccl.conf or ~/.nccl.conf sets."""
    plugins: tuple[str, ...] = ()
    """Paths of libnccl-net*.so on the library path."""
    interface: str | None = None
    """The network interface that NCCL will use."""
    mtu: int | None = None
    """Of that interface."""
    clock_ahead: float | None = None
    """Seconds by which its clock is certainly ahead of the asker's; negative where it is behind."""

    @property
    def variables(self) -> dict[str, str]:
        """What NCCL would find set: the environment wins over the files."""
        return {**self.conf, **self.environment}

    def with_interpreter(self, one: Interpreter) -> NodeFacts:
        """The node with what this interpreter brings."""
        return replace(
            self,
            python=one.python,
            python_version=one.version,
            python_problem=one.problem,
            torch=one.torch,
            cuda=one.cuda,
            cudnn=one.cudnn,
            nccl=one.nccl,
            nccl_loaded=one.nccl_loaded,
            nccl_path=one.nccl_path,
            plugins=tuple(dict.fromkeys((*self.plugins, *one.plugins))),
        )


def counted(names: tuple[str, ...]) -> str:
    """`8 NVIDIA H100`; `none`."""
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items())) or "none"


def active_adapters(facts: NodeFacts) -> str | None:
    """The adapters whose link is up, with their rates; `none`; None where nothing is known of them."""
    if facts.adapters is None:
        return None
    active = [f"{a.name} ({a.rate:g} Gb/s)" if a.rate else a.name for a in facts.adapters if a.active]
    return ", ".join(sorted(active)) or "none"


def size(number: float) -> str:
    """Bytes as a person would say them."""
    if number == float("inf"):
        return "unlimited"
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= factor:
            return f"{number / factor:.4g} {unit}"
    return f"{number:.0f} B"
