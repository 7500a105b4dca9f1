"""What an attempt broke of, as it is recorded and told: the failure, its kind, and whose fault kinds are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Blame: TypeAlias = Literal["user", "infra", "teardown"]
"""Whose fault: the script's and its job file's, the cluster's, or that of another rank's end."""

KINDS: dict[str, tuple[Blame, str]] = {
    "python": ("user", "an uncaught exception of the script"),
    "exit": ("user", "an exit code that the script chose, without an exception"),
    "left_early": ("user", "a rank ended with 0 while the others still needed it"),
    "signal": ("user", "a crash (SIGSEGV, SIGABRT, ...); infra where somebody else sent it (SIGKILL, SIGTERM, ...)"),
    "oom": ("user", "the kernel killed the rank, or a worker of it, for want of memory"),
    "cuda_oom": ("user", "the GPU's memory was not enough"),
    "cuda": ("user", "a kernel of the script's broke on the GPU (illegal address, assertion)"),
    "shm": ("user", "shared memory (/dev/shm) was not enough"),
    "dataloader": ("user", "a worker of a DataLoader was killed or ended"),
    "time_limit": ("user", "it ran into its time limit"),
    "secrets_missing": ("user", "a secret that nobody holds any more"),
    "requeue_asked": ("infra", "the script asked to be started again: exit code 75 (EX_TEMPFAIL)"),
    "gpu": ("infra", "a GPU or NVLink fault: an Xid of the hardware, uncorrectable ECC, a GPU that is gone"),
    "nccl": ("infra", "NCCL or its CUDA calls failed on this rank, for no reason seen in the script"),
    "network": ("infra", "ranks lost each other, and none of them had ended first"),
    "hang": ("infra", "ranks waited for one that did not come, or none got on"),
    "port_taken": ("infra", "the port to meet at was taken"),
    "storage": ("infra", "a file system was full, read-only, stale or broke"),
    "node_lost": ("infra", "the node left the cluster, or was not heard of"),
    "lease_expired": ("infra", "the node was cut off until its lease ended its ranks"),
    "ranks_gone": ("infra", "the node is there and has no trace of its ranks"),
    "launcher_lost": ("infra", "the process that keeps the ranks ended, and they with it"),
    "start_failed": ("infra", "a node could not start its ranks"),
    "hold_refused": ("infra", "other work of the cluster held the node"),
    "code_missing": ("infra", "the snapshot of the code is gone"),
    "controller": ("infra", "the controller was restarted while it started the gang"),
    "degraded": ("infra", "NCCL's links were worse than promised; user where the job's own settings made them so"),
    "unknown": ("infra", "ranks ended, and nothing says why"),
}
"""By kind: whose fault it is unless what was seen says otherwise, and what it means."""


@dataclass(frozen=True)
class Failure:
    """Why an attempt broke: the first failing rank or the node, in the user's terms."""

    kind: str
    """One of KINDS."""
    message: str
    rank: int | None = None
    node: str | None = None
    cause: Blame | None = None
    """What the decision to try again reads; that of its kind where none is given."""
    ranks: tuple[int, ...] = ()
    """All ranks with the same error."""
    suspects: tuple[str, ...] = ()
    """Nodes that the next attempt should avoid while others will do."""
    detail: str | None = None
    """An excerpt: the traceback, or the kernel's line."""

    def __post_init__(self) -> None:
        if self.cause is None:
            object.__setattr__(self, "cause", KINDS[self.kind][0] if self.kind in KINDS else "infra")
