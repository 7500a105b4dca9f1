"""What an agent sees of its node every 30 s that may change while the machine stays what it is: counters, states, what is left."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuVitals:
    """One GPU; None is what its driver does not tell."""

    index: int
    uncorrected: int | None = None
    """Memory errors since the driver was loaded that ECC could not correct."""
    remap_pending: bool | None = None
    """A bad row of memory is remapped with the next reset."""
    remap_failed: bool | None = None
    """A bad row could not be remapped: no spare row is left."""
    action: str | None = None
    """What the driver asks for: one of hardware/nvml.py's RECOVERY_ACTIONS."""
    nvlinks: int | None = None
    """That are active."""
    nvlink_errors: int | None = None
    """Replays, recoveries and wrong checksums on all of them since the driver was loaded."""
    held_mib: int | None = None
    """Memory that is in use though no run of this node has the GPU."""
    holders: tuple[int, ...] = ()
    """The processes that hold it, where they can be seen."""


@dataclass(frozen=True)
class Port:
    """A port of an RDMA adapter (`mlx5_0:1`), or the network interface that ranks meet over."""

    name: str
    active: bool
    rate: float | None = None
    """Gb/s."""
    downs: int | None = None
    """How often its link went down, as the kernel counts."""
    rdma: bool = True


@dataclass(frozen=True)
class Disk:
    """Where orch, or a run, writes."""

    what: str
    """`ORCH_HOME`; `attempts`, where their code and logs are laid out; `storage` of checkpoints; `tmp`."""
    path: str
    free: int = 0
    """Bytes that a user may write."""
    total: int = 0
    silent_s: float = 0.0
    """So long it has not answered; then the other two are not known."""


@dataclass(frozen=True)
class Vitals:
    """One look."""

    gpus: tuple[GpuVitals, ...] = ()
    ports: tuple[Port, ...] = ()
    disks: tuple[Disk, ...] = ()
    shm_free: int | None = None
    """Bytes."""
    xids: tuple[str, ...] = ()
    """The kernel's lines of the driver's Xid messages, as far as its log still has them; one that came twice is there twice."""
    boot_id: str | None = None
