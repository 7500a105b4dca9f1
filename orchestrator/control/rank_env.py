"""The environment of a rank: what torchrun would give it, what orch adds, and nothing of Ray."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from orchestrator.control.backend import RankStart, StartPart
from orchestrator.control.stack_taker import recorder_env
from orchestrator.control.trackers import tracker_env

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


def interpreter_env(base: Mapping[str, str], python: str | None) -> tuple[str, dict[str, str]]:
    """The path of an interpreter (None: orch's own), and the node's environment as its ranks get it."""
    path = python or sys.executable
    # Our own PYTHONPATH holds packages for our own interpreter.
    env = {k: v for k, v in base.items() if python is None or k != "PYTHONPATH"}
    return path, env | {"PATH": f"{Path(path).parent}:{base.get('PATH', os.defpath)}"}


def rank_env(
    base: Mapping[str, str],
    part: StartPart,
    rank: RankStart,
    *,
    visible: tuple[str, ...],
    cores: int,
    mark: str,
    nccl_log: Path | None = None,
    recorder: Path | None = None,
) -> dict[str, str]:
    """Everything one rank finds in its environment.

    `visible` are CUDA's own names of the node's GPUs, by orch's index; `nccl_log` is the folder of NCCL's logs, where they are
    read, `recorder` that of torch's flight recorder. What the controller chose and the job set (part.env) wins over the node's
    environment, and the ranks' coordinates win over all.
    """
    local_world = len(part.ranks)
    env = dict(base)
    if recorder is not None and part.device == "cuda":
        # A job that says where its own dumps go keeps them there.
        env.update(recorder_env(recorder))
    # As torchrun does, but with the cores there are: ranks that share a node must not each start a thread per core.
    env["OMP_NUM_THREADS"] = str(max(1, cores // max(1, local_world)))
    # By these libraries see that a launcher of torchrun's kind started them, and scripts which attempt they are.
    env["TORCHELASTIC_RUN_ID"] = str(part.run)
    env["TORCHELASTIC_RESTART_COUNT"] = str(max(0, part.attempt - 1))
    env["TORCHELASTIC_MAX_RESTARTS"] = str(part.max_restarts)
    env.update(part.env)
    env.update(part.secrets)
    env.update(tracker_env(rank.rank, env))
    if nccl_log is not None:
        env["NCCL_DEBUG_FILE"] = str(nccl_log / f"nccl-{rank.rank}.%p.log")
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


def cpus_by_numa(root: Path = Path("/sys/devices/system/node")) -> dict[int, tuple[int, ...]]:
    """The CPUs of each NUMA node that this process may run on; empty where the kernel does not say."""
    mine = os.sched_getaffinity(0)
    found = {}
    for folder in root.glob("node[0-9]*"):
        text = (folder / "cpulist").read_text().strip()
        spans = (part.partition("-") for part in text.split(",") if part)
        cpus = {cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1)}
        if cpus & mine:
            found[int(folder.name.removeprefix("node"))] = tuple(sorted(cpus & mine))
    return found
