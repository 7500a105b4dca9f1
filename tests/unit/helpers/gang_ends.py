"""How the ranks of a gang end, in a few words: what the tests of causes are made of."""

from __future__ import annotations

from orchestrator.health.evidence import Evidence, OutOfMemory, RankEnd, Seen, Word, Xid

GIB = 1 << 30
CLOSED = (
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:14772. This is "
    "typically caused by a remote worker crashing. Check the logs of the remote worker before reporting an error. GLHF! 🏖️"
)
RESET = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:5551: Connection reset by peer."
)
WAITED = "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete"


def a_word(*errors: str, at: float = 10.0, exit: int | None = None) -> Word:  # noqa: A002
    return Word(at, exit, tuple((kind, text) for kind, _, text in (error.partition(": ") for error in errors)))


def raised(*errors: str, at: float = 10.0, code: int = 1, **more) -> RankEnd:
    """A rank whose interpreter told its uncaught exception."""
    return RankEnd(code, at + 0.3, word=a_word(*errors, at=at), **more)


def of(*ends: RankEnd | None, losses=(), xids=(), lines=None, per_node: int = 2, whole: bool = True) -> Evidence:
    """Ranks in order, `per_node` on each of the nodes a, b, ..."""
    ranks = tuple(
        Seen(rank, "abcdefgh"[rank // per_node], rank % per_node, end, tuple((lines or {}).get(rank, ())))
        for rank, end in enumerate(ends)
    )
    return Evidence(ranks, tuple(losses), tuple(xids), whole)


def peer(at: float = 10.5) -> RankEnd:
    return raised(f"RuntimeError: {CLOSED}", at=at)


def stopped(at: float = 11.0) -> RankEnd:
    return RankEnd(-15, at, told_at=at - 0.1)


ROWS = {
    "oom": (RankEnd(-9, 10, oom=OutOfMemory(7, int(31.2 * GIB), 32 * GIB, line="Killed process 7")), {}, "oom", "user"),
    "oom of a worker": (
        raised("RuntimeError: DataLoader worker (pid 8) is killed by signal: Killed.", oom=OutOfMemory(8, GIB, GIB)),
        {},
        "oom",
        "user",
    ),
    "requeue": (RankEnd(75, 10), {}, "requeue_asked", "infra"),
    "requeue that an abort hid": (RankEnd(-6, 10, word=a_word(exit=75)), {}, "requeue_asked", "infra"),
    "cuda out of memory": (
        raised(
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
        ),
        {},
        "cuda_oom",
        "user",
    ),
    "nccl out of memory": (
        raised(
            "torch.distributed.DistBackendError: NCCL error in: x.cpp:1, unhandled cuda error\nCuda failure 2 'out of memory'"
        ),
        {},
        "cuda_oom",
        "user",
    ),
    "xid": (
        RankEnd(-6, 10),
        {"xids": [("a", Xid(9.5, 79, "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", 1))]},
        "gpu",
        "infra",
    ),
    "ecc": (raised("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered"), {}, "gpu", "infra"),
    "no device": (raised("RuntimeError: No CUDA GPUs are available"), {}, "gpu", "infra"),
    "illegal access": (
        raised("RuntimeError: CUDA error: an illegal memory access was encountered"),
        {},
        "cuda",
        "user",
    ),
    "xid of the program": (
        RankEnd(-11, 10),
        {"xids": [("a", Xid(9.9, 31, "NVRM: Xid (PCI:0000:3b:00): 31, MMU Fault", 1))]},
        "cuda",
        "user",
    ),
    "bus error": (
        RankEnd(-7, 10),
        {
            "lines": {
                1: (
                    "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory.",
                )
            }
        },
        "shm",
        "user",
    ),
    "dataloader without shared memory": (
        raised(
            "RuntimeError: DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit."
        ),
        {},
        "shm",
        "user",
    ),
    "port taken": (
        raised(
            "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500, "
            "useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
        ),
        {},
        "port_taken",
        "infra",
    ),
    "disk full": (raised("OSError: [Errno 28] No space left on device"), {}, "storage", "infra"),
    "checkpoint on a full disk": (
        raised(
            "RuntimeError: [enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/3"
        ),
        {},
        "storage",
        "infra",
    ),
    "nccl used wrongly": (
        raised(
            "torch.distributed.DistBackendError: NCCL error in: x, invalid usage, ncclInvalidUsage\nDuplicate GPU detected"
        ),
        {},
        "python",
        "user",
    ),
    "nccl": (
        raised(
            "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1691, unhandled cuda error, NCCL version "
            "2.28.9\nncclUnhandledCudaError: Call to CUDA function failed."
        ),
        {},
        "nccl",
        "infra",
    ),
    "dataloader": (
        raised(
            "RuntimeError: DataLoader worker (pid(s) 5473) exited unexpectedly",
            "RuntimeError: DataLoader worker (pid 5473) is killed by signal: Killed. ",
        ),
        {},
        "dataloader",
        "user",
    ),
    "own connection": (raised("ConnectionResetError: [Errno 104] Connection reset by host"), {}, "network", "infra"),
    "exception": (raised("ValueError: the batch has 0 samples"), {}, "python", "user"),
    "exception that an abort followed": (raised("ValueError: x", code=-6), {}, "python", "user"),
    "kill": (RankEnd(-9, 10), {}, "signal", "infra"),
    "term from outside": (RankEnd(-15, 10), {}, "signal", "infra"),
    "crash": (RankEnd(-11, 10), {}, "signal", "user"),
    "abort": (RankEnd(-6, 10), {}, "signal", "user"),
    "exit": (RankEnd(3, 10), {}, "exit", "user"),
}
