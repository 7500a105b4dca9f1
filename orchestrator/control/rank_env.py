"""The environment of a rank: what torchrun would give it, what orch adds, and nothing of Ray."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import psutil

from orchestrator.control.backend import RankStart, StartPart

_NOT_FOR_RANKS = ("RAY_", "ORCH_", "__RAY", "GRPC_")
_SET_BY_RAY = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "PYTHONBREAKPOINT",
        "PYTHONUNBUFFERED",
        "OMP_NUM_THREADS",
        "TF_WARNINGS",
        "LD_PRELOAD",
        "SPT_NOENV",
    }
    | {"_", "OLDPWD", "PWD", "SHLVL"}
)


def base_env(environ: Mapping[str, str]) -> dict[str, str]:
    """The node's environment as ranks and their launcher get it: without what Ray and orch put there for themselves."""
    return {k: v for k, v in environ.items() if not k.startswith(_NOT_FOR_RANKS) and k not in _SET_BY_RAY}


def rank_env(
    base: Mapping[str, str],
    part: StartPart,
    rank: RankStart,
    *,
    interface: str | None,
    visible: tuple[str, ...],
    cores: int,
    mark: str,
) -> dict[str, str]:
    """Everything one rank finds in its environment.

    `visible` are CUDA's own names of the node's GPUs, by orch's index; `interface` carries the node's address; the job's own
    `env:` wins over what orch would choose, and the ranks' coordinates win over all.
    """
    local_world = len(part.ranks)
    env = dict(base)
    # As torchrun does, but with the cores there are: ranks that share a node must not each start a thread per core.
    env["OMP_NUM_THREADS"] = str(max(1, cores // max(1, local_world)))
    if interface is not None:
        env["NCCL_SOCKET_IFNAME"] = f"={interface}"
        env["GLOO_SOCKET_IFNAME"] = interface
    env.update(part.env)
    env.update(part.secrets)
    gpus = ",".join(gpu_name(visible, r.gpu) for r in part.ranks) if part.device == "cuda" else ""
    env.update(
        RANK=str(rank.rank),
        WORLD_SIZE=str(part.world_size),
        LOCAL_RANK=str(rank.local_rank),
        LOCAL_WORLD_SIZE=str(local_world),
        NODE_RANK=str(part.node_rank),
        GROUP_RANK=str(part.node_rank),
        MASTER_ADDR=part.master_addr,
        MASTER_PORT=str(part.master_port),
        # By these libraries see that a launcher of torchrun's kind started them.
        TORCHELASTIC_RUN_ID=str(part.run),
        TORCHELASTIC_RESTART_COUNT=str(part.attempt - 1),
        TORCHELASTIC_MAX_RESTARTS="0",
        CUDA_VISIBLE_DEVICES=gpus,
        ORCH_RUN=str(part.run),
        ORCH_ATTEMPT=str(part.attempt),
        ORCH_MARK=mark,
    )
    return env


def gpu_name(visible: tuple[str, ...], index: int) -> str:
    """CUDA's name of the node's GPU; its index where Ray was told of GPUs that no driver shows."""
    return visible[index] if index < len(visible) else str(index)


def interface_of(address: str) -> str | None:
    """The network interface that carries `address`; None where no interface of this machine has it."""
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family in (socket.AF_INET, socket.AF_INET6) and entry.address.split("%")[0] == address:
                return name
    return None
